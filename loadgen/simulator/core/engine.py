"""The engine: one call of `step` is one forward pass, with its time and energy.

Time is virtual: a step starts where the last one ended, or when work arrives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadgen.simulator.core.config import EngineConfig
from loadgen.simulator.core.roofline import roofline
from loadgen.simulator.core.scheduler import Batch, Scheduler, Sequence, SimRequest
from loadgen.simulator.core.truth import RequestTruth, StepShares

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass and what came out of it at its end."""

    start_seconds: float
    end_seconds: float
    joules: float
    idle_joules: float
    """Idle watts for the step's duration; the rest of `joules` is dynamic."""
    decodes: int
    prefill_tokens: Mapping[str, int]
    """Tokens computed in prefill, by request."""
    emitted: tuple[str, ...]
    """Requests that got one token each, at the end of the step."""
    started: tuple[str, ...]
    """Requests computed for the first time."""
    first_tokens: tuple[str, ...]
    finished: tuple[str, ...]
    preempted: tuple[str, ...]
    running: int
    """Requests in the batch after the step."""
    waiting: int
    kv_used_fraction: float

    @property
    def watts(self) -> float:
        """Mean power of the whole GPU group during the step."""
        return self.joules / (self.end_seconds - self.start_seconds)


class EngineSimulator:
    """One engine. Submit in order of arrival, call `step` until it returns None."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.cost = roofline(config)
        self.clock_seconds = 0.0
        """End of the last step."""
        self.truth: dict[str, RequestTruth] = {}
        """Every request ever submitted; remove what is no longer needed."""
        self._scheduler = Scheduler(config)
        self._shares = StepShares(self.cost, config) if config.track_truth else None
        self._last_arrived_seconds = 0.0

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return len(self._scheduler.running)

    @property
    def waiting(self) -> int:
        """Requests submitted and not in the batch."""
        return len(self._scheduler.waiting)

    @property
    def kv_used_fraction(self) -> float:
        """KV cache held by requests, 0..1."""
        return self._scheduler.pool.used_fraction

    def submit(self, request: SimRequest) -> None:
        """Queue a request; it is computed no earlier than it arrived.

        Raises ValueError for a request that can never run, one submitted twice,
        or one that arrives before the last one submitted.
        """
        self._check(request)
        self._last_arrived_seconds = request.arrived_seconds
        truth = RequestTruth(
            request.request_id, request.prompt_tokens, request.arrived_seconds
        )
        if self._shares is not None:
            truth.open_accounts()
        self.truth[request.request_id] = truth
        sequence = Sequence(request, truth, request.prompt_tokens)
        self._scheduler.waiting.append(sequence)

    def abort(self, request_id: str) -> bool:
        """Drop a request and its KV blocks at once; False if it is not there.

        What it has cost stays in `truth`.
        """
        return self._scheduler.drop(request_id)

    def step(self) -> Step | None:
        """Run the next forward pass; None when there is nothing to do."""
        scheduler = self._scheduler
        if not scheduler.running:
            if not scheduler.waiting:
                return None
            arrived_seconds = scheduler.waiting[0].request.arrived_seconds
            self.clock_seconds = max(self.clock_seconds, arrived_seconds)
        return self._execute(scheduler.next_batch(self.clock_seconds))

    def _check(self, request: SimRequest) -> None:
        total = request.prompt_tokens + request.output_tokens
        if request.prompt_tokens < 1 or request.output_tokens < 1:
            raise ValueError(f"{request.request_id}: needs a prompt and an output")
        if total > self.config.max_model_tokens:
            limit = self.config.max_model_tokens
            raise ValueError(f"{request.request_id}: {total} tokens exceed {limit}")
        if request.request_id in self.truth:
            raise ValueError(f"{request.request_id}: submitted twice")
        if request.arrived_seconds < self._last_arrived_seconds:
            raise ValueError(f"{request.request_id}: arrives before the last one")

    def _execute(self, batch: Batch) -> Step:
        flops, kv_bytes = self._work(batch)
        flops_sum, kv_sum = float(flops.sum()), float(kv_bytes.sum())
        start_seconds = self.clock_seconds
        end_seconds = start_seconds + self.cost.seconds(flops_sum, kv_sum)
        if self._shares is not None:
            truths = [sequence.truth for sequence in batch.sequences]
            prefills = len(truths) - batch.decodes
            self._shares.charge(truths, prefills, flops, kv_bytes)
        emitted, finished = self._advance(batch, end_seconds)
        self.clock_seconds = end_seconds
        step_seconds = end_seconds - start_seconds
        busy_watts = self.cost.idle_watts + self.cost.active_watts
        work_joules = self.cost.work_joules(flops_sum, kv_sum)
        return Step(
            start_seconds=start_seconds,
            end_seconds=end_seconds,
            joules=work_joules + busy_watts * step_seconds,
            idle_joules=self.cost.idle_watts * step_seconds,
            decodes=batch.decodes,
            prefill_tokens=_prefill_tokens(batch),
            emitted=tuple(_ids(emitted)),
            started=tuple(batch.started),
            first_tokens=tuple(_ids(s for s in emitted if s.truth.output_tokens == 1)),
            finished=tuple(_ids(finished)),
            preempted=tuple(batch.preempted),
            running=self.running,
            waiting=self.waiting,
            kv_used_fraction=self.kv_used_fraction,
        )

    def _work(self, batch: Batch) -> tuple[FloatArray, FloatArray]:
        """FLOPs and KV bytes of each request in the batch."""
        contexts = np.array([s.computed for s in batch.sequences], dtype=np.float64)
        tokens = np.array(batch.tokens, dtype=np.float64)
        return self.cost.flops(tokens, contexts), self.cost.kv_bytes(tokens, contexts)

    def _advance(
        self, batch: Batch, end_seconds: float
    ) -> tuple[list[Sequence], list[Sequence]]:
        """Apply the step; return who got a token and who is done."""
        emitted: list[Sequence] = []
        finished: list[Sequence] = []
        for index, sequence in enumerate(batch.sequences):
            truth = sequence.truth
            sequence.computed += batch.tokens[index]
            if index >= batch.decodes:
                truth.prefilled_tokens += batch.tokens[index]
            if sequence.request.block_hashes:
                self._scheduler.publish(sequence)
            if sequence.computed < sequence.tokens:
                continue
            sequence.tokens += 1
            truth.output_tokens += 1
            truth.last_token_seconds = end_seconds
            if truth.output_tokens == 1:
                truth.first_token_seconds = end_seconds
            emitted.append(sequence)
            if truth.output_tokens == sequence.request.output_tokens:
                finished.append(sequence)
        if finished:
            self._scheduler.retire(finished)
        return emitted, finished


def _ids(sequences: Iterable[Sequence]) -> list[str]:
    return [sequence.request.request_id for sequence in sequences]


def _prefill_tokens(batch: Batch) -> dict[str, int]:
    prefills = batch.sequences[batch.decodes :]
    return dict(zip(_ids(prefills), batch.tokens[batch.decodes :], strict=True))
