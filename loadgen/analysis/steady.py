"""The steady part of one run: after the engine has filled up, before it drains.

Judged by the requests in flight, as any queue: MSER-5 (`loadgen.analysis.warmup`)
cuts the beginning whose removal leaves the smallest standard error of their mean, and
the part after the last start, when nothing new comes, is no load at all. Where the
best cut lies beyond the middle there is no steady part: the queue grows, which is what
more load than an engine can serve looks like.

Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loadgen.analysis.warmup import BATCH, in_flight, mser

BINS = 200
"""Instants at which requests in flight are counted: 40 batches of five."""
FEWEST_REQUESTS = 40
"""Fewer say nothing about a beginning: all of them count."""
NOISE_PART = 0.02
GROWTH = 0.1
"""Of the requests that come in a quarter of the run, so many more in flight in the last
quarter than in the third: at 1.1 times the load that can be served."""
CHANCE = 1.5
"""And so many times the root of those in flight, which any queue wanders by."""


@dataclass(frozen=True, slots=True)
class SteadyWindow:
    """Starts of requests that count, in seconds from the run's zero."""

    start_seconds: float
    end_seconds: float
    is_steady: bool | None
    """False: no part of it is. None: too few requests to say, or all sent at once."""
    rule: str
    """How it was found, for the reader."""
    is_growing: bool = False
    """More and more requests are in flight to the end, beyond chance."""

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end_seconds - self.start_seconds

    def holds(self, at_seconds: float) -> bool:
        """Whether a request that was due then counts."""
        return self.start_seconds <= at_seconds <= self.end_seconds


FEWEST_LATENCIES = 3.0
"""A run must last so many times what a request takes, or it only fills up."""


def steady_window(
    planned: Sequence[float], sent: Sequence[float], finished: Sequence[float]
) -> SteadyWindow:
    """The window of a run's requests; the three are in any order of requests."""
    first, last = min(planned, default=0.0), max(planned, default=0.0)
    end = max(finished, default=0.0)
    if last <= first:
        return SteadyWindow(0.0, end, None, "the whole run: all was sent at once")
    if len(planned) < FEWEST_REQUESTS:
        return SteadyWindow(
            first, last, None, f"first to last start: {len(planned)} requests are few"
        )
    edges = np.linspace(first, last, BINS + 1)
    counts = np.asarray(
        in_flight(((edges[:-1] + edges[1:]) / 2).tolist(), sent, finished)
    )
    means = counts.reshape(-1, BATCH).mean(axis=1)
    cut = mser(means, NOISE_PART * float(means.mean()))
    if _unloaded_seconds(planned, sent, finished) * FEWEST_LATENCIES > last - first:
        return SteadyWindow(
            first, last, None,
            f"first to last start: shorter than {FEWEST_LATENCIES:g} requests take",
        )  # fmt: skip
    third, fourth = (float(part.mean()) for part in np.array_split(means, 4)[2:])
    least = max(GROWTH * len(planned) / 4, CHANCE * float(np.sqrt(fourth + 1)))
    is_growing = fourth - third > least
    if cut is None or is_growing:
        what = "grow to the end" if is_growing else "never settle"
        return SteadyWindow(
            float(edges[BINS // 2]), last, False,
            f"second half of the starts: requests in flight {what}", is_growing,
        )  # fmt: skip
    start = float(edges[cut * BATCH])
    return SteadyWindow(
        start, last, True, "MSER-5 of the requests in flight, to the last start"
    )


def _unloaded_seconds(
    planned: Sequence[float], sent: Sequence[float], finished: Sequence[float]
) -> float:
    """What requests took that found the engine empty: the first tenth."""
    order = np.argsort(np.asarray(planned), kind="stable")
    early = order[: max(len(order) // 10, 5)]
    return float(np.median(np.asarray(finished)[early] - np.asarray(sent)[early]))
