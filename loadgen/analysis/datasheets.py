"""Published figures of GPUs and models: one table, each row with its source.

Peaks are bf16 tensor throughput as the makers print it. Data sheets print the figure
with structured sparsity first, which is twice the dense one and which no published LLM
serving stack reaches: both are kept, and nothing is derived from "the peak" without
naming which. Fernandez et al. 2025 take 309.7 TFLOPS for the RTX A6000, the sparse one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GpuSheet:
    """One board as its maker describes it."""

    name: str
    """As the maker's tools print it."""
    dense_flops: float
    """bf16 (fp16 where there is no bf16) per second, without sparsity."""
    memory_bytes_per_second: float
    memory_bytes: float
    tdp_watts: float
    source: str
    sparse_factor: float | None = 2.0
    """Sparse over dense peak; None: the board has no structured sparsity."""
    aliases: tuple[str, ...] = ()
    """Further names, in lower case, that tools print."""

    @property
    def sparse_flops(self) -> float | None:
        """The peak with 2:4 structured sparsity."""
        return (
            None
            if self.sparse_factor is None
            else (self.dense_flops * self.sparse_factor)
        )


@dataclass(frozen=True, slots=True)
class ModelSheet:
    """One decoder-only transformer, as far as its FLOPs go."""

    parameters: float
    """All of them; of a mixture of experts those that a token uses are `active`."""
    layers: int | None
    hidden_size: int | None
    """Query heads times head size."""
    source: str
    active_parameters: float | None = None

    @property
    def flops_per_token(self) -> float:
        """A multiplication and an addition per (active) parameter."""
        return 2 * (self.active_parameters or self.parameters)

    @property
    def attention_flops_per_pair(self) -> float:
        """FLOPs of one query against one key; 0 where the shape is not known."""
        if self.layers is None or self.hidden_size is None:
            return 0.0
        return 4.0 * self.layers * self.hidden_size


GPU_SHEETS: dict[str, GpuSheet] = {
    "a100-sxm": GpuSheet(
        "NVIDIA A100-SXM4-80GB", 312e12, 2039e9, 80e9, 400,
        "NVIDIA A100 80GB data sheet, SXM column",
    ),
    "a100-pcie": GpuSheet(
        "NVIDIA A100 80GB PCIe", 312e12, 1935e9, 80e9, 300,
        "NVIDIA A100 80GB data sheet, PCIe column",
    ),
    "h100": GpuSheet(
        "NVIDIA H100 80GB HBM3", 989.4e12, 3350e9, 80e9, 700,
        "NVIDIA H100 data sheet, SXM column", aliases=("h100 sxm", "h100-sxm"),
    ),
    "h100-pcie": GpuSheet(
        "NVIDIA H100 PCIe", 756e12, 2000e9, 80e9, 350,
        "NVIDIA H100 data sheet, PCIe column",
    ),
    "h200": GpuSheet(
        "NVIDIA H200", 989.4e12, 4800e9, 141e9, 700,
        "NVIDIA H200 data sheet, SXM column",
    ),
    "a6000": GpuSheet(
        "NVIDIA RTX A6000", 154.8e12, 768e9, 48e9, 300,
        "NVIDIA RTX A6000 data sheet; GA102 white paper",
        aliases=("rtx-a6000", "rtx a6000"),
    ),
    "rtx-6000-ada": GpuSheet(
        "NVIDIA RTX 6000 Ada Generation", 364.2e12, 960e9, 48e9, 300,
        "NVIDIA Ada GPU architecture white paper, appendix RTX 6000",
        aliases=("rtx 6000 ada",),
    ),
    "l40s": GpuSheet(
        "NVIDIA L40S", 362.05e12, 864e9, 48e9, 350, "NVIDIA L40S data sheet",
        sparse_factor=733 / 362.05,
    ),
    "l4": GpuSheet("NVIDIA L4", 121e12, 300e9, 24e9, 72, "NVIDIA L4 data sheet"),
    "v100-sxm": GpuSheet(
        "Tesla V100-SXM2-32GB", 125e12, 900e9, 32e9, 300,
        "NVIDIA V100 data sheet (fp16)", sparse_factor=None,
        aliases=("v100-sxm2",),
    ),
    "mi300x": GpuSheet(
        "AMD Instinct MI300X", 1307.4e12, 5300e9, 192e9, 750,
        "AMD Instinct MI300X data sheet", aliases=("mi300x",),
    ),
}  # fmt: skip
"""By the name that `--gpu` takes."""

MODEL_SHEETS: dict[str, ModelSheet] = {
    "llama-3.1-8b": ModelSheet(
        8.03e9, 32, 4096, "meta-llama model card and config.json"
    ),
    "llama-3.1-70b": ModelSheet(
        70.6e9, 80, 8192, "meta-llama model card and config.json"
    ),
}
"""By a part of the model's name, in lower case."""

_NOMINAL = re.compile(r"(?<![\dx.])(\d+(?:\.\d+)?)b(?![a-z\d])")
_ACTIVE = re.compile(r"(?:^|[-_])a(\d+(?:\.\d+)?)b(?![a-z\d])")
_EXPERTS = re.compile(r"\d+x\d+(?:\.\d+)?b")


def gpu_sheet(name: str) -> GpuSheet | None:
    """The sheet of a GPU by its key or by the name that its tools print."""
    wanted = " ".join(name.lower().split())
    if wanted in GPU_SHEETS:
        return GPU_SHEETS[wanted]
    found = [
        (len(known), sheet)
        for sheet in GPU_SHEETS.values()
        for known in (sheet.name.lower(), *sheet.aliases)
        if re.search(rf"(?<![\w-]){re.escape(known)}(?![\w-])", wanted)
    ]
    return max(found, key=lambda each: each[0])[1] if found else None


def model_sheet(name: str) -> ModelSheet | None:
    """The sheet of a model by its name; of an unknown one the size that it states.

    `Qwen2.5-7B` states 7e9 parameters, `Qwen3-30B-A3B` 30e9 of which a token uses
    3e9. `Mixtral-8x7B` states neither, so it has none.
    """
    wanted = name.lower()
    for known, sheet in MODEL_SHEETS.items():
        if known in wanted:
            return sheet
    short = wanted.rpartition("/")[2]
    active = _ACTIVE.search(short)
    sizes = _NOMINAL.findall(_ACTIVE.sub("", short))
    if _EXPERTS.search(short) or len(sizes) != 1:
        return None
    return ModelSheet(
        float(sizes[0]) * 1e9, None, None,
        f"the size in the name {name!r}, without attention",
        active_parameters=float(active[1]) * 1e9 if active else None,
    )  # fmt: skip
