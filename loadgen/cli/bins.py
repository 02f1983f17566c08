"""`loadgen bins TRACE|RUN`: requests by input and output length."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from loadgen.cli.output import write_output
from loadgen.errors import RunError, UsageError
from loadgen.traces.readers import READERS
from proxy.process.command import Command
from proxy.process.terminal import echo, echo_json

if TYPE_CHECKING:
    from loadgen.analysis.bins import Lengths

EXAMPLES = """\b
Examples:
  loadgen bins traces/azure-conv.jsonl
  loadgen bins traces/azure-conv.jsonl --edges percentile --html bins.html
  loadgen bins runs/20260101T120000-azure-conv --csv bins.csv
  loadgen bins traces/azure-code.jsonl --input-edges 512,2048
"""
_TEXT_ONLY = (
    "no request has both lengths known: prompts that are text are the engine's to "
    "count; replay the trace and give the run's folder"
)


@click.command(cls=Command, epilog=EXAMPLES)
@click.argument("path", metavar="TRACE|RUN", type=click.Path(path_type=Path))
@click.option(
    "--edges", type=click.Choice(["paper", "powers", "percentile"]), default="paper",
    show_default=True,
    help="Ends of the bins: as Fernandez et al. 2025 print them (32, 128, 256, ... "
    "8192 by 8, 16, ... 512), all powers of two from 16, or percentiles.",
)  # fmt: skip
@click.option("--input-edges", metavar="N,N,...", help="Ends of the input bins.")
@click.option("--output-edges", metavar="N,N,...", help="Ends of the output bins.")
@click.option("--format", type=click.Choice(list(READERS)),
              help="Read the trace as this, instead of by its content.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path, dir_okay=False),
              help="Write a row per bin.")  # fmt: skip
@click.option("--html", "html_path", type=click.Path(path_type=Path, dir_okay=False),
              help="Draw a page.")  # fmt: skip
def bins(
    path: Path, edges: str, input_edges: str | None, output_edges: str | None,
    format: str | None, as_json: bool, csv_path: Path | None, html_path: Path | None,
) -> None:  # fmt: skip
    """Show requests by input and output length, and what they cost in each bin.

    Of a TRACE the joint distribution of its lengths; of a RUN (the folder that
    `loadgen replay` wrote) also joules, joules per output token and latency of each
    bin. A request is put into the bin whose ends are not below its lengths.
    """
    import msgspec

    from loadgen.analysis.bins import bin_table, edges_of, parse_edges
    from loadgen.report import bins as shown
    from loadgen.report.console import console

    lengths, is_simulated = read_lengths(path, format)
    if not len(lengths):
        raise UsageError(f"{path}: {_TEXT_ONLY}")
    chosen = named = edges_of(edges, lengths)
    if input_edges is not None:
        chosen = chosen._replace(input_tokens=parse_edges("--input-edges", input_edges))
    if output_edges is not None:
        chosen = chosen._replace(
            output_tokens=parse_edges("--output-edges", output_edges)
        )
    table = bin_table(edges if chosen == named else "given", chosen, lengths)
    name = path.name or str(path)
    if csv_path is not None:
        write_output(csv_path, shown.to_csv(table).encode())
    if html_path is not None:
        write_output(
            html_path, shown.page(name, table, is_simulated=is_simulated).encode()
        )
    if as_json:
        echo_json(msgspec.json.encode(table))
        return
    console().print(shown.render(name, table))
    if is_simulated:
        echo("the joules are SIMULATED")
    for written in (csv_path, html_path):
        if written is not None:
            echo(f"written: {written}")


def read_lengths(path: Path, format: str | None) -> tuple[Lengths, bool]:
    """Lengths of a trace file, or of a run folder with what it took.

    True beside them where a run's joules are simulated. Raises RunError or TraceError.
    """
    from loadgen.analysis.bins import lengths_of_run, lengths_of_trace
    from loadgen.run.finish import load_run
    from loadgen.run.records import REQUESTS, has_records, records_of
    from loadgen.traces.readers.open import open_trace

    if not path.is_dir():
        _, sessions = open_trace(path, format)
        return lengths_of_trace(sessions), False
    if not has_records(path):
        raise RunError(f"{path} is not a run folder: it has no {REQUESTS}")
    lengths = lengths_of_run(records_of(path))
    return lengths, load_run(path).simulated
