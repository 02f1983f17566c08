"""Arrival processes: the starts of sessions, one function each, in `ARRIVALS`.

A process takes the sessions' own instants (drawn processes only count them) and
yields one start per session, in seconds from the run's zero, never decreasing,
the first one at zero. Gaps are drawn from one seeded generator in blocks and
added up; nothing is clipped, re-anchored or rescaled to end at n / rate, which
would take the variance out of a Poisson count.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

BLOCK = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Rate, burstiness and seed, for the processes that need them."""

    seed: int = 0
    rate_per_second: float = 1.0
    """Sessions per second of the drawn processes."""
    burstiness: float = 1.0
    """Shape of the gamma gaps as in vLLM: cv = 1 / sqrt(burstiness)."""
    stretch: float = 1.0
    """Factor on the trace's own gaps: 0.5 is twice as fast."""
    block: int = BLOCK
    """Gaps drawn at a time; the starts do not depend on it."""


ArrivalProcess = Callable[[Iterable[float], Pace], Iterator[float]]


def poisson(own_seconds: Iterable[float], pace: Pace) -> Iterator[float]:
    """Independent exponential gaps: cv 1, counts as variable as their mean."""

    def draw(generator: np.random.Generator, size: int) -> FloatArray:
        return generator.standard_exponential(size) / pace.rate_per_second

    return _drawn(own_seconds, pace, draw)


def gamma(own_seconds: Iterable[float], pace: Pace) -> Iterator[float]:
    """Independent gamma gaps of shape `burstiness`: below 1 bursty, above 1 even."""

    def draw(generator: np.random.Generator, size: int) -> FloatArray:
        gaps = generator.standard_gamma(pace.burstiness, size)
        return np.asarray(gaps / (pace.burstiness * pace.rate_per_second))

    return _drawn(own_seconds, pace, draw)


def constant(own_seconds: Iterable[float], pace: Pace) -> Iterator[float]:
    """Equal gaps, cv 0: session k starts at k / rate, with no error adding up."""
    for place, _ in enumerate(own_seconds):
        yield place / pace.rate_per_second


def inf(own_seconds: Iterable[float], pace: Pace) -> Iterator[float]:
    """Everything at once, at zero."""
    for _ in own_seconds:
        yield 0.0


def trace(own_seconds: Iterable[float], pace: Pace) -> Iterator[float]:
    """The trace's own instants from its first, all gaps stretched alike."""
    first: float | None = None
    for at_seconds in own_seconds:
        first = at_seconds if first is None else first
        yield (at_seconds - first) * pace.stretch


ARRIVALS: dict[str, ArrivalProcess] = {
    "poisson": poisson,
    "gamma": gamma,
    "constant": constant,
    "inf": inf,
    "trace": trace,
}


def _drawn(
    own_seconds: Iterable[float],
    pace: Pace,
    draw: Callable[[np.random.Generator, int], FloatArray],
) -> Iterator[float]:
    """Starts whose gaps come from `draw`, added up over blocks as over one array."""
    generator = np.random.default_rng(_stream(pace.seed, "arrivals"))

    def starts() -> Iterator[float]:
        now = np.zeros(1)
        yield 0.0
        while True:
            summed = np.cumsum(np.concatenate([now, draw(generator, pace.block)]))
            yield from summed[1:].tolist()
            now = summed[-1:]

    for start, _ in zip(starts(), own_seconds, strict=False):
        yield start


def staged(
    starts: Iterable[float], stages: Sequence[tuple[float, float]]
) -> Iterator[float]:
    """Starts at a mean rate of one, put onto a clock that runs at each stage's rate.

    `stages` are seconds and sessions per second, one after the other; starts beyond
    the last one are left out. So a Poisson process stays one, with a rate that steps.
    """
    begin = reached = 0.0
    left = iter(stages)
    seconds, rate = next(left)
    for start in starts:
        while start >= reached + seconds * rate:
            begin, reached = begin + seconds, reached + seconds * rate
            following = next(left, None)
            if following is None:
                return
            seconds, rate = following
        yield begin + (start - reached) / rate


GRID_SAMPLE = 10_000
"""Positive gaps the median is taken over: the first ones, so memory is bounded."""


def grid_seconds(own_seconds: Iterable[float]) -> float | None:
    """The grid the instants sit on, if most of them tie; None if they do not.

    Mooncake's conversation trace has 12,031 requests on 1,180 instants 3 s apart:
    sent as they stand they are bursts that no user made. The grid is the median
    positive gap, and there is one when more than half of the gaps are zero.
    """
    ties = gaps = 0
    positive: list[float] = []
    for before, now in itertools.pairwise(own_seconds):
        gaps += 1
        if now == before:
            ties += 1
        elif len(positive) < GRID_SAMPLE:
            positive.append(now - before)
    if not positive or ties <= gaps / 2:
        return None
    return float(np.median(positive))


def spread_ties(
    own_seconds: Iterable[float], grid: float, seed: int
) -> Iterator[float]:
    """The same instants, each spread evenly over its grid step, order kept.

    A step is the grid, or the gap to the next instant where that is shorter.
    """
    generator = np.random.default_rng(_stream(seed, "ties"))
    stamps = ((at, sum(1 for _ in tied)) for at, tied in itertools.groupby(own_seconds))
    held = next(stamps, None)
    while held is not None:
        following = next(stamps, None)
        step = grid if following is None else min(grid, following[0] - held[0])
        offsets = np.sort(generator.random(held[1])) * step
        yield from (held[0] + offsets).tolist()
        held = following


def _stream(seed: int, use: str) -> list[int]:
    """A random stream per use of one seed, so that no two uses share draws."""
    return [seed, int.from_bytes(use.encode(), "big")]
