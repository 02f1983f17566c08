"""The engine: one call of `step` is one forward pass, with its time and energy.

Time is virtual: a step starts where the last one ended, or when work arrives.
`simulate` runs a list of requests through it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from loadgen.simulator.core.config import EngineConfig
from loadgen.simulator.core.roofline import roofline
from loadgen.simulator.core.scheduler import Batch, Scheduler, SequenceState, SimRequest
from loadgen.simulator.core.sensor import PowerCurve
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
    finished: tuple[str, ...]
    preempted: tuple[str, ...]
    running: int
    """Requests in the batch after the step."""
    waiting: int
    kv_used_fraction: float
    speed_fraction: float = 1.0
    """Below 1 where the power cap made it take longer."""

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
    def ready_seconds(self) -> float | None:
        """When the next step can start; None: there is nothing to do."""
        if self._scheduler.running:
            return self.clock_seconds
        if not self._scheduler.waiting:
            return None
        return max(self.clock_seconds, self._scheduler.ready_seconds)

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
        sequence = SequenceState(request, truth, request.prompt_tokens)
        self._scheduler.waiting.append(sequence)

    def abort(self, request_id: str) -> bool:
        """Drop a request and its KV blocks at once; False if it is not there.

        What it has cost stays in `truth`.
        """
        return self._scheduler.drop(request_id)

    def step(self) -> Step | None:
        """Run the next forward pass; None when there is nothing to do."""
        ready_seconds = self.ready_seconds
        if ready_seconds is None:
            return None
        self.clock_seconds = ready_seconds
        return self._execute(self._scheduler.next_batch(ready_seconds))

    def _check(self, request: SimRequest) -> None:
        total = request.prompt_tokens + request.output_tokens
        if request.remote_tokens < 0 or not 0 <= request.transfer_seconds < inf:
            raise ValueError(f"{request.request_id}: less than nothing is sent")
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
            finished=tuple(_ids(finished)),
            preempted=tuple(batch.preempted),
            running=self.running,
            waiting=self.waiting,
            kv_used_fraction=self.kv_used_fraction,
            speed_fraction=self.cost.uncapped_seconds(flops_sum, kv_sum) / step_seconds,
        )

    def _work(self, batch: Batch) -> tuple[FloatArray, FloatArray]:
        """FLOPs and KV bytes of each request in the batch."""
        contexts = np.array([s.computed for s in batch.sequences], dtype=np.float64)
        tokens = np.array(batch.tokens, dtype=np.float64)
        return self.cost.flops(tokens, contexts), self.cost.kv_bytes(tokens, contexts)

    def _advance(
        self, batch: Batch, end_seconds: float
    ) -> tuple[list[SequenceState], list[SequenceState]]:
        """Apply the step; returns sequences with a new token, and finished ones."""
        emitted: list[SequenceState] = []
        finished: list[SequenceState] = []
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


def _ids(sequences: Iterable[SequenceState]) -> list[str]:
    return [sequence.request.request_id for sequence in sequences]


def _prefill_tokens(batch: Batch) -> dict[str, int]:
    prefills = batch.sequences[batch.decodes :]
    return dict(zip(_ids(prefills), batch.tokens[batch.decodes :], strict=True))


@dataclass(frozen=True, slots=True)
class Trace:
    """A simulated run: the events that a proxy could see, and the truth."""

    steps: tuple[Step, ...]
    token_seconds: Mapping[str, FloatArray]
    """Instant of every output token, by request."""
    truth: Mapping[str, RequestTruth]
    power: PowerCurve

    @property
    def end_seconds(self) -> float:
        """End of the last step."""
        return self.power.end_seconds

    @property
    def total_joules(self) -> float:
        """Energy of the GPU group from 0 to the end of the last step."""
        return self.power.joules_at(self.end_seconds)

    @property
    def idle_joules(self) -> float:
        """Energy while nothing ran."""
        return self.total_joules - sum(step.joules for step in self.steps)


def simulate(requests: Iterable[SimRequest], config: EngineConfig) -> Trace:
    """All requests, from the first arrival to the last token, starting at 0 s.

    Raises ValueError for a request that can never run in this configuration.
    """
    engine = EngineSimulator(config)
    for request in sorted(requests, key=lambda request: request.arrived_seconds):
        engine.submit(request)
    power = PowerCurve(config.idle_watts)
    steps: list[Step] = []
    stamps: dict[str, list[float]] = {request_id: [] for request_id in engine.truth}
    while (step := engine.step()) is not None:
        steps.append(step)
        power.extend(step.start_seconds, step.end_seconds, step.joules)
        for request_id in step.emitted:
            stamps[request_id].append(step.end_seconds)
    return Trace(
        steps=tuple(steps),
        token_seconds={name: np.array(times) for name, times in stamps.items()},
        truth=engine.truth,
        power=power,
    )
