"""What one run was asked to do, once the command line has been read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class ReplayConfig:
    """One run as asked for; validated and given its defaults by the command line."""

    trace: Path
    url: str | None
    backend: str
    endpoint: str | None
    model: str | None
    api_key: str | None = field(repr=False)
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    """May hold secrets too: neither is written into the run folder."""
    power: str | None
    gpus: str
    idle_watts: float | None
    bare_idle_watts: float | None
    ledger: str | None
    ledger_token: str | None = field(repr=False)
    sim_gpu: str
    sim_model: str
    sim_gpus: int
    format: str | None
    rate: float | None
    session_rate: float | None
    arrival: str
    burstiness: float
    speed: float | None
    dejitter: bool
    max_model_len: int | None
    over_length: str
    max_concurrency: int | None
    num_prompts: int | None
    duration: float | None
    seed: int
    output_len: int | None
    ignore_eos: bool | None
    temperature: float
    top_p: float | None
    n: int
    extra_body: dict[str, Any]
    warmup: float
    cooldown: float
    goodput: tuple[str, ...]
    timeout: float
    out: Path | None
    metadata: tuple[tuple[str, str], ...]
    metrics_port: str | None
    quiet: bool
