"""The `loadgen` command: one file per subcommand, errors as one line and a code."""

from __future__ import annotations

import importlib
from typing import NoReturn

import click

from loadgen import __version__
from loadgen.errors import LoadgenError
from proxy.process.build import build_form
from proxy.process.command import CommandGroup
from proxy.process.terminal import run_command

EXAMPLES = """\b
Examples:
  loadgen replay traces/sharegpt.jsonl --rate 4
  loadgen report runs/20260101T120000-sharegpt
  loadgen bins traces/azure-conv.jsonl
  loadgen sweep traces/sharegpt.jsonl --rate 1,2,4,8,16,inf
  loadgen traces stats traces/azure-conv.jsonl
  loadgen simulate --gpu h100 --listen 127.0.0.1:8000
  loadgen worker --bus nats://bus:4222
"""
COMMANDS = (
    "bill", "bins", "capacity", "compare", "estimate", "naive", "offline", "predict",
    "replay", "report", "simulate", "study", "sweep", "traces", "worker",
)  # fmt: skip
"""Each is `loadgen.cli.<name>.<name>`, imported when it is asked for: a child
process that simulates needs nothing of the reports, and starts in half the time."""


class CommandPerFile(CommandGroup):
    """Finds its commands by the name of their file."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, for the help page."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, or None."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"loadgen.cli.{cmd_name}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=CommandPerFile, epilog=EXAMPLES)
@click.version_option(f"{__version__} ({build_form()})", prog_name="loadgen")
def cli() -> None:
    """Replay traces against LLM servers on time and report each request's cost."""


def main() -> NoReturn:
    """Run the command; every expected failure is one line and an exit code."""
    run_command("loadgen", lambda: cli.main(standalone_mode=False), LoadgenError)
