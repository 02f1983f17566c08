"""`loadgen capacity TRACE`: GPUs, watts and joules for a load and a service level."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from loadgen.cli.output import result_options, show_result
from loadgen.cli.predict import read_run, run_name
from loadgen.errors import UsageError
from loadgen.simulator.core.presets import GPUS, MODELS
from loadgen.traces.readers import READERS
from proxy.process.command import Command
from proxy.process.terminal import echo

if TYPE_CHECKING:
    from loadgen.simulator.core.aggregate import StepCost
    from loadgen.studies.capacity import Demand

EXAMPLES = """\b
Examples:
  loadgen capacity traces/azure-conv.jsonl --slo ttft:500,tpot:50 --rate 40
  loadgen capacity traces/azure-code.jsonl --slo ttft:1000 \\
      --requests-per-day 10e6 --gpu a100-sxm --gpus-max 64
  loadgen capacity traces/sharegpt.jsonl --slo tpot:80 --rate 25 \\
      --engine runs/my-server
"""
DEFAULT_REQUESTS = 100_000
MAX_REQUESTS = 100_000_000


@click.command(cls=Command, epilog=EXAMPLES)
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("--slo", multiple=True, required=True, metavar="NAME:MS,...",
              help="Limits in ms of ttft, tpot and e2el.")  # fmt: skip
@click.option("--wanted", type=click.FloatRange(0, 1, min_open=True), default=0.99,
              show_default=True, metavar="X",
              help="Part of the requests that must be within all limits.")  # fmt: skip
@click.option("--rate", type=click.FloatRange(0, 1e6, min_open=True), metavar="R",
              help="Requests per second, mean.")  # fmt: skip
@click.option("--requests-per-day", type=click.FloatRange(1, MAX_REQUESTS), metavar="N",
              help="Instead of --rate; a whole day is played.")  # fmt: skip
@click.option("--requests", type=click.IntRange(1, MAX_REQUESTS), metavar="N",
              help="Requests to play. [default: the day's, or 100000]")  # fmt: skip
@click.option("--arrival", type=click.Choice(["auto", "trace", "poisson"]),
              default="auto", show_default=True,
              help="auto: the trace's own gaps over and over, else Poisson.",
)  # fmt: skip
@click.option("--gpus-max", type=click.IntRange(1, 100_000), default=64, metavar="N",
              show_default=True, help="Largest fleet to try.")  # fmt: skip
@click.option("--engine", metavar="RUN", type=click.Path(path_type=Path),
              help="An engine with the costs fitted to this run, as loadgen predict "
              "fits them; else a simulated one:")  # fmt: skip
@click.option("--gpu", type=click.Choice(sorted(GPUS)), default="h100",
              show_default=True, metavar="NAME", help=f"{', '.join(GPUS)}.",
)  # fmt: skip
@click.option("--model", type=click.Choice(sorted(MODELS)), default="llama-3.1-8b",
              show_default=True, metavar="NAME", help=f"{', '.join(MODELS)}.",
)  # fmt: skip
@click.option("--n-gpus", type=click.IntRange(1, 64), default=1, show_default=True,
              metavar="N", help="GPUs of one engine.")  # fmt: skip
@click.option("--max-num-seqs", type=click.IntRange(1, 100_000), default=256,
              show_default=True, metavar="N", help="Requests in a batch.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True,
              metavar="N", help="Seed of the arrivals.")  # fmt: skip
@click.option("--trace-format", type=click.Choice(list(READERS)), metavar="NAME",
              help="The trace's format. [default: by its content]")  # fmt: skip
@result_options
def capacity(
    trace: Path, slo: tuple[str, ...], wanted: float, rate: float | None,
    requests_per_day: float | None, requests: int | None, arrival: str, gpus_max: int,
    engine: Path | None, gpu: str, model: str, n_gpus: int, max_num_seqs: int,
    seed: int, trace_format: str | None, form: str, out: Path | None,
) -> None:  # fmt: skip
    """Find how many GPUs a load needs, with what watts and joules.

    TRACE is repeated at the asked rate, and engines of one kind serve its sessions in
    turn, in virtual time: ten million requests take minutes. The smallest fleet that
    serves enough requests within the limits is the answer.
    """
    from loadgen.report.sheet import to_csv
    from loadgen.results.measures import parse_goodput
    from loadgen.studies import capacity_sheet
    from loadgen.studies.capacity import (
        DAY_SECONDS,
        LIMITS,
        CapacityReport,
        answer_of,
        search,
    )

    limits = parse_goodput(slo)
    unknown = [name for name in limits if name not in LIMITS]
    if unknown:
        raise UsageError(f"--slo {unknown[0]}: known here: {', '.join(LIMITS)}")
    if (rate is None) == (requests_per_day is None):
        raise UsageError("give the load, either --rate R or --requests-per-day N")
    if requests_per_day is not None:
        rate, requests = (
            requests_per_day / DAY_SECONDS,
            requests or int(requests_per_day),
        )
    assert rate is not None
    if not wanted > 0:
        raise UsageError(f"--wanted {wanted:g}: expected a part of 1, such as 0.99")
    if gpus_max < n_gpus:
        raise UsageError(f"--gpus-max {gpus_max} is below the {n_gpus} of one engine")
    cost, named, notes, simulated, reach, factors = _engine(
        engine, gpu, model, n_gpus, max_num_seqs
    )
    demand, more = _demand(
        trace, trace_format, arrival, rate, requests or DEFAULT_REQUESTS, seed, factors
    )
    rows = search(
        demand, cost, limits, wanted_fraction=wanted, gpus_per_engine=n_gpus,
        engines_max=gpus_max // n_gpus,
        say=lambda text: echo(f"capacity: {text}", err=True),
    )  # fmt: skip
    report = CapacityReport(
        trace=trace.name, engine=named, simulated=simulated,
        requests=demand.requests, requests_per_second=rate, limits=limits,
        wanted_fraction=wanted, gpus_max=gpus_max, rows=tuple(rows),
        answer=answer_of(rows), reach_fraction=reach, idle_watts=cost.idle_watts,
        notes=(*notes, *more),
    )  # fmt: skip
    show_result(
        form, out, document=report, sheets=capacity_sheet.sheets(report),
        lines=lambda: to_csv(list(report.rows)),
    )  # fmt: skip


Factors = tuple[float, float, float]
"""Of a history that is kept, of prompts and of outputs: see `planned_workload`."""


def _engine(
    run: Path | None, gpu: str, model: str, n_gpus: int, max_num_seqs: int
) -> tuple[StepCost, str, tuple[str, ...], bool, float | None, Factors]:
    import numpy as np

    from loadgen.simulator.core.aggregate import step_cost
    from loadgen.simulator.core.config import EngineConfig
    from loadgen.studies.fit import reach
    from loadgen.studies.predict import learn

    if run is None:
        config = EngineConfig(
            gpu=GPUS[gpu], model=MODELS[model], n_gpus=n_gpus,
            max_num_seqs=max_num_seqs,
        )  # fmt: skip
        named = f"{model} on {n_gpus} x {config.gpu.name}"
        return step_cost(config), named, (), True, None, (1.0, 1.0, 1.0)
    name = run_name(run)
    fitted = learn([name], [read_run(run)])
    notes = (
        "the fitted engine has no limit of KV cache; a batch holds up to "
        f"{max_num_seqs} requests (--max-num-seqs)",
        *fitted.learnt.notes,
    )
    half = reach(fitted.energy, np.zeros(2), fitted.learnt.blocks)
    return (
        fitted.cost(max_num_seqs), f"fitted to {name}", notes, fitted.learnt.simulated,
        half, (fitted.reuse_fraction, fitted.prompt_factor, fitted.output_factor),
    )  # fmt: skip


def _demand(
    trace: Path, format: str | None, arrival: str, rate: float, requests: int,
    seed: int, factors: Factors,
) -> tuple[Demand, list[str]]:  # fmt: skip
    from loadgen.plan.load import Load
    from loadgen.plan.plan import is_plan
    from loadgen.studies.capacity import Demand, own_gaps
    from loadgen.studies.workload import planned_workload

    load = Load() if is_plan(trace) else Load(rate_per_second=1.0, arrival=arrival)
    reuse, prompts, outputs = factors
    header, pattern = planned_workload(
        trace, load, format,
        reuse_fraction=reuse, prompt_factor=prompts, output_factor=outputs,
    )  # fmt: skip
    gaps = own_gaps(pattern) if header.arrival == "trace" else None
    turns = len(pattern) / header.sessions
    notes = [
        f"{header.requests:,} requests of the trace over and over, "
        + ("its own gaps" if gaps is not None else "Poisson arrivals")
        + "; sessions go to the engines in turn and stay there",
        *header.notes,
    ]
    return Demand(pattern, gaps, requests, rate / turns, seed), notes
