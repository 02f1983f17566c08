"""`loadgen replay`: one run from a trace to a table, see `loadgen.run.run`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loadgen.errors import LoadgenError, UsageError
from loadgen.run.config import LEDGER_TOKEN_VARIABLE, ReplayConfig
from proxy.process.command import Command, HeadedOption, given, with_options
from proxy.process.options import configured, settings_of
from proxy.process.terminal import echo, echo_json

if TYPE_CHECKING:
    from loadgen.analysis.dry_run import DryRun
    from loadgen.analysis.schema import RunRecord, Summary

EXAMPLES = """\b
Examples:
  loadgen replay traces/sharegpt.jsonl --rate 4
  loadgen replay traces/azure-code.jsonl --speed 2 --duration 300
  loadgen replay traces/sharegpt.jsonl --rate 4 \\
      --url http://127.0.0.1:8000 --power nvml
  loadgen replay traces/sharegpt.jsonl --rate 4 \\
      --url http://127.0.0.1:8080 --ledger http://127.0.0.1:9464
  loadgen replay synthetic --input-len 512 --output-len 128 --concurrency 8
  loadgen replay traces/sharegpt.jsonl --stages 60s@2,120s@8
  loadgen replay traces/sharegpt.jsonl --rate 400 --processes 2 \\
      --url http://127.0.0.1:8000
  loadgen replay traces/sharegpt.jsonl --rate 4000 --workers 4 \\
      --bus nats://bus:4222 --url http://engine:8000
  loadgen replay --from runs/20260101T120000-sharegpt
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
@click.argument(
    "trace", metavar="[TRACE]", required=False, type=click.Path(path_type=Path)
)
@with_options(settings_of(ReplayConfig))
@click.option("--json", "as_json", is_flag=True, cls=HeadedOption, heading="Output",
              help="Print summary.json instead of tables.")  # fmt: skip
@click.option("--from", "earlier", metavar="RUN", cls=HeadedOption, heading="Repeat",
              type=click.Path(path_type=Path),
              help="Do the run of this folder again: its plan and its options, but for "
              "those given here.")  # fmt: skip
@click.option("--resume", metavar="RUN", cls=HeadedOption, heading="Repeat",
              type=click.Path(path_type=Path),
              help="Go on with the run of this folder, sent by --workers, whose "
              "command was killed.")  # fmt: skip
@click.option("--config", metavar="FILE.toml", cls=HeadedOption, heading="Repeat",
              help="Options, and the trace, from a file; the command line "
              "wins.")  # fmt: skip
@click.option("--dry-run", is_flag=True, cls=HeadedOption, heading="Repeat",
              help="Show the plan and what it would take; nothing is sent or "
              "kept.")  # fmt: skip
@click.pass_context
def replay(
    context: click.Context, /, trace: Path | None, as_json: bool,
    earlier: Path | None, resume: Path | None, config: str | None, dry_run: bool,
    **values: Any,
) -> int:  # fmt: skip
    """Replay TRACE on time and report latency and joules of each request.

    TRACE is a loadtrace/1, ShareGPT, Azure, Mooncake or BurstGPT file, a list of
    prompts, the plan.jsonl of an earlier run, or the word synthetic for requests of
    one length. Without --url the simulated stack is started, and everything says
    SIMULATED.
    """
    from loadgen.report.console import console
    from loadgen.run import run as running

    progress = console(stderr=True)
    if resume is not None:
        going_on = _resumed(context, resume, trace, earlier, config, dry_run, values)
        return running.resume(going_on, progress, as_json=as_json)
    chosen = _config(context, trace, earlier, config, values)
    if dry_run:
        _show_dry_run(running.dry_run(chosen, progress), as_json)
        return 0
    return running.run(chosen, progress, as_json=as_json)


def _config(
    context: click.Context,
    trace: Path | None,
    earlier: Path | None,
    file: str | None,
    values: dict[str, Any],
) -> ReplayConfig:
    """The command line over a file, or over the options of an earlier run."""
    from loadgen.run.finish import load_run
    from loadgen.run.record import command_line, from_file, from_run

    typed = given(context)
    if earlier is not None and file is not None:
        raise UsageError("--from and --config both given, expected one")
    base: dict[str, Any] = {}
    if earlier is not None:
        if trace is not None:
            raise UsageError("--from repeats a run with its own trace: leave out TRACE")
        base = from_run(earlier, _record_of(load_run, earlier), typed)
    elif file is not None:
        base = from_file(file)
    values |= {name: value for name, value in base.items() if name not in typed}
    trace = trace or values.pop("trace", None)
    values.pop("trace", None)
    if trace is None:
        raise click.UsageError("Missing argument 'TRACE'; or name it in --config.")
    plan = values.pop("plan", None)
    found = configured(ReplayConfig, values, trace=trace, plan=plan)
    return replace(
        found,
        command=command_line("loadgen", sys.argv[1:]),
        api_key=_api_key(found.api_key_env),
        ledger_token=_ledger_token(found.ledger_token_file),
    )


_OF_A_RESUMED_RUN = {
    "bus", "bus_creds", "bus_ca", "ledger_token_file", "quiet", "allow_partial",
    "api_key_env", "metrics_port", "metrics_targets",
}  # fmt: skip
"""Options that may be given with --resume: none of them changes what was sent."""


def _resumed(
    context: click.Context,
    folder: Path,
    trace: Path | None,
    earlier: Path | None,
    file: str | None,
    is_dry: bool,
    values: dict[str, Any],
) -> ReplayConfig:
    """The options of a run that goes on."""
    from loadgen.run.finish import started
    from loadgen.run.record import from_run
    from loadgen.run.state import read_state

    typed = given(context)
    others = {"trace": trace, "from": earlier, "config": file, "dry-run": is_dry}
    wrong = [name for name, value in others.items() if value]
    wrong += sorted(typed - _OF_A_RESUMED_RUN - {"as_json", "resume"})
    if wrong:
        option = wrong[0].replace("_", "-")
        raise UsageError(
            f"--resume goes on with a run as it was asked for: leave out "
            f"{'TRACE' if option == 'trace' else '--' + option}"
        )
    read_state(folder)  # or there is nothing to go on with
    record = started(folder).run
    base = from_run(folder, record, typed | {"header"})
    base = {name: value for name, value in base.items() if name not in typed}
    values |= base | {"out": folder}
    trace = values.pop("trace")
    plan = values.pop("plan", None)
    found = configured(ReplayConfig, values, trace=trace, plan=plan)
    return replace(found, ledger_token=_ledger_token(found.ledger_token_file))


def _record_of(load_run: Callable[[Path], Summary], folder: Path) -> RunRecord | None:
    try:
        return load_run(folder).run
    except LoadgenError as error:
        raise UsageError(f"--from: {error}") from None


def _show_dry_run(found: DryRun, as_json: bool) -> None:
    import msgspec

    from loadgen.report.dry import lines

    if as_json:
        echo_json(msgspec.json.format(msgspec.json.encode(found), indent=2))
        return
    echo("\n".join(lines(found)))


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
