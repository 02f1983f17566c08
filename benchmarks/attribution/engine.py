"""An engine on a board: vLLM's scheduling, and what such an engine says of itself.

The schedule is the simulator's own (continuous batching, chunked prefill, preemption,
prefix cache); what a step takes and costs is the board's. `textbook_run` is the
simulator as it is, in the same shape.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks.attribution.board import Board, divided, work_of
from loadgen.simulator.core.config import EngineConfig
from loadgen.simulator.core.engine import simulate
from loadgen.simulator.core.scheduler import Batch, Scheduler, SequenceState, SimRequest
from loadgen.simulator.core.truth import RequestTruth

FloatArray = NDArray[np.float64]

COUNTERS = (
    "running", "waiting", "preemptions", "progress", "prompt_tokens", "cached_tokens",
    "output_tokens", "drafts", "draft_tokens", "accepted_tokens", "steps",
    "step_tokens", "prefix_queries", "prefix_hits",
)  # fmt: skip
"""On vLLM's `/metrics`, as of the last step: the first two are gauges. Those of the
prefix cache count when a prompt is scheduled, those of prompts at its first token."""


@dataclass
class Tally:
    """The engine's metrics after every step."""

    end_seconds: list[float] = field(default_factory=list)
    now: dict[str, float] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0.0))
    rows: list[tuple[float, ...]] = field(default_factory=list)

    def started(self, prompt_tokens: int, cached_tokens: int) -> None:
        """A request was looked up in the prefix cache and scheduled."""
        self.now["prefix_queries"] += prompt_tokens
        self.now["prefix_hits"] += cached_tokens

    def stepped(
        self,
        end_seconds: float,
        *,
        running: int,
        waiting: int,
        preempted: int,
        prompts: Sequence[tuple[int, int]],
        tokens: int,
    ) -> None:
        """A step ended; `prompts` are those done by it, with the cached part."""
        now = self.now
        now["running"], now["waiting"] = running, waiting
        now["preemptions"] += preempted
        asked = sum(prompt for prompt, _ in prompts)
        now["prompt_tokens"] += asked
        now["cached_tokens"] += sum(hit for _, hit in prompts)
        now["output_tokens"] += tokens
        now["progress"] += asked + tokens
        now["steps"] += 1
        now["step_tokens"] += asked + tokens
        self.end_seconds.append(end_seconds)
        self.rows.append(tuple(now.values()))

    def at(self, at_seconds: float) -> dict[str, float]:
        """What a scrape finds: the state after the last step."""
        steps = int(np.searchsorted(self.end_seconds, at_seconds, side="right"))
        if not steps:
            return dict.fromkeys(COUNTERS, 0.0)
        return dict(zip(COUNTERS, self.rows[steps - 1], strict=True))


@dataclass
class Run:
    """What an engine did with a load, and whose the joules are."""

    token_seconds: Mapping[str, FloatArray]
    """Instants at which tokens came, by request."""
    token_counts: Mapping[str, FloatArray]
    """How many came then."""
    truth: Mapping[str, RequestTruth]
    pieces: list[tuple[float, float, float]]
    """Start, end and joules of each stretch that is not idle at rest."""
    tally: Tally
    idle_watts: float
    """At rest; before the first step and long after the last."""
    alone_joules: Mapping[str, float] = field(default_factory=dict)
    """As if each request had been alone in its steps, scaled to each step's joules;
    with idle watts, as the next."""
    last_joules: Mapping[str, float] = field(default_factory=dict)
    """What each added to the others in its steps, scaled likewise."""
    unscaled: Mapping[str, float] = field(default_factory=dict)
    """What either adds up to before, by all joules of the steps."""
    end_seconds: float = 0.0


def textbook_run(requests: Sequence[SimRequest], config: EngineConfig) -> Run:
    """The simulator of `loadgen`, whose steps are a roofline."""
    trace = simulate(requests, config)
    arrivals = [request.arrived_seconds for request in requests]
    tally, seen, finished = Tally(), set[str](), 0
    for step in trace.steps:
        finished += len(step.finished)
        # as in vLLM: who comes during a step is queued, and counted, at the next one
        arrived = bisect_right(arrivals, step.start_seconds)
        for name in step.started:
            tally.started(
                trace.truth[name].prompt_tokens, trace.truth[name].cached_tokens
            )
        first = [name for name in step.emitted if name not in seen]
        seen.update(first)
        truths = [trace.truth[name] for name in first]
        tally.stepped(
            step.end_seconds,
            running=step.running,
            waiting=arrived - finished - step.running,
            preempted=len(step.preempted),
            prompts=[(truth.prompt_tokens, truth.cached_tokens) for truth in truths],
            tokens=len(step.emitted),
        )
    return Run(
        trace.token_seconds,
        {name: np.ones(len(at)) for name, at in trace.token_seconds.items()},
        trace.truth,
        [(step.start_seconds, step.end_seconds, step.joules) for step in trace.steps],
        tally,
        trace.power.idle_watts,
        end_seconds=trace.end_seconds,
    )


class BoardEngine:
    """One engine; give it all its requests, in order of arrival, and `run`."""

    def __init__(
        self,
        board: Board,
        config: EngineConfig,
        *,
        silent: Iterable[str] = (),
        seed: int = 0,
    ) -> None:
        """Those `silent` are embeddings: computed, with no token out."""
        self._board = board
        self._scheduler = Scheduler(config)
        self._silent = frozenset(silent)
        self._rng = np.random.default_rng([seed, 0xB0A7D])
        self._tally = Tally()
        self._pieces: list[tuple[float, float, float]] = []
        self._truth: dict[str, RequestTruth] = {}
        self._alone: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._unscaled = {"alone": 0.0, "last": 0.0}
        self._step_joules = 0.0
        self._stamps: dict[str, list[float]] = {}
        self._counts: dict[str, list[float]] = {}

    def run(self, requests: Sequence[SimRequest]) -> Run:
        """From 0 s to the last token, and until the board is at rest again."""
        pending = list(reversed(requests))
        scheduler, clock = self._scheduler, 0.0
        while pending or scheduler.running or scheduler.waiting:
            if not scheduler.running and not scheduler.waiting:
                clock = max(clock, pending[-1].arrived_seconds)
            while pending and pending[-1].arrived_seconds <= clock:
                self._arrive(pending.pop())
            self._cool(clock)
            clock = self._step(scheduler.next_batch(clock), clock)
        self._cool(clock + self._board.rest_after_seconds + 1.0)
        return Run(
            {name: np.array(at) for name, at in self._stamps.items()},
            {name: np.array(counts) for name, counts in self._counts.items()},
            self._truth,
            self._pieces,
            self._tally,
            self._board.rest_watts * self._board.gpus,
            self._alone,
            self._last,
            {
                what: sum_of / self._step_joules
                for what, sum_of in self._unscaled.items()
            },
            clock,
        )

    def _arrive(self, request: SimRequest) -> None:
        name = request.request_id
        truth = RequestTruth(name, request.prompt_tokens, request.arrived_seconds)
        truth.open_accounts()
        self._truth[name] = truth
        self._alone[name] = self._last[name] = 0.0
        self._stamps[name], self._counts[name] = [], []
        state = SequenceState(request, truth, request.prompt_tokens)
        self._scheduler.waiting.append(state)

    def _cool(self, until_seconds: float) -> None:
        """Idle since the last step: at working clocks for a while, then at rest."""
        if not self._pieces:
            return
        since = self._pieces[-1][1]
        warm = min(until_seconds - since, self._board.rest_after_seconds)
        if warm > 0:
            watts = self._board.working_watts * self._board.gpus
            self._pieces.append((since, since + warm, watts * warm))

    def _step(self, batch: Batch, start: float) -> float:
        board, tally = self._board, self._tally
        tokens = np.array(batch.tokens, np.float64)
        tokens[: batch.decodes] *= board.decode_tokens
        contexts = np.array([each.computed for each in batch.sequences], np.float64)
        columns = work_of(tokens, contexts, batch.decodes)
        shares = divided(board, columns, self._rng)
        end = start + shares.seconds
        self._pieces.append((start, end, shares.joules))
        idle = shares.shapley_seconds * board.working_watts * board.gpus
        alone, last = shares.alone_joules, np.maximum(shares.last_joules, 1e-9)
        self._step_joules += shares.joules
        self._unscaled["alone"] += float(alone.sum())
        self._unscaled["last"] += float(last.sum())
        alone = alone * (shares.joules / alone.sum())
        last = last * (shares.joules / last.sum())
        for name in batch.started:
            truth = self._truth[name]
            tally.started(truth.prompt_tokens, truth.cached_tokens)
        finished, prompts, produced = [], [], 0
        for index, sequence in enumerate(batch.sequences):
            truth, name = sequence.truth, sequence.request.request_id
            own = float(shares.shapley_joules[index] - idle[index])
            truth.idle_share_joules += float(idle[index])
            self._alone[name] += float(alone[index])
            self._last[name] += float(last[index])
            if index < batch.decodes:
                truth.decode_joules += own
                made = self._verified(sequence)
                sequence.computed += made
            else:
                truth.prefill_joules += own
                truth.prefilled_tokens += batch.tokens[index]
                sequence.computed += batch.tokens[index]
                made = 1
            self._scheduler.publish(sequence)
            if index >= batch.decodes and sequence.computed < sequence.tokens:
                continue
            if truth.output_tokens == 0:
                truth.first_token_seconds = end
                prompts.append((truth.prompt_tokens, truth.cached_tokens))
            sequence.tokens += made
            truth.output_tokens += made
            truth.last_token_seconds = end
            if name not in self._silent:
                produced += made
                self._stamps[name].append(end)
                self._counts[name].append(made)
            if truth.output_tokens >= sequence.request.output_tokens:
                finished.append(sequence)
        self._scheduler.retire(finished)
        tally.stepped(
            end,
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            preempted=len(batch.preempted),
            prompts=prompts,
            tokens=produced,
        )
        return end

    def _verified(self, sequence: SequenceState) -> int:
        """Tokens that one decode step of a request brings."""
        board = self._board
        left = sequence.request.output_tokens - sequence.truth.output_tokens
        if not board.draft_tokens:
            return 1
        misses = self._rng.random(board.draft_tokens) >= board.acceptance
        accepted = int(misses.argmax()) if misses.any() else board.draft_tokens
        now = self._tally.now
        now["drafts"] += 1
        now["draft_tokens"] += board.draft_tokens
        now["accepted_tokens"] += accepted
        return min(1 + accepted, left)
