"""Who is computed in the next step: continuous batching as vLLM v1 does it.

Decode of everything that runs, then prefill in chunks, first come first served,
within one token budget. KV blocks are taken as they are needed; when they run
out the youngest request is preempted, loses its blocks, and is recomputed later
from the front of the queue.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from loadgen.simulator.core.config import BLOCK_TOKENS, EngineConfig
from loadgen.simulator.core.kv import BlockPool
from loadgen.simulator.core.truth import RequestTruth


@dataclass(frozen=True, slots=True)
class SimRequest:
    """One sequence to generate: exactly `output_tokens` after the prompt."""

    request_id: str
    arrived_seconds: float
    prompt_tokens: int
    output_tokens: int
    block_hashes: tuple[int, ...] = ()
    """Chain hashes of the full blocks of prompt and, if known, output tokens."""


@dataclass(slots=True, eq=False)
class Sequence:
    """A request on its way; `computed` tokens of it are in the KV cache."""

    request: SimRequest
    truth: RequestTruth
    tokens: int
    """Prompt and generated so far: all computed before the next one comes."""
    computed: int = 0
    private: int = 0
    """Blocks of its own; those in `held` are shared."""
    held: list[int] = field(default_factory=list)
    published: int = 0
    """Blocks of the chain already looked at for sharing."""

    @property
    def is_decoding(self) -> bool:
        """Only the token generated last is missing from the cache."""
        return self.tokens - self.computed == 1 and self.truth.output_tokens > 0


class Batch:
    """One step in the making: decodes first, then prefill chunks."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.sequences: list[Sequence] = []
        self.tokens: list[int] = []
        """To compute now, one number per sequence."""
        self.decodes = 0
        self.started: list[str] = []
        self.preempted: list[str] = []
        self._members: set[int] = set()

    def __contains__(self, sequence: Sequence) -> bool:
        return id(sequence) in self._members

    def add(self, sequence: Sequence, tokens: int) -> None:
        """Schedule `tokens` of a sequence."""
        self.sequences.append(sequence)
        self.tokens.append(tokens)
        self._members.add(id(sequence))
        self.budget -= tokens


class Scheduler:
    """The queue, the batch and the KV blocks of one engine."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self.pool = BlockPool(config.capacity_blocks)
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()

    def next_batch(self, now_seconds: float) -> Batch:
        """The work of a step that starts now; it is in `running` afterwards."""
        batch = Batch(self._config.max_num_batched_tokens)
        for sequence in [s for s in self.running if s.is_decoding]:
            if batch.budget:
                self._schedule(batch, sequence, 1)
        batch.decodes = len(batch.sequences)
        for sequence in [s for s in self.running if not s.is_decoding]:
            if batch.budget:
                chunk = min(sequence.tokens - sequence.computed, batch.budget)
                self._schedule(batch, sequence, chunk)
        if not batch.preempted:
            self._admit(batch, now_seconds)
        return batch

    def retire(self, finished: list[Sequence]) -> None:
        """Take finished sequences out of the batch and free their blocks."""
        for sequence in finished:
            self._free(sequence)
        done = {id(sequence) for sequence in finished}
        self.running = [s for s in self.running if id(s) not in done]

    def drop(self, request_id: str) -> bool:
        """Forget a request wherever it is; False if it is not there."""
        for sequence in self.running:
            if sequence.request.request_id == request_id:
                self.retire([sequence])
                return True
        for sequence in self.waiting:
            if sequence.request.request_id == request_id:
                self.waiting.remove(sequence)
                return True
        return False

    def publish(self, sequence: Sequence) -> None:
        """Offer the blocks that are full by now to the prefix cache."""
        hashes = sequence.request.block_hashes
        full = min(sequence.computed // BLOCK_TOKENS, len(hashes))
        if not self._config.prefix_cache or full <= sequence.published:
            return
        for block_hash in hashes[sequence.published : full]:
            if self.pool.publish(block_hash):
                sequence.private -= 1
                sequence.held.append(block_hash)
        sequence.published = full

    def _schedule(self, batch: Batch, sequence: Sequence, tokens: int) -> None:
        """Give a running request its blocks, preempting younger ones for them."""
        if sequence.request.request_id in batch.preempted:
            return
        while not self._grow(sequence, tokens):
            victim = next(s for s in reversed(self.running) if s not in batch)
            self._preempt(batch, victim)
            if victim is sequence:
                return
        batch.add(sequence, tokens)

    def _admit(self, batch: Batch, now_seconds: float) -> None:
        """Move waiting requests into the batch, in order, until one does not fit."""
        while (
            self.waiting
            and batch.budget
            and len(self.running) < self._config.max_num_seqs
            and self.waiting[0].request.arrived_seconds <= now_seconds
        ):
            sequence = self.waiting[0]
            self._reuse_prefix(sequence)
            chunk = min(sequence.tokens - sequence.computed, batch.budget)
            if not self._grow(sequence, chunk):
                self._free(sequence)
                return
            self.running.append(self.waiting.popleft())
            if sequence.truth.scheduled_seconds is None:
                sequence.truth.scheduled_seconds = now_seconds
                sequence.truth.cached_tokens = sequence.computed
                batch.started.append(sequence.request.request_id)
            batch.add(sequence, chunk)

    def _reuse_prefix(self, sequence: Sequence) -> None:
        """Hold the cached part of the sequence; its last token is always computed."""
        hashes = sequence.request.block_hashes
        if not self._config.prefix_cache or not hashes:
            return
        blocks = self.pool.matched(hashes, (sequence.tokens - 1) // BLOCK_TOKENS)
        sequence.held = list(hashes[:blocks])
        self.pool.hold(sequence.held)
        sequence.published = blocks
        sequence.computed = blocks * BLOCK_TOKENS

    def _grow(self, sequence: Sequence, tokens: int) -> bool:
        have = sequence.private + len(sequence.held)
        need = -(-(sequence.computed + tokens) // BLOCK_TOKENS) - have
        if need > 0:
            if not self.pool.take(need):
                return False
            sequence.private += need
        return True

    def _free(self, sequence: Sequence) -> None:
        self.pool.release(sequence.private, sequence.held)
        sequence.private, sequence.held = 0, []
        sequence.published = sequence.computed = 0

    def _preempt(self, batch: Batch, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._free(sequence)
        self.waiting.appendleft(sequence)
        sequence.truth.preemptions += 1
        batch.preempted.append(sequence.request.request_id)
