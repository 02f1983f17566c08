"""Readings to cumulative joules: every device's, their sum, and windows of it.

A counter tells the truth at the instant it changes and nothing in between, so
the curve has a point (an edge) only where the reading changed. An edge is put
midway between the last reading with the old value and the first with the new
one: it is off by at most half a polling interval, either way. Without a counter,
power is integrated by the trapezoid rule, here and nowhere else. A sensor known to show
everything late has its edges moved back; one known to average over some time is read
once in that time, as its mean is the energy since the reading before.

Energy never runs backwards and no gap is filled: a failed read or a counter that
fell marks the span from the last edge to the next one with its reason. Devices that
serve one engine are one curve: a gap of any of them is a gap of all. It is cut into
windows at edges that follow each other without overlap, so every edge is used once.
A device joins after a stated time of good readings; one that is gone for a stated time
leaves, its joules stay counted, and until then its time is a gap of all.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median

import numpy as np
from numpy.typing import NDArray

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


JOIN_READINGS = 10
JOIN_SECONDS = 5.0
"""Good readings without a break, over at least so long, before a device that was not
there from the beginning joins its group."""

LEAVE_SECONDS = 30.0
"""A device that shows no figure for so long, while others do, leaves its group."""


class DeviceCurve:
    """One device: joules since its first edge, with the reason of every gap."""

    def __init__(self) -> None:
        self.seconds = array("d")
        self.joules = array("d")
        self.reasons = array("b")
        """Code of the span ending here: 0 measured, else 1 + index in GAP_REASONS."""
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
        self._polls: deque[float] = deque(maxlen=64)
        """Widths of the spans in which edges lie, seconds."""
        self._edge_seconds: float | None = None
        """As of the newest of them; asked for with every record."""
        self._first_watts: float | None = None
        self._averaging_seconds = 0.0
        self._delay_seconds = 0.0
        self._next_seconds: float | None = None
        """Where the next mean of an averaging sensor ends."""
        self._shown_watts: float | None = None
        self._updated_seconds = 0.0
        self._updates: deque[float] = deque(maxlen=64)
        """Times between changes of what it shows."""

    def correct(self, averaging_seconds: float, delay_seconds: float) -> None:
        """From now on what it shows is the mean of some time, some time ago.

        What it has not shown yet comes with its next edge.
        """
        self._delay_seconds = delay_seconds
        if self._has_counter is not False or not averaging_seconds:
            return
        self._averaging_seconds = averaging_seconds
        if self._first_watts is not None and self._last_watts is not None:
            late_seconds = averaging_seconds / 2 + delay_seconds
            hidden = late_seconds * (self._last_watts - self._first_watts)
            self._total += max(hidden, 0.0)
        if len(self.seconds):
            self._next_seconds = self.seconds[-1] + averaging_seconds

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
            if self._averaging_seconds:
                self._average(at_seconds, watts, is_held=is_held)
            else:
                self._total = self._power_joules
                self._add_point(at_seconds)
            self._first_watts = (
                watts if self._first_watts is None else self._first_watts
            )
        self._last_seconds = at_seconds

    def _average(self, at_seconds: float, watts: float, *, is_held: bool) -> None:
        """One reading of the mean power of some time; most are not needed.

        The one that is comes with news, as then it is known when the time ended.
        """
        middle = 0.5 * (self._last_seconds + at_seconds)
        is_new = watts != self._shown_watts
        if is_new and self._shown_watts is not None:
            self._updates.append(middle - self._updated_seconds)
        if is_new:
            self._shown_watts, self._updated_seconds = watts, middle
        update_seconds = median(self._updates) if self._updates else 0.0
        # between two updates the same mean is shown on: half of that looks like delay
        delay_seconds = max(self._delay_seconds - update_seconds / 2, 0.0)
        seen_seconds = middle - delay_seconds
        if self._next_seconds is None or not is_held:  # after a gap
            self._add_point(seen_seconds)
            self._next_seconds = seen_seconds + self._averaging_seconds
            return
        due_seconds = self._next_seconds
        is_due = is_new and seen_seconds >= due_seconds - update_seconds / 2
        if is_due or seen_seconds >= due_seconds + update_seconds:
            self._total += watts * max(seen_seconds - self.seconds[-1], 0.0)
            self._add_point(seen_seconds)
            self._next_seconds = seen_seconds + self._averaging_seconds

    def interrupt(self, reason: str) -> None:
        """From the last edge to the next one nothing is known for sure."""
        code = 1 + GAP_REASONS.index(reason)
        self._pending = max(self._pending, code)
        self._is_resynchronised = False
        self._last_watts = None

    def bridge(self, at_seconds: float) -> None:
        """Nothing is known up to here, nor from here on: time passes all the same."""
        self.interrupt(SENSOR_GAP)
        if len(self.seconds) and at_seconds > self.seconds[-1]:
            self.seconds.append(at_seconds)
            self.joules.append(self._total)
            self.reasons.append(self._pending)

    def needs(self, joules: float | None, watts: float | None) -> bool:
        """Whether a reading lacks the figure that this device is measured by."""
        return (watts if self._has_counter is False else joules) is None

    @property
    def total_joules(self) -> float:
        """Measured since the first edge."""
        return self._total

    @property
    def period_seconds(self) -> float | None:
        """Typical time between two edges; None until five were seen."""
        return median(self._periods) if len(self._periods) >= 5 else None

    @property
    def has_counter(self) -> bool:
        """Whether it is measured by a counter of energy, not by its power."""
        return self._has_counter is True

    @property
    def edge_seconds(self) -> float:
        """Standard deviation of an edge's instant: it lies anywhere between two polls.

        0 where power is integrated: then edges are the readings themselves.
        """
        if self._edge_seconds is None:
            self._edge_seconds = median(self._polls or (0.0,)) / math.sqrt(12)
        return self._edge_seconds

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
        self._polls.append(at_seconds - self._last_seconds)
        self._edge_seconds = None
        middle = 0.5 * (self._last_seconds + at_seconds)
        self._add_point(middle - self._delay_seconds)

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


FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of time between two edges, measured or a gap."""

    edges_seconds: FloatArray
    """Shape (edges,), at least two, rising."""
    joules: FloatArray
    """Shape (edges,): cumulative joules of the group there."""
    gap_reason: str | None
    """None where every span in it was measured."""

    @property
    def start_seconds(self) -> float:
        """The first edge."""
        return float(self.edges_seconds[0])

    @property
    def end_seconds(self) -> float:
        """The last edge."""
        return float(self.edges_seconds[-1])


@dataclass(slots=True)
class _Candidate:
    """A device that was not there from the beginning."""

    since_seconds: float
    curve: DeviceCurve = field(default_factory=DeviceCurve)
    readings: int = 0


class GroupCurve:
    """Devices that serve one engine: their curves are added, never told apart."""

    def __init__(
        self,
        *,
        join_readings: int = 0,
        join_seconds: float = 0.0,
        leave_seconds: float = math.inf,
    ) -> None:
        """As made without options, devices join at once and never leave."""
        self.devices: dict[str, DeviceCurve] = {}
        self.joined_total = 0
        """Devices that joined after the first reading."""
        self.left_total = 0
        self._join_readings = join_readings
        self._join_seconds = join_seconds
        self._leave_seconds = leave_seconds
        self._candidates: dict[str, _Candidate] = {}
        self._lacking_since: dict[str, float] = {}
        self._gone: list[DeviceCurve] = []
        """Curves of devices that left, until all of them is settled."""
        self._left_joules = 0.0
        self._left_resets = 0
        self._lateness: tuple[float, float] | None = None

    def correct(self, averaging_seconds: float, delay_seconds: float) -> None:
        """From now on every device shows the mean of some time, some time ago."""
        self._lateness = averaging_seconds, delay_seconds
        for curve in self.devices.values():
            curve.correct(averaging_seconds, delay_seconds)

    def observe(
        self,
        at_seconds: float,
        readings: Iterable[tuple[str, float | None, float | None]],
    ) -> None:
        """(device, joules, watts) of all devices, read at one moment."""
        missing = set(self.devices)
        shown: set[str] = set()
        candidates, self._candidates = self._candidates, {}
        is_first = not self.devices
        for device, joules, watts in readings:
            if device not in self.devices and not is_first:
                candidate = candidates.get(device) or _Candidate(at_seconds)
                if not self._joins(device, candidate, at_seconds, joules, watts):
                    continue
            missing.discard(device)
            curve = self.devices.setdefault(device, DeviceCurve())
            curve.observe(at_seconds, joules, watts)
            if self._lateness is not None and device in candidates:
                curve.correct(*self._lateness)
            if joules is not None or watts is not None:
                shown.add(device)
            if curve.needs(joules, watts):
                self._lacking_since.setdefault(device, at_seconds)
            else:
                self._lacking_since.pop(device, None)
        for device in missing:
            self.devices[device].interrupt(SENSOR_GAP)
            self._lacking_since.setdefault(device, at_seconds)
        if self._lacking_since and shown:
            self._part(at_seconds, shown)

    def interrupt(self, reason: str) -> None:
        """The whole group could not be read."""
        for curve in self.devices.values():
            curve.interrupt(reason)

    @property
    def period_seconds(self) -> float | None:
        """The slowest device's."""
        known = [curve.period_seconds for curve in self.devices.values()]
        return max((period for period in known if period is not None), default=None)

    @property
    def has_counter(self) -> bool:
        """Whether every device counts its energy."""
        curves = self.devices.values()
        return bool(curves) and all(curve.has_counter for curve in curves)

    @property
    def edge_seconds(self) -> float:
        """The widest device's standard deviation of an edge's instant."""
        return max((c.edge_seconds for c in self.devices.values()), default=0.0)

    @property
    def likely_period_seconds(self) -> float:
        """The same; until it is known, the widest span between two edges so far."""
        if (period := self.period_seconds) is not None:
            return period
        spans = [np.diff(curve.seconds) for curve in self.devices.values()]
        return max((float(span.max()) for span in spans if len(span)), default=0.0)

    @property
    def counter_power_ratio(self) -> float | None:
        """The one furthest from 1: one bad sensor must not hide behind others."""
        known = [curve.counter_power_ratio for curve in self.devices.values()]
        ratios = [ratio for ratio in known if ratio is not None]
        return max(ratios, key=lambda ratio: abs(ratio - 1), default=None)

    @property
    def resets(self) -> int:
        """Times that a counter was seen to fall."""
        present = sum(curve.resets for curve in self._curves())
        return present + self._left_resets

    @property
    def start_seconds(self) -> float | None:
        """From here on the whole group is measured; None before."""
        curves = [curve.seconds for curve in self.devices.values()]
        if not curves or not all(len(seconds) for seconds in curves):
            return None
        return max(seconds[0] for seconds in curves)

    @property
    def end_seconds(self) -> float | None:
        """Up to here the whole group is measured; None before the first edges."""
        curves = [curve.seconds for curve in self.devices.values()]
        if not curves or not all(len(seconds) for seconds in curves):
            return None
        return min(seconds[-1] for seconds in curves)

    def joules_at(self, at_seconds: FloatArray) -> FloatArray:
        """Cumulative joules of the group at measured instants, shape as given."""
        total = np.full_like(at_seconds, self._left_joules)
        for curve in self._curves():
            total += np.interp(at_seconds, curve.seconds, curve.joules)
        return total

    def next_window(self, start_seconds: float, width_seconds: float) -> Window | None:
        """The next window from an instant on; None while its end is not measured.

        It ends at the first edge that makes it `width_seconds` wide or at a gap;
        a gap is a window of its own, however short or long.
        """
        last = self.end_seconds
        if last is None or last <= start_seconds:
            return None
        edges = self._edges(start_seconds, last)
        if len(edges) < 2:  # the first device has not changed since
            return None
        reasons = self._reasons(edges)
        changes = np.flatnonzero(np.diff(reasons) != 0)
        same = int(changes[0]) + 1 if len(changes) else len(reasons)
        if reasons[0]:
            stop = same
        else:
            wide = edges[1 : same + 1] >= start_seconds + width_seconds - 1e-9
            enough = np.flatnonzero(wide)
            if not len(enough) and same == len(reasons):
                return None
            stop = int(enough[0]) + 1 if len(enough) else same
        edges = edges[: stop + 1]
        reason = GAP_REASONS[reasons[0] - 1] if reasons[0] else None
        return Window(edges, self.joules_at(edges), reason)

    def forget(self, before_seconds: float) -> None:
        """Drop what is settled."""
        for curve in self._curves():
            curve.forget(before_seconds)
        settled = [c for c in self._gone if c.seconds[-1] <= before_seconds]
        for curve in settled:
            self._gone.remove(curve)
            self._left_joules += curve.total_joules
            self._left_resets += curve.resets

    def _curves(self) -> list[DeviceCurve]:
        """Every curve that a window may touch, those of the group first."""
        return [*self.devices.values(), *self._gone]

    def _joins(
        self,
        device: str,
        candidate: _Candidate,
        at_seconds: float,
        joules: float | None,
        watts: float | None,
    ) -> bool:
        """Whether a device that came later is one of the group now.

        Its joules count from its first edge after that: those before are nobody's.
        """
        if joules is None and watts is None:
            return False
        candidate.curve.observe(at_seconds, joules, watts)
        candidate.readings += 1
        if self._join_readings and (
            candidate.readings < self._join_readings
            or at_seconds < candidate.since_seconds + self._join_seconds
            or len(candidate.curve.seconds) < 2
        ):
            self._candidates[device] = candidate
            return False
        self.joined_total += 1
        return True

    def _part(self, at_seconds: float, shown: set[str]) -> None:
        """Let go of devices that show nothing; for others time passes, unmeasured."""
        for device, since_seconds in list(self._lacking_since.items()):
            if at_seconds < since_seconds + self._leave_seconds:
                continue
            curve = self.devices[device]
            curve.bridge(at_seconds)
            if device in shown:  # it is there: its energy is unknown, not nothing
                self._lacking_since[device] = at_seconds
                continue
            del self.devices[device], self._lacking_since[device]
            self.left_total += 1
            if len(curve.seconds):
                self._gone.append(curve)

    def _edges(self, start_seconds: float, end_seconds: float) -> FloatArray:
        """Edges of the first device, and where any device's gaps begin and end."""
        found: list[FloatArray] = []
        for index, curve in enumerate(self._curves()):
            seconds = np.array(curve.seconds)
            if index == 0:
                found.append(seconds)
            else:
                gaps = np.flatnonzero(np.array(curve.reasons))
                found += [seconds[gaps], seconds[np.maximum(gaps - 1, 0)]]
        inside = np.unique(np.concatenate(found))
        inside = inside[(inside > start_seconds) & (inside <= end_seconds)]
        return np.concatenate(([start_seconds], inside))

    def _reasons(self, edges: FloatArray) -> NDArray[np.int64]:
        """Reason code of each span between edges: the gravest of any device."""
        middle = (edges[1:] + edges[:-1]) / 2
        reasons = np.zeros(len(middle), np.int64)
        for curve in self._curves():
            at = np.searchsorted(np.array(curve.seconds), middle)
            # after its last edge a device has left: that is no gap
            codes = np.array([*curve.reasons, 0], np.int64)
            reasons = np.maximum(reasons, codes[at])
        return reasons
