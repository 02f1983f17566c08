"""Cumulative joules of every device, from readings faster than the sensor updates.

A counter tells the truth at the instant it changes and nothing in between, so
the curve has a point (an edge) only where the reading changed. An edge is put
midway between the last reading with the old value and the first with the new
one: it is off by at most half a polling interval, either way. Without a counter,
power is integrated by the trapezoid rule, here and nowhere else.

Energy never runs backwards and no gap is filled: a failed read or a counter that
fell marks the span from the last edge to the next one with its reason.
"""

from __future__ import annotations

from array import array
from collections import deque
from statistics import median

SENSOR_GAP = "sensor_gap"
COUNTER_RESET = "counter_reset"
GAP_REASONS = (SENSOR_GAP, COUNTER_RESET)

HOLD_SECONDS = 2.0
"""Power readings further apart are not integrated: nobody saw the time between."""

MAX_POINTS = 36_000
"""An hour at 10 Hz: a curve that nobody settles (another device of the group is
lost) gets coarser then, instead of longer."""

STALE_PERIODS = 5.0
STALE_SECONDS = 5.0
"""A counter that stood still for both is a gap: the sensor was stuck, not the GPU."""


class DeviceCurve:
    """One device: joules since its first edge, with the reason of every gap."""

    def __init__(self) -> None:
        self.seconds = array("d")
        self.joules = array("d")
        self.reasons = array("b")
        """Of the span that ends here: 0 measured, else 1 + index in GAP_REASONS."""
        self.resets = 0
        self._has_counter: bool | None = None
        self._last_joules: float | None = None
        self._last_seconds = 0.0
        self._last_watts: float | None = None
        self._span_watts: float | None = None
        self._power_joules = 0.0
        self._power_start: tuple[float, float] | None = None
        self._power_end = 0.0
        self._edge_joules = 0.0
        self._total = 0.0
        self._pending = 0
        self._is_resynchronised = True
        self._periods: deque[float] = deque(maxlen=64)

    def observe(
        self, at_seconds: float, joules: float | None, watts: float | None
    ) -> None:
        """One reading; readings must come in order of time."""
        if self._has_counter is None and (joules is not None or watts is not None):
            self._has_counter = joules is not None
        if (joules if self._has_counter else watts) is None:
            self.interrupt(SENSOR_GAP)
            return
        is_held = self._integrate(at_seconds, watts)
        if joules is not None and self._has_counter:
            self._count(at_seconds, joules)
        elif watts is not None and not self._has_counter:
            if not is_held and len(self.seconds):
                self._pending = max(self._pending, 1 + GAP_REASONS.index(SENSOR_GAP))
            self._total = self._power_joules
            self._add_point(at_seconds)
        self._last_seconds = at_seconds

    def interrupt(self, reason: str) -> None:
        """From the last edge to the next one nothing is known for sure."""
        code = 1 + GAP_REASONS.index(reason)
        self._pending = max(self._pending, code)
        self._is_resynchronised = False
        self._last_watts = None

    @property
    def total_joules(self) -> float:
        """Measured since the first edge."""
        return self._total

    @property
    def period_seconds(self) -> float | None:
        """Typical time between two edges; None until five were seen."""
        return median(self._periods) if len(self._periods) >= 5 else None

    @property
    def counter_power_ratio(self) -> float | None:
        """Counter joules by integrated power, from the first edge to the last."""
        if not self._has_counter or self._power_start is None or self._pending:
            return None
        at_start, total_then = self._power_start
        integrated = self._power_end - at_start
        return (self._total - total_then) / integrated if integrated > 0 else None

    @property
    def watts(self) -> float | None:
        """Mean power over the last span between edges; None in a gap."""
        return None if self._pending else self._span_watts

    def forget(self, before_seconds: float) -> None:
        """Drop points that are settled, but the last one of them."""
        keep = 0
        while keep + 1 < len(self.seconds) and self.seconds[keep + 1] <= before_seconds:
            keep += 1
        for column in (self.seconds, self.joules, self.reasons):
            del column[:keep]

    def _integrate(self, at_seconds: float, watts: float | None) -> bool:
        """Add trapezoid energy since the last reading; False where it is too old."""
        elapsed = at_seconds - self._last_seconds
        is_held = self._last_watts is not None and elapsed <= HOLD_SECONDS
        if watts is not None and self._last_watts is not None and is_held:
            self._power_joules += 0.5 * (watts + self._last_watts) * elapsed
        elif self._has_counter:
            self._power_start = None  # compare again from the next edge on
        self._last_watts = watts
        return is_held

    def _count(self, at_seconds: float, joules: float) -> None:
        last = self._last_joules
        self._last_joules = joules
        if last is None:
            return
        if joules < last:
            self.resets += 1
            self.interrupt(COUNTER_RESET)
        if not self._is_resynchronised:
            # Someone looks again, but when this value was reached is not known.
            self._is_resynchronised = True
            return
        if joules == last:
            return
        if len(self.seconds) and self._pending != 1 + GAP_REASONS.index(COUNTER_RESET):
            self._total += joules - self._edge_joules
        self._edge_joules = joules
        middle = 0.5 * (self._last_seconds + at_seconds)
        self._add_point(middle)

    def _add_point(self, at_seconds: float) -> None:
        if len(self.seconds) and at_seconds <= self.seconds[-1]:
            return
        if len(self.seconds) and not self._pending:
            self._periods.append(at_seconds - self.seconds[-1])
            if self._has_counter and self._stood_still(at_seconds):
                self._pending = 1 + GAP_REASONS.index(SENSOR_GAP)
        if self._power_start is None and self._last_watts is not None:
            self._power_start = (self._power_joules, self._total)
        self._power_end = self._power_joules
        self._span_watts = None
        if len(self.seconds) and not self._pending:
            span = at_seconds - self.seconds[-1]
            self._span_watts = (self._total - self.joules[-1]) / span
        self.seconds.append(at_seconds)
        self.joules.append(self._total)
        self.reasons.append(self._pending if len(self.seconds) > 1 else 0)
        self._pending = 0
        self._is_resynchronised = True
        if len(self.seconds) > MAX_POINTS:
            self._thin()

    def _thin(self) -> None:
        """Keep every second point, and the bounds of gaps; no joule changes."""
        last = len(self.seconds) - 1
        keep = [
            at
            for at in range(last + 1)
            if at % 2 == 0 or at == last or self.reasons[at] or self.reasons[at + 1]
        ]
        self.seconds = array("d", [self.seconds[at] for at in keep])
        self.joules = array("d", [self.joules[at] for at in keep])
        self.reasons = array("b", [self.reasons[at] for at in keep])

    def _stood_still(self, at_seconds: float) -> bool:
        period = self.period_seconds
        if period is None:
            return False
        limit = max(STALE_SECONDS, STALE_PERIODS * period)
        return at_seconds - self.seconds[-1] > limit
