"""What every simulated request really cost: the Shapley share of each step.

A step's energy is two games among those computed in it. Dynamic energy is
operation joules (additive, plus the weights as a fixed part: exact) and active
watts for the step's duration; the idle share is idle watts for that duration.
The duration is a maximum of lines (`shapley`). Shares of a step sum to the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import NDArray

from loadgen.simulator.core.config import EngineConfig
from loadgen.simulator.core.roofline import Roofline
from loadgen.simulator.core.shapley import shapley_of_max

FloatArray = NDArray[np.float64]


@dataclass(slots=True)
class RequestTruth:
    """All that is known of one request; instants on the simulation's clock.

    Joules are nan where the truth was switched off: unknown is not zero.
    """

    request_id: str
    prompt_tokens: int
    arrived_seconds: float
    prefill_joules: float = nan
    decode_joules: float = nan
    idle_share_joules: float = nan
    cached_tokens: int = 0
    """Of the prompt, found in the prefix cache at first scheduling."""
    prefilled_tokens: int = 0
    """Computed in prefill, recomputation after a preemption included."""
    output_tokens: int = 0
    preemptions: int = 0
    scheduled_seconds: float | None = None
    """Start of the first step that computed it."""
    first_token_seconds: float | None = None
    last_token_seconds: float | None = None

    def open_accounts(self) -> None:
        """From unknown to nothing yet: its steps will be charged."""
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
