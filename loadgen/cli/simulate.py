"""`loadgen simulate`: the simulated engine and GPU as a server."""

from __future__ import annotations

import click

from loadgen.errors import UsageError
from loadgen.simulator.app import ServerConfig, run_server
from loadgen.simulator.core.config import EngineConfig
from loadgen.simulator.core.presets import GPUS, MODELS, Gpu, Model
from loadgen.simulator.core.sensor import SensorConfig

DIALECTS = ("vllm", "tgi")

EXAMPLE = """
\b
Example, a 70B model on four GPUs behind TGI's API:
  loadgen simulate --gpu h100 --n-gpus 4 --model llama-3.1-70b \\
      --dialect tgi --listen 127.0.0.1:8000
"""


def _gpu(name: str) -> Gpu:
    if name not in GPUS:
        raise UsageError(f"unknown GPU {name!r}; known: {', '.join(sorted(GPUS))}")
    return GPUS[name]


def _model(name: str) -> Model:
    if name not in MODELS:
        known = ", ".join(sorted(MODELS))
        raise UsageError(f"unknown model {name!r}; known: {known}")
    return MODELS[name]


def _address(text: str) -> tuple[str, int]:
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"--listen is {text!r}, expected HOST:PORT")
    return host.strip("[]"), int(port)


@click.command(epilog=EXAMPLE)
@click.option("--gpu", default="h100", show_default=True, help=", ".join(GPUS))
@click.option(
    "--model", default="llama-3.1-8b", show_default=True, help=", ".join(MODELS)
)
@click.option(
    "--dialect",
    type=click.Choice(DIALECTS),
    default="vllm",
    show_default=True,
    help="Whose API it speaks.",
)
@click.option(
    "--listen",
    default="127.0.0.1:8000",
    show_default=True,
    metavar="HOST:PORT",
    help="Port 0 takes any free one.",
)
@click.option(
    "--n-gpus",
    default=1,
    show_default=True,
    help="Tensor-parallel group of equal GPUs.",
)
@click.option(
    "--max-num-seqs", default=256, show_default=True, help="Requests in a batch."
)
@click.option(
    "--max-num-batched-tokens",
    default=2048,
    show_default=True,
    help="Tokens computed per step; long prompts are cut into chunks.",
)
@click.option(
    "--prefix-cache/--no-prefix-cache",
    default=True,
    show_default=True,
    help="Reuse the KV cache of equal prompt prefixes.",
)
@click.option("--power-cap", type=float, help="Watts per GPU; default is its TDP.")
@click.option(
    "--max-num-queued",
    type=click.IntRange(min=0),
    default=0,
    help="Refuse requests while this many wait; default is no limit.",
)
@click.option(
    "--fail-every",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Break every Nth request half-way.",
)
@click.option(
    "--counter-period",
    default=0.1,
    show_default=True,
    help="Seconds between updates of the GPU's energy counter.",
)
@click.option(
    "--counter-jitter", default=0.0, help="Updates late by up to this part of a period."
)
@click.option(
    "--power-averaging",
    default=0.0,
    show_default=True,
    help="Seconds that the power reading averages over; 0 is one period.",
)
@click.option("--power-lag", default=0.0, help="Seconds that readings are old.")
@click.option("--dropped-samples", default=0.0, help="Part of the updates left out.")
@click.option("--seed", default=0, show_default=True, help="Of texts and lengths.")
@click.option(
    "--announce",
    is_flag=True,
    help="Print one JSON line when listening; leave when standard input closes.",
)
def simulate(
    gpu: str,
    model: str,
    dialect: str,
    listen: str,
    n_gpus: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    prefix_cache: bool,
    power_cap: float | None,
    max_num_queued: int,
    fail_every: int,
    counter_period: float,
    counter_jitter: float,
    power_averaging: float,
    power_lag: float,
    dropped_samples: float,
    seed: int,
    announce: bool,
) -> None:
    """Serve a SIMULATED engine and GPU, without any hardware.

    It answers as vLLM or TGI would, in real time, with words for tokens. Beside
    the engine's API it serves the GPU's readings as dcgm-exporter does
    (/dcgm/metrics) and what each request really cost (/simulator/truth).
    """
    host, port = _address(listen)
    run_server(
        ServerConfig(
            engine=EngineConfig(
                gpu=_gpu(gpu),
                model=_model(model),
                n_gpus=n_gpus,
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max_num_batched_tokens,
                prefix_cache=prefix_cache,
                power_cap_watts=power_cap,
                seed=seed,
            ),
            sensor=SensorConfig(
                period_seconds=counter_period,
                jitter_fraction=counter_jitter,
                averaging_seconds=power_averaging,
                lag_seconds=power_lag,
                dropped_fraction=dropped_samples,
                seed=seed,
            ),
            dialect=dialect,
            host=host,
            port=port,
            queue_limit=max_num_queued,
            fail_every=fail_every,
            announce=announce,
        )
    )
