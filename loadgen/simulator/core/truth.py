"""True cost of every simulated request: the Shapley share of each step.

A step's energy is two games among the requests computed in it. Dynamic energy is
operation joules (additive, plus the weights as a fixed part: exact) and active
watts for the step's duration; the idle share is idle watts for that duration.
Shares of a step sum to the step.

The duration is the largest of several straight lines: v(S) = max over k of (offset_k
+ sum of slope_ki for i in S), and v(nobody) = 0. The part that even an infinitely
small member would cause, max(offset), belongs to all in equal parts; the rest is a
game without a jump at the first member. Where one line is on top for every possible
subset, or few members are present, its Shapley value is exact; otherwise it is the
mean marginal cost over seeded permutations, each with its reverse.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from math import nan

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadgen.simulator.core.config import EngineConfig
from loadgen.simulator.core.roofline import Roofline

FloatArray = NDArray[np.float64]


@dataclass(slots=True)
class RequestTruth:
    """The truth of one sequence; instants on the simulation's clock.

    Joules are nan where the truth was switched off: unknown is not zero.
    """

    request_id: str
    prompt_tokens: int
    arrived_seconds: float
    prefill_joules: float = nan
    decode_joules: float = nan
    idle_share_joules: float = nan
    cached_tokens: int = 0
    """Prompt tokens not computed: found in the prefix cache at first scheduling, or
    sent by another engine."""
    external_tokens: int = 0
    """Of those, the ones that another engine sent."""
    prefilled_tokens: int = 0
    """Computed in prefill, recomputation after a preemption included."""
    output_tokens: int = 0
    preemptions: int = 0
    scheduled_seconds: float | None = None
    """Start of the first step that computed it."""
    first_token_seconds: float | None = None
    last_token_seconds: float | None = None

    def open_accounts(self) -> None:
        """Start at zero instead of unknown: its steps will be charged."""
        self.prefill_joules = self.decode_joules = self.idle_share_joules = 0.0

    @property
    def energy_joules(self) -> float:
        """Inclusive: the request's own work and its share of idle while it ran."""
        return self.prefill_joules + self.decode_joules + self.idle_share_joules


class StepShares:
    """Divides steps among their requests; holds the seeded permutations."""

    def __init__(self, cost: Roofline, config: EngineConfig) -> None:
        self._cost = cost
        self._orders = config.permutations
        self._rng = np.random.default_rng([config.seed, 0x5EED])
        self._offsets = np.array(
            [
                0.0,
                cost.weight_bytes / cost.bytes_per_second,
                cost.joules_per_byte * cost.weight_bytes / cost.work_watts,
            ]
        )

    def seconds(self, flops: FloatArray, kv_bytes: FloatArray) -> FloatArray:
        """Shapley shares of the step's duration, shape (requests,)."""
        cost = self._cost
        slopes = np.stack(
            [
                flops / cost.flops_per_second,
                kv_bytes / cost.bytes_per_second,
                (cost.joules_per_flop * flops + cost.joules_per_byte * kv_bytes)
                / cost.work_watts,
            ]
        )
        offsets = self._offsets
        shares = shapley_of_max(offsets, slopes, self._rng, self._orders)
        return shares + cost.overhead_seconds / len(flops)

    def charge(
        self,
        truths: Sequence[RequestTruth],
        prefills: int,
        flops: FloatArray,
        kv_bytes: FloatArray,
    ) -> None:
        """Add one step to the requests in it; the last `prefills` did prefill."""
        cost = self._cost
        seconds = self.seconds(flops, kv_bytes)
        weights = cost.joules_per_byte * cost.weight_bytes / len(flops)
        work = cost.joules_per_flop * flops + cost.joules_per_byte * kv_bytes + weights
        dynamic = (work + cost.active_watts * seconds).tolist()
        idle = (cost.idle_watts * seconds).tolist()
        decodes = len(truths) - prefills
        for index, truth in enumerate(truths):
            if index < decodes:
                truth.decode_joules += dynamic[index]
            else:
                truth.prefill_joules += dynamic[index]
            truth.idle_share_joules += idle[index]


class TruthRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One JSON line; several sequences (`n`) are one request, summed."""

    simulated: bool = True
    request_id: str
    outcome: str
    """`ok`, `aborted` (the client left) or `failed` (injected)."""
    prompt_tokens: int
    cached_tokens: int
    prefilled_tokens: int
    output_tokens: int
    preemptions: int
    prefill_joules: float
    decode_joules: float
    idle_share_joules: float
    energy_joules: float
    arrived_unix_seconds: float
    scheduled_unix_seconds: float | None
    first_token_unix_seconds: float | None
    last_token_unix_seconds: float | None


def truth_record(
    request_id: str,
    outcome: str,
    truths: Sequence[RequestTruth],
    unix_offset_seconds: float,
    prompts: int = 1,
) -> TruthRecord:
    """The sequences of one request together; `unix_offset_seconds` is unix less engine.

    Prompt and cached tokens are those of the first sequence of each prompt: the
    others of that prompt share it.
    """
    leaders = truths[:: len(truths) // prompts]

    def unix(instants: Iterable[float | None], *, last: bool = False) -> float | None:
        known = [instant for instant in instants if instant is not None]
        if not known:
            return None
        return (max if last else min)(known) + unix_offset_seconds

    return TruthRecord(
        request_id=request_id,
        outcome=outcome,
        prompt_tokens=sum(truth.prompt_tokens for truth in leaders),
        cached_tokens=sum(truth.cached_tokens for truth in leaders),
        prefilled_tokens=sum(truth.prefilled_tokens for truth in truths),
        output_tokens=sum(truth.output_tokens for truth in truths),
        preemptions=sum(truth.preemptions for truth in truths),
        prefill_joules=sum(truth.prefill_joules for truth in truths),
        decode_joules=sum(truth.decode_joules for truth in truths),
        idle_share_joules=sum(truth.idle_share_joules for truth in truths),
        energy_joules=sum(truth.energy_joules for truth in truths),
        arrived_unix_seconds=truths[0].arrived_seconds + unix_offset_seconds,
        scheduled_unix_seconds=unix(truth.scheduled_seconds for truth in truths),
        first_token_unix_seconds=unix(truth.first_token_seconds for truth in truths),
        last_token_unix_seconds=unix(
            (truth.last_token_seconds for truth in truths), last=True
        ),
    )


IntArray = NDArray[np.int64]

EXACT_MEMBERS = 4
"""Up to this many, all orders are enumerated (24)."""


def shapley_of_max(
    offsets: FloatArray,
    slopes: FloatArray,
    rng: np.random.Generator,
    orders: int = 16,
) -> FloatArray:
    """Each member's share, shape (members,), summing to v(everybody).

    `offsets` has shape (lines,), `slopes` (lines, members), both >= 0. `orders`
    is the even number of permutations sampled where no exact form exists.
    """
    members = slopes.shape[1]
    jump = float(offsets.max())
    heights = offsets + slopes.sum(axis=1)
    total = float(heights.max())
    if members == 1:
        return np.array([total])
    top = int(heights.argmax())
    if _is_always_on_top(top, offsets, slopes):
        return np.asarray(slopes[top] + jump / members, dtype=np.float64)
    sequence = _sequences(members, orders, rng)
    climbing = slopes[:, sequence].cumsum(axis=2) + offsets[:, None, None]
    marginal = np.diff(climbing.max(axis=0), axis=1, prepend=jump)
    per_member = np.empty_like(marginal)
    np.put_along_axis(per_member, sequence, marginal, axis=1)
    shares = per_member.mean(axis=0) + jump / members
    return np.asarray(shares * (total / shares.sum()), dtype=np.float64)


def _is_always_on_top(top: int, offsets: FloatArray, slopes: FloatArray) -> bool:
    """Whether a line exceeds all others for every subset, the empty one included."""
    lead = offsets[top] - offsets
    worst = lead + np.minimum(slopes[top] - slopes, 0.0).sum(axis=1)
    return bool((worst >= 0).all())


def _sequences(members: int, orders: int, rng: np.random.Generator) -> IntArray:
    """Orders of arrival, shape (orders, members)."""
    if members <= EXACT_MEMBERS:
        return _all_sequences(members)
    forward = np.broadcast_to(np.arange(members), (orders // 2, members))
    forward = rng.permuted(forward, axis=1)
    return np.concatenate([forward, forward[:, ::-1]])


@cache
def _all_sequences(members: int) -> IntArray:
    return np.array(list(permutations(range(members))), dtype=np.int64)
