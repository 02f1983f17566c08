"""One source watched over one command: readings in, figures out; pure.

The sampler's thread and the main thread both call it, one at a time: the caller
holds a lock. Peaks are those of the readings, so a peak between two is not seen.
"""

from __future__ import annotations

from collections.abc import Sequence

from proxy.command.figures import (
    Energy,
    Opening,
    device_energy,
    opening,
    total_energy,
)
from proxy.energy.device import SENSOR_GAP, DeviceCurve
from proxy.energy.group import GroupCurve
from proxy.power.reading import Reading

PEAK_SECONDS = 0.1
"""A counter without power readings: means over this long count as a peak. Over
less, the times of its edges are too uncertain."""


class Watch:
    """Devices of one source, from before a command begins until after its end."""

    def __init__(self, *, has_baseline: bool) -> None:
        self.group = GroupCurve()
        self.is_failing = False
        self.first_failure: str | None = None
        self.peak_watts: float | None = None
        self._has_baseline = has_baseline
        self._start_seconds: float | None = None
        self._end_seconds: float | None = None
        self._last_seconds: float | None = None
        self._slack_seconds = 0.0
        self._has_counter: dict[str, bool] = {}
        self._openings: dict[str, Opening] = {}
        self._peaks: dict[str, float] = {}
        self._anchors: dict[str, tuple[float, float]] = {}
        self._counted: dict[str, float] = {}
        self._shown: frozenset[str] = frozenset()

    def sampled(self, at_seconds: float, readings: Sequence[Reading]) -> None:
        """One successful read of all devices, in order of time."""
        self.is_failing = False
        if self._last_seconds is not None:
            spacing = at_seconds - self._last_seconds
            # A point lies anywhere between two reads, and a read takes time.
            self._slack_seconds = max(self._slack_seconds, spacing)
        self._last_seconds = at_seconds
        self._shown = frozenset(reading.device for reading in readings)
        self.group.observe(
            at_seconds, ((r.device, r.joules, r.watts) for r in readings)
        )
        for reading in readings:
            if reading.joules is not None or reading.watts is not None:
                self._has_counter.setdefault(reading.device, reading.joules is not None)
        self._open()
        if self._start_seconds is not None and self._end_seconds is None:
            self._see_peaks(at_seconds, readings)

    def failed(self, reason: str) -> None:
        """The source could not be read: a gap until it can."""
        self.is_failing = True
        self.first_failure = self.first_failure or reason
        self._shown = frozenset()
        self._last_seconds = None  # a gap is no slack: it is accounted for as a gap
        self._anchors.clear()
        self.group.interrupt(SENSOR_GAP)

    def start(self, at_seconds: float) -> None:
        """The command begins."""
        self._start_seconds = at_seconds

    def end(self, at_seconds: float) -> None:
        """The command has ended."""
        self._end_seconds = at_seconds

    def is_ready(self, now_seconds: float) -> bool:
        """Has every device a point before now, from which its joules can count?"""
        return bool(self.group.devices) and all(
            len(curve.seconds) and curve.seconds[0] <= now_seconds - self._slack(device)
            for device, curve in self.group.devices.items()
        )

    @property
    def is_settled(self) -> bool:
        """Has every device that ever changed a point after the end?"""
        assert self._end_seconds is not None
        seen = [
            curve.seconds[-1] >= self._end_seconds + self._slack(device)
            for device, curve in self.group.devices.items()
            if len(curve.seconds)
        ]
        return bool(seen) and all(seen)

    def energies(self) -> tuple[Energy, ...]:
        """Each device over the command, in order of name."""
        span = self._span()
        return tuple(
            device_energy(
                device, curve,
                self._openings.get(device) or self._opening(device, curve),
                span,
                slack_seconds=self._slack(device),
                peak_watts=self._peaks.get(device),
                has_counter=self._has_counter.get(device, False),
                is_lost=device not in self._shown,
            )
            for device, curve in sorted(self.group.devices.items())
        )  # fmt: skip

    def total(self) -> Energy:
        """All devices together."""
        start, end = self._span()
        return total_energy(self.energies(), end - start, self.peak_watts)

    def _span(self) -> tuple[float, float]:
        assert self._start_seconds is not None
        assert self._end_seconds is not None
        return self._start_seconds, self._end_seconds

    def _slack(self, device: str) -> float:
        """Points of integrated power lie exactly where they were read."""
        return self._slack_seconds if self._has_counter.get(device) else 0.0

    def _open(self) -> None:
        """Keep the start's points: the curve of a long command gets coarser."""
        if self._start_seconds is None:
            return
        for device, curve in self.group.devices.items():
            if device in self._openings or not len(curve.seconds):
                continue
            if curve.seconds[-1] >= self._start_seconds + self._slack(device):
                self._openings[device] = self._opening(device, curve)

    def _opening(self, device: str, curve: DeviceCurve) -> Opening:
        assert self._start_seconds is not None
        return opening(
            curve, self._start_seconds, self._slack(device), baseline=self._has_baseline
        )

    def _see_peaks(self, at_seconds: float, readings: Sequence[Reading]) -> None:
        assert self._start_seconds is not None
        if at_seconds < self._start_seconds:
            return
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
        curve = self.group.devices[device]
        if not len(curve.seconds):
            return
        newest = (curve.seconds[-1], curve.joules[-1])
        anchor = self._anchors.setdefault(device, newest)
        if anchor[0] < (self._start_seconds or 0.0) or curve.reasons[-1]:
            self._anchors[device] = newest  # what was before, or in a gap, is not it
        elif newest[0] - anchor[0] >= PEAK_SECONDS:
            self._anchors[device] = newest
            self._counted[device] = (newest[1] - anchor[1]) / (newest[0] - anchor[0])
