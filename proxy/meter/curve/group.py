"""Devices that serve one engine, as one curve, cut into windows at edges.

Rule: windows follow each other without overlap, so every edge is used once; a
gap of any device is a gap of the group.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from proxy.meter.curve.device import GAP_REASONS, SENSOR_GAP, DeviceCurve

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


class GroupCurve:
    """Devices that serve one engine: their curves are added, never told apart."""

    def __init__(self) -> None:
        self.devices: dict[str, DeviceCurve] = {}

    def observe(
        self,
        at_seconds: float,
        readings: Iterable[tuple[str, float | None, float | None]],
    ) -> None:
        """(device, joules, watts) of all devices, read at one moment."""
        missing = set(self.devices)
        for device, joules, watts in readings:
            missing.discard(device)
            curve = self.devices.setdefault(device, DeviceCurve())
            curve.observe(at_seconds, joules, watts)
        for device in missing:
            self.devices[device].interrupt(SENSOR_GAP)

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
        return sum(curve.resets for curve in self.devices.values())

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
        total = np.zeros_like(at_seconds)
        for curve in self.devices.values():
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
        for curve in self.devices.values():
            curve.forget(before_seconds)

    def _edges(self, start_seconds: float, end_seconds: float) -> FloatArray:
        """Edges of the first device, and where any device's gaps begin and end."""
        found: list[FloatArray] = []
        for index, curve in enumerate(self.devices.values()):
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
        for curve in self.devices.values():
            at = np.searchsorted(np.array(curve.seconds), middle)
            codes = np.array(curve.reasons, np.int64)
            reasons = np.maximum(reasons, codes[np.minimum(at, len(codes) - 1)])
        return reasons
