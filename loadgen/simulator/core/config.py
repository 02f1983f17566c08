"""Configuration of a simulated engine: frozen, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from loadgen.errors import UsageError
from loadgen.simulator.core.presets import GPUS, MODELS, Gpu, Model
from proxy.process.options import Option

BLOCK_TOKENS = 16
"""KV cache page, vLLM's default on CUDA."""


def _gpu(name: str) -> Gpu:
    if name not in GPUS:
        raise UsageError(f"unknown GPU {name!r}; known: {', '.join(sorted(GPUS))}")
    return GPUS[name]


def _model(name: str) -> Model:
    if name not in MODELS:
        known = ", ".join(sorted(MODELS))
        raise UsageError(f"unknown model {name!r}; known: {known}")
    return MODELS[name]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """One engine: a model on a tensor-parallel group of equal GPUs.

    Raises UsageError where the model does not fit or a limit is not positive.
    """

    gpu: Annotated[
        Gpu,
        Option(
            f"Simulated GPU: {', '.join(GPUS)}.",
            "NAME",
            heading="Engine",
            parse=_gpu,
            default="h100",
        ),
    ] = GPUS["h100"]
    model: Annotated[
        Model,
        Option(
            f"Simulated model: {', '.join(MODELS)}.",
            "NAME",
            parse=_model,
            default="llama-3.1-8b",
        ),
    ] = MODELS["llama-3.1-8b"]
    n_gpus: Annotated[int, Option("Tensor-parallel group of equal GPUs.", "N")] = 1
    max_num_seqs: Annotated[int, Option("Requests in a batch.", "N")] = 256
    max_num_batched_tokens: Annotated[
        int,
        Option("Tokens computed per step; long prompts are cut into chunks.", "N"),
    ] = 2048
    """Decode first, then prefill chunks."""
    prefix_cache: Annotated[
        bool,
        Option("Reuse the KV cache of equal prompt prefixes.", has_opposite=True),
    ] = True
    memory_fraction: float = 0.90
    """Part of GPU memory for weights and KV cache (vLLM's gpu_memory_utilization)."""
    reserve_bytes: float = 2e9
    """Assumed: activations, CUDA graphs and context, per GPU."""
    kv_blocks: int | None = None
    """KV capacity in blocks of 16 tokens; None: what the memory holds."""
    power_cap_watts: Annotated[
        float | None,
        Option("Watts per GPU.", "W", name="power-cap", default_is="its TDP"),
    ] = None
    """Per GPU; None: the GPU's own limit. A step that would exceed it takes longer."""
    step_overhead_seconds: Annotated[
        float,
        Option("Scheduling, sampling and kernel launches of every step.", "S"),
    ] = 0.0008
    """Assumed: of an engine that replays CUDA graphs."""
    weight_bits: Annotated[
        int, Option("Bits of a weight: 16, 8 or 4; the products stay bf16.", "N")
    ] = 16
    layer_sync_seconds: float = 0.000012
    """Assumed: the two all-reduces of a layer, with more than one GPU."""
    kv_transfer_bytes_per_second: float = 25e9
    """Assumed: KV blocks of another engine come over one link of 200 Gbit/s."""
    track_truth: bool = True
    permutations: int = 16
    """Antithetic pairs count as two; used only where no closed form exists."""
    seed: Annotated[int, Option("Seed of texts and lengths.", "N")] = 0

    def __post_init__(self) -> None:
        for name in ("n_gpus", "max_num_seqs", "max_num_batched_tokens"):
            if getattr(self, name) < 1:
                value = getattr(self, name)
                raise UsageError(f"{name} is {value}, expected at least 1")
        if self.weight_bits not in (4, 8, 16):
            raise UsageError(f"weight_bits is {self.weight_bits}, expected 16, 8 or 4")
        if not 0 <= self.step_overhead_seconds < 10:
            raise UsageError(
                f"step_overhead is {self.step_overhead_seconds:g} s, expected 0 to 10"
            )
        if self.permutations < 2 or self.permutations % 2:
            raise UsageError(
                f"permutations is {self.permutations}, expected an even number from 2"
            )
        if self.cap_watts <= self.gpu.idle_watts + self.gpu.active_watts:
            floor_watts = self.gpu.idle_watts + self.gpu.active_watts
            raise UsageError(
                f"power cap is {self.cap_watts:g} W, {self.gpu.name} needs more than "
                f"{floor_watts:g} W to do any work"
            )
        if self.capacity_blocks < 2:
            raise UsageError(
                f"{self.model.name} has {self.weight_bytes / 1e9:.0f} GB of "
                f"weights and does not fit {self.n_gpus} x {self.gpu.name} "
                f"({self.gpu.memory_bytes / 1e9:.0f} GB each); use more GPUs"
            )

    @property
    def cap_watts(self) -> float:
        """Power cap per GPU."""
        if self.power_cap_watts is not None:
            return self.power_cap_watts
        return self.gpu.limit_watts or self.gpu.tdp_watts

    @property
    def weight_bytes(self) -> float:
        """Read once per step, whatever the batch."""
        return self.model.parameters * self.weight_bits / 8

    @property
    def capacity_blocks(self) -> int:
        """KV cache blocks of the whole group."""
        if self.kv_blocks is not None:
            return self.kv_blocks
        usable = self.gpu.memory_bytes * self.memory_fraction - self.reserve_bytes
        free = usable * self.n_gpus - self.weight_bytes
        return int(free // (self.model.kv_bytes_per_token * BLOCK_TOKENS))

    def transfer_seconds(self, tokens: int) -> float:
        """Time that the KV blocks of so many tokens are under way to this engine."""
        kv_bytes = self.model.kv_bytes_per_token * tokens
        return kv_bytes / self.kv_transfer_bytes_per_second

    @property
    def max_model_tokens(self) -> int:
        """Longest request that can run: context length or KV capacity."""
        return min(self.model.context_tokens, self.capacity_blocks * BLOCK_TOKENS)

    @property
    def idle_watts(self) -> float:
        """Power of the whole group, weights resident, nothing running."""
        return self.gpu.idle_watts * self.n_gpus
