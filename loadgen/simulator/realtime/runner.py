"""Runs the engine in real time: one task, an absolute schedule, no drift.

Engine time is the monotonic clock. A step's end is known when it starts; its
tokens are handed out when that instant has come. If this process is late, the
engine's schedule is not: it catches up without sleeping, and `lag_seconds` says
by how much.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from loadgen.simulator.core.config import EngineConfig
from loadgen.simulator.core.engine import EngineSimulator, Step
from loadgen.simulator.core.hardware import Board, BoardReading
from loadgen.simulator.core.scheduler import SimRequest
from loadgen.simulator.core.sensor import (
    GpuSensor,
    PowerCurve,
    SensorConfig,
    SensorReading,
)
from loadgen.simulator.core.text import block_hashes, reply_words
from loadgen.simulator.core.truth import RequestTruth, TruthRecord, truth_record
from loadgen.simulator.wire import EngineMetrics, Gauges, Generation

TRUTHS_KEPT = 100_000
CLOCK_PAIRS = 5
BARE_FRACTION = 0.6
"""Assumed: what a board with no weights draws, as part of its loaded idle power."""
CURVE_SECONDS = 60.0
"""History of the power curve: more than any sensor looks back."""


class Sink(Protocol):
    """Where the tokens of one request go."""

    def token(self, index: int, word: bytes, count: int, is_last: bool) -> None:
        """Token number `count`, from 1, of sequence `index`."""


@dataclass(slots=True, eq=False)
class Ticket:
    """One client request in the engine."""

    generation: Generation
    sink: Sink
    words: Sequence[Sequence[str]]
    """The replies, decided beforehand."""
    truths: Sequence[RequestTruth]
    engine_ids: list[str]
    outcome: asyncio.Future[str]
    """Set when the request is over: `ok`, `aborted` or `failed`."""
    fails_at: int | None = None
    """Token that never comes because a failure was injected."""
    unfinished: int = 0
    is_closed: bool = False
    """Apart from the future's state: cancelling its waiter also ends the future."""

    @property
    def is_ok(self) -> bool:
        """Whether the request got all its tokens."""
        return self.outcome.done() and self.outcome.result() == "ok"

    @property
    def texts(self) -> list[str]:
        """The reply of each sequence."""
        return [self.generation.reply_of(words) for words in self.words]


@dataclass(slots=True, eq=False)
class _Job:
    """One sequence of a ticket."""

    ticket: Ticket
    index: int
    words: list[bytes]
    count: int = field(default=0)
    part_ends: int = 0
    """Count at which the engine is done with what it was given."""
    later_parts: deque[int] = field(default_factory=deque)
    later: list[RequestTruth] = field(default_factory=list)
    """Truths of the parts after the first."""

    @property
    def is_pooled(self) -> bool:
        """Its one token is none that anybody sees."""
        return self.ticket.generation.is_pooled


def unix_offset_seconds(
    clock: Callable[[], float] = time.monotonic,
    unix: Callable[[], float] = time.time,
) -> float:
    """Unix time less engine time, of a pair that was read together.

    What comes between two readings would lie in every stamp: the closest pair counts.
    """
    pairs = []
    for _ in range(CLOCK_PAIRS):
        before, unix_seconds, after = clock(), unix(), clock()
        pairs.append((after - before, unix_seconds - (before + after) / 2))
    return min(pairs)[1]


class Runner:
    """The engine, its power curve and its requests; `run` is its one task."""

    def __init__(
        self,
        config: EngineConfig,
        sensor: SensorConfig,
        metrics: EngineMetrics,
        *,
        fail_every: int = 0,
    ) -> None:
        now_seconds = time.monotonic()
        self._started_seconds = now_seconds
        self._bare_watts = BARE_FRACTION * config.gpu.idle_watts
        self.engine = EngineSimulator(config)
        self.engine.clock_seconds = now_seconds
        self.unix_offset_seconds = unix_offset_seconds()
        self.curve = PowerCurve(config.idle_watts, now_seconds)
        self.sensors = [
            GpuSensor(self.curve, sensor, n_gpus=config.n_gpus, index=index)
            for index in range(config.n_gpus)
        ]
        self.board = Board(
            config.gpu, self.curve, cap_watts=config.cap_watts, n_gpus=config.n_gpus
        )
        """Each of the group: they work alike."""
        self.metrics = metrics
        self.records: deque[TruthRecord] = deque(maxlen=TRUTHS_KEPT)
        self.busy_joules = 0.0
        """Energy of all steps, the one under way included; the rest was idle."""
        self.lag_seconds = 0.0
        """How late the last step's tokens were handed out."""
        self._fail_every = fail_every
        self._submitted = 0
        self._jobs: dict[str, _Job] = {}
        self._wake = asyncio.Event()
        self._in_flight: Step | None = None

    def submit(self, generation: Generation, sink: Sink) -> Ticket:
        """Queue a request now; its tokens go to `sink` as they come."""
        config, self._submitted = self.engine.config, self._submitted + 1
        now_seconds = time.monotonic()
        key = generation.text_key or generation.request_id
        replies = [
            reply_words(config.seed, key, i, generation.output_tokens)
            for i in range(generation.sequences)
        ]
        if generation.end_token is not None:
            replies = [[*words[:-1], generation.end_token] for words in replies]
        parts = generation.parts or (generation.output_tokens,)
        names = [f"{self._submitted}/{i}" for i in range(generation.sequences)]
        for index, (name, words) in enumerate(zip(names, replies, strict=True)):
            prompt = generation.words_of(index)
            tokens = max(1, len(prompt)), parts[0]
            hashes = self._hashes(generation, [*prompt, *words])
            remote_tokens = min(generation.remote_tokens, tokens[0])
            transfer_seconds = config.transfer_seconds(remote_tokens)
            self.engine.submit(
                SimRequest(
                    name, now_seconds, *tokens, hashes, remote_tokens, transfer_seconds
                )
            )
        ticket = Ticket(
            generation,
            sink,
            replies,
            [self.engine.truth[name] for name in names],
            names,
            asyncio.get_running_loop().create_future(),
            self._failing_token(generation),
            unfinished=len(names),
        )
        for index, (name, words) in enumerate(zip(names, replies, strict=True)):
            spoken = [words[0].encode(), *(b" " + word.encode() for word in words[1:])]
            if generation.end_token is not None:
                spoken[-1] = generation.end_token.encode()
            self._jobs[name] = _Job(
                ticket,
                index,
                spoken,
                part_ends=parts[0],
                later_parts=deque(parts[1:]),
            )
        self._wake.set()
        return ticket

    async def serve(self, generation: Generation, sink: Sink) -> Ticket:
        """Submit a request and wait for its outcome; abort it if cancelled."""
        ticket = self.submit(generation, sink)
        try:
            await ticket.outcome
        finally:
            self.abort(ticket)
        return ticket

    def abort(self, ticket: Ticket) -> None:
        """The client left: out of the engine at once, costs so far are kept."""
        if not ticket.is_closed:
            self.metrics.failed("dropped")
            self._close(ticket, "aborted")

    def gauges(self) -> Gauges:
        """The engine now; a request that ends with this step still runs."""
        ending = len(self._in_flight.finished) if self._in_flight else 0
        return Gauges(
            self.engine.running + ending,
            self.engine.waiting,
            self.engine.kv_used_fraction,
            decoding=sum(job.count > 0 for job in self._jobs.values()),
        )

    def readings(self) -> list[SensorReading]:
        """The reading of each GPU now."""
        now_seconds = time.monotonic()
        return [sensor.read(now_seconds) for sensor in self.sensors]

    def idle_readings(self, boards: int) -> list[SensorReading]:
        """Readings of boards that the engine does not use, at bare idle."""
        now_seconds = time.monotonic()
        watts = self._bare_watts
        seconds = now_seconds - self._started_seconds
        joules = round(watts * seconds, 3)
        return [SensorReading(joules, watts, now_seconds)] * boards

    def board_reading(self) -> BoardReading:
        """How each GPU works now."""
        step = self._in_flight
        speed = None if step is None else step.speed_fraction
        return self.board.read(time.monotonic(), speed)

    def total_joules(self) -> float:
        """Exact energy of the group since the start, up to now."""
        return self.curve.joules_at(time.monotonic())

    async def run(self) -> None:
        """Step for ever; cancel to stop."""
        while True:
            if not self.engine.running:
                ready_seconds = self.engine.ready_seconds
                if ready_seconds is None or ready_seconds > time.monotonic():
                    await self._until(ready_seconds)
                    continue
            step = self.engine.step()
            assert step is not None
            self._in_flight = step
            self.curve.extend(step.start_seconds, step.end_seconds, step.joules)
            self.busy_joules += step.joules
            for name in step.started:
                self.metrics.scheduled(self.engine.truth[name])
            # sleep(0) when late: the loop must still read and write.
            await asyncio.sleep(max(0.0, step.end_seconds - time.monotonic()))
            self.lag_seconds = max(0.0, time.monotonic() - step.end_seconds)
            self._in_flight = None
            self._hand_out(step)

    async def _until(self, ready_seconds: float | None) -> None:
        """Wait for a request, or until the blocks of one that is here have come."""
        self._wake.clear()
        wait_seconds = None
        if ready_seconds is not None:
            wait_seconds = max(0.0, ready_seconds - time.monotonic())
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_seconds):
                await self._wake.wait()

    def _failing_token(self, generation: Generation) -> int | None:
        if not self._fail_every or self._submitted % self._fail_every:
            return None
        return generation.output_tokens // 2 + 1

    def _hand_out(self, step: Step) -> None:
        jobs = [self._jobs.get(name) for name in step.emitted]
        pooled = sum(job is not None and job.is_pooled for job in jobs)
        self.metrics.stepped(step, len(step.emitted) - pooled)
        for name in step.emitted:
            job = self._jobs.get(name)
            if job is None:  # aborted while the step was under way
                continue
            truth = self.engine.truth[name]
            if truth.first_token_seconds == step.end_seconds:
                self.metrics.prefilled(truth)
            ticket = job.ticket
            job.count += 1
            if job.count == ticket.fails_at:
                self.metrics.failed("generation")
                self._close(ticket, "failed")
                continue
            is_last = job.count == len(job.words)
            ticket.sink.token(job.index, job.words[job.count - 1], job.count, is_last)
            if is_last:
                _add_up(ticket.truths[job.index], job.later)
                ticket.unfinished -= 1
                if not ticket.unfinished:
                    self.metrics.finished(ticket.generation, ticket.truths)
                    self._close(ticket, "ok")
            elif job.count == job.part_ends and job.later_parts:
                self._submit_next_part(self._jobs.pop(name))
        if step.finished:
            self.curve.forget_before(step.end_seconds - CURVE_SECONDS)

    def _hashes(self, generation: Generation, words: Sequence[str]) -> tuple[int, ...]:
        """Blocks by which the prefix cache knows a prompt and its reply."""
        is_cached = self.engine.config.prefix_cache and not generation.skips_cache
        return block_hashes(words) if is_cached else ()

    def _submit_next_part(self, job: _Job) -> None:
        """The prompt and all that was written go to the back of the queue."""
        ticket, generation = job.ticket, job.ticket.generation
        prompt, words = generation.words_of(job.index), ticket.words[job.index]
        part = job.later_parts.popleft()
        name = f"{ticket.engine_ids[job.index]}+{job.count}"
        hashes = self._hashes(generation, [*prompt, *words])
        so_far = max(1, len(prompt)) + job.count
        self.engine.submit(SimRequest(name, time.monotonic(), so_far, part, hashes))
        job.later.append(self.engine.truth[name])
        job.part_ends += part
        ticket.engine_ids.append(name)
        self._jobs[name] = job
        self._wake.set()

    def _close(self, ticket: Ticket, outcome: str) -> None:
        ticket.is_closed = True
        for name in ticket.engine_ids:
            job = self._jobs.pop(name, None)
            if job is not None:
                _add_up(ticket.truths[job.index], job.later)
            self.engine.abort(name)
            self.engine.truth.pop(name, None)
        if ticket.generation.is_pooled:
            for truth in ticket.truths:
                truth.output_tokens = 0
        record = truth_record(
            ticket.generation.request_id,
            outcome,
            ticket.truths,
            self.unix_offset_seconds,
            prompts=1 + len(ticket.generation.more_prompts),
        )
        self.records.append(record)
        if not ticket.outcome.done():
            ticket.outcome.set_result(outcome)


def _add_up(truth: RequestTruth, later: list[RequestTruth]) -> None:
    """The parts of one sequence as one; each counts once."""
    for part in later:
        truth.prefill_joules += part.prefill_joules
        truth.decode_joules += part.decode_joules
        truth.idle_share_joules += part.idle_share_joules
        truth.prefilled_tokens += part.prefilled_tokens
        truth.output_tokens += part.output_tokens
        truth.preemptions += part.preemptions
        truth.last_token_seconds = part.last_token_seconds or truth.last_token_seconds
    later.clear()
