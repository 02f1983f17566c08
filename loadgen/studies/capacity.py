"""How many GPUs a load needs, in virtual time: engines of one kind side by side.

Sessions go to the engines in turn and stay there. Each engine is run in aggregates
(`simulator.core.aggregate`), so ten million requests take minutes. The number of
engines is searched on a part of each load and then run whole; which figure comes from
which is told.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadgen.errors import UsageError
from loadgen.simulator.core.aggregate import StepCost, Workload, run_aggregate

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

SAMPLE_REQUESTS = 60_000
"""Of a fleet's first engine, while the number of engines is searched."""
HISTOGRAM_EDGES = np.geomspace(1e-4, 1e5, 1800)
"""Latencies are counted between these: a percentile is within 1.2 %."""
LIMITS = ("ttft", "tpot", "e2el")
DAY_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class Demand:
    """Sessions of a trace over and over, at a rate."""

    pattern: Workload
    """The trace once: lengths, turns and think times."""
    gaps: FloatArray | None
    """Between its sessions, mean 1; None: Poisson arrivals."""
    requests: int
    session_rate_per_second: float
    seed: int = 0

    def __post_init__(self) -> None:
        if self.requests < 1:
            raise UsageError(f"--requests {self.requests}: expected 1 or more")
        if not 0 < self.session_rate_per_second < math.inf:
            rate = self.session_rate_per_second * self.turns_per_session
            raise UsageError(
                f"--rate {rate:g}: expected requests per second, such as 4"
            )

    @property
    def firsts(self) -> IntArray:
        """Indices of the pattern's first turns."""
        later = self.pattern.is_later
        return np.arange(len(self.pattern)) if later is None else np.flatnonzero(~later)

    @property
    def turns_per_session(self) -> float:
        """Mean over the trace."""
        return len(self.pattern) / len(self.firsts)

    @property
    def sessions(self) -> int:
        """Whole sessions that come nearest to the requests asked for."""
        return max(round(self.requests / self.turns_per_session), 1)

    @property
    def seconds(self) -> float:
        """Between the first and the last session's start, on average."""
        return self.sessions / self.session_rate_per_second


class FleetPart(msgspec.Struct, frozen=True, kw_only=True):
    """What one engine did."""

    requests: int
    good: int
    unfit: int
    joules: float
    """Work and busy watts: idle of the rest of the time is added for the fleet."""
    busy_seconds: float
    end_seconds: float
    output_tokens: int
    ttft: list[int]
    tpot: list[int]
    """Counts between `HISTOGRAM_EDGES`."""


class FleetRow(msgspec.Struct, frozen=True, kw_only=True):
    """A fleet of one size under the load."""

    engines: int
    gpus: int
    basis: str
    """`whole`: every request was played; `sample`: those of one engine, for a while."""
    requests: int
    met_fraction: float
    """Of all requests, those within every limit."""
    is_enough: bool
    p50_ttft_seconds: float | None
    p99_ttft_seconds: float | None
    p50_tpot_seconds: float | None
    p99_tpot_seconds: float | None
    watts: float
    """Of the whole fleet, idle time included."""
    joules_per_request: float
    joules_per_output_token: float
    busy_fraction: float
    unfit: int = 0
    """Requests that no engine can hold: they count as missed."""


class CapacityReport(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer of `loadgen capacity`."""

    trace: str
    engine: str
    simulated: bool
    requests: int
    requests_per_second: float
    limits: dict[str, float]
    wanted_fraction: float
    gpus_max: int
    rows: tuple[FleetRow, ...]
    answer: FleetRow | None
    """The smallest fleet that is enough; None: not even the largest is."""
    reach_fraction: float | None = None
    """Half of a 95 % interval of the joules of work; None for a simulated engine."""
    idle_watts: float
    notes: tuple[str, ...] = ()


Play = Callable[[int, int, int], FleetPart]
"""Engines of the fleet, which of them, sessions of it (0: all) -> what it did."""


def play(
    demand: Demand, cost: StepCost, limits: dict[str, float], engines: int, which: int,
    sessions: int = 0,
) -> FleetPart:  # fmt: skip
    """One engine of a fleet under its part of the load."""
    work = share_of(demand, engines, which, sessions)
    outcome = run_aggregate(work, cost)
    first = outcome.first_token_seconds - outcome.start_seconds
    whole = outcome.last_token_seconds - outcome.start_seconds
    replies = outcome.last_token_seconds - outcome.first_token_seconds
    many = work.output_tokens > 1
    pace = replies[many] / (work.output_tokens[many] - 1)
    good = np.isfinite(first)
    if "ttft" in limits:
        good &= first <= limits["ttft"]
    if "e2el" in limits:
        good &= whole <= limits["e2el"]
    if "tpot" in limits:
        within = np.ones(len(work), np.bool_)
        within[many] = pace <= limits["tpot"]
        good &= within
    spent = float(np.dot(cost.joules, outcome.sums))
    return FleetPart(
        requests=len(work),
        good=int(good.sum()),
        unfit=outcome.unfit,
        joules=spent + cost.busy_watts * outcome.busy_seconds,
        busy_seconds=outcome.busy_seconds,
        end_seconds=outcome.end_seconds,
        output_tokens=int(work.output_tokens[np.isfinite(first)].sum()),
        ttft=_counted(first),
        tpot=_counted(pace),
    )


def share_of(demand: Demand, engines: int, which: int, sessions: int = 0) -> Workload:
    """The requests of one engine: every so manyth session from `which` on.

    The same load whatever the number of engines: session k has the same start and the
    same lengths.
    """
    total = demand.sessions
    numbers = np.arange(which, total, engines)
    if sessions:
        numbers = numbers[:sessions]
    until = int(numbers[-1]) + 1 if len(numbers) else 0
    starts = _starts(demand, until)[numbers]
    firsts = demand.firsts
    chosen = numbers % len(firsts)
    pattern = demand.pattern
    if pattern.next_turn is None:
        at = firsts[chosen]
        return Workload(
            starts,
            pattern.prompt_tokens[at],
            pattern.cached_tokens[at],
            pattern.output_tokens[at],
        )
    lengths = np.diff(np.append(firsts, len(pattern)))[chosen]
    offsets = np.cumsum(lengths) - lengths
    inside = np.arange(int(lengths.sum())) - np.repeat(offsets, lengths)
    at = np.repeat(firsts[chosen], lengths) + inside
    is_last = np.append(inside[1:] == 0, True)
    assert pattern.think_seconds is not None
    return Workload(
        np.where(inside == 0, np.repeat(starts, lengths), 0.0),
        pattern.prompt_tokens[at],
        pattern.cached_tokens[at],
        pattern.output_tokens[at],
        np.where(is_last, -1, np.arange(len(at)) + 1),
        pattern.think_seconds[at],
        inside > 0,
    )


def _starts(demand: Demand, count: int) -> FloatArray:
    """Starts of the first sessions, the same for every fleet."""
    mean = 1 / demand.session_rate_per_second
    if demand.gaps is None:
        gaps = np.random.default_rng([demand.seed, 17]).exponential(mean, count)
    else:
        gaps = np.resize(demand.gaps, count) * mean
    return np.asarray(np.cumsum(gaps), dtype=np.float64)


def search(
    demand: Demand,
    cost: StepCost,
    limits: dict[str, float],
    *,
    wanted_fraction: float,
    gpus_per_engine: int,
    engines_max: int,
    processes: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[FleetRow]:
    """Fleets that were tried, by size: the smallest that is enough, and those below.

    Searched by halving on samples, since more engines never serve the same load
    worse; then played whole, and larger while the whole shows it is not enough.
    """
    row = partial(
        fleet_row, demand, cost, wanted_fraction=wanted_fraction,
        gpus_per_engine=gpus_per_engine,
    )  # fmt: skip
    one = partial(play, demand, cost, limits)
    found: dict[tuple[int, str], FleetRow] = {}

    def sampled(engines: int) -> FleetRow:
        sessions = max(round(SAMPLE_REQUESTS / demand.turns_per_session), 1)
        if sessions * engines >= demand.sessions:
            return whole(engines)
        if (engines, "sample") not in found:
            say(f"{engines} engines: a sample")
            parts = [one(engines, 0, sessions)]
            found[engines, "sample"] = row(engines, parts, "sample")
        return found[engines, "sample"]

    def whole(engines: int) -> FleetRow:
        if (engines, "whole") not in found:
            say(f"{engines} engines: all {demand.requests:,} requests")
            parts = _all_parts(one, engines, processes)
            found[engines, "whole"] = row(engines, parts, "whole")
        return found[engines, "whole"]

    low, high = 0, 1
    while high < engines_max and not sampled(high).is_enough:
        low, high = high, min(2 * high, engines_max)
    while high - low > 1:
        middle = (low + high) // 2
        if sampled(middle).is_enough:
            high = middle
        else:
            low = middle
    while not whole(high).is_enough and high < engines_max:
        high += 1
    return sorted(found.values(), key=lambda each: (each.engines, each.basis))


def _all_parts(
    one: Callable[[int, int], FleetPart], engines: int, processes: int | None
) -> list[FleetPart]:
    many = min(processes or os.cpu_count() or 1, engines)
    if many < 2:
        return [one(engines, which) for which in range(engines)]
    with ProcessPoolExecutor(many, mp_context=get_context("spawn")) as pool:
        return list(pool.map(one, [engines] * engines, range(engines)))


def fleet_row(
    demand: Demand,
    cost: StepCost,
    engines: int,
    parts: Sequence[FleetPart],
    basis: str,
    *,
    wanted_fraction: float,
    gpus_per_engine: int,
) -> FleetRow:
    """The figures of a fleet by what its engines did, or one of them."""
    requests = sum(part.requests for part in parts)
    seconds = max(max(part.end_seconds for part in parts), 1e-9)
    busy = sum(part.busy_seconds for part in parts)
    idle = cost.idle_watts * (len(parts) * seconds - busy)
    joules = sum(part.joules for part in parts) + idle
    met = sum(part.good for part in parts) / max(requests, 1)
    tokens = sum(part.output_tokens for part in parts)
    ttft, tpot = (
        np.sum([getattr(part, name) for part in parts], axis=0)
        for name in ("ttft", "tpot")
    )
    return FleetRow(
        engines=engines,
        gpus=engines * gpus_per_engine,
        basis=basis,
        requests=requests,
        met_fraction=met,
        is_enough=met >= wanted_fraction,
        p50_ttft_seconds=_quantile(ttft, 0.5),
        p99_ttft_seconds=_quantile(ttft, 0.99),
        p50_tpot_seconds=_quantile(tpot, 0.5),
        p99_tpot_seconds=_quantile(tpot, 0.99),
        watts=joules / len(parts) * engines / seconds,
        joules_per_request=joules / max(requests, 1),
        joules_per_output_token=joules / max(tokens, 1),
        busy_fraction=busy / (len(parts) * seconds),
        unfit=sum(part.unfit for part in parts),
    )


def own_gaps(pattern: Workload) -> FloatArray | None:
    """The trace's gaps between sessions, mean 1; None where it has no times."""
    later = pattern.is_later
    starts = pattern.start_seconds if later is None else pattern.start_seconds[~later]
    if len(starts) < 2:
        return None
    gaps = np.diff(starts)
    mean = float(gaps.mean())
    return None if mean <= 0 else np.asarray(gaps / mean, dtype=np.float64)


def answer_of(rows: Iterable[FleetRow]) -> FleetRow | None:
    """The smallest fleet that is enough, as played whole."""
    enough = [row for row in rows if row.is_enough and row.basis == "whole"]
    return min(enough, key=lambda row: row.engines, default=None)


def _counted(seconds: FloatArray) -> list[int]:
    known = seconds[np.isfinite(seconds)]
    edges = HISTOGRAM_EDGES
    inside = np.clip(known, edges[0], edges[-1])
    counts: list[int] = np.histogram(inside, edges)[0].tolist()
    return counts


def _quantile(counts: IntArray, fraction: float) -> float | None:
    total = int(counts.sum())
    if not total:
        return None
    at = int(np.searchsorted(np.cumsum(counts), fraction * total))
    return math.sqrt(float(HISTOGRAM_EDGES[at] * HISTOGRAM_EDGES[at + 1]))
