"""Many values, few bytes: exact percentiles up to a million values, then buckets.

Beyond `EXACT_LIMIT` values go into logarithmic buckets 1 % wide, so that a
percentile is off by at most `RELATIVE_ERROR`; count, mean, deviation and the
extremes stay exact. Memory is at most 8 MB before and 100 KB after the limit.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable

import msgspec
import numpy as np
from numpy.typing import NDArray

EXACT_LIMIT = 1_000_000
_LOT = 8192
_GROWTH = 1.01
_SMALLEST = 1e-9  # a nanosecond, a nanojoule: below it there is one bucket
_LARGEST = 1e7
_BUCKETS = math.ceil(math.log(_LARGEST / _SMALLEST) / math.log(_GROWTH)) + 2
RELATIVE_ERROR = (_GROWTH - 1) / (_GROWTH + 1)
"""Distance of a bucket's middle from any value inside it: 0.5 %."""


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """A distribution in figures, in the unit of its measure."""

    n: int
    unit: str
    mean: float
    std: float
    """Population deviation, as numpy and vLLM take it."""
    min: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    is_exact: bool = True
    """False beyond a million values: percentiles are then within 0.5 %."""


class Distribution:
    """Values added one by one or in lots, read as `Stats`."""

    __slots__ = (
        "_counts",
        "_limit",
        "_max",
        "_mean",
        "_min",
        "_n",
        "_square",
        "_values",
    )

    def __init__(self, limit: int = EXACT_LIMIT) -> None:
        self._limit = limit
        self._values = array("d")  # all values while exact, later the unfolded rest
        self._counts: NDArray[np.int64] | None = None
        self._n = 0
        self._mean = self._square = 0.0  # of folded values; Chan's parallel update
        self._min, self._max = math.inf, -math.inf

    def __len__(self) -> int:
        return self._n + len(self._values)

    def add(self, value: float | None) -> None:
        """One value; None is no value."""
        if value is not None:
            self._values.append(value)
            self._bound()

    def extend(self, values: Iterable[float]) -> None:
        """A lot of values, such as the chunk gaps of one reply."""
        self._values.extend(values)
        self._bound()

    def stats(self, unit: str) -> Stats | None:
        """All figures at once; None when nothing was added."""
        if not len(self):
            return None
        if self._counts is None:
            return self._exact(unit)
        self._fold()
        p50, p90, p95, p99 = (self._bucketed(percent) for percent in (50, 90, 95, 99))
        return Stats(
            n=self._n, unit=unit, is_exact=False,
            mean=self._mean, std=math.sqrt(self._square / self._n),
            min=self._min, p50=p50, p90=p90, p95=p95, p99=p99, max=self._max,
        )  # fmt: skip

    def percentiles(self, *percents: float) -> list[float] | None:
        """Percentiles, as good as the ones of `stats`; None without a value."""
        if not len(self):
            return None
        if self._counts is None:
            return [float(p) for p in np.percentile(np.array(self._values), percents)]
        self._fold()
        return [self._bucketed(percent) for percent in percents]

    def _exact(self, unit: str) -> Stats:
        values = np.array(self._values, dtype=np.float64)
        low, p50, p90, p95, p99, high = (
            float(at) for at in np.percentile(values, (0, 50, 90, 95, 99, 100))
        )
        return Stats(
            n=len(values), unit=unit,
            mean=float(values.mean()), std=float(values.std()),
            min=low, p50=p50, p90=p90, p95=p95, p99=p99, max=high,
        )  # fmt: skip

    def _bucketed(self, percent: float) -> float:
        assert self._counts is not None
        rank = percent / 100 * (self._n - 1)
        bucket = int(np.searchsorted(np.cumsum(self._counts), rank, side="right"))
        # harmonic middle: equally far, in ratio, from both edges of the bucket
        edge = _SMALLEST * _GROWTH ** (bucket - 1)
        middle = edge * 2 * _GROWTH / (1 + _GROWTH)
        return float(min(max(middle, self._min), self._max))

    def _bound(self) -> None:
        if self._counts is None and len(self._values) > self._limit:
            self._counts = np.zeros(_BUCKETS, dtype=np.int64)
            self._fold()
        elif self._counts is not None and len(self._values) >= _LOT:
            self._fold()

    def _fold(self) -> None:
        values = np.array(self._values, dtype=np.float64)
        self._values = array("d")
        if self._counts is None or not len(values):
            return
        ratio = np.maximum(values, _SMALLEST) / _SMALLEST
        index = np.floor(np.log(ratio) / math.log(_GROWTH)).astype(np.int64) + 1
        index = np.where(values <= _SMALLEST, 0, np.clip(index, 0, _BUCKETS - 1))
        self._counts += np.bincount(index, minlength=_BUCKETS)
        mean, total = float(values.mean()), self._n + len(values)
        delta = mean - self._mean
        self._square += float(((values - mean) ** 2).sum())
        self._square += delta**2 * self._n * len(values) / total
        self._mean += delta * len(values) / total
        self._n = total
        self._min = min(self._min, float(values.min()))
        self._max = max(self._max, float(values.max()))
