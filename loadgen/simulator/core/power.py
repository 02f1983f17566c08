"""Power over time: constant within a step, idle between steps, exact in joules."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


class PowerCurve:
    """The cumulative energy of a GPU group, from `start_seconds` on.

    Between two breakpoints power is constant; after the last one it is idle, so
    the curve can be read at any later time, also while it is still growing.
    """

    def __init__(self, idle_watts: float, start_seconds: float = 0.0) -> None:
        self.idle_watts = idle_watts
        self._at_seconds = [start_seconds]
        self._joules = [0.0]

    @property
    def end_seconds(self) -> float:
        """The last breakpoint; everything later is idle so far."""
        return self._at_seconds[-1]

    def extend(self, start_seconds: float, end_seconds: float, joules: float) -> None:
        """Append a step; a gap before it is idle.

        Raises ValueError where the step overlaps the curve or runs backwards.
        """
        last_seconds = self._at_seconds[-1]
        if start_seconds < last_seconds or end_seconds <= start_seconds:
            raise ValueError(
                f"step from {start_seconds} to {end_seconds} s does not follow "
                f"{last_seconds} s"
            )
        total = self._joules[-1]
        if start_seconds > last_seconds:
            total += self.idle_watts * (start_seconds - last_seconds)
            self._at_seconds.append(start_seconds)
            self._joules.append(total)
        self._at_seconds.append(end_seconds)
        self._joules.append(total + joules)

    def joules_at(self, at_seconds: float) -> float:
        """Energy from the start to `at_seconds`; before the start it is 0."""
        after = bisect_right(self._at_seconds, at_seconds)
        if after == 0:
            return self._joules[0]
        since_seconds = at_seconds - self._at_seconds[after - 1]
        if after == len(self._at_seconds):
            return self._joules[-1] + self.idle_watts * since_seconds
        return self._joules[after - 1] + self._slope(after) * since_seconds

    def watts_at(self, at_seconds: float) -> float:
        """Power at an instant (the later side, at a breakpoint)."""
        after = bisect_right(self._at_seconds, at_seconds)
        if after == 0 or after == len(self._at_seconds):
            return self.idle_watts
        return self._slope(after)

    def breakpoints(self) -> tuple[FloatArray, FloatArray]:
        """Instants and cumulative joules there, for plotting or interpolation."""
        return np.array(self._at_seconds), np.array(self._joules)

    def forget_before(self, at_seconds: float) -> None:
        """Drop breakpoints older than `at_seconds`; later readings stay the same."""
        first = bisect_right(self._at_seconds, at_seconds) - 1
        if first > 0:
            del self._at_seconds[:first]
            del self._joules[:first]

    def _slope(self, after: int) -> float:
        joules = self._joules[after] - self._joules[after - 1]
        return joules / (self._at_seconds[after] - self._at_seconds[after - 1])
