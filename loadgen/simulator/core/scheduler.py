"""Continuous batching as vLLM v1 does it: the next step's requests and their KV blocks.

Decode of everything that runs, then prefill in chunks, first come first served,
within one token budget. KV blocks are taken as they are needed; when they run
out the youngest request is preempted, loses its blocks, and is recomputed later
from the front of the queue.

A block is private (held by one request), shared (published under its chain hash,
held by one or more), kept (published, held by no request, least recently used goes
first) or free. A published block's hash covers everything before it, so equal
hashes mean equal prefixes.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from loadgen.simulator.core.config import BLOCK_TOKENS, EngineConfig
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
    remote_tokens: int = 0
    """Prompt tokens whose KV blocks another engine has computed and sends."""
    transfer_seconds: float = 0.0
    """Time from arrival until those blocks are here; it is not scheduled before."""

    @property
    def ready_seconds(self) -> float:
        """When it can be computed first."""
        return self.arrived_seconds + self.transfer_seconds


@dataclass(slots=True, eq=False)
class SequenceState:
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
        self.sequences: list[SequenceState] = []
        self.tokens: list[int] = []
        """To compute now, one number per sequence."""
        self.decodes = 0
        self.started: list[str] = []
        self.preempted: list[str] = []
        self._members: set[int] = set()

    def __contains__(self, sequence: SequenceState) -> bool:
        return id(sequence) in self._members

    def add(self, sequence: SequenceState, tokens: int) -> None:
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
        self.running: list[SequenceState] = []
        self.waiting: deque[SequenceState] = deque()

    @property
    def ready_seconds(self) -> float:
        """When the first of those that wait can be computed; there must be one."""
        return min(sequence.request.ready_seconds for sequence in self.waiting)

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

    def retire(self, finished: list[SequenceState]) -> None:
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

    def publish(self, sequence: SequenceState) -> None:
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

    def _schedule(self, batch: Batch, sequence: SequenceState, tokens: int) -> None:
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
            batch.budget
            and len(self.running) < self._config.max_num_seqs
            and (sequence := self._first_ready(now_seconds)) is not None
        ):
            self._reuse_prefix(sequence)
            external_tokens = self._take_remote(sequence)
            chunk = min(sequence.tokens - sequence.computed, batch.budget)
            if not self._grow(sequence, chunk):
                self._free(sequence)
                return
            self.waiting.remove(sequence)
            self.running.append(sequence)
            if sequence.truth.scheduled_seconds is None:
                sequence.truth.scheduled_seconds = now_seconds
                sequence.truth.cached_tokens = sequence.computed
                sequence.truth.external_tokens = external_tokens
                batch.started.append(sequence.request.request_id)
            batch.add(sequence, chunk)

    def _first_ready(self, now_seconds: float) -> SequenceState | None:
        """The first in the queue whose blocks, if it waits for any, have come."""
        for sequence in self.waiting:
            if sequence.request.arrived_seconds > now_seconds:
                return None
            if sequence.request.ready_seconds <= now_seconds:
                return sequence
        return None

    def _take_remote(self, sequence: SequenceState) -> int:
        """Count the blocks that came from another engine as computed; their tokens.

        The last prompt token is always computed. They are sent once: a request that is
        preempted computes its prompt anew, as in vLLM.
        """
        if sequence.truth.scheduled_seconds is not None:
            return 0
        there = min(sequence.request.remote_tokens, sequence.tokens - 1)
        external_tokens = max(0, there - sequence.computed)
        sequence.computed += external_tokens
        return external_tokens

    def _reuse_prefix(self, sequence: SequenceState) -> None:
        """Hold the cached part of the sequence; its last token is always computed."""
        hashes = sequence.request.block_hashes
        if not self._config.prefix_cache or not hashes:
            return
        blocks = self.pool.matched(hashes, (sequence.tokens - 1) // BLOCK_TOKENS)
        sequence.held = list(hashes[:blocks])
        self.pool.hold(sequence.held)
        sequence.published = blocks
        sequence.computed = blocks * BLOCK_TOKENS

    def _grow(self, sequence: SequenceState, tokens: int) -> bool:
        have = sequence.private + len(sequence.held)
        need = -(-(sequence.computed + tokens) // BLOCK_TOKENS) - have
        if need > 0:
            if not self.pool.take(need):
                return False
            sequence.private += need
        return True

    def _free(self, sequence: SequenceState) -> None:
        self.pool.release(sequence.private, sequence.held)
        sequence.private, sequence.held = 0, []
        sequence.published = sequence.computed = 0

    def _preempt(self, batch: Batch, sequence: SequenceState) -> None:
        self.running.remove(sequence)
        self._free(sequence)
        self.waiting.appendleft(sequence)
        sequence.truth.preemptions += 1
        batch.preempted.append(sequence.request.request_id)


class BlockPool:
    """All blocks of one engine. Blocks are counted, not numbered."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._free = capacity
        self._holders: dict[int, int] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Blocks that can be taken now, evicting kept ones if need be."""
        return self._free + len(self._kept)

    @property
    def used_fraction(self) -> float:
        """Held by requests, 0..1; kept blocks count as unused, as vLLM does."""
        return 1.0 - self.available / self.capacity

    def take(self, count: int) -> bool:
        """Make `count` private blocks, or none and False if they are not there."""
        if count > self.available:
            return False
        self._free -= count
        while self._free < 0:
            self._kept.popitem(last=False)
            self._free += 1
        return True

    def matched(self, hashes: Sequence[int], limit: int) -> int:
        """How many leading blocks of a chain are published, at most `limit`."""
        for index in range(min(limit, len(hashes))):
            if hashes[index] not in self._holders and hashes[index] not in self._kept:
                return index
        return min(limit, len(hashes))

    def hold(self, hashes: Sequence[int]) -> None:
        """Hold published blocks, so that they cannot be evicted."""
        for block_hash in hashes:
            if block_hash in self._kept:
                del self._kept[block_hash]
                self._holders[block_hash] = 1
            else:
                self._holders[block_hash] += 1

    def publish(self, block_hash: int) -> bool:
        """Turn one private block into a shared one, held by its owner.

        False where the same content is published already: the block stays private.
        """
        if block_hash in self._holders or block_hash in self._kept:
            return False
        self._holders[block_hash] = 1
        return True

    def release(self, private: int, held: Sequence[int]) -> None:
        """Give back a request's blocks; shared ones nobody holds are kept.

        The end of a chain is released first and so evicted first: a prefix is
        worth more than what follows it.
        """
        self._free += private
        for block_hash in reversed(held):
            self._holders[block_hash] -= 1
            if not self._holders[block_hash]:
                del self._holders[block_hash]
                self._kept[block_hash] = None
