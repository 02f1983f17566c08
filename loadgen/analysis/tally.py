"""One pass over the records of a run: everything `summary.json` counts.

A record belongs to the window by its intended start. Memory does not grow with
tokens: 36 bytes per request for what changes over time, 8 per measure up to a
million values, then a bounded histogram. A request whose joules are not known is
counted, never taken as 0.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from loadgen.analysis.distribution import Distribution
from loadgen.analysis.lengths import Fidelity
from loadgen.analysis.warmup import in_flight
from loadgen.results.measures import (
    MEASURES,
    POOLED_MEASURES,
    SCHEDULE_LAG,
    energy_joules,
    is_ok,
    meets,
)
from loadgen.results.results import Result
from proxy.wire.api import BoundaryEnergy

GROUP_MEASURES = ("ttft", "tpot", "e2el", "energy")
LAST_TURN = 5
"""People count turns from 1; from here on they share one row: `5+`."""
OURS = ("dropped", "aborted")
"""Outcomes that are our own doing: never sent, or stopped with the run."""
_DISTINCT_ERRORS = 500  # texts that carry ids or times must not grow without bound


@dataclass(frozen=True, slots=True)
class RunWindow:
    """Which part of a run counts, in seconds from its zero; the end is included."""

    start_seconds: float = 0.0
    end_seconds: float = math.inf

    def holds(self, result: Result) -> bool:
        """Whether the request was meant to start inside."""
        return self.start_seconds <= result.planned_seconds <= self.end_seconds

    @property
    def seconds(self) -> float:
        """Length; infinite until the run's end is known."""
        return self.end_seconds - self.start_seconds


@dataclass(slots=True)
class Extent:
    """The ends of a run, found in a first pass because the window needs them."""

    requests: int = 0
    last_planned_seconds: float = 0.0
    last_finished_seconds: float = 0.0

    def add(self, result: Result) -> None:
        """Take one record into account."""
        self.requests += 1
        self.last_planned_seconds = max(
            self.last_planned_seconds, result.planned_seconds
        )
        self.last_finished_seconds = max(
            self.last_finished_seconds, result.finished_seconds
        )

    def window(self, warmup_seconds: float, cooldown_seconds: float) -> RunWindow:
        """The window from the end of warm-up to the run's end, or to the cool-down."""
        end = self.last_finished_seconds
        if cooldown_seconds > 0:
            end = self.last_planned_seconds - cooldown_seconds
        return RunWindow(warmup_seconds, max(end, warmup_seconds))


@dataclass(slots=True)
class Group:
    """Requests of one kind, or of one turn."""

    requests: int = 0
    completed: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    energy_joules: float = 0.0
    """Joules of answered requests whose energy is known."""
    energy_output_tokens: int = 0
    """Tokens of those same requests, so that the ratio compares like with like."""
    measures: dict[str, Distribution] = field(
        default_factory=lambda: {name: Distribution() for name in GROUP_MEASURES}
    )

    def add(self, result: Result) -> None:
        """Take one record into account."""
        self.requests += 1
        if not is_ok(result):
            return
        self.completed += 1
        self.prompt_tokens += result.prompt_tokens or 0
        self.output_tokens += result.output_tokens or 0
        for name in GROUP_MEASURES:
            self.measures[name].add(MEASURES[name].of(result))
        joules = energy_joules(result)
        if joules is not None:
            self.energy_joules += joules
            self.energy_output_tokens += result.output_tokens or 0


@dataclass(slots=True)
class BoundaryTally:
    """Joules of the requests at one boundary."""

    inclusive: Distribution = field(default_factory=Distribution)
    """Single answered requests: prefill, decode and idle share."""
    active: Distribution = field(default_factory=Distribution)
    answered_joules: float = 0.0
    answered_output_tokens: int = 0
    requests_with: int = 0
    """Sent requests of any outcome."""
    requests_without: int = 0

    def add(self, result: Result, part: BoundaryEnergy) -> None:
        """Take one sent request into account."""
        joules, share = part.energy_joules, part.idle_share_joules
        if joules is None or share is None:
            self.requests_without += is_ok(result)
            return
        self.requests_with += 1
        if is_ok(result):
            self.inclusive.add(joules)
            self.active.add(joules - share)
            self.answered_joules += joules
            self.answered_output_tokens += result.output_tokens or 0


@dataclass(slots=True)
class EnergyTally:
    """Joules of the requests themselves, as joined by id."""

    requests_with: int = 0
    """Sent requests of any outcome."""
    requests_without: int = 0
    """Answered requests only: one that never reached the proxy has no joules."""
    joined_joules: float = 0.0
    failed_joules: float = 0.0
    answered_joules: float = 0.0
    answered_output_tokens: int = 0
    answered_total_tokens: int = 0
    policy_joules: dict[str, Counter[str]] = field(default_factory=dict)
    """Active joules by policy, then kind."""
    by_policy: dict[str, Distribution] = field(default_factory=dict)
    """Active joules of single answered requests, as each policy would have it."""
    quality: Counter[str] = field(default_factory=Counter)
    timing: Counter[str] = field(default_factory=Counter)
    grade: Counter[str] = field(default_factory=Counter)
    grade_reasons: Counter[str] = field(default_factory=Counter)
    low_joules: float = 0.0
    high_joules: float = 0.0
    requests_bounded: int = 0
    """Those whose joules have an interval; the sums above are theirs."""
    bounded_joules: float = 0.0
    """Of those: what the sums above are to be compared with."""
    by_boundary: dict[str, BoundaryTally] = field(default_factory=dict)
    """Requests inside the boundaries beside the headline."""

    def add(self, result: Result) -> None:
        """Take one sent request into account."""
        energy = result.energy
        for name, part in (energy.boundaries if energy else {}).items():
            self.by_boundary.setdefault(name, BoundaryTally()).add(result, part)
        if energy is None or energy.energy_joules is None:
            self.requests_without += is_ok(result)
            return
        self.requests_with += 1
        self.quality[energy.quality] += 1
        if energy.timing is not None and energy.grade is not None:
            self.timing[energy.timing] += 1
            self.grade[energy.grade] += 1
            self.grade_reasons.update(energy.grade_reasons)
        if energy.low_joules is not None and energy.high_joules is not None:
            self.requests_bounded += 1
            self.low_joules += energy.low_joules
            self.high_joules += energy.high_joules
            self.bounded_joules += energy.energy_joules
        self.joined_joules += energy.energy_joules
        for policy, joules in energy.policy_joules.items():
            self.policy_joules.setdefault(policy, Counter())[result.kind] += joules  # type: ignore[assignment]  # a Counter of floats adds as well
        if not is_ok(result):
            self.failed_joules += energy.energy_joules
            return
        for policy, joules in energy.policy_joules.items():
            self.by_policy.setdefault(policy, Distribution()).add(joules)
        self.answered_joules += energy.energy_joules
        self.answered_output_tokens += result.output_tokens or 0
        self.answered_total_tokens += (result.prompt_tokens or 0) + (
            result.output_tokens or 0
        )


class Tally:
    """Counts and distributions of the records inside one window."""

    def __init__(self, window: RunWindow, goodput: Mapping[str, float]) -> None:
        self.window = window
        self.goodput = dict(goodput)
        self.outside = 0
        self.outcomes: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.measures = {name: Distribution() for name in MEASURES}
        self.pooled = {name: Distribution() for name in POOLED_MEASURES}
        self.lag = Distribution()
        self.kinds: dict[str, Group] = {}
        self.turns: dict[str, Group] = {}
        self.energy = EnergyTally()
        self.fidelity = Fidelity()
        self.prompt_tokens = self.cached_tokens = self.output_tokens = 0
        self.attention_pairs = 0.0
        """Over the computed tokens of answered requests: the tokens each looks at."""
        self.good = 0
        self._planned, self._sent, self._finished = array("d"), array("d"), array("d")
        self._around = array("d")
        """Sent and finished, of requests outside the window: they may reach into it."""
        self._first_tokens = array("f")
        """Three of each answered request: sent, its TTFT, prompt tokens computed."""

    def add_all(self, results: Iterable[Result]) -> Tally:
        """Take every record into account; returns itself."""
        for result in results:
            self.add(result)
        return self

    def add(self, result: Result) -> None:
        """Take one record into account."""
        if not self.window.holds(result):
            self.outside += 1
            if result.sent_seconds is not None:
                self._around.extend((result.sent_seconds, result.finished_seconds))
            return
        self.outcomes[result.outcome] += 1
        self._planned.append(result.planned_seconds)
        if result.sent_seconds is not None:
            self._sent.append(result.sent_seconds)
            self._finished.append(result.finished_seconds)
            self.energy.add(result)
        self.lag.add(SCHEDULE_LAG.of(result))
        number = result.turn + 1
        turn = f"{LAST_TURN}+" if number >= LAST_TURN else str(number)
        self.kinds.setdefault(result.kind, Group()).add(result)
        self.turns.setdefault(turn, Group()).add(result)
        if is_ok(result):
            self._add_answered(result)
        elif result.outcome not in OURS:
            self._add_error(result.error or result.outcome)

    @property
    def attempted(self) -> int:
        """Requests that were due in the window, sent or not."""
        return len(self._planned)

    @property
    def completed(self) -> int:
        """Requests answered in full."""
        return self.outcomes["ok"]

    @property
    def sent(self) -> int:
        """Requests that left."""
        return len(self._sent)

    def offered_per_second(self) -> float | None:
        """Rate of the plan: arrivals after the first over the time they take."""
        return _rate(self._planned)

    def achieved_per_second(self) -> float | None:
        """Rate that really left; below the offered one when the client is late."""
        return _rate(self._sent)

    def gap_p50_seconds(self) -> float | None:
        """Median time between consecutive intended starts."""
        if len(self._planned) < 2:
            return None
        return float(np.median(np.diff(np.sort(np.asarray(self._planned)))))

    def concurrency(self) -> tuple[float, int] | None:
        """Requests in flight: mean weighted by time, and peak, by sweep line."""
        return concurrency(self._sent, self._finished)

    def busy_fraction(self) -> float | None:
        """Part of the window in which at least one request was in flight."""
        seconds = self.window.seconds
        starts = np.concatenate([self._sent, self._around[::2]])
        ends = np.concatenate([self._finished, self._around[1::2]])
        if not len(starts) or not 0 < seconds < math.inf:
            return None
        low, high = self.window.start_seconds, self.window.end_seconds
        starts, ends = np.clip(starts, low, high), np.clip(ends, low, high)
        order = np.argsort(starts, kind="stable")
        starts, ends = starts[order], ends[order]
        reached = np.maximum.accumulate(np.concatenate([[low], ends[:-1]]))
        busy = np.maximum(ends - np.maximum(starts, reached), 0.0).sum()
        return float(min(busy / seconds, 1.0))

    def in_flight(self, at_seconds: Sequence[float]) -> list[float]:
        """Requests that were sent and not finished, at instants of the run.

        Those of warm-up and cool-down too: the engine works for them as well.
        """
        starts, ends = (
            self._sent + self._around[::2],
            self._finished + self._around[1::2],
        )
        return in_flight(at_seconds, starts, ends)

    def first_tokens(self) -> tuple[list[float], list[float], list[float]]:
        """Sent, TTFT and computed prompt tokens of answered requests, as sent."""
        rows = np.asarray(self._first_tokens).reshape(-1, 3)
        sent, ttft, prompts = rows[np.argsort(rows[:, 0], kind="stable")].T.tolist()
        return sent, ttft, prompts

    def energy_inside(self, boundary: str, *, is_headline: bool) -> BoundaryTally:
        """Joules inside one boundary; the headline's are the requests' own."""
        if not is_headline:
            return self.energy.by_boundary.get(boundary, BoundaryTally())
        return BoundaryTally(
            inclusive=self.measures["energy"],
            active=self.measures["active_energy"],
            answered_joules=self.energy.answered_joules,
            answered_output_tokens=self.energy.answered_output_tokens,
            requests_with=self.energy.requests_with,
            requests_without=self.energy.requests_without,
        )

    def _add_answered(self, result: Result) -> None:
        for name, measure in MEASURES.items():
            self.measures[name].add(measure.of(result))
        for name, pooled in POOLED_MEASURES.items():
            self.pooled[name].extend(pooled.of(result))
        sent, first = result.sent_seconds, result.first_token_seconds
        if sent is not None and first is not None:
            computed = (result.prompt_tokens or 0) - (result.cached_tokens or 0)
            self._first_tokens.extend((sent, first - sent, max(computed, 0)))
        self.prompt_tokens += result.prompt_tokens or 0
        self.cached_tokens += result.cached_tokens or 0
        self.output_tokens += result.output_tokens or 0
        self.attention_pairs += attention_pairs(result)
        self.fidelity.add(result)
        self.good += meets(result, self.goodput)

    def _add_error(self, text: str) -> None:
        if text not in self.errors and len(self.errors) >= _DISTINCT_ERRORS:
            text = "(other errors)"
        self.errors[text] += 1


def attention_pairs(result: Result) -> float:
    """Over the computed tokens of a request: the tokens that each looks at."""
    prompt, cached = result.prompt_tokens or 0, result.cached_tokens or 0
    computed, written = max(prompt - cached, 0), result.output_tokens or 0
    return (
        computed * cached
        + computed * (computed + 1) / 2
        + written * prompt
        + written * (written + 1) / 2
    )


def concurrency(
    starts: Iterable[float], ends: Iterable[float]
) -> tuple[float, int] | None:
    """Time-weighted mean and peak of overlapping spans; None without any.

    A span that ends exactly where another starts does not overlap it.
    """
    begin, end = np.asarray(list(starts)), np.asarray(list(ends))
    if not len(begin):
        return None
    span = float(end.max() - begin.min())
    at = np.concatenate([end, begin])  # ends first: the sort below is stable
    step = np.concatenate([-np.ones(len(end)), np.ones(len(begin))])
    running = np.cumsum(step[np.argsort(at, kind="stable")])
    mean = float((end - begin).sum()) / span if span > 0 else float(len(begin))
    return mean, int(max(running.max(), 1))


def _rate(stamps: array[float]) -> float | None:
    if len(stamps) < 2:
        return None
    values = np.asarray(stamps)
    span = float(values.max() - values.min())
    return (len(values) - 1) / span if span > 0 else None
