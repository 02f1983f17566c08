"""Intervals of a run's figures: a bootstrap over blocks of consecutive sessions.

Requests of one session depend on each other, and so do neighbours in time, through
queues and shared batches. So what is drawn again are up to `BLOCKS` stretches of
consecutive sessions (a block bootstrap, Künsch 1989), each with all its requests.
The standard error of the figure's logarithm over the draws, times Student's
quantile for the number of blocks, gives the interval: figures are positive and are
compared as ratios. Where neighbouring blocks still move together the error grows by
what that adds to the variance of a mean (lag 1, as for batch means).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

BLOCKS = 40
BLOCK_SESSIONS = 32
"""Fewest in a block, while there are `FEWEST_BLOCKS`: a block must outlast what its
neighbours share. In blocks of 10 sessions, with 12 in flight, 22 % of differences that
were none were called real (benchmarks/comparison_error.py)."""
DRAWS = 1000
FEWEST_BLOCKS = 8
"""Below it an interval would be a guess."""
NORMAL_97_5 = 1.959963984540054
SEED = 20_250_101
_GROUPS = 2048
"""Ranks that a quantile tells apart: more values go by in groups of neighbours."""


@dataclass(frozen=True, slots=True)
class Column:
    """One number per request, NaN where it has none, beside the block it is in."""

    values: FloatArray
    blocks: IntArray


class Statistic(Protocol):
    """A figure of a run under weights of its blocks."""

    def of(self, columns: Mapping[str, Column], weights: FloatArray) -> FloatArray:
        """One value per row of weights (draws x blocks); NaN where it has none."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """Sum of one column over the sum of another, of requests that have both.

    Without a second column it is the mean of the first.
    """

    above: str
    below: str | None = None

    def of(self, columns: Mapping[str, Column], weights: FloatArray) -> FloatArray:
        """The ratio under each row of weights."""
        above = columns[self.above]
        values = above.values
        others = np.ones_like(values)
        if self.below is not None:
            others = columns[self.below].values
        known = np.isfinite(values) & np.isfinite(others)
        count = weights.shape[1]
        blocks = above.blocks[known]
        upper = np.bincount(blocks, values[known], count)
        lower = np.bincount(blocks, others[known], count)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios: FloatArray = (weights @ upper) / (weights @ lower)
        return ratios


@dataclass(frozen=True, slots=True)
class Quantile:
    """A quantile of one column: the smallest value that so large a part reaches."""

    column: str
    fraction: float

    def of(self, columns: Mapping[str, Column], weights: FloatArray) -> FloatArray:
        """The quantile under each row of weights."""
        column = columns[self.column]
        known = np.isfinite(column.values)
        values, blocks = column.values[known], column.blocks[known]
        if not len(values):
            return np.full(len(weights), np.nan)
        order = np.argsort(values, kind="stable")
        values, blocks = values[order], blocks[order]
        groups = np.arange(len(values)) * min(len(values), _GROUPS) // len(values)
        width = int(groups[-1]) + 1
        cells = np.bincount(blocks * width + groups, minlength=weights.shape[1] * width)
        counts = cells.reshape(weights.shape[1], width).astype(np.float64)
        last = np.searchsorted(groups, np.arange(width), side="right") - 1
        reached = np.cumsum(weights @ counts, axis=1)
        aims = self.fraction * reached[:, -1:] * (1 - 1e-12)
        found: FloatArray = values[last[np.argmax(reached >= aims, axis=1)]]
        return found


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval; the ends are None where blocks are too few."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """The columns of one run, cut into blocks of consecutive sessions."""

    columns: Mapping[str, Column]
    blocks: int
    session_blocks: Mapping[str, int]


def blocks_of(sessions: int) -> int:
    """The number of blocks for so many sessions."""
    wanted = min(max(sessions // BLOCK_SESSIONS, FEWEST_BLOCKS), BLOCKS)
    return min(sessions, wanted)


def draw_weights(blocks: int, seed: int = SEED) -> FloatArray:
    """How often each block counts: once each, each left out in turn, `DRAWS` draws.

    Shape (1 + blocks + DRAWS, blocks).
    """
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(blocks, np.full(blocks, 1 / blocks), DRAWS)
    whole = np.ones((1, blocks))
    return np.vstack([whole, whole - np.eye(blocks), drawn]).astype(np.float64)


def estimate(sample: Sample, statistic: Statistic) -> Estimate | None:
    """The figure of one run; None where it has no value, such as energy unmetered."""
    logs = _logs(sample, statistic, SEED)
    if logs is None:
        return None
    return _interval(logs[0], _error(logs, sample.blocks), sample.blocks - 1)


def change(
    base: Sample, other: Sample, statistic: Statistic, *, is_paired: bool
) -> Estimate | None:
    """Relative change from one run to the other, 0.05 for 5 % more.

    Where both ran the same sessions the same blocks of them are drawn on both sides:
    what is common to a session in both runs, its lengths above all, cancels out.
    """
    first = _logs(base, statistic, SEED)
    second = _logs(other, statistic, SEED if is_paired else SEED + 1)
    if first is None or second is None:
        return None
    middle = second[0] - first[0]
    if is_paired:
        freedom = float(base.blocks - 1)
        error = _error(second - first, base.blocks)
    else:
        errors = _error(first, base.blocks), _error(second, other.blocks)
        error = math.hypot(*errors)
        freedom = _welch_freedom(errors, (base.blocks, other.blocks))
    if min(base.blocks, other.blocks) < FEWEST_BLOCKS:
        return Estimate(math.expm1(middle))
    found = _interval(middle, error, freedom)
    low, high = found.low, found.high
    assert low is not None
    assert high is not None
    return Estimate(found.value - 1, low - 1, high - 1)


def _logs(sample: Sample, statistic: Statistic, seed: int) -> FloatArray | None:
    """Logarithms of the figure under `draw_weights`; None where it has no value."""
    if not sample.blocks:
        return None
    values = statistic.of(sample.columns, draw_weights(sample.blocks, seed))
    if not np.isfinite(values[0]) or values[0] <= 0:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        logs: FloatArray = np.log(values)
    return logs


def _error(logs: FloatArray, blocks: int) -> float:
    """Standard error; a draw of n blocks varies by (n - 1)/n of a sample's variance."""
    draws = logs[1 + blocks :]
    draws = draws[np.isfinite(draws)]
    if blocks < 2 or len(draws) < DRAWS / 2:
        return math.nan
    growth = blocks / (blocks - 1) * _growth_by_neighbours(logs[1 : 1 + blocks])
    return float(draws.std()) * math.sqrt(growth)


def _growth_by_neighbours(without: FloatArray) -> float:
    """By what the variance of a mean grows as neighbouring blocks move together.

    It is 1 + 2 r for a correlation r at lag 1 (Law and Carson 1979 on batch means);
    of n independent values the estimate of r is -1/n on average, which is added back.
    A correlation below 0 is not believed. `without` has the figure without each block.
    """
    if not np.isfinite(without).all():  # one block alone has the values
        return 1.0
    apart = without - without.mean()
    square = float(apart @ apart)
    if not square > 0:
        return 1.0
    together = float(apart[1:] @ apart[:-1]) / square + 1 / len(apart)
    return 1 + 2 * max(together, 0.0)


def _welch_freedom(errors: tuple[float, float], blocks: tuple[int, int]) -> float:
    """Degrees of freedom by Welch (1947) and Satterthwaite (1946)."""
    squares = [error**2 for error in errors]
    if not sum(squares) > 0:
        return float(min(blocks) - 1)
    parts = (s**2 / max(n - 1, 1) for s, n in zip(squares, blocks, strict=True))
    return float(sum(squares) ** 2 / sum(parts))


def _interval(middle: float, error: float, freedom: float) -> Estimate:
    if freedom < FEWEST_BLOCKS - 1 or not math.isfinite(error):
        return Estimate(math.exp(middle))
    reach = student_97_5(freedom) * error
    return Estimate(
        math.exp(middle), math.exp(middle - reach), math.exp(middle + reach)
    )


def student_97_5(freedom: float) -> float:
    """Student's 97.5 % quantile, by Abramowitz and Stegun 26.7.5.

    Within 0.001 of the true one from 7 degrees of freedom on.
    """
    z = NORMAL_97_5
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
