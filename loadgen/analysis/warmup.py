"""Was the machine still warming up? What drifts at a run's beginning and load does not
explain: time to first token, power, clocks, temperature.

Method: MSER-5 (White 1997; Franklin and White 2008). Five observations make a batch;
the beginning that is cut is the one whose removal leaves the smallest standard error
of the mean, and lies in the first half: beyond it a series that flattens warmed up for
half the run, and one that does not has no steady part. As MSER cuts a little of any
noise, a cut counts only where the two parts differ by more than chance and by more
than matters. First, what load explains is taken out by least squares, and loads that
the rest of the run never had are left out, or every run that fills up would warm up.

Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

BATCH = 5
MIN_BATCHES = 8
"""Fewer say nothing: half of them may be cut."""
MIN_SCORE = 6.0
"""Differences of the two parts in standard errors; neighbours are alike (batches of
one run resemble each other), so three, as for independent ones, would cry wolf."""


NOISE_PART = 0.1
"""Of the least difference that matters, taken as the noise of any figure."""
SETTLED_PART = 0.3
"""A transient as long as half the run has a second half that drifts less than so."""


@dataclass(frozen=True, slots=True)
class Signal:
    """One figure that may drift, and from when on that matters."""

    name: str
    unit: str
    is_relative: bool = True
    least: float = 0.1
    """Smallest difference of the two parts: a fraction, or in the unit."""
    degrades_from: float | None = 0.02
    """Shift of the whole run's mean that makes a run degraded; None: none does."""


TTFT = Signal("ttft", "s", least=0.2, degrades_from=0.05)
POWER = Signal("power", "W", least=0.05)
CLOCK = Signal("sm_clock", "Hz", least=0.02)
TEMPERATURE = Signal("temperature", "C", False, least=3.0, degrades_from=None)
"""Shown, and not held against a run: every chip warms; where that changes power, time
or clocks, those drift too."""
SIGNALS = {signal.name: signal for signal in (TTFT, POWER, CLOCK, TEMPERATURE)}


class WarmUp(msgspec.Struct, frozen=True, kw_only=True):
    """A beginning unlike the rest, in one figure."""

    signal: str
    """`ttft`, `power`, `sm_clock` or `temperature`."""
    seconds: float
    """From the window's start to the end of the drift."""
    before: float
    """Typical figure in it, at the load of the rest."""
    after: float
    mean_shift: float
    """How far it moves the whole window's mean: a fraction, of temperature degrees."""
    is_steady: bool = True
    """False where the drift goes on to the end, as far as can be told."""


def mser(values: FloatArray, noise: float = 0.0) -> int | None:
    """How many values at the beginning to cut; None where there is no steady part.

    `values` are batch means, shape (n,). The cut minimises the squared standard
    error of the mean of what is left; `noise` is that of the values at least, or
    the end of a smooth curve, ever so flat, would be cut for being no line.
    """
    n = len(values)
    if n < 2:
        return 0
    left = np.arange(n, 0, -1, dtype=np.float64)
    sums = np.cumsum(values[::-1])[::-1]
    squares = np.cumsum((values**2)[::-1])[::-1]
    spread = np.maximum(squares - sums**2 / left, 0.0)
    error = (spread + left * noise**2) / left**2
    # the last few are alike by chance, and would always win
    candidates = error[: max(n - BATCH, 1)]
    cut = int(np.argmin(candidates))
    return cut if cut <= n // 2 else None


def comparable(drivers: Sequence[FloatArray], count: int) -> NDArray[np.bool_]:
    """Where every driver is within what the second half saw, shape (count,).

    A run that fills up begins at loads that it never has again: what they say cannot
    be held against the rest.
    """
    keep = np.ones(count, dtype=np.bool_)
    for driver in drivers:
        late = driver[count // 2 :]
        if len(late):
            keep &= (driver >= late.min()) & (driver <= late.max())
    return keep


def unexplained(values: FloatArray, drivers: Sequence[FloatArray]) -> FloatArray:
    """Values less what the drivers explain, their mean kept, shape of the values.

    Fitted on the second half, which is past any warm-up.
    """
    late = slice(len(values) // 2, None)
    varied = [driver for driver in drivers if np.ptp(driver[late]) > 0]
    design = np.stack([np.ones(len(values)), *varied], axis=1)
    if len(values) // 2 <= 2 * design.shape[1]:
        return values
    found, *_ = np.linalg.lstsq(design[late], values[late], rcond=None)
    explained = design @ found
    rest: FloatArray = values - explained + float(explained[late].mean())
    return rest


def warm_up(
    signal: Signal,
    at_seconds: Sequence[float],
    values: Sequence[float],
    drivers: Sequence[Sequence[float]] = (),
    *,
    batch: int = BATCH,
) -> WarmUp | None:
    """The drift at the beginning of one figure; None where there is none to speak of.

    `at_seconds` is in order and counts from the window's start. Relative figures are
    compared as logarithms: a time of ten times the usual is one fault, not ten.
    """
    at, found = np.asarray(at_seconds, np.float64), np.asarray(values, np.float64)
    by = [np.asarray(each, np.float64) for each in drivers]
    keep = comparable(by, len(found))
    if signal.is_relative:
        keep &= found > 0
    at, found, by = at[keep], found[keep], [each[keep] for each in by]
    if len(found) < batch * MIN_BATCHES:
        return None
    rest = unexplained(np.log(found) if signal.is_relative else found, by)
    count = len(rest) // batch
    means = rest[: count * batch].reshape(count, batch).mean(axis=1)
    cut = mser(means, NOISE_PART * _least(signal))
    is_steady = cut is not None or _settles(means)
    if cut is None:
        cut = count // 2
    if cut == 0 or not _differs(signal, means[:cut], means[cut:]):
        return None
    before, after = float(means[:cut].mean()), float(means[cut:].mean())
    shift = (before - after) * cut / count
    end = at[min(cut * batch, len(at) - 1)]
    return WarmUp(
        signal=signal.name,
        seconds=float(end),
        before=float(np.exp(before)) if signal.is_relative else before,
        after=float(np.exp(after)) if signal.is_relative else after,
        mean_shift=float(np.expm1(shift)) if signal.is_relative else shift,
        is_steady=is_steady,
    )


def degrades(found: WarmUp) -> bool:
    """Whether a run's figures are off by more than they should be.

    A drift to the end is no warm-up: the load changed, or the run is too short to say.
    """
    least = SIGNALS[found.signal].degrades_from
    return found.is_steady and least is not None and abs(found.mean_shift) >= least


def in_flight(
    at_seconds: Sequence[float], starts: Sequence[float], ends: Sequence[float]
) -> list[float]:
    """Requests that ran at each instant."""
    at = np.asarray(at_seconds, np.float64)
    begun = np.searchsorted(np.sort(np.asarray(starts)), at, side="right")
    ended = np.searchsorted(np.sort(np.asarray(ends)), at, side="right")
    return [float(each) for each in begun - ended]


def _differs(signal: Signal, early: FloatArray, late: FloatArray) -> bool:
    difference = float(early.mean() - late.mean())
    if abs(difference) < _least(signal) or len(late) < 3:
        return False
    error = float(late.std(ddof=1)) * np.sqrt(1 / len(early) + 1 / len(late))
    return bool(abs(difference) > MIN_SCORE * error)


def _least(signal: Signal) -> float:
    return float(np.log1p(signal.least)) if signal.is_relative else signal.least


def _settles(means: FloatArray) -> bool:
    """Whether the second half of a series drifts far less than the first one did."""
    first, second, third, last = (part.mean() for part in np.array_split(means, 4))
    return bool(abs(third - last) <= SETTLED_PART * abs(first - second))
