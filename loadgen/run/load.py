"""The load that the options of a run ask for."""

from __future__ import annotations

import math
from pathlib import Path

from loadgen.errors import UsageError
from loadgen.plan.load import Load
from loadgen.run.config import ReplayConfig
from loadgen.traces.fixed import NAME as SYNTHETIC

INPUT_TOKENS, OUTPUT_TOKENS = 512, 128
ROUNDS = 20
"""Requests of a closed loop for each that is in flight: its begin and end, where
fewer are, are a tenth of it."""
FEWEST_REQUESTS = 100
_SPARE = 1.2
"""Drawn arrivals may be more than their mean; what is beyond the duration is cut."""


def load_of(config: ReplayConfig) -> Load:
    """Raises UsageError for options that exclude each other."""
    rate = config.rate
    if config.concurrency is not None:
        _alone(config)
        rate = math.inf
    if config.input_len is not None and not is_synthetic(config):
        raise UsageError(
            "--input-len is for the trace `synthetic`; a trace has its own prompts"
        )
    return Load(
        rate_per_second=rate,
        session_rate_per_second=config.session_rate,
        stages=config.stages,
        arrival=config.arrival,
        burstiness=config.burstiness,
        speed=config.speed,
        num_prompts=config.num_prompts,
        duration_seconds=config.duration,
        output_tokens=config.output_len,
        max_model_len=config.max_model_len,
        over_length=config.over_length,
        dejitter=config.dejitter,
        seed=config.seed,
    )


def is_synthetic(config: ReplayConfig) -> bool:
    """Whether requests of one length are asked for; `./synthetic` would be a file."""
    return config.trace == Path(SYNTHETIC)


def synthetic_lengths(config: ReplayConfig) -> tuple[int, int]:
    """Prompt and output tokens of each request."""
    return config.input_len or INPUT_TOKENS, config.output_len or OUTPUT_TOKENS


def synthetic_requests(config: ReplayConfig) -> int:
    """As many as were asked for, or as the load takes."""
    if config.num_prompts is not None:
        return config.num_prompts
    if config.concurrency is not None:
        return max(config.concurrency * ROUNDS, FEWEST_REQUESTS)
    rate = config.rate or config.session_rate
    if config.stages:
        due = sum(seconds * each for seconds, each in config.stages)
    elif config.duration is not None and rate is not None and math.isfinite(rate):
        due = config.duration * rate
    else:
        return FEWEST_REQUESTS
    return math.ceil(due * _SPARE) + FEWEST_REQUESTS


def _alone(config: ReplayConfig) -> None:
    for name in ("rate", "session_rate", "speed", "stages", "max_concurrency"):
        if getattr(config, name):
            raise UsageError(
                f"--concurrency is a closed loop, without --{name.replace('_', '-')}: "
                "give one of them"
            )
