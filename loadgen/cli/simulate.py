"""`loadgen simulate`: the simulated engine and GPU as a server."""

from __future__ import annotations

import click

from loadgen.simulator.config import ServerConfig
from proxy.process.command import Command, asks_for

EXAMPLES = """
\b
Examples:
  loadgen simulate
  loadgen simulate --gpu h100 --n-gpus 4 --model llama-3.1-70b \\
      --dialect tgi --listen 127.0.0.1:8000
  loadgen simulate --role prefill --listen 127.0.0.1:8100
  loadgen simulate --role decode --listen 127.0.0.1:8200
  loadgen simulate --role router --prefill http://127.0.0.1:8100 \\
      --decode http://127.0.0.1:8200 --listen 127.0.0.1:8000
"""


@click.command(cls=Command, epilog=EXAMPLES)
@asks_for(ServerConfig)
def simulate(config: ServerConfig) -> None:
    """Serve a SIMULATED engine and GPU, without any hardware.

    It answers as vLLM or TGI would, in real time, with words for tokens. Beside
    the engine's API it serves the GPU's readings as dcgm-exporter does
    (/dcgm/metrics) and what each request really cost (/simulator/truth).
    """
    from loadgen.simulator.app import run_server

    run_server(config)
