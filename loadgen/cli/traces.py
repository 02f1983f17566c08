"""`loadgen traces`: look at traces, convert them, make new ones, fetch originals."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import click

from loadgen.errors import UsageError
from loadgen.traces.catalogue import CATALOGUE, Original
from loadgen.traces.readers import READERS
from loadgen.traces.trace import TraceInfo
from loadgen.traces.writers import WRITERS
from proxy.process.command import CommandGroup
from proxy.process.terminal import echo, echo_json

EXAMPLES = """\b
Examples:
  loadgen traces stats traces/azure-conv.jsonl
  loadgen traces convert azure.csv -o azure.jsonl --to loadtrace
  loadgen traces fetch --list
"""
_TRACE = click.argument("trace", type=click.Path(path_type=Path))
_FORMAT = click.option(
    "--format",
    type=click.Choice(list(READERS)),
    help="Read it as this, instead of by its content.",
)
_OUT = click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="File to write."
)


@click.group(cls=CommandGroup, epilog=EXAMPLES)
def traces() -> None:
    """Look at traces, convert them, make new ones, fetch the originals."""


@traces.command()
@_TRACE
@_FORMAT
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def stats(trace: Path, format: str | None, as_json: bool) -> None:
    """Show lengths, turns and arrivals of a TRACE.

    \b
    Example:
      loadgen traces stats traces/azure-conv.jsonl
    """
    import msgspec

    from loadgen.cli.trace_tables import facts, lengths_table
    from loadgen.report.console import console
    from loadgen.traces.readers.line import portable
    from loadgen.traces.readers.open import open_trace
    from loadgen.traces.statistics import trace_statistics

    info, sessions = open_trace(trace, format)
    found = trace_statistics(sessions)
    if as_json:
        about = {
            "trace": portable(str(trace)),
            "format": info.format,
            "synthetic": info.synthetic,
            "dropped": info.dropped,
            "warnings": info.warnings,
        }
        echo_json(msgspec.json.encode(about | msgspec.to_builtins(found)))
        return
    out = console()
    out.print(str(trace), soft_wrap=True)
    out.print(lengths_table(found))
    for line in facts(info, found):
        out.print(line)
    _show_losses(info)


@traces.command()
@_TRACE
@_OUT
@click.option(
    "--to",
    "target",
    required=True,
    type=click.Choice(list(WRITERS)),
    help="; ".join(f"{name}: {writer.about}" for name, writer in WRITERS.items()),
)
@_FORMAT
def convert(trace: Path, out: Path, target: str, format: str | None) -> None:
    """Write a TRACE in another format.

    \b
    Example:
      loadgen traces convert azure.csv -o azure.jsonl --to loadtrace
    """
    from loadgen.traces.convert import convert_trace

    info, count = convert_trace(trace, out, target, format)
    echo(f"{out}: {count} requests, {target}")
    _show_losses(info)


@traces.command()
@click.option(
    "--from", "source", required=True, type=click.Path(path_type=Path),
    help="Statistics, a length_bins file, or any trace with lengths.",
)  # fmt: skip
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Trace to write.")
@click.option(
    "--n", "requests", type=click.IntRange(min=1), default=1000, show_default=True,
    help="Requests of the new trace.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
              help="Same seed, same trace.")  # fmt: skip
@click.option(
    "--max-turns", type=click.IntRange(min=1),
    help="Cut longer conversations into sessions of this many turns, which carry "
    "their history.  [default: whole conversations]",
)  # fmt: skip
@click.option(
    "--think-seconds", type=click.FloatRange(min=0), default=4.0, show_default=True,
    help="Mean of the exponential pauses between turns (no source has them).",
)  # fmt: skip
@click.option("--arrivals/--no-arrivals", default=True, show_default=True,
              help="Timestamps of the source's shape, where it has any.")  # fmt: skip
@click.option("--dataset", help="Data set of a length_bins file.")
@click.option("--rebuild-conversations", "rebuild", is_flag=True,
              help="Chain rows that are one turn each into conversations.")  # fmt: skip
@click.option("--name", help="Name of the new trace.  [default: the file's]")
@click.option(
    "--save-statistics", "kept", type=click.Path(path_type=Path),
    help="Write what was kept of the source; --from takes it.",
)  # fmt: skip
@_FORMAT
def synth(
    source: Path, out: Path | None, requests: int, seed: int, max_turns: int | None,
    think_seconds: float, arrivals: bool, dataset: str | None, rebuild: bool,
    name: str | None, kept: Path | None, format: str | None,
) -> None:  # fmt: skip
    """Make a new trace with the lengths, turns and arrivals of an old one.

    Lengths are drawn from percentile bins (pct8) with their means. A trace has
    lengths only: prompts are made when it is replayed.

    \b
    Example:
      loadgen traces synth --from traces/statistics/azure-conv.json \\
          --n 1000 --seed 1 -o my-trace.jsonl
    """
    import msgspec

    from loadgen.traces.convert import write_synthetic
    from loadgen.traces.statistics_file import load_statistics, save_statistics
    from loadgen.traces.synth import SynthOptions, synthesized

    if out is None and kept is None:
        raise UsageError("nothing to write: give -o TRACE, --save-statistics or both")
    statistics = load_statistics(
        source, format=format, dataset=dataset, rebuild=rebuild
    )
    if name is not None:
        statistics = msgspec.structs.replace(statistics, name=name)
    if kept is not None:
        save_statistics(statistics, kept)
        echo(f"{kept}: statistics of {statistics.requests} requests")
    if out is not None:
        options = SynthOptions(
            requests=requests, seed=seed, max_turns=max_turns,
            think_seconds=think_seconds, with_arrivals=arrivals,
        )  # fmt: skip
        sessions = synthesized(statistics, options)
        write_synthetic(sessions, statistics, options, out)
        echo(f"{out}: {requests} synthetic requests, {len(sessions)} sessions")


@traces.command()
@click.argument("name", required=False)
@click.option("--list", "is_list", is_flag=True, help="Show what there is.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path),
    help="File to write.  [default: the published name]",
)  # fmt: skip
@click.pass_context
def fetch(
    ctx: click.Context, name: str | None, is_list: bool, out: Path | None
) -> None:
    """Download a public original by NAME, check its sha256, show how to cite it.

    \b
    Example:
      loadgen traces fetch azure-2023-conv
    """

    from loadgen.cli.trace_tables import catalogue_table
    from loadgen.traces.fetch import fetch as fetch_original
    from loadgen.traces.fetch import find

    catalogue: Mapping[str, Original] = ctx.obj or CATALOGUE
    if is_list:
        from loadgen.report.console import console

        console().print(catalogue_table(catalogue))
        return
    if name is None:
        raise UsageError(f"name an original: {', '.join(catalogue)}")
    original = find(name, catalogue)
    out = out or Path(original.file_name)
    with _download_bar(name) as progress:
        is_new = fetch_original(original, out, progress)
    echo(f"{out}: {'fetched' if is_new else 'already there'}, sha256 is right")
    echo(f"licence: {original.licence}")
    echo(f"cite: {original.citation}")


@contextlib.contextmanager
def _download_bar(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on the terminal's error stream, gone when the file is there."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TransferSpeedColumn,
    )

    from loadgen.report.console import console

    with Progress(
        "{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(),
        console=console(stderr=True), transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _show_losses(info: TraceInfo) -> None:
    from loadgen.cli.trace_tables import losses

    for line in losses(info):
        echo(line, err=True)
