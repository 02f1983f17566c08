"""GPUs and models the simulator knows: published figures, and stated assumptions.

Published: dense peak, memory bandwidth and size, board power, model shape, from
`loadgen.analysis.datasheets`, which has their sources. Assumed, because no
data sheet has them: the reachable fractions of the peaks, the idle watts with
weights resident, and the energy per operation. The last is not set by hand but
follows from two load points, see `Gpu.joules_per_flop` and `joules_per_byte`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loadgen.analysis.datasheets import GPU_SHEETS, MODEL_SHEETS


@dataclass(frozen=True, slots=True)
class Gpu:
    """One accelerator board. Rates are per second, dense bf16."""

    name: str
    """Name as the vendor's tools print it; it is always shown after SIMULATED."""
    peak_flops: float
    memory_bytes_per_second: float
    memory_bytes: float
    tdp_watts: float
    """Board power limit; also the default power cap."""
    idle_watts: float
    """Assumed: weights resident, clocks up, nothing running (loaded idle)."""
    compute_efficiency: float = 0.55
    """Assumed reachable part of the peak in large matrix products (MFU)."""
    memory_efficiency: float = 0.80
    """Assumed reachable part of the memory bandwidth (MBU)."""
    active_fraction: float = 0.12
    """Assumed extra watts while any kernel runs, whatever it does, as part of TDP."""
    memory_bound_fraction: float = 0.63
    """Assumed board power while only memory is busy, as part of TDP: V100 boards
    (300 W) were reported at 180-200 W in decode, 270-300 W in prefill
    (1CatAI/1Cat-vLLM issue 535)."""
    limit_watts: float | None = None
    """Power limit that somebody has set; None: the TDP."""
    sm_clock_hertz: float = 1.98e9
    """Published: boost clock."""
    memory_clock_hertz: float = 2.619e9

    @property
    def active_watts(self) -> float:
        """Power that any running kernel adds to idle, before it does any work."""
        return self.active_fraction * self.tdp_watts

    @property
    def joules_per_flop(self) -> float:
        """Energy per FLOP; a purely compute-bound load draws exactly the TDP."""
        budget_watts = self.tdp_watts - self.idle_watts - self.active_watts
        return budget_watts / (self.peak_flops * self.compute_efficiency)

    @property
    def joules_per_byte(self) -> float:
        """Energy per byte; a memory-bound load draws `memory_bound_fraction` of TDP."""
        load_watts = self.memory_bound_fraction * self.tdp_watts
        budget_watts = load_watts - self.idle_watts - self.active_watts
        return budget_watts / (self.memory_bytes_per_second * self.memory_efficiency)


@dataclass(frozen=True, slots=True)
class Model:
    """A dense decoder-only transformer in bf16, as far as its cost goes."""

    name: str
    parameters: float
    layers: int
    hidden_size: int
    """Query heads times head size."""
    kv_heads: int
    head_size: int
    context_tokens: int
    bytes_per_value: int = 2

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_size * self.bytes_per_value

    @property
    def flops_per_token(self) -> float:
        """A multiplication and an addition per parameter; attention comes on top."""
        return 2 * self.parameters

    @property
    def attention_flops_per_pair(self) -> float:
        """FLOPs of one query against one key: the score and the weighted sum."""
        return 4.0 * self.layers * self.hidden_size


def _gpu(sheet: str, idle_watts: float, **more: Any) -> Gpu:
    """A board by its data sheet, and what no data sheet has."""
    known = GPU_SHEETS[sheet]
    facts: dict[str, Any] = {
        "name": known.name,
        "peak_flops": known.dense_flops,
        "memory_bytes_per_second": known.memory_bytes_per_second,
        "memory_bytes": known.memory_bytes,
        "tdp_watts": known.tdp_watts,
    }
    return Gpu(**(facts | more), idle_watts=idle_watts)


GPUS: dict[str, Gpu] = {
    "a100-sxm": _gpu("a100-sxm", 65, sm_clock_hertz=1.41e9, memory_clock_hertz=1.593e9),
    "a100-pcie": _gpu(
        "a100-pcie", 60, sm_clock_hertz=1.41e9, memory_clock_hertz=1.512e9
    ),
    "h100": _gpu("h100", 110),
    "h200": _gpu("h200", 120, memory_clock_hertz=3.201e9),
    # The same H100 behind a power limit that somebody set: it throttles under load.
    "h100-350w": _gpu(
        "h100", 110, name="NVIDIA H100 80GB HBM3 (limited to 350 W)", limit_watts=350
    ),
    "a6000": _gpu("a6000", 40, sm_clock_hertz=1.8e9, memory_clock_hertz=8.001e9),
    # A node without accelerators, metered as one board. Intel states per socket: 56
    # cores, 8 channels of DDR5-4800, 350 W. Assumed are 1,024 bf16 operations a cycle
    # and core (AMX) at 2.0 GHz, idle power and 512 GB of memory.
    "xeon-2s": Gpu(
        "2 x Intel Xeon Platinum 8480+", 229.4e12, 614.4e9, 512e9, 700, 200,
        sm_clock_hertz=2.0e9, memory_clock_hertz=2.4e9,
    ),
}  # fmt: skip


def _model(name: str, kv_heads: int, head_size: int, context_tokens: int) -> Model:
    known = MODEL_SHEETS[name]
    assert known.layers is not None
    assert known.hidden_size is not None
    return Model(
        name, known.parameters, known.layers, known.hidden_size, kv_heads, head_size,
        context_tokens,
    )  # fmt: skip


MODELS: dict[str, Model] = {
    "llama-3.1-8b": _model("llama-3.1-8b", 8, 128, 131_072),
    "llama-3.1-70b": _model("llama-3.1-70b", 8, 128, 131_072),
}

PRESETS: dict[str, tuple[str, str, int]] = {
    "a6000-8b": ("a6000", "llama-3.1-8b", 1),
    "a100-8b": ("a100-sxm", "llama-3.1-8b", 1),
    "h100-8b": ("h100", "llama-3.1-8b", 1),
    "h100-350w-8b": ("h100-350w", "llama-3.1-8b", 1),
    "h200-8b": ("h200", "llama-3.1-8b", 1),
    "a100-70b": ("a100-sxm", "llama-3.1-70b", 4),
    "h100-70b": ("h100", "llama-3.1-70b", 4),
    "h200-70b": ("h200", "llama-3.1-70b", 2),
}
"""Combinations that fit: GPU, model, number of GPUs."""
