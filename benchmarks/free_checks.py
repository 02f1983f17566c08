"""Is the division right? Checks that need no truth, so that they work on a real GPU.

Pure arithmetic on what runs have given: joules per request, counts and totals per
run. Three ways to contradict an attribution without knowing the answer:

- homogeneous mix: requests that are alike, in steady load, must get E/n each;
- class-mix regression: over many mixes of two classes at the same rate, total energy
  on the two counts says what one more of a class costs; what a policy charged the
  class must agree;
- split runs: requests run in two halves must cost, class by class, what they were
  charged when they ran together at the same rate.

The regression's figure is marginal, a policy's is a share: they agree as far as a mix
does not change how well work shares the engine's steps. In the simulator the truth
itself lies 3 to 10 % off the regression; only more than that speaks against a policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

ENDS_FRACTION = 0.1
"""Of the requests at either end of a run: the load rises and falls there."""


@dataclass(frozen=True)
class Run:
    """One run under steady load: what each request was charged, active joules."""

    kinds: Sequence[str]
    joules: Sequence[float]

    @property
    def total_joules(self) -> float:
        """Of all requests: by conservation what the counter showed less idle."""
        return float(sum(self.joules))

    def count(self, kind: str) -> int:
        """Requests of a class."""
        return sum(each == kind for each in self.kinds)

    def mean_joules(self, kind: str) -> float:
        """What one of a class was charged; nan where there was none."""
        own = [j for k, j in zip(self.kinds, self.joules, strict=True) if k == kind]
        return float(np.mean(own)) if own else float("nan")


@dataclass(frozen=True)
class Spread:
    """How far like requests were charged from E/n, relative."""

    requests: int
    median: float
    p90: float
    worst: float


def homogeneous_spread(joules: Sequence[float]) -> Spread:
    """Like requests in order of arrival; those at the ends of the run left out.

    Raises ValueError below 20 requests: nothing steady is left of them.
    """
    count = len(joules)
    if count < 20:
        raise ValueError(f"{count} requests are too few for a steady load, 20 at least")
    cut = int(count * ENDS_FRACTION)
    steady = np.asarray(joules, np.float64)[cut : count - cut]
    off = np.abs(steady / steady.mean() - 1)
    return Spread(
        len(steady),
        float(np.median(off)),
        float(np.quantile(off, 0.9)),
        float(off.max()),
    )


@dataclass(frozen=True)
class ClassCost:
    """One class: what regression says, with its error, and what was charged."""

    kind: str
    regressed_joules: float
    error_joules: float
    attributed_joules: float

    @property
    def bias(self) -> float:
        """Charged / regressed; 1 is agreement."""
        return self.attributed_joules / self.regressed_joules

    @property
    def sigmas(self) -> float:
        """How many standard errors lie between them."""
        off = abs(self.attributed_joules - self.regressed_joules)
        return off / max(self.error_joules, 1e-12)


def class_mix_regression(
    runs: Sequence[Run], kinds: tuple[str, str]
) -> list[ClassCost]:
    """Total energy of each run on its two counts, without a constant.

    Raises ValueError for fewer than four runs, or mixes that are all alike.
    """
    counts = np.array([[run.count(kind) for kind in kinds] for run in runs], np.float64)
    totals = np.array([run.total_joules for run in runs])
    if len(runs) < 4:
        raise ValueError(f"{len(runs)} mixes are too few, 4 at least")
    if np.linalg.matrix_rank(counts, tol=1e-6 * counts.max()) < 2:
        raise ValueError("all mixes are alike: their counts say nothing of a class")
    squares = counts.T @ counts
    costs = np.linalg.solve(squares, counts.T @ totals)
    left = totals - counts @ costs
    variance = float(left @ left) / (len(runs) - 2)
    errors = np.sqrt(variance * np.diag(np.linalg.inv(squares)))
    return [
        ClassCost(
            kind,
            float(costs[number]),
            float(errors[number]),
            _charged(runs, kind),
        )
        for number, kind in enumerate(kinds)
    ]


def split_ratios(whole: Run, halves: Sequence[Run]) -> Mapping[str, float]:
    """Mean joules in the halves / in the whole, of all requests and by class."""
    apart = sum(half.total_joules for half in halves)
    together = whole.total_joules / len(whole.kinds)
    found = {"all": apart / sum(len(half.kinds) for half in halves) / together}
    for kind in sorted(set(whole.kinds)):
        found[kind] = _charged(halves, kind) / whole.mean_joules(kind)
    return found


def lag_seconds(
    watts: FloatArray, busy: FloatArray, step_seconds: float, max_seconds: float = 3.0
) -> float:
    """How late a power reading follows the load: where they correlate best.

    Both on the same grid. The load (0..1) has to change, or nothing can be seen.
    """
    if np.ptp(busy) == 0 or np.ptp(watts) == 0:
        raise ValueError("load or power never changed: no lag can be seen")
    steps = min(int(max_seconds / step_seconds), len(busy) // 2)
    scores = [
        float(np.corrcoef(watts[shift:], busy[: len(busy) - shift])[0, 1])
        for shift in range(steps + 1)
    ]
    best = int(np.nanargmax(scores))
    return best * step_seconds


def counter_edges(
    at_seconds: FloatArray, joules: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Instants at which a counter changed, midway between reads, and its values."""
    changed = np.flatnonzero(np.diff(joules) > 0) + 1
    return (at_seconds[changed] + at_seconds[changed - 1]) / 2, joules[changed]


def counter_period_seconds(at_seconds: FloatArray, joules: FloatArray) -> float:
    """Median time between two changes. Raises ValueError where it hardly moved."""
    edges, _ = counter_edges(at_seconds, joules)
    if len(edges) < 5:
        raise ValueError(f"the counter changed {len(edges)} times, 5 are needed")
    return float(np.median(np.diff(edges)))


def counter_watts(
    at_seconds: FloatArray, joules: FloatArray, grid_seconds: FloatArray
) -> FloatArray:
    """Mean power between the counter's edges, on a grid inside them."""
    edges, values = counter_edges(at_seconds, joules)
    watts = np.diff(values) / np.diff(edges)
    index = np.clip(np.searchsorted(edges, grid_seconds) - 1, 0, len(watts) - 1)
    return np.asarray(watts[index], dtype=np.float64)


def counter_power_ratio(
    at_seconds: FloatArray, joules: FloatArray, watts: FloatArray
) -> float:
    """Counter / integrated power between the counter's first and last edge."""
    edges, values = counter_edges(at_seconds, joules)
    inside = (at_seconds > edges[0]) & (at_seconds < edges[-1])
    times = np.concatenate(([edges[0]], at_seconds[inside], [edges[-1]]))
    powers = np.interp(times, at_seconds, watts)
    integrated = float(np.sum(np.diff(times) * (powers[1:] + powers[:-1]) / 2))
    return float(values[-1] - values[0]) / integrated


def _charged(runs: Sequence[Run], kind: str) -> float:
    """Mean over all requests of a class in all runs."""
    total = sum(
        run.count(kind) * run.mean_joules(kind) for run in runs if run.count(kind)
    )
    return total / sum(run.count(kind) for run in runs)
