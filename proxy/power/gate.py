"""The gate between every source and the meter: no reading passes unchecked.

A figure that no device can give is a failed read of that device: it is dropped, the
span becomes a gap, and the rejection is counted with its reason. Rules, in order:

- a figure is finite, not negative, and a counter stays below what any device could
  count in a lifetime; its stamp lies near the present; a device has one reading;
- a figure that a device had and has no more is missing, not zero;
- watts do not exceed what the device may draw;
- a counter does not rise by more than the device may draw, on average over any span.
  After an impossible rise it is believed again once the next reading agrees with the
  odd one: it goes on from there, and the joules of the jump are nobody's;
- a counter agrees with the power integrated beside it, within a factor, over long
  spans; while it does not, its joules are not believed.

Pure: time enters by argument.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import msgspec

from proxy.wire.facts import Reading

Reason = Literal[
    "not_a_number",
    "negative",
    "beyond_counter",
    "beyond_power",
    "rise_beyond_power",
    "counter_contradicts_power",
    "stamp_ahead",
    "stamp_behind",
    "missing",
    "repeated_device",
    "too_many_devices",
]

REASONS: tuple[str, ...] = get_args(Reason)

MAX_WATTS = {"gpu": 3_000.0, "host": 3_000.0, "node": 100_000.0}
"""Per device, by boundary, where neither sensor nor user tells: twice the largest
board sold (1.4 kW), a socket with its memory, a rack behind one meter."""

LIMIT_MARGIN = 2.0
"""A board may exceed its power limit for milliseconds, never twofold on average."""

MAX_JOULES = 1e13
"""A kilowatt for 300 years."""

MAX_DEVICES = 256
FORGET_SECONDS = 600.0
"""Devices of one source: names that change with every page do not pile up."""

MAX_AHEAD_SECONDS = 5.0
"""A stamp further in the future is of no clock; up to there, it is now."""
MAX_BEHIND_SECONDS = 300.0
"""Prometheus itself shows nothing older."""

SLACK_SECONDS = 1.0
"""Jitter between a counter's updates and the reads that show them."""

FIRST_RISE_SECONDS = 60.0
"""The first rise that is seen may be the work of a whole update period: 30 s in a
dcgm-exporter's default, twice that behind a cache."""

CONTRADICTION_SECONDS = 10.0
CONTRADICTION_UPDATES = 30
"""Counter and power are compared over spans at least this long, of this many updates:
power may lag by a second, and a few momentary values may miss a load's peaks."""

STUCK_SECONDS = 90.0
STUCK_INTERVALS = 20
"""A counter that was seen to change often is compared without changing after both."""

CONTRADICTION_FACTOR = 3.0
"""A counter that gives a third, or three times, of the integrated power is wrong;
real boards differ by less than 1.5 (power is sampled, the counter is not)."""

CONTRADICTION_WATTS = 20.0
"""Smaller differences are the noise of an idle board."""

HOLD_SECONDS = 2.0
"""Power readings further apart are not integrated: nobody saw the time between."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """One figure of one device that was not believed, and why."""

    device: str
    reason: Reason
    figure: Literal["joules", "watts"]
    value: float | None
    """None where it is missing."""
    is_outside: bool = False

    def __str__(self) -> str:
        """One line for a log."""
        value = "no" if self.value is None else f"{self.value:.6g}"
        return f"{self.device}: {value} {self.figure} ({self.reason})"


@dataclass(slots=True)
class _Span:
    """Counter and integrated power side by side, since both were last compared."""

    began_seconds: float
    counted_joules: float = 0.0
    integrated_joules: float = 0.0
    updates: int = 0


@dataclass(slots=True)
class _Device:
    """What the gate remembers of one device."""

    seen_seconds: float = 0.0
    has_joules: bool = False
    has_watts: bool = False
    raw_joules: float | None = None
    """The newest counter value that was believed, as the sensor gave it."""
    offset_joules: float = 0.0
    """Taken off the counter: rises that were not believed since it started anew."""
    changed_seconds: float | None = None
    """When the counter was last seen to change; None until it was."""
    credit_joules: float = 0.0
    """What may rise beyond the time since then: slack that was not used."""
    changes: int = 0
    longest_seconds: float = 0.0
    """The longest time between two changes."""
    suspect: tuple[float, float] | None = None
    """(instant, value) of an impossible rise that nothing has confirmed yet."""
    watts: float | None = None
    watts_seconds: float = -math.inf
    span: _Span | None = None
    is_contradicted: bool = False

    def believed_joules(
        self,
        at_seconds: float,
        raw_joules: float | None,
        watts: float | None,
        bound_watts: float,
    ) -> tuple[float | None, Reason | None]:
        """The counter less its impossible rises; or None, and the reason if any."""
        if raw_joules is None:
            self._compare(at_seconds, watts, None)
            return None, "missing" if self.has_joules else None
        last = self.raw_joules
        shown = raw_joules if last is None else last - self.offset_joules
        reason = self._fault(at_seconds, raw_joules, bound_watts)
        if reason is not None:
            self._compare(at_seconds, watts, None)
            return None, reason
        self.has_joules = True
        rise = max(raw_joules - self.offset_joules - shown, 0.0)
        self._compare(at_seconds, watts, rise)
        if self.is_contradicted:
            self.offset_joules += rise
            return None, "counter_contradicts_power"
        return raw_joules - self.offset_joules, None

    def believed_watts(
        self, watts: float | None, bound_watts: float
    ) -> tuple[float | None, Reason | None]:
        """The power; or None, and the reason if any."""
        reason: Reason | None = None
        if watts is None:
            reason = "missing" if self.has_watts else None
        elif not math.isfinite(watts):
            reason = "not_a_number"
        elif watts < 0:
            reason = "negative"
        elif watts > bound_watts:
            reason = "beyond_power"
        else:
            self.has_watts = True
            return watts, None
        return None, reason

    def _fault(
        self, at_seconds: float, raw_joules: float, bound_watts: float
    ) -> Reason | None:
        """Why a value is not believed; None, and it is remembered, if it is."""
        if not math.isfinite(raw_joules):
            return "not_a_number"
        if raw_joules < 0:
            return "negative"
        if raw_joules > MAX_JOULES:
            return "beyond_counter"
        last = self.raw_joules
        if last is None:
            self.credit_joules = bound_watts * SLACK_SECONDS
        elif raw_joules != last:
            shown, offset = last - self.offset_joules, self.offset_joules
            if raw_joules < last:  # a new start, or the way back from a jump
                offset = 0.0
            rise = max(raw_joules - offset - shown, 0.0)
            since = self.changed_seconds
            elapsed = FIRST_RISE_SECONDS if since is None else at_seconds - since
            allowed = bound_watts * max(elapsed, 0.0) + self.credit_joules
            if rise > allowed:
                if not self._is_confirmed(at_seconds, raw_joules, bound_watts):
                    self.suspect = (at_seconds, raw_joules)
                    return "rise_beyond_power"
                offset, rise = raw_joules - shown, 0.0
            self.offset_joules = offset
            self.credit_joules = min(allowed - rise, bound_watts * SLACK_SECONDS)
            if since is not None:
                self.longest_seconds = max(elapsed, self.longest_seconds)
            self.changed_seconds = at_seconds
            self.changes += 1
        self.raw_joules, self.suspect = raw_joules, None
        return None

    def _is_confirmed(
        self, at_seconds: float, raw_joules: float, bound_watts: float
    ) -> bool:
        """Whether a second reading agrees with the odd one: the counter moved there."""
        if self.suspect is None:
            return False
        then, value = self.suspect
        allowed = bound_watts * (max(at_seconds - then, 0.0) + SLACK_SECONDS)
        return 0 <= raw_joules - value <= allowed

    def _compare(
        self, at_seconds: float, watts: float | None, rise_joules: float | None
    ) -> None:
        """Add to the running span; judge the counter by it once it is long enough."""
        elapsed = at_seconds - self.watts_seconds
        previous, self.watts, self.watts_seconds = self.watts, watts, at_seconds
        if watts is None or previous is None or rise_joules is None:
            self.span = None
            return
        if not 0 <= elapsed <= HOLD_SECONDS:
            self.span = None
            return
        if self.span is None:
            self.span = _Span(at_seconds)
            return
        span = self.span
        span.counted_joules += rise_joules
        span.integrated_joules += 0.5 * (watts + previous) * elapsed
        span.updates += rise_joules > 0
        lasted = at_seconds - span.began_seconds
        if span.updates:
            is_long = lasted >= CONTRADICTION_SECONDS
            is_long = is_long and span.updates >= CONTRADICTION_UPDATES
        else:  # it may be slow, or stuck
            is_long = self.changes >= CONTRADICTION_UPDATES and lasted >= max(
                STUCK_SECONDS, STUCK_INTERVALS * self.longest_seconds
            )
        if is_long:
            low, high = sorted((span.counted_joules, span.integrated_joules))
            is_far = high - low > CONTRADICTION_WATTS * lasted
            self.is_contradicted = is_far and high > CONTRADICTION_FACTOR * low
            self.span = None


@dataclass(slots=True)
class ReadingGate:
    """Checks the readings of one source, in order of time."""

    max_watts: float
    """The bound of a device whose own limit is not known."""
    rejected_total: Counter[str] = field(default_factory=Counter)
    """Figures not believed since start, by reason."""
    _devices: dict[str, _Device] = field(default_factory=dict)

    def checked(
        self,
        now_seconds: float,
        readings: Iterable[Reading],
        limit_watts: Mapping[str, float] | None = None,
        *,
        max_behind_seconds: float = math.inf,
    ) -> tuple[list[Reading], list[Rejected]]:
        """The same readings with every figure that can be believed, and the others.

        `limit_watts` are the power limits by device, where the sensor tells them.
        A rejected figure is None in its reading, as if the sensor had none.
        """
        passed: dict[str, Reading] = {}
        rejected: list[Rejected] = []
        self._forget(now_seconds)
        for reading in readings:
            name = reading.device
            reason = self._refusal(
                reading, now_seconds, max_behind_seconds, is_repeated=name in passed
            )
            if reason is not None:
                rejected += _all_figures(reading, reason)
                if reason in ("stamp_ahead", "stamp_behind"):
                    passed[name] = _without_figures(reading)
                continue
            at = now_seconds if reading.at_seconds is None else reading.at_seconds
            device = self._devices.setdefault(name, _Device())
            device.seen_seconds = now_seconds
            limit = (limit_watts or {}).get(name)
            bound = self.max_watts if limit is None else LIMIT_MARGIN * limit
            watts, fault = device.believed_watts(reading.watts, bound)
            if fault is not None:
                rejected.append(
                    Rejected(name, fault, "watts", reading.watts, reading.is_outside)
                )
            joules, fault = device.believed_joules(at, reading.joules, watts, bound)
            if fault is not None:
                rejected.append(
                    Rejected(name, fault, "joules", reading.joules, reading.is_outside)
                )
            if joules != reading.joules or watts != reading.watts:
                reading = msgspec.structs.replace(reading, joules=joules, watts=watts)
            passed[name] = reading
        self.rejected_total.update(fault.reason for fault in rejected)
        return list(passed.values()), rejected

    def _refusal(
        self,
        reading: Reading,
        now_seconds: float,
        max_behind_seconds: float,
        *,
        is_repeated: bool,
    ) -> Reason | None:
        """Why nothing of a reading is believed; None: its figures are looked at."""
        at = reading.at_seconds
        if is_repeated:
            return "repeated_device"
        if reading.device not in self._devices and len(self._devices) >= MAX_DEVICES:
            return "too_many_devices"
        if at is not None and not at <= now_seconds + MAX_AHEAD_SECONDS:
            return "stamp_ahead"  # or NaN
        if at is not None and at < now_seconds - max_behind_seconds:
            return "stamp_behind"
        return None

    def _forget(self, now_seconds: float) -> None:
        if len(self._devices) >= MAX_DEVICES:
            oldest = now_seconds - FORGET_SECONDS
            self._devices = {
                name: device
                for name, device in self._devices.items()
                if device.seen_seconds >= oldest
            }


def _without_figures(reading: Reading) -> Reading:
    return msgspec.structs.replace(reading, joules=None, watts=None, at_seconds=None)


def _all_figures(reading: Reading, reason: Reason) -> list[Rejected]:
    figures: list[Rejected] = []
    if reading.joules is not None:
        figures.append(
            Rejected(
                reading.device, reason, "joules", reading.joules, reading.is_outside
            )
        )
    if reading.watts is not None:
        figures.append(
            Rejected(reading.device, reason, "watts", reading.watts, reading.is_outside)
        )
    return figures
