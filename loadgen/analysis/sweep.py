"""One figure of load against what it costs: the points of a sweep, and the best one.

A point is one setting with its repeats. Its figures are of the requests of each
repeat's steady window (`loadgen.analysis.steady`), with 95 % intervals from blocks of
consecutive sessions drawn again (`loadgen.analysis.resampling`). Joules of a request
include its idle share; joules per good request are all that the sensor measured in
the window over the requests that met the service level, so that an engine that stands
idle, and requests that come too late, both cost.

Pure.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from loadgen.analysis.naive import measured_over_naive
from loadgen.analysis.resampling import (
    Column,
    Estimate,
    Quantile,
    Ratio,
    Sample,
    Statistic,
    blocks_of,
    estimate,
)
from loadgen.analysis.schema import PowerSeries, Summary
from loadgen.analysis.steady import SteadyWindow, steady_window
from loadgen.results import measures
from loadgen.results.results import Result

KEPT_UP = 0.9
"""Answered over due, inside the window: below it the engine queues."""
FIGURES: dict[str, tuple[str, Statistic]] = {
    "joules_per_request": ("J", Ratio("energy")),
    "joules_per_output_token": ("J", Ratio("energy", "output_tokens")),
    "p50_ttft_seconds": ("s", Quantile("ttft", 0.5)),
    "p99_ttft_seconds": ("s", Quantile("ttft", 0.99)),
    "p50_tpot_seconds": ("s", Quantile("tpot", 0.5)),
    "p50_e2el_seconds": ("s", Quantile("e2el", 0.5)),
    "p99_e2el_seconds": ("s", Quantile("e2el", 0.99)),
}
"""Figures with an interval, and their units."""
_COLUMNS: dict[str, Callable[[Result], float | None]] = {
    "energy": measures.energy_joules,
    "ttft": measures.ttft_seconds,
    "tpot": measures.tpot_seconds,
    "e2el": measures.e2el_seconds,
    "output_tokens": lambda result: result.output_tokens,
}


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """A figure with its 95 % interval; ends are null below 8 blocks of sessions."""

    value: float | None
    low: float | None = None
    high: float | None = None


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One setting of a sweep; rates in requests per second of the window."""

    name: str
    axes: dict[str, Any]
    repeats: int
    simulated: bool
    boundary: str | None
    requests: int
    answered: int
    good: int
    """Answered within every --goodput limit; without limits, answered."""
    asked_per_second: float | None
    """null: all at once, or the trace's own."""
    achieved_per_second: float | None
    """At which requests really left."""
    answered_per_second: float | None
    good_per_second: float | None
    output_tokens_per_second: float | None
    kept_up: float | None
    """Answered over due, while the window lasted."""
    is_saturated: bool
    mean_watts: float | None
    joules_per_good: Interval
    figures: dict[str, Interval]
    measured_over_naive: dict[str, float | None] = {}
    """By name of the estimate (`NaiveEstimate`); of its runs whole, idle included."""
    window_seconds: float
    window_starts: list[float]
    """Of each repeat: what was cut at its beginning."""
    window_rules: list[str]
    verdicts: list[str]
    reasons: list[str]
    """Why verdicts are not `valid`, each once."""

    @property
    def rate(self) -> float | None:
        """Its place on the axis of load; inf where all was sent at once."""
        value = self.axes.get("rate")
        return None if value is None else float(value)

    @property
    def load_per_second(self) -> float | None:
        """Its place on charts: of a burst, what was answered of it per second."""
        if self.rate is not None and math.isinf(self.rate):
            return self.answered_per_second
        return self.achieved_per_second

    def value(self, figure: str) -> float | None:
        """The figure itself, without its interval."""
        if figure == "joules_per_good":
            return self.joules_per_good.value
        return self.figures[figure].value


@dataclass(slots=True)
class RunWindowed:
    """One run of a point: its summary, and its requests inside the steady window."""

    summary: Summary
    window: SteadyWindow
    requests: int = 0
    answered: int = 0
    good: int = 0
    finished: int = 0
    """Answered while the window lasted, whenever they were due."""
    sent: list[float] = field(default_factory=list)
    all_joules: float = 0.0
    """Of every request of the window, failures and misses too."""
    columns: dict[str, array[float]] = field(default_factory=dict)
    joules_of: array[float] = field(default_factory=lambda: array("d"))
    is_good: array[float] = field(default_factory=lambda: array("d"))
    blocks: list[int] = field(default_factory=list)
    """Of answered requests."""
    blocks_of_all: list[int] = field(default_factory=list)
    block_count: int = 0


def windowed(summary: Summary, results: Iterable[Result]) -> RunWindowed:
    """A run's requests in its steady window; failed ones are misses that cost."""
    sent = [result for result in results if result.sent_seconds is not None]
    window = steady_window(
        [result.planned_seconds for result in sent],
        [result.sent_seconds or 0.0 for result in sent],
        [result.finished_seconds for result in sent],
    )
    limits = summary.goodput.limits if summary.goodput else {}
    run = RunWindowed(summary, window)
    run.columns = {name: array("d") for name in _COLUMNS}
    starts: dict[str, float] = {}
    inside = []
    for result in sent:
        is_ok = measures.is_ok(result)
        if is_ok and window.holds(result.finished_seconds):
            run.finished += 1
        if not window.holds(result.planned_seconds):
            continue
        inside.append(result)
        at = min(result.planned_seconds, starts.get(result.session_id, math.inf))
        starts[result.session_id] = at
    order = sorted(starts, key=lambda session: (starts[session], session))
    run.block_count = blocks_of(len(order))
    placed = {
        session: at * run.block_count // len(order) for at, session in enumerate(order)
    }
    for result in inside:
        block = placed[result.session_id]
        is_ok = measures.is_ok(result)
        is_good = measures.meets(result, limits)
        joules = result.energy.energy_joules if result.energy else None
        run.requests += 1
        run.answered += is_ok
        run.good += is_good
        run.sent.append(result.sent_seconds or 0.0)
        run.all_joules += joules or 0.0
        run.joules_of.append(math.nan if joules is None else joules)
        run.is_good.append(float(is_good))
        run.blocks_of_all.append(block)
        if is_ok:
            run.blocks.append(block)
            for name, of in _COLUMNS.items():
                value = of(result)
                run.columns[name].append(math.nan if value is None else value)
    return run


def point(name: str, axes: Mapping[str, Any], runs: Sequence[RunWindowed]) -> Point:
    """A setting's figures from all its repeats; blocks of each are drawn together."""
    sample = _pooled(runs)
    seconds = sum(run.window.seconds for run in runs)
    requests = sum(run.requests for run in runs)
    answered = sum(run.answered for run in runs)
    good = sum(run.good for run in runs)
    finished = sum(run.finished for run in runs)
    tokens = sum(float(np.nansum(run.columns["output_tokens"])) for run in runs)
    is_burst = all(run.window.rule.startswith("the whole run") for run in runs)
    kept_up = None if is_burst or not requests else finished / requests
    watts = _mean_watts(runs)
    first = runs[0].summary
    return Point(
        name=name,
        axes=dict(axes),
        repeats=len(runs),
        simulated=any(run.summary.simulated for run in runs),
        boundary=first.energy.boundary,
        requests=requests,
        answered=answered,
        good=good,
        asked_per_second=first.schedule.asked_per_second,
        achieved_per_second=_mean(
            [run.summary.schedule.achieved_per_second for run in runs]
        ),
        answered_per_second=_per(answered, seconds),
        good_per_second=_per(good, seconds),
        output_tokens_per_second=_per(tokens, seconds),
        kept_up=kept_up,
        is_saturated=_is_saturated(kept_up, runs),
        mean_watts=watts,
        joules_per_good=_per_good(sample, watts, seconds, good),
        figures={
            figure: _interval(estimate(sample, statistic))
            for figure, (_, statistic) in FIGURES.items()
        },
        measured_over_naive=measured_over_naive([run.summary.naive for run in runs]),
        window_seconds=seconds,
        window_starts=[run.window.start_seconds for run in runs],
        window_rules=sorted({run.window.rule for run in runs}),
        verdicts=[run.summary.verdict.status for run in runs],
        reasons=list(
            dict.fromkeys(
                reason for run in runs for reason in run.summary.verdict.reasons
            )
        ),
    )


def _is_saturated(kept_up: float | None, runs: Sequence[RunWindowed]) -> bool:
    """Where most queues grow, or are never steady and answers fall behind."""
    if 2 * sum(run.window.is_growing for run in runs) > len(runs):
        return True
    unsteady = sum(run.window.is_steady is False for run in runs)
    return kept_up is not None and kept_up < KEPT_UP and 2 * unsteady > len(runs)


def _pooled(runs: Sequence[RunWindowed]) -> Sample:
    columns: dict[str, Column] = {}
    offsets = np.cumsum([0, *(run.block_count for run in runs)])
    answered = np.concatenate(
        [
            np.asarray(run.blocks, np.int64) + offset
            for run, offset in zip(runs, offsets, strict=False)
        ]
    )
    every = np.concatenate(
        [
            np.asarray(run.blocks_of_all, np.int64) + offset
            for run, offset in zip(runs, offsets, strict=False)
        ]
    )
    for name in _COLUMNS:
        values = np.concatenate([np.asarray(run.columns[name]) for run in runs])
        columns[name] = Column(values, answered)
    for name in ("joules_of", "is_good"):
        values = np.concatenate([np.asarray(getattr(run, name)) for run in runs])
        columns[name] = Column(values, every)
    return Sample(columns, int(offsets[-1]), {})


def _per_good(
    sample: Sample, watts: float | None, seconds: float, good: int
) -> Interval:
    """Measured joules over good requests; the interval is that of the records'.

    Without a power curve the joules are the records' own: what was drawn while nobody
    was served is then not among them.
    """
    found = estimate(sample, Ratio("joules_of", "is_good"))
    if found is None or not good:
        return Interval(value=None)
    factor = 1.0
    if watts is not None and seconds > 0:
        factor = watts * seconds / good / found.value
    return Interval(
        value=found.value * factor,
        low=None if found.low is None else found.low * factor,
        high=None if found.high is None else found.high * factor,
    )


def _interval(found: Estimate | None) -> Interval:
    if found is None:
        return Interval(value=None)
    return Interval(value=found.value, low=found.low, high=found.high)


def _mean_watts(runs: Sequence[RunWindowed]) -> float | None:
    """Power in the steady windows, from the curves of the runs; None where a run is
    too short for one."""
    joules = seconds = 0.0
    for run in runs:
        power = run.summary.energy.power
        found = None if power is None else _watts_within(power, run.window)
        if found is None:
            return None
        joules += found * run.window.seconds
        seconds += run.window.seconds
    return joules / seconds if seconds > 0 else None


def _watts_within(power: PowerSeries, window: SteadyWindow) -> float | None:
    edges = np.asarray(power.edges_seconds)
    total = np.sum(
        [
            power.prefill_watts, power.decode_watts, power.idle_share_watts,
            power.idle_watts, power.unattributed_watts,
        ],
        axis=0,
    )  # fmt: skip
    low = np.clip(edges[:-1], window.start_seconds, window.end_seconds)
    high = np.clip(edges[1:], window.start_seconds, window.end_seconds)
    inside = high - low
    if inside.sum() < 0.5 * window.seconds or inside.sum() <= 0:
        return None
    return float((total * inside).sum() / inside.sum())


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _per(count: float, seconds: float) -> float | None:
    return count / seconds if seconds > 0 else None


# -- what a sweep tells ----------------------------------------------------------


class Saturation(msgspec.Struct, frozen=True, kw_only=True):
    """Where an engine stops keeping up, in requests per second."""

    kept_up_per_second: float | None
    """The highest rate that was served as it came."""
    saturated_per_second: float | None
    """The lowest rate that was not."""
    capacity_per_second: float | None
    """The most that were answered per second, at any point."""


class SweepResult(msgspec.Struct, frozen=True, kw_only=True):
    """`sweep.json`: the points of a sweep and what they tell."""

    sweep: str = "sweep/1"
    trace: str
    axes: dict[str, list[Any]]
    fixed: dict[str, Any]
    repeats: int
    simulated: bool
    goodput: dict[str, float]
    """Limits in base units; empty: an answered request is a good one."""
    points: list[Point]
    skipped: list[str]
    """Points that the stop rule left out."""
    failed: list[str]
    saturation: Saturation | None
    """null where another axis than the rate was swept."""
    front: list[str]
    """Points no other beats in joules per request without being slower."""
    best: Optimum | None
    note: str


def saturation(points: Iterable[Point]) -> Saturation:
    """Between which rates it saturates, as far as they were tried."""
    found = list(points)
    rated = [p for p in found if p.rate is not None and math.isfinite(p.rate)]
    saturated = [p.rate for p in rated if p.is_saturated and p.rate is not None]
    lowest = min(saturated, default=None)
    kept = [
        p.rate
        for p in rated
        if not p.is_saturated
        and p.rate is not None
        and (lowest is None or p.rate < lowest)
    ]
    rates = [p.answered_per_second for p in found if p.answered_per_second is not None]
    return Saturation(
        kept_up_per_second=max(kept, default=None),
        saturated_per_second=lowest,
        capacity_per_second=max(rates, default=None),
    )


def pareto_front(
    points: Iterable[Point],
    first: str = "joules_per_request",
    second: str = "p50_e2el_seconds",
) -> list[str]:
    """Names of points that no other beats in one figure without losing in the other."""
    known = [
        (x, y, p.name)
        for p in points
        if (x := p.value(first)) is not None and (y := p.value(second)) is not None
    ]
    front = []
    best = math.inf
    for _, y, name in sorted(known):
        if y < best:
            best = y
            front.append(name)
    return front


# -- the search ------------------------------------------------------------------

CLOSE = 1.15
"""Rates closer than this factor are one: a search ends there."""
_BEYOND = 2.0
"""Step of a search whose best point is the last one on a side."""


class Optimum(msgspec.Struct, frozen=True, kw_only=True):
    """The rate with the least joules per good request."""

    rate_per_second: float
    joules_per_good: Interval
    low_per_second: float
    high_per_second: float
    """Rates tried whose joules cannot be told apart from the least."""
    is_bracketed: bool
    """Whether points on both sides cost more, as far as values go."""
    reason: str
    """Why the search ended."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One rate of the search and its joules per good request; inf: none was good."""

    rate: float
    value: float
    low: float | None = None
    high: float | None = None


def tried(points: Iterable[Point]) -> list[Tried]:
    """The finite rates of a sweep, in order."""
    found = []
    for p in points:
        if p.rate is None or not math.isfinite(p.rate):
            continue
        joules = p.joules_per_good
        value = math.inf if joules.value is None else joules.value
        found.append(Tried(p.rate, value, joules.low, joules.high))
    return sorted(found, key=lambda each: each.rate)


def next_rate(points: Sequence[Tried]) -> tuple[float | None, str]:
    """The rate to try next, or None and why the search is over.

    Golden section would trust every comparison; under noise the bracket is the least
    value's neighbours, so that a later point may move it back, and it is halved (in
    the logarithm) on its wider side until its points are close, or alike.
    """
    known = [each for each in points if math.isfinite(each.value)]
    if not known:
        return None, "no request met the service level at any rate"
    best = min(known, key=lambda each: each.value)
    at = points.index(best)
    if at == 0:
        return _rounded(best.rate / _BEYOND), "below the lowest rate"
    if at == len(points) - 1:
        return _rounded(best.rate * _BEYOND), "above the highest rate"
    below, above = points[at - 1], points[at + 1]
    if _alike(best, below) and _alike(best, above):
        return None, "the rates beside it cannot be told apart from it"
    left, right = best.rate / below.rate, above.rate / best.rate
    if max(left, right) <= CLOSE:
        return None, f"the rates beside it are within {CLOSE - 1:.0%}"
    middle = (below if left >= right else above).rate
    return _rounded(math.sqrt(middle * best.rate)), "between it and its neighbour"


def optimum(points: Sequence[Tried], reason: str) -> Optimum | None:
    """The best rate so far; None where no request was good at any."""
    known = [each for each in points if math.isfinite(each.value)]
    if not known:
        return None
    best = min(known, key=lambda each: each.value)
    alike = [each.rate for each in known if each is best or _alike(best, each)]
    at = points.index(best)
    return Optimum(
        rate_per_second=best.rate,
        joules_per_good=Interval(value=best.value, low=best.low, high=best.high),
        low_per_second=min(alike),
        high_per_second=max(alike),
        is_bracketed=0 < at < len(points) - 1,
        reason=reason,
    )


def _alike(best: Tried, other: Tried) -> bool:
    """Whether the difference may be chance: errors of both, as independent ones."""
    ends = (best.low, best.high, other.low, other.high)
    if any(end is None or end <= 0 for end in ends) or not math.isfinite(other.value):
        return False
    reaches = [
        (math.log(each.high or 1.0) - math.log(each.low or 1.0)) / 2
        for each in (best, other)
    ]
    return math.log(other.value / best.value) < math.hypot(*reaches)


def _rounded(rate: float) -> float:
    """Three digits are enough for a rate, and make a name."""
    return float(f"{rate:.3g}")
