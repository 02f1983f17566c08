"""One source watched over one command: readings in, figures out; pure.

The sampler's thread and the main thread both call it, one at a time: the caller
holds a lock. Peaks are those of the readings, so a peak between two is not seen.
"""

from __future__ import annotations

from collections.abc import Sequence

from proxy.measure.figures import (
    Bracket,
    Energy,
    Point,
    bracket_at,
    device_energy,
    joules_at,
    last_point,
    mean_watts,
    total_energy,
)
from proxy.meter.curve import SENSOR_GAP, DeviceCurve, GroupCurve
from proxy.wire.facts import Reading

PEAK_SECONDS = 0.1
"""A counter without power readings: means over this long count as a peak. Over
less, the times of its edges are too uncertain."""


class _Mark:
    """The instant of a command's start or end, between points of every device.

    What was seen before the instant happened before it. A counter's change that
    is seen after it may have happened before, unless the counter was read in
    between: twice, as the first of these reads may have begun before the instant.
    """

    def __init__(self, at_seconds: float, group: GroupCurve) -> None:
        self.at_seconds = at_seconds
        self.brackets: dict[str, Bracket] = {}
        self._before = {
            device: last_point(curve) for device, curve in group.devices.items()
        }
        self._reads_after = 0

    def see(
        self, at_seconds: float, group: GroupCurve, changed: dict[str, bool]
    ) -> None:
        """After one more read; `changed` devices, with whether they have a counter."""
        if at_seconds < self.at_seconds:
            return
        for device, has_counter in changed.items():
            if device in self.brackets or (has_counter and self._reads_after < 2):
                continue
            curve = group.devices[device]
            self.brackets[device] = Bracket(
                self._before.get(device),
                joules_at(curve, self.at_seconds),
                last_point(curve),
            )
        self._reads_after += 1

    def bracket(self, device: str, curve: DeviceCurve) -> Bracket:
        """As far as it is known."""
        known = Bracket(self._before.get(device), joules_at(curve, self.at_seconds))
        return self.brackets.get(device, known)


class Watch:
    """Devices of one source, from before a command begins until after its end."""

    def __init__(self, *, has_baseline: bool) -> None:
        self.group = GroupCurve()
        self.is_failing = False
        self.first_failure: str | None = None
        self.peak_watts: float | None = None
        self._has_baseline = has_baseline
        self._start: _Mark | None = None
        self._end: _Mark | None = None
        self._shown: frozenset[str] = frozenset()
        self._has_counter: dict[str, bool] = {}
        self._baseline_watts: dict[str, float | None] = {}
        self._peaks: dict[str, float] = {}
        self._anchors: dict[str, Point] = {}
        self._counted: dict[str, float] = {}

    def sampled(self, at_seconds: float, readings: Sequence[Reading]) -> None:
        """One successful read of all devices, in order of time."""
        self.is_failing = False
        self._shown = frozenset(reading.device for reading in readings)
        before = {d: last_point(curve) for d, curve in self.group.devices.items()}
        self.group.observe(
            at_seconds, ((r.device, r.joules, r.watts) for r in readings)
        )
        for reading in readings:
            if reading.joules is not None or reading.watts is not None:
                self._has_counter.setdefault(reading.device, reading.joules is not None)
        changed = {
            device: self._has_counter[device]
            for device, curve in self.group.devices.items()
            if last_point(curve) != before.get(device)
        }
        if self._start is not None:
            self._start.see(at_seconds, self.group, changed)
            if self._end is not None:
                self._end.see(at_seconds, self.group, changed)
            elif at_seconds >= self._start.at_seconds:
                self._see_peaks(readings)

    def failed(self, reason: str) -> None:
        """The source could not be read: a gap until it can."""
        self.is_failing = True
        self.first_failure = self.first_failure or reason
        self._shown = frozenset()
        self._anchors.clear()
        self.group.interrupt(SENSOR_GAP)

    def start(self, at_seconds: float) -> None:
        """The command begins; what was read until now was read before."""
        self._start = _Mark(at_seconds, self.group)
        if self._has_baseline:
            for device, curve in self.group.devices.items():
                self._baseline_watts[device] = mean_watts(curve)

    def end(self, at_seconds: float) -> None:
        """The command has ended; what was read until now was read before."""
        self._end = _Mark(at_seconds, self.group)

    @property
    def is_ready(self) -> bool:
        """Has every device a point from which its joules can count?"""
        curves = self.group.devices.values()
        return bool(curves) and all(len(curve.seconds) for curve in curves)

    @property
    def is_settled(self) -> bool:
        """Has every device that ever changed a point after the end?"""
        assert self._end is not None
        ever = {d for d, curve in self.group.devices.items() if len(curve.seconds)}
        return bool(ever) and ever <= self._end.brackets.keys()

    def energies(self) -> tuple[Energy, ...]:
        """Each device over the command, in order of name."""
        start, end = self._marks()
        return tuple(
            device_energy(
                device, curve, (start.at_seconds, end.at_seconds),
                start.bracket(device, curve), end.bracket(device, curve),
                baseline_watts=self._baseline_watts.get(device),
                peak_watts=self._peaks.get(device),
                has_counter=self._has_counter.get(device, False),
                is_lost=device not in self._shown,
            )
            for device, curve in sorted(self.group.devices.items())
        )  # fmt: skip

    def total(self) -> Energy:
        """All devices together."""
        start, end = self._marks()
        seconds = end.at_seconds - start.at_seconds
        return total_energy(self.energies(), seconds, self.peak_watts)

    def energy_between(self, begin_seconds: float, end_seconds: float) -> Energy:
        """All devices together over a part of what was watched."""
        each = [
            device_energy(
                device, curve, (begin_seconds, end_seconds),
                bracket_at(curve, begin_seconds), bracket_at(curve, end_seconds),
                baseline_watts=self._baseline_watts.get(device),
                peak_watts=None,
                has_counter=self._has_counter.get(device, False),
                is_lost=False,
            )
            for device, curve in sorted(self.group.devices.items())
        ]  # fmt: skip
        return total_energy(each, end_seconds - begin_seconds, None)

    def _marks(self) -> tuple[_Mark, _Mark]:
        assert self._start is not None
        assert self._end is not None
        return self._start, self._end

    def _see_peaks(self, readings: Sequence[Reading]) -> None:
        together: list[float] = []
        for reading in readings:
            watts = reading.watts
            if watts is None:
                self._count_watts(reading.device)
                watts = self._counted.get(reading.device)
            if watts is not None:
                together.append(watts)
                highest = max(watts, self._peaks.get(reading.device, watts))
                self._peaks[reading.device] = highest
        if readings and len(together) == len(readings):
            self.peak_watts = max(sum(together), self.peak_watts or 0.0)

    def _count_watts(self, device: str) -> None:
        """Mean of a counter over the last `PEAK_SECONDS` or more of its points."""
        assert self._start is not None
        curve = self.group.devices[device]
        newest = last_point(curve)
        if newest is None:
            return
        anchor = self._anchors.setdefault(device, newest)
        if anchor.seconds < self._start.at_seconds or curve.reasons[-1]:
            self._anchors[device] = newest  # what was before, or in a gap, is not it
        elif newest.seconds - anchor.seconds >= PEAK_SECONDS:
            self._anchors[device] = newest
            joules = newest.joules - anchor.joules
            self._counted[device] = joules / (newest.seconds - anchor.seconds)
