"""`loadgen report RUN...`: show finished runs again, one alone or several together."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from loadgen.errors import LoadgenError, RunError, UsageError
from proxy.process.command import Command
from proxy.process.files import os_reason
from proxy.process.terminal import echo, echo_json

if TYPE_CHECKING:
    from loadgen.analysis.jobs import JobRow
    from loadgen.analysis.schema import Summary
    from loadgen.report.sheet import Sheet

EXAMPLES = """\b
Examples:
  loadgen report runs/20260101T120000-sharegpt
  loadgen report runs/rate-1 runs/rate-2 runs/rate-4
  loadgen report --json runs/rate-1
  loadgen report runs/rate-1 --bill bill.toml
  loadgen report runs/serving train.json
  loadgen report runs/rate-1 --csv requests.csv
"""


@click.command(cls=Command, epilog=EXAMPLES)
@click.argument(
    "runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path)
)
@click.option("--json", "as_json", is_flag=True, help="Print the summaries as JSON.")
@click.option("--bill", "terms", metavar="FILE",
              type=click.Path(path_type=Path, dir_okay=False),
              help="Add the bill of a single run, by the terms of this TOML file (see "
              "loadgen bill).")  # fmt: skip
@click.option("--csv", "csv_path", type=click.Path(path_type=Path, dir_okay=False),
              help="Write a row per request, of one run.")  # fmt: skip
def report(
    runs: tuple[Path, ...], as_json: bool, terms: Path | None, csv_path: Path | None
) -> None:
    """Show the summary of finished runs and draw report.html again.

    RUN is the folder that `loadgen replay` wrote. Of a run that was killed,
    what can be computed from its requests.jsonl is shown. Several runs are
    compared side by side; a folder without a run among them is left out. A file of
    `metering-proxy meter --json`, such as a training job's, has a table of its own.
    """
    import msgspec

    from loadgen.report import compare, terminal
    from loadgen.report.console import console
    from loadgen.report.sheet import render
    from loadgen.run.finish import load_run
    from loadgen.run.records import can_go_on
    from loadgen.traces.readers.line import portable

    runs, jobs = _without_jobs(runs)
    if not runs:
        _show_jobs(jobs, as_json)
        return
    if terms is not None and (len(runs) > 1 or as_json):
        raise UsageError("--bill is of a single run's report; see loadgen bill RUN...")
    summaries: list[tuple[Path, Summary]] = []
    for run in runs:
        try:
            summaries.append((run, load_run(run)))
        except LoadgenError as error:
            if len(runs) == 1 and not jobs:
                raise RunError(str(error)) from None
            echo(f"loadgen: left out: {error}", err=True)
        else:
            if can_go_on(run):
                again = f"loadgen replay --resume {shlex.quote(str(run))}"
                echo(f"loadgen: {run} was cut off; go on with: {again}", err=True)
    if not summaries:
        raise RunError(f"none of the {len(runs)} folders holds a run")
    if csv_path is not None:
        _export(runs, csv_path)
    if as_json:
        found: list[dict[str, object]] = [
            {"run": portable(str(run)), "summary": summary}
            for run, summary in summaries
        ]
        found += [{"job": row} for row in jobs]
        text = msgspec.json.encode(found[0]["summary"] if len(found) == 1 else found)
        echo_json(msgspec.json.format(text, indent=2))
        return
    bills: list[Sheet] = []
    if terms is not None:
        from loadgen.cli.bill import bill_of_run, read_terms
        from loadgen.report import bill

        bills = bill.sheets(
            bill_of_run(runs[0], read_terms(terms, "--bill"), summaries[0][1])
        )
    pages = [draw(run, summary, bills) for run, summary in summaries]
    out = console()
    if len(summaries) == 1:
        out.print(terminal.render(summaries[0][1], pages[0]))
        if bills:
            out.print(render(bills))
    else:
        names = [(run.name or str(run), summary) for run, summary in summaries]
        out.print(compare.render(names))
    if jobs:
        _show_jobs(jobs, as_json)


def _without_jobs(paths: tuple[Path, ...]) -> tuple[tuple[Path, ...], list[JobRow]]:
    """Folders of runs, and the rows of the files beside them: jobs metered whole."""
    from loadgen.analysis.jobs import compared_jobs, read_job

    files = [path for path in paths if path.is_file()]
    rows = [row for path in files for row in read_job(path)]
    return tuple(path for path in paths if path not in files), compared_jobs(rows)


def _show_jobs(rows: list[JobRow], as_json: bool) -> None:
    from loadgen.cli.output import show_result
    from loadgen.report.jobs import sheet
    from loadgen.report.sheet import to_csv

    form = "json" if as_json else "table"
    show_result(
        form, None, document=rows, sheets=[sheet(rows)], lines=lambda: to_csv(rows)
    )


def _export(runs: tuple[Path, ...], csv_path: Path) -> None:
    """Write the requests of one run as csv."""
    from loadgen.cli.output import write_pieces
    from loadgen.report.requests import to_csv
    from loadgen.run.records import REQUESTS, has_records, records_of

    if len(runs) > 1:
        raise UsageError(f"--csv is of one run, {len(runs)} were named")
    if not has_records(runs[0]):
        raise RunError(f"{runs[0]}: {REQUESTS} is gone")
    write_pieces(csv_path, to_csv(records_of(runs[0])))


def draw(run: Path, summary: Summary, more: Sequence[Sheet] = ()) -> Path | None:
    """Write the run's page; None when its records are gone or the folder is closed.

    `more` are tables that were asked for beside the run's own.
    """
    from loadgen.report.html import write_html
    from loadgen.run.finish import REPORT
    from loadgen.run.records import has_records, records_of

    if not has_records(run):
        return None
    try:
        write_html(run / REPORT, summary, records_of(run), more)
    except OSError as error:
        reason = os_reason(error)
        echo(f"loadgen: {run / REPORT} not written: {reason}", err=True)
        return None
    except LoadgenError as error:  # its summary is sound, and was computed before
        echo(f"loadgen: {run / REPORT} not written: {error}", err=True)
        return None
    return run / REPORT
