"""The engine in aggregates: millions of requests in virtual time.

The same continuous batching as `scheduler` (decodes first, then prefill chunks, first
come first served, one token budget), but a step knows only sums: how many sequences
decode and how much context they read. Steps between two events (an arrival, the end
of a reply) differ by one token of context per sequence, so they are taken at once. A
request costs two or three turns of a loop instead of a step per token.

What is left out: blocks are not shared by content (the cached part of each prompt is
given), and a request waits until its whole prompt and reply fit the KV cache, so
nothing is preempted. `tests` hold times and joules to those of `engine.simulate`.
"""

from __future__ import annotations

import heapq
import math
from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadgen.simulator.core.config import BLOCK_TOKENS, EngineConfig
from loadgen.simulator.core.roofline import roofline

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

FEATURES = (
    "steps", "prefill_tokens", "prefill_pairs", "prefill_context_tokens",
    "decode_tokens", "decode_context_tokens",
)  # fmt: skip
"""What a step's time and energy are linear in. Pairs: each computed token with all
before it; context: tokens whose keys and values are read."""


@dataclass(frozen=True, slots=True)
class StepCost:
    """Time and energy of a step: of a roofline, or fitted to a run."""

    lines: tuple[tuple[float, ...], ...]
    """Seconds per feature, a row per line; a step takes as long as the highest."""
    overhead_seconds: float
    joules: tuple[float, ...]
    """Per feature, without what the watts below give."""
    busy_watts: float
    """While a step runs, whatever it does: idle watts among them."""
    idle_watts: float
    capacity_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int


def step_cost(config: EngineConfig) -> StepCost:
    """The cost of a simulated engine, its roofline written per feature."""
    cost = roofline(config)
    token, pair = cost.flops_per_token, cost.attention_flops_per_pair
    kv = cost.kv_bytes_per_token
    flops = np.array([0, token, pair, 0, token + pair, pair])
    moved = np.array([cost.weight_bytes, 2 * kv, 0, kv, 2 * kv, kv])
    work = cost.joules_per_flop * flops + cost.joules_per_byte * moved
    lines = (
        flops / cost.flops_per_second,
        moved / cost.bytes_per_second,
        work / cost.work_watts,
    )
    return StepCost(
        lines=tuple(tuple(line.tolist()) for line in lines),
        overhead_seconds=cost.overhead_seconds,
        joules=tuple(work.tolist()),
        busy_watts=cost.idle_watts + cost.active_watts,
        idle_watts=cost.idle_watts,
        capacity_tokens=config.capacity_blocks * BLOCK_TOKENS,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
    )


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests by start: arrays of one length."""

    start_seconds: FloatArray
    """Rising over first turns; a later one starts after the reply before it, and no
    sooner than this."""
    prompt_tokens: IntArray
    cached_tokens: IntArray
    """Of the prompt, not computed; below the prompt."""
    output_tokens: IntArray
    next_turn: IntArray | None = None
    """Index of the turn that follows; -1: none. None: no request has one."""
    think_seconds: FloatArray | None = None
    """Before each later turn."""
    is_later: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.start_seconds)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a workload on one engine."""

    start_seconds: FloatArray
    first_token_seconds: FloatArray
    last_token_seconds: FloatArray
    sums: FloatArray
    """Of each feature over all steps, shape (features,)."""
    busy_seconds: float
    end_seconds: float
    unfit: int
    """Requests longer than the engine can hold: never run, nan instants."""

    def joules(self, cost: StepCost, span_seconds: float | None = None) -> float:
        """Energy from 0 to the end, or to a later instant; idle in between."""
        span = max(self.end_seconds, span_seconds or 0.0)
        work = float(np.dot(cost.joules, self.sums))
        idle = cost.idle_watts * (span - self.busy_seconds)
        return work + cost.busy_watts * self.busy_seconds + idle


def run_aggregate(work: Workload, cost: StepCost) -> Outcome:
    """All requests, from the first arrival to the last token, starting at 0 s."""
    count = len(work)
    prompts, cached = _listed(work.prompt_tokens), _listed(work.cached_tokens)
    outputs = _listed(work.output_tokens)
    needs = _listed(work.prompt_tokens + work.output_tokens)
    follows = None if work.next_turn is None else work.next_turn.tolist()
    thinks = None if work.think_seconds is None else work.think_seconds.tolist()
    starts = array("d", work.start_seconds)
    later = work.is_later
    order = (
        range(count) if later is None else np.flatnonzero(~later).tolist()
    )  # of first turns
    total_first = len(order)
    unknown = array("d", [math.nan])
    firsts, lasts = unknown * count, unknown * count
    lines, overhead = cost.lines, cost.overhead_seconds
    budget_all, most, room = (
        cost.max_num_batched_tokens, cost.max_num_seqs, cost.capacity_tokens,
    )  # fmt: skip
    pushed, popped = heapq.heappush, heapq.heappop
    ends: list[tuple[int, int]] = []  # (decode step after which it is done, request)
    ready: list[tuple[float, int]] = []  # later turns by arrival
    now = busy = 0.0
    at = step = decodes = context = running = held = unfit = 0
    partial, done = -1, 0
    s_steps = s_prefill = s_decode = 0
    s_pairs = s_prefix = s_context = 0.0
    infinity = math.inf

    def finish(index: int, when: float) -> None:
        lasts[index] = when
        if follows is not None and follows[index] >= 0:
            after = follows[index]
            arrived = when + (thinks[after] if thinks is not None else 0.0)
            if starts[after] > arrived:
                arrived = starts[after]
            starts[after] = arrived
            pushed(ready, (arrived, after))

    while True:
        budget = budget_all - decodes
        tokens = 0
        pairs = prefix = 0.0
        born: list[int] = []
        arrives = infinity
        while budget > 0:
            if partial < 0:
                # the next request by arrival, from the list or among later turns
                if at < total_first:
                    index = order[at]
                    arrives = starts[index]
                    if ready and ready[0][0] < arrives:
                        arrives, index = ready[0]
                elif ready:
                    arrives, index = ready[0]
                else:
                    arrives = infinity
                    break
                if not running and arrives > now:
                    now = arrives
                if arrives > now:
                    break
                need = needs[index]
                if need > room:
                    unfit += 1
                elif running >= most or held + need > room:
                    arrives = infinity  # it waits for the end of another
                    break
                if ready and ready[0][1] == index:
                    popped(ready)
                else:
                    at += 1
                if need > room:
                    continue
                partial, done = index, cached[index]
                running += 1
                held += need
            left = prompts[partial] - done
            chunk = left if left < budget else budget
            tokens += chunk
            pairs += chunk * (done + (chunk + 1) / 2)
            prefix += done
            done += chunk
            budget -= chunk
            if chunk == left:
                born.append(partial)
                partial = -1
        if not tokens and not decodes:
            break
        if tokens:
            seconds = 0.0
            for a, b, c, d, e, f in lines:
                line = (a + b * tokens + c * pairs + d * prefix + e * decodes
                        + f * context)  # fmt: skip
                if line > seconds:
                    seconds = line
            seconds += overhead
            now += seconds
            busy += seconds
            s_steps += 1
            s_prefill += tokens
            s_pairs += pairs
            s_prefix += prefix
            s_decode += decodes
            s_context += context
            context += decodes
            step += 1
            for index in born:
                firsts[index] = now
                if outputs[index] == 1:
                    running -= 1
                    held -= needs[index]
                    finish(index, now)
                else:
                    pushed(ends, (step + outputs[index] - 1, index))
                    decodes += 1
                    context += prompts[index]
        else:
            many = ends[0][0] - step
            seconds = 0.0
            for a, _, _, _, e, f in lines:
                line = a + e * decodes + f * context
                if line > seconds:
                    seconds = line
            if arrives < infinity:
                until = math.ceil((arrives - now) / (seconds + overhead))
                if until < many:
                    many = until if until > 0 else 1
            middle = context + decodes * (many - 1) / 2
            if many > 1:
                seconds = 0.0
                for a, _, _, _, e, f in lines:
                    line = a + e * decodes + f * middle
                    if line > seconds:
                        seconds = line
            seconds = (seconds + overhead) * many
            now += seconds
            busy += seconds
            s_steps += many
            s_decode += decodes * many
            s_context += middle * many
            context += decodes * many
            step += many
        while ends and ends[0][0] <= step:
            _, index = popped(ends)
            decodes -= 1
            context -= prompts[index] + outputs[index] - 1
            running -= 1
            held -= needs[index]
            finish(index, now)
    return Outcome(
        start_seconds=np.array(starts),
        first_token_seconds=np.array(firsts),
        last_token_seconds=np.array(lasts),
        sums=np.array(
            [s_steps, s_prefill, s_pairs, s_prefix, s_decode, s_context], np.float64
        ),
        busy_seconds=busy,
        end_seconds=now,
        unfit=unfit,
    )


def _listed(values: IntArray) -> list[int]:
    """Numbers as a list, equal ones as one object: 8 bytes each and no more."""
    distinct, places = np.unique(values, return_inverse=True)
    found: list[int] = np.array(distinct.tolist(), dtype=object)[places].tolist()
    return found
