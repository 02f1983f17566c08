"""The shape of a trace's arrivals, small enough to ship, and new ones of that shape.

Two shapes cover the public traces. `Modulated`: a Poisson process whose rate
drifts (Azure conversation). `OnOff`: bursts apart (Azure code, where 95 pauses hold
three quarters of the hour and no gamma or Weibull fits the gaps).
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from loadgen.traces.synth.bins import BinAxis, draw, pct8

FloatArray = NDArray[np.float64]

WINDOW_SECONDS = 300.0
OFF_SECONDS = 2.0
"""A gap longer than this is a pause between bursts."""
BURSTY_CV = 3.0
"""Gaps that vary more than this are taken as bursts: no drift makes them."""

_MICROSECONDS = 1e6


class Modulated(msgspec.Struct, frozen=True, tag="modulated", tag_field="shape"):
    """A Poisson process of drifting rate."""

    rate_per_second: float
    relative_rates: list[float]
    """Rate of each of equally long windows over the trace's mean rate."""


class OnOff(msgspec.Struct, frozen=True, tag="on_off", tag_field="shape"):
    """Bursts of requests with pauses between them."""

    rate_per_second: float
    burst_requests: BinAxis
    gap_microseconds: BinAxis
    """Gaps inside bursts."""
    pause_microseconds: BinAxis


Shape = Modulated | OnOff


def shape_of(at_seconds: ArrayLike) -> Shape:
    """The shape of arrivals at these instants, in order; at least three of them."""
    stamps = np.asarray(at_seconds, dtype=np.float64)
    gaps = np.diff(stamps)
    rate = (len(stamps) - 1) / float(stamps[-1] - stamps[0])
    if gaps.std() / gaps.mean() > BURSTY_CV:
        return _on_off(gaps, rate)
    span = float(stamps[-1] - stamps[0])
    windows = max(1, round(span / WINDOW_SECONDS))
    counts, _ = np.histogram(stamps, windows)
    relative = counts / counts.mean()
    return Modulated(round(rate, 6), np.round(relative, 4).tolist())


def drawn_seconds(
    shape: Shape, size: int, generator: np.random.Generator
) -> FloatArray:
    """`size` new instants of that shape, the first at zero, at its own mean rate."""
    if isinstance(shape, Modulated):
        return _modulated_seconds(shape, size, generator)
    return _on_off_seconds(shape, size, generator)


def _on_off(gaps: FloatArray, rate: float) -> OnOff:
    is_pause = gaps > OFF_SECONDS
    edges = np.concatenate([[-1], np.flatnonzero(is_pause), [len(gaps)]])
    microseconds = np.rint(gaps * _MICROSECONDS).astype(np.int64)
    return OnOff(
        rate_per_second=round(rate, 6),
        burst_requests=pct8(np.diff(edges)),
        gap_microseconds=pct8(microseconds[~is_pause]),
        pause_microseconds=pct8(microseconds[is_pause]),
    )


def _modulated_seconds(
    shape: Modulated, size: int, generator: np.random.Generator
) -> FloatArray:
    """A unit Poisson process read through the inverse of its summed rate.

    The whole drift is squeezed into the new trace's span, size / rate.
    """
    rates = np.array(shape.relative_rates) * shape.rate_per_second
    width = size / shape.rate_per_second / len(rates)
    expected = np.concatenate([[0.0], np.cumsum(rates * width)])
    edges = np.arange(len(rates) + 1) * width
    unit = np.concatenate([[0.0], np.cumsum(generator.standard_exponential(size - 1))])
    inside = np.interp(unit, expected, edges)
    beyond = np.maximum(unit - expected[-1], 0) / shape.rate_per_second
    return np.asarray(inside + beyond, dtype=np.float64)


def _on_off_seconds(
    shape: OnOff, size: int, generator: np.random.Generator
) -> FloatArray:
    """Bursts and pauses in turn until there are enough requests."""
    burst = shape.burst_requests
    mean = float(np.dot(burst.counts, burst.means) / np.sum(burst.counts))
    bursts: list[int] = []
    while sum(bursts) < size:
        bursts += draw(burst, max(1, round(size / mean)), generator).tolist()
    gaps = draw(shape.gap_microseconds, size, generator)
    last = np.cumsum(bursts)
    pauses = draw(shape.pause_microseconds, len(bursts), generator)
    for place, end in enumerate(last.tolist()):
        if end < size:
            gaps[end] = pauses[place]
    stamps = np.concatenate([[0], np.cumsum(gaps[1:])])
    return np.asarray(stamps / _MICROSECONDS, dtype=np.float64)
