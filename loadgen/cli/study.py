"""`loadgen study FILE`: a matrix of servers, decoding, workloads and loads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from loadgen.cli.output import write_output
from proxy.process.command import Command
from proxy.process.terminal import echo, echo_json

if TYPE_CHECKING:
    from loadgen.analysis.compare import ComparedRun
    from loadgen.analysis.study import StudyTable
    from loadgen.studies.launch import Outcome
    from loadgen.studies.matrix import Planned
    from loadgen.studies.study_file import StudyFile

EXAMPLES = """\b
Examples:
  loadgen study studies/frameworks.yaml --simulate
  loadgen study studies/decoding.yaml --dry-run
  loadgen study mine.yaml --out studies-runs/mine --format markdown
"""
FORMATS = ("table", "csv", "json", "markdown")
TABLES = ("table.csv", "table.json", "table.md")


@click.command(cls=Command, epilog=EXAMPLES)
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--simulate", is_flag=True,
              help="Use the simulated engine and GPU for every server.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="List the cells; start nothing.")
@click.option("--num-prompts", type=click.IntRange(min=1), metavar="N",
              help="At most so many requests of each workload.")  # fmt: skip
@click.option("--only", multiple=True, metavar="AXIS=NAME",
              help="Only cells of this entry; may be repeated.")  # fmt: skip
@click.option("--model", metavar="NAME", help="Model instead of the file's.")
@click.option("--power", metavar="SOURCE[,SOURCE]", help="Sensors instead of its.")
@click.option("--format", "form", type=click.Choice(FORMATS), default="table",
              show_default=True, help="What is printed.")  # fmt: skip
@click.option("-o", "--out", type=click.Path(path_type=Path, file_okay=False),
              metavar="DIR",
              help="The study's folder.  [default: runs/study-<name>]")  # fmt: skip
def study(
    file: Path, simulate: bool, dry_run: bool, num_prompts: int | None,
    only: tuple[str, ...],
    model: str | None, power: str | None, form: str, out: Path | None,
) -> None:  # fmt: skip
    """Run each combination of a study's FILE and compare it with a baseline.

    FILE is YAML: servers (presets or commands), decoding, workloads and loads. Every
    cell gets a fresh server, is replayed and metered; one that fails is tried once
    more. The same command goes on with a study that was interrupted. The table
    (energy, change with its 95 % interval, latency) is printed, and written as csv,
    json and markdown into the folder.
    """
    from loadgen.studies.matrix import only as chosen
    from loadgen.studies.matrix import planned_cells
    from loadgen.studies.study import run_study
    from loadgen.studies.study_file import read_study, trace_path
    from loadgen.traces.readers.open import sha256_of

    given = {"model": model, "power": power}
    found = read_study(file, {k: v for k, v in given.items() if v is not None})
    suffix = "-simulated" if simulate else ""
    folder = out or Path("runs") / f"study-{found.path.stem}{suffix}"
    planned = planned_cells(
        found,
        folder,
        sha256_of,
        lambda workload: trace_path(found, workload),
        is_simulated=simulate,
        most_requests=num_prompts,
    )
    planned = chosen(planned, found, only)
    if dry_run:
        _list_cells(found, planned, folder, simulate)
        return
    outcomes = run_study(
        found, planned, folder, is_simulated=simulate, most_requests=num_prompts
    )
    table = _table(found, planned, outcomes, folder, simulate)
    _write(table, folder, form)
    if any(outcome.status == "failed" for outcome in outcomes):
        sys.exit(1)


def _list_cells(
    found: StudyFile, planned: list[Planned], folder: Path, simulate: bool
) -> None:
    from loadgen.studies.cells import arguments, note_of
    from loadgen.studies.presets import server_command, simulated_arguments

    kept = 0
    for each in planned:
        is_kept = note_of(folder, each.cell) is not None
        kept += is_kept
        echo(f"{each.cell.name}{'  (finished)' if is_kept else ''}")
        server = each.point.server
        if simulate:
            words = ["loadgen", "simulate"]
            words += simulated_arguments(server, found.study.simulate)
        elif server.url is not None:
            words = [f"(runs already at {server.url})"]
        else:
            words = server_command(server, server.model or found.study.model, 0)
        echo(f"    {' '.join(words)}")
        shown = {k: v for k, v in each.cell.options.items() if k != "metadata"}
        echo(f"    loadgen replay {each.cell.trace} {' '.join(arguments(shown))}")
    echo(f"{len(planned)} cells, {kept} of them finished in {folder}; nothing started")


def _table(
    found: StudyFile,
    planned: list[Planned],
    outcomes: list[Outcome],
    folder: Path,
    simulate: bool,
) -> StudyTable:
    from loadgen.analysis.study import Combination, StudyTable, study_rows
    from loadgen.studies.matrix import shown_axes

    grouped: dict[tuple[str, ...], list[int]] = {}
    for place, each in enumerate(planned):
        grouped.setdefault(tuple(each.point.names.values()), []).append(place)
    combinations = []
    for places in grouped.values():
        first = planned[places[0]]
        runs, reason = [], None
        for place in places:
            if outcomes[place].status == "failed":
                reason = outcomes[place].reason
            else:
                runs.append(_compared(planned[place].cell.name, outcomes[place].folder))
        combinations.append(
            Combination(
                names=first.point.names,
                baseline=found.baseline_of(first.point.names),
                runs=runs,
                asked_runs=len(places),
                reason=reason,
                not_simulated=first.not_simulated,
            )
        )
    return StudyTable(
        study=found.study.study,
        about=found.study.about,
        simulated=simulate or any(r.summary.simulated for c in combinations
                                  for r in c.runs),
        axes=shown_axes(found),
        baseline=dict(found.baseline),
        rows=study_rows(combinations, bool(found.baseline)),
    )  # fmt: skip


def _compared(name: str, folder: Path) -> ComparedRun:
    from loadgen.analysis.compare import compared_run
    from loadgen.run.finish import load_run
    from loadgen.run.records import records_of

    return compared_run(name, load_run(folder), records_of(folder))


def _write(table: StudyTable, folder: Path, form: str) -> None:
    import msgspec

    from loadgen.report import study as shown
    from loadgen.report.console import console

    csv_text, markdown = shown.to_csv(table), shown.to_markdown(table)
    json_text = msgspec.json.format(msgspec.json.encode(table), indent=2)
    for name, content in zip(
        TABLES, (csv_text.encode(), json_text + b"\n", markdown.encode()), strict=True
    ):
        write_output(folder / name, content)
    if form == "csv":
        echo(csv_text.rstrip("\n"))
    elif form == "markdown":
        echo(markdown.rstrip("\n"))
    elif form == "json":
        echo_json(json_text)
    else:
        console().print(shown.render(table))
    echo(f"written: {folder}/{{{','.join(TABLES)}}}", err=True)
