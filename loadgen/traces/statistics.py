"""Statistics of a trace: lengths, turns, arrivals.

Percentiles are exact with linear interpolation. Prompts are full prompts: a turn
that carries its history is counted with it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from loadgen.traces.trace import Session

FloatArray = NDArray[np.float64]

PERCENTILES = (5, 25, 50, 75, 90, 95, 99)
WINDOWS_SECONDS = (1, 10, 60)


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Distribution of one quantity."""

    n: int
    mean: float
    sd: float
    percentiles: dict[str, float]
    min: float
    max: float


class Arrivals(msgspec.Struct, frozen=True, kw_only=True):
    """Arrivals of sessions."""

    rate_per_second: float
    span_seconds: float
    cv: float
    """Standard deviation of the gaps over their mean; 1 for Poisson."""
    ties: int
    """Gaps of zero."""
    longest_gap_seconds: float
    dispersion: dict[str, float | None]
    """Variance over mean of counts in windows of 1, 10, 60 s; 1 for Poisson."""
    peak_to_mean: dict[str, float | None]
    empty_seconds_fraction: float


class TraceStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """All statistics of a trace, as `loadgen traces stats` prints them."""

    sessions: int
    requests: int
    kinds: dict[str, int]
    turns: Spread
    input_tokens: Spread | None
    """None for a trace of text, whose tokens were not counted."""
    output_tokens: Spread | None
    think_seconds: Spread | None
    arrivals: Arrivals | None
    """None for a trace without timestamps."""


def trace_statistics(sessions: Iterable[Session]) -> TraceStatistics:
    """Read a trace once, keeping its numbers and not its rows."""
    turns, prompts, replies = array("q"), array("q"), array("q")
    thinks, stamps = array("d"), array("d")
    kinds: dict[str, int] = {}
    for session in sessions:
        turns.append(len(session.turns))
        if session.turns[0].at_seconds is not None:
            stamps.append(session.turns[0].at_seconds)
        history = 0
        for place, turn in enumerate(session.turns):
            kinds[turn.kind] = kinds.get(turn.kind, 0) + 1
            if turn.input_tokens is not None:
                carried = history if turn.history == "append" else 0
                prompts.append(turn.input_tokens + carried)
                history = prompts[-1] + (turn.output_tokens or 0)
            if turn.output_tokens is not None:
                replies.append(turn.output_tokens)
            if place and turn.think_seconds:
                thinks.append(turn.think_seconds)
    return TraceStatistics(
        sessions=len(turns),
        requests=sum(turns),
        kinds=kinds,
        turns=_spread(turns),
        input_tokens=_spread(prompts) if prompts else None,
        output_tokens=_spread(replies) if replies else None,
        think_seconds=_spread(thinks) if thinks else None,
        arrivals=_arrivals(np.asarray(stamps)) if len(stamps) == len(turns) else None,
    )


def _spread(values: ArrayLike) -> Spread:
    numbers = np.asarray(values, dtype=np.float64)
    points = np.percentile(numbers, PERCENTILES)
    return Spread(
        n=len(numbers),
        mean=float(numbers.mean()),
        sd=float(numbers.std()),
        percentiles={
            f"p{p}": float(point) for p, point in zip(PERCENTILES, points, strict=True)
        },
        min=float(numbers.min()),
        max=float(numbers.max()),
    )


def _arrivals(stamps: FloatArray) -> Arrivals | None:
    """None with fewer than two instants, which have no rate."""
    span = float(stamps[-1] - stamps[0]) if len(stamps) > 1 else 0.0
    if span <= 0:
        return None
    gaps = np.diff(stamps)
    windows = {width: _windows(stamps, span, width) for width in WINDOWS_SECONDS}
    return Arrivals(
        rate_per_second=len(stamps) / span,
        span_seconds=span,
        cv=float(gaps.std() / gaps.mean()),
        ties=int((gaps == 0).sum()),
        longest_gap_seconds=float(gaps.max()),
        dispersion={f"{width}s": w.dispersion for width, w in windows.items()},
        peak_to_mean={f"{width}s": w.peak_to_mean for width, w in windows.items()},
        empty_seconds_fraction=windows[1].empty_fraction if span > 1 else 0.0,
    )


@dataclass(frozen=True, slots=True)
class _Windows:
    """Counts in equally long windows; the empty ones, most in a long trace, as one."""

    counts: FloatArray
    """Counts of the windows that are not empty."""
    windows: int

    @property
    def dispersion(self) -> float | None:
        """Variance over mean of all counts; None for fewer than two windows."""
        mean = float(self.counts.sum()) / self.windows if self.windows > 1 else 0.0
        if not mean:
            return None
        empty = (self.windows - len(self.counts)) * mean**2
        return (float(((self.counts - mean) ** 2).sum()) + empty) / self.windows / mean

    @property
    def peak_to_mean(self) -> float | None:
        """Largest count over mean; None for fewer than two windows."""
        if self.windows < 2 or not len(self.counts):
            return None
        return float(self.counts.max() / (self.counts.sum() / self.windows))

    @property
    def empty_fraction(self) -> float:
        """Share of windows without a request."""
        return 1 - len(self.counts) / self.windows if self.windows else 0.0


def _windows(stamps: FloatArray, span: float, width: int) -> _Windows:
    """Requests in each full window of `width` seconds, without a partial last one."""
    windows = int(span // width)
    inside = stamps - stamps[0]
    places = inside[inside < windows * width] // width
    _, counts = np.unique(places, return_counts=True)
    return _Windows(counts.astype(np.float64), windows)
