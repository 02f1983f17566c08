"""How late a sensor shows power, by what the steps of windows say that it was.

Rule: the joules of a window are held against what the constants say of it and of the
two before it. What lies on those before is shown late, be it that the sensor lags or
that it averages: an average over T is late by T / 2. It is a lower bound, as constants
fitted to what is late hide part of it. A lag that is found is the sensor's, for good.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

TAPS = 3
MIN_WINDOWS = 50
"""Half a minute of load."""
REMEMBERED_WINDOWS = 240.0
MIN_LAG_SECONDS = 0.12
"""Twice of what placement of prompts looks like (0.06); an average over a second, which
bends the constants as well, looks like 0.14 to 0.16."""
MAX_LEFT = 0.95
"""Of the squares that are left without a lag."""


class LagWatch:
    """Sums over windows that follow each other, and the lag that they show."""

    def __init__(self) -> None:
        self.lag_seconds: float | None = None
        """None where none was found."""
        self._expected: list[float] = []
        self._windows = 0.0
        self._seconds = 0.0
        self._squares = np.zeros((TAPS, TAPS))
        self._products = np.zeros(TAPS)
        self._square_joules = 0.0

    def add(self, joules: float, expected_joules: float, seconds: float) -> None:
        """One window more: what the sensor counted, and what its steps cost."""
        self._expected = [expected_joules, *self._expected[: TAPS - 1]]
        if len(self._expected) < TAPS or self.lag_seconds is not None:
            return
        keep = 1 - 1 / REMEMBERED_WINDOWS
        row = np.array(self._expected)
        self._windows = keep * self._windows + 1
        self._seconds = keep * self._seconds + seconds
        self._squares = keep * self._squares + np.outer(row, row)
        self._products = keep * self._products + row * joules
        self._square_joules = keep * self._square_joules + joules**2
        if self._windows >= MIN_WINDOWS:
            self.lag_seconds = self._found()

    def interrupt(self) -> None:
        """The next window does not follow the last one."""
        self._expected = []

    def _found(self) -> float | None:
        now = self._squares[0, 0]
        if now <= 0:
            return None
        without = self._square_joules - self._products[0] ** 2 / now
        ridge = 1e-6 * np.trace(self._squares) * np.eye(TAPS)
        taps = np.linalg.solve(self._squares + ridge, self._products)
        left = self._square_joules - 2 * taps @ self._products
        left += taps @ self._squares @ taps
        taps = np.maximum(taps, 0.0)
        if left > MAX_LEFT * without or taps.sum() <= 0:
            return None
        late = float(taps @ np.arange(TAPS) / taps.sum())
        lag_seconds = late * self._seconds / self._windows
        return lag_seconds if lag_seconds >= MIN_LAG_SECONDS else None
