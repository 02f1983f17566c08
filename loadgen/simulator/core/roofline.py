"""How long one step takes and what it costs: the roofline of a model on a GPU.

A step computes tokens of several requests at once. Its time is the slowest of
three lines, each linear in the batch, plus a fixed overhead:

    compute   FLOPs / reachable FLOP rate
    memory    (weights + KV bytes) / reachable bandwidth
    power     operation joules / watts left below the power cap

Its energy is operation joules (per FLOP and per byte), plus active watts and
idle watts for as long as it takes. Activations are not counted: they stay in
cache at these batch sizes and are small beside weights and KV.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadgen.simulator.core.config import EngineConfig

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Roofline:
    """The constants of one engine, for the whole GPU group."""

    flops_per_token: float
    attention_flops_per_pair: float
    kv_bytes_per_token: float
    weight_bytes: float
    flops_per_second: float
    bytes_per_second: float
    joules_per_flop: float
    joules_per_byte: float
    idle_watts: float
    active_watts: float
    work_watts: float
    """Left for operations below the power cap."""
    overhead_seconds: float

    def flops(self, tokens: FloatArray, context_tokens: FloatArray) -> FloatArray:
        """FLOPs of `tokens` new positions after `context_tokens` cached, by request."""
        pairs = tokens * (context_tokens + (tokens + 1) / 2)
        return self.flops_per_token * tokens + self.attention_flops_per_pair * pairs

    def kv_bytes(self, tokens: FloatArray, context_tokens: FloatArray) -> FloatArray:
        """Keys and values read (the context, once per chunk) and written."""
        return self.kv_bytes_per_token * (context_tokens + 2 * tokens)

    def seconds(self, flops: float, kv_bytes: float) -> float:
        """Duration of a step; `kv_bytes` without the weights."""
        return max(
            self.uncapped_seconds(flops, kv_bytes),
            self.overhead_seconds + self.work_joules(flops, kv_bytes) / self.work_watts,
        )

    def uncapped_seconds(self, flops: float, kv_bytes: float) -> float:
        """Its duration at full clocks, whatever power that takes."""
        moved_bytes = kv_bytes + self.weight_bytes
        return self.overhead_seconds + max(
            flops / self.flops_per_second, moved_bytes / self.bytes_per_second
        )

    def work_joules(self, flops: float, kv_bytes: float) -> float:
        """Energy of the operations alone, weights included."""
        moved_bytes = kv_bytes + self.weight_bytes
        return self.joules_per_flop * flops + self.joules_per_byte * moved_bytes


def roofline(config: EngineConfig) -> Roofline:
    """The roofline of a configured engine.

    Tensor parallelism divides FLOPs, weights and KV evenly over the group and adds
    a synchronisation per layer; the group's joules are the sum over its GPUs.
    """
    gpu, model, count = config.gpu, config.model, config.n_gpus
    sync_seconds = config.layer_sync_seconds * model.layers if count > 1 else 0.0
    watts_below_cap = config.cap_watts - gpu.idle_watts - gpu.active_watts
    return Roofline(
        flops_per_token=model.flops_per_token,
        attention_flops_per_pair=model.attention_flops_per_pair,
        kv_bytes_per_token=model.kv_bytes_per_token,
        weight_bytes=config.weight_bytes,
        flops_per_second=gpu.peak_flops * gpu.compute_efficiency * count,
        bytes_per_second=gpu.memory_bytes_per_second * gpu.memory_efficiency * count,
        joules_per_flop=gpu.joules_per_flop,
        joules_per_byte=gpu.joules_per_byte,
        idle_watts=gpu.idle_watts * count,
        active_watts=gpu.active_watts * count,
        work_watts=watts_below_cap * count,
        overhead_seconds=config.step_overhead_seconds + sync_seconds,
    )
