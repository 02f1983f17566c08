"""`loadgen replay`: one run from a trace to a table, see `loadgen.run.run`."""

from __future__ import annotations

from typing import Any

import click

from loadgen.cli.options import (
    SpreadCommand,
    api_key,
    ledger_token,
    replay_options,
)
from loadgen.report.console import console
from loadgen.run.config import ReplayConfig
from loadgen.run.run import run

EXAMPLES = """\b
Examples:
  loadgen replay traces/sharegpt.jsonl --rate 4
  loadgen replay traces/azure-code.jsonl --speed 2 --duration 300
  loadgen replay traces/sharegpt.jsonl --rate 4 \\
      --url http://127.0.0.1:8000 --power nvml
  loadgen replay traces/sharegpt.jsonl --rate 4 \\
      --url http://127.0.0.1:8080 --ledger http://127.0.0.1:9464
  loadgen replay runs/20260101T120000-sharegpt/plan.jsonl
"""


@click.command(cls=SpreadCommand, epilog=EXAMPLES)
@replay_options
def replay(
    api_key_env: str | None, ledger_token_file: str | None, **options: Any
) -> int:
    """Replay TRACE on time and report latency and joules of each request.

    TRACE is a loadtrace/1, ShareGPT, Azure, Mooncake or BurstGPT file, a list of
    prompts, or the plan.jsonl of an earlier run. Without --url the simulated
    stack is started, and everything says SIMULATED.
    """
    config = ReplayConfig(
        api_key=api_key(api_key_env),
        ledger_token=ledger_token(ledger_token_file),
        **options,
    )
    return run(config, console())
