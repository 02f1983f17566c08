"""`loadgen predict RUN [TRACE]`: joules and watts of another load, before it is run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from loadgen.cli.output import result_options, show_result
from loadgen.errors import LoadgenError, RunError, UsageError
from loadgen.run.config import ARRIVAL_NAMES
from loadgen.traces.readers import READERS
from proxy.process.command import Command

if TYPE_CHECKING:
    from loadgen.analysis.schema import Summary
    from loadgen.results.results import Result

EXAMPLES = """\b
Examples:
  loadgen predict runs/azure-conv traces/azure-code.jsonl --rate 6
  loadgen predict runs/azure-conv traces/azure-conv.jsonl --rate 12
  loadgen predict runs/azure-conv --holdout runs/azure-code
  loadgen predict runs/conv --also runs/code traces/sharegpt.jsonl --rate 4
"""


@click.command(cls=Command, epilog=EXAMPLES)
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("trace", metavar="[TRACE]", required=False,
                type=click.Path(path_type=Path))  # fmt: skip
@click.option("--also", multiple=True, metavar="RUN", type=click.Path(path_type=Path),
              help="Fit to this run of the same engine too.")  # fmt: skip
@click.option("--holdout", multiple=True, metavar="RUN",
              type=click.Path(path_type=Path),
              help="Predict this run by its plan and print the error.")  # fmt: skip
@click.option("--reuse", type=click.FloatRange(0, 1), metavar="X",
              help="Part of a conversation's history that the prefix cache keeps. "
              "[default: as in the runs]")  # fmt: skip
@click.option("--rate", metavar="R", help="Requests per second, or inf.")
@click.option("--speed", type=click.FloatRange(0, min_open=True), metavar="X",
              help="Play the trace's times faster: 2 is twice as fast.")  # fmt: skip
@click.option("--arrival", type=click.Choice(ARRIVAL_NAMES), default="auto",
              show_default=True, help="As of loadgen replay.")  # fmt: skip
@click.option("--num-prompts", type=click.IntRange(1), metavar="N",
              help="Only the first N requests.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, metavar="N",
              help="Seed of the arrivals.")  # fmt: skip
@click.option("--trace-format", "format", type=click.Choice(list(READERS)),
              metavar="NAME",
              help="The trace's format. [default: by its content]")  # fmt: skip
@result_options
def predict(
    run: Path, trace: Path | None, also: tuple[Path, ...], holdout: tuple[Path, ...],
    reuse: float | None, rate: str | None, speed: float | None, arrival: str,
    num_prompts: int | None,
    seed: int, format: str | None, form: str, out: Path | None,
) -> None:  # fmt: skip
    """Fit an engine's costs to RUN and predict joules and watts of a load.

    RUN is a folder that `loadgen replay` wrote, with energy. What a request costs by
    its prompt, cached and output tokens and by the batch that it shares is fitted to
    its records, with intervals and a cross-validated error. TRACE is then played on
    the fitted engine in virtual time. Nothing is sent.
    """
    from loadgen.plan.load import Load
    from loadgen.report.sheet import to_csv
    from loadgen.run.records import PLAN
    from loadgen.studies import prediction_sheet as shown
    from loadgen.studies.predict import (
        PredictionReport,
        hold,
        learn,
        workload_for,
    )
    from loadgen.studies.predict import predict as predicted

    if trace is None and not holdout:
        raise UsageError("nothing to predict: give a TRACE, or --holdout RUN")
    load = Load(
        rate_per_second=_rate(rate), speed=speed, arrival=arrival,
        num_prompts=num_prompts, seed=seed,
    )  # fmt: skip
    folders = [run, *also]
    engine = learn(
        [run_name(each) for each in folders],
        [read_run(each) for each in folders],
        reuse,
    )
    made = None
    if trace is not None:
        work, notes = workload_for(engine, trace, load, format)
        made = predicted(engine, trace.name or str(trace), work, notes)
    held = []
    for each in holdout:
        summary, _ = read_run(each)
        if not (each / PLAN).is_file():
            raise RunError(f"{each}: {PLAN} is gone, its load is not known")
        held.append(hold(engine, run_name(each), each / PLAN, summary)[1])
    report = PredictionReport(learnt=engine.learnt, prediction=made, held=tuple(held))
    show_result(
        form, out, document=report, sheets=shown.sheets(report),
        lines=lambda: to_csv(list(shown.rows(report))),
    )  # fmt: skip


def run_name(folder: Path) -> str:
    """A run as tables name it."""
    return folder.resolve().name or str(folder)


def read_run(folder: Path) -> tuple[Summary, list[Result]]:
    """A run with its records. Raises RunError where it has none left."""
    from loadgen.run.finish import load_run
    from loadgen.run.records import records_of

    try:
        return load_run(folder), list(records_of(folder))
    except LoadgenError as error:
        raise RunError(str(error)) from None


def _rate(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise UsageError(
            f"--rate {text}: expected requests per second, such as 4, or inf"
        )
    return value
