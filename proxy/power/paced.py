"""Sensors that must not be asked at the sampler's rate.

A management controller measures about once a second and answers slowly; asking
it fifty times a second would only keep it busy. Between two questions the last
readings stand, with their own instant, so the curve sees nothing new.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from proxy.wire.facts import Reading


class Paced:
    """The readings of `ask`, asked for anew at most every `least_seconds`."""

    def __init__(
        self, ask: Callable[[], Sequence[Reading]], min_seconds: float
    ) -> None:
        self._ask = ask
        self._min_seconds = min_seconds
        self._readings: Sequence[Reading] = ()
        self._due_seconds = 0.0

    def read(self) -> Sequence[Reading]:
        """New readings when they are due, else the last. Raises what `ask` raises."""
        now = time.monotonic()
        if not self._readings or now >= self._due_seconds:
            # Counted from the question on: a slow answer must not add to the pause.
            self._due_seconds = now + self._min_seconds
            self._readings = self._ask()
        return self._readings
