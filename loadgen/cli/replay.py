"""`loadgen replay`: one run from a trace to a table, see `loadgen.run.run`."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import click

from loadgen.run.config import LEDGER_TOKEN_VARIABLE, ReplayConfig
from proxy.process.command import Command, asks_for

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


class SpreadCommand(Command):
    """Lets `--goodput ttft:200 tpot:50` take several words, as vLLM's does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the option before each further `name:number`."""
        spread: list[str] = []
        inside = False
        for word in args:
            if inside and re.fullmatch(r"[a-z0-9_]+:[^/\s]+", word):
                if spread[-1] != "--goodput":
                    spread.append("--goodput")
            else:
                inside = word == "--goodput"
            spread.append(word)
        return super().parse_args(ctx, spread)


@click.command(cls=SpreadCommand, epilog=EXAMPLES)
@click.argument("trace", type=click.Path(path_type=Path))
@asks_for(ReplayConfig)
def replay(config: ReplayConfig) -> int:
    """Replay TRACE on time and report latency and joules of each request.

    TRACE is a loadtrace/1, ShareGPT, Azure, Mooncake or BurstGPT file, a list of
    prompts, or the plan.jsonl of an earlier run. Without --url the simulated
    stack is started, and everything says SIMULATED.
    """
    from loadgen.report.console import console
    from loadgen.run.run import run

    config = replace(
        config,
        api_key=_api_key(config.api_key_env),
        ledger_token=_ledger_token(config.ledger_token_file),
    )
    return run(config, console())


def _api_key(variable: str | None) -> str | None:
    """The key in the environment variable that `--api-key-env` names."""
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise click.BadParameter(
            f"environment variable {variable} is not set or empty",
            param_hint="--api-key-env",
        )
    return key


def _ledger_token(path: str | None) -> str | None:
    """The token of the proxy's admin API: from a file, else from the environment."""
    if path is None:
        return os.environ.get(LEDGER_TOKEN_VARIABLE, "").strip() or None
    try:
        token = Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not ASCII text"
        raise click.BadParameter(
            f"{path}: {reason.lower()}", param_hint="--ledger-token-file"
        ) from None
    if not token or not token.isprintable():
        raise click.BadParameter(
            f"{path} is not one line of text", param_hint="--ledger-token-file"
        )
    return token
