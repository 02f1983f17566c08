"""`loadgen compare BASELINE RUN...`: which differences between runs are real."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from loadgen.cli.output import write_output, write_parquet
from loadgen.errors import LoadgenError, RunError, UsageError
from proxy.process.command import Command
from proxy.process.terminal import echo, echo_json

if TYPE_CHECKING:
    from loadgen.analysis.compare import ComparedRun, Comparison

EXIT_BROKEN = 4
EXAMPLES = """\b
Examples:
  loadgen compare runs/eager runs/graphs
  loadgen compare runs/main runs/pr --fail-if 'joules_per_output_token>+5%'
  loadgen compare runs/a100 runs/h100 runs/h200 --format latex -o table.tex
"""
FORMATS = ("table", "json", "csv", "markdown", "latex", "parquet")


@click.command(cls=Command, epilog=EXAMPLES)
@click.argument("baseline", metavar="BASELINE", type=click.Path(path_type=Path))
@click.argument("runs", nargs=-1, required=True, metavar="RUN...",
                type=click.Path(path_type=Path))  # fmt: skip
@click.option(
    "--fail-if", "limits", multiple=True, metavar="FIGURE>PERCENT",
    help="Exit with code 4 where a figure changed by more and the change is real, or "
    "where that cannot be told: 'joules_per_output_token>+5%', 'p99_ttft_seconds>10%'.",
)  # fmt: skip
@click.option("--format", "form", type=click.Choice(FORMATS), default="table",
              show_default=True, help="parquet needs pyarrow and --out.")  # fmt: skip
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False),
              help="File to write instead of standard output.")  # fmt: skip
def compare(
    baseline: Path, runs: tuple[Path, ...], limits: tuple[str, ...], form: str,
    out: Path | None,
) -> None:  # fmt: skip
    """Compare runs with a baseline, each difference with its 95 % interval.

    BASELINE and RUN are folders that `loadgen replay` wrote. Intervals come from
    blocks of sessions drawn again; runs of the same sessions are compared one by one.
    Joules of different boundaries (gpu, node) are never compared. Settings, packages
    and hardware that differ are listed. Files of `metering-proxy meter --json`, such
    as training jobs', are compared with each other and with no run.
    """
    from loadgen.analysis.compare import broken_limits, parse_limit
    from loadgen.analysis.compare import compare as compared

    asked = [parse_limit(text) for text in limits]
    if form == "parquet" and out is None:
        raise UsageError("--format parquet is no text: name a file with --out")
    if any(path.is_file() for path in (baseline, *runs)):
        _compare_jobs((baseline, *runs), limits, form, out)
        return
    base = _read(baseline)
    found = [compared(base, _read(run)) for run in runs]
    _show(found, form, out)
    broken = broken_limits(asked, found)
    for line in broken:
        echo(f"loadgen: --fail-if: {line}", err=True)
    if broken:
        sys.exit(EXIT_BROKEN)


def _compare_jobs(
    paths: Sequence[Path], limits: Sequence[str], form: str, out: Path | None
) -> None:
    """Jobs against the first of them, inside each boundary."""
    from loadgen.analysis.jobs import compared_jobs, read_job
    from loadgen.cli.output import FORMATS as JOB_FORMATS
    from loadgen.cli.output import show_result
    from loadgen.report.jobs import sheet
    from loadgen.report.sheet import to_csv

    folders = [path for path in paths if not path.is_file()]
    if folders:
        raise UsageError(
            f"{folders[0]} is no report of a job: jobs metered whole are compared with "
            "jobs, runs with runs; `loadgen report` shows both, apart"
        )
    if limits:
        raise UsageError("--fail-if is for runs: a job has no figure for each request")
    if form not in JOB_FORMATS:
        raise UsageError(f"--format {form} is for runs; jobs: {', '.join(JOB_FORMATS)}")
    rows = compared_jobs([row for path in paths for row in read_job(path)])
    show_result(
        form, out, document=rows, sheets=[sheet(rows)], lines=lambda: to_csv(rows)
    )


def _read(folder: Path) -> ComparedRun:
    """A run with its records. Raises RunError where it has none left."""
    from loadgen.analysis.compare import compared_run
    from loadgen.run.finish import load_run
    from loadgen.run.records import REQUESTS, has_records, records_of

    try:
        summary = load_run(folder)
    except LoadgenError as error:
        raise RunError(str(error)) from None
    if not has_records(folder):
        raise RunError(f"{folder}: {REQUESTS} is gone, its figures have no interval")
    name = folder.resolve().name or str(folder)
    return compared_run(name, summary, records_of(folder))


def _show(found: Sequence[Comparison], form: str, out: Path | None) -> None:
    import msgspec

    from loadgen.report import comparison
    from loadgen.report.console import console

    if form == "parquet":
        assert out is not None
        write_parquet(out, *comparison.columns(found))
        return
    if form == "table":
        shown = console()
        if out is None:
            shown.print(comparison.render(found))
            return
        with shown.capture() as capture:
            shown.print(comparison.render(found))
        write_output(out, click.unstyle(capture.get()).encode())
        return
    writers: dict[str, Callable[[Sequence[Comparison]], str]] = {
        "csv": comparison.to_csv,
        "latex": comparison.to_latex,
        "markdown": comparison.to_markdown,
    }
    if form == "json":
        encoded = msgspec.json.format(msgspec.json.encode(found), indent=2)
        if out is None:
            echo_json(encoded)
            return
        text = encoded.decode() + "\n"
    else:
        text = writers[form](found)
    if out is None:
        echo(text.rstrip("\n"))
        return
    write_output(out, text.encode())
