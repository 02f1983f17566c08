"""`loadgen estimate TRACE`: a workload's energy from measurements of its bins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loadgen.cli.output import result_options, show_result, write_output
from loadgen.errors import UsageError
from loadgen.simulator.core.presets import GPUS, MODELS
from loadgen.traces.readers import READERS
from proxy.process.command import Command

if TYPE_CHECKING:
    from loadgen.analysis.bins import BinTable, Lengths
    from loadgen.studies.estimate import BinPlan
    from loadgen.traces.trace import Session

EXAMPLES = """\b
Examples:
  loadgen estimate traces/azure-conv.jsonl --validate
  loadgen estimate traces/azure-code.jsonl --gpu a6000 --lengths edge
  loadgen estimate traces/azure-conv.jsonl --batch 32 --validate \\
      --url http://127.0.0.1:8000 --power nvml --out runs/bins
"""
_FEW_BATCHES = 10
REPLAY = "replay"
"""Name of the cell that replays the whole trace."""


@click.command(cls=Command, epilog=EXAMPLES)
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("--edges", type=click.Choice(["paper", "powers", "percentile"]),
              default="paper", show_default=True, help="As of loadgen bins.",
)  # fmt: skip
@click.option("--lengths", type=click.Choice(["mean", "edge"]), default="mean",
              show_default=True, help="Measure a bin at the mean lengths of its "
              "requests, or at its upper ends as the paper does.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1, 100_000), metavar="N",
              help="Requests in flight. [default: the most that fit; only known of "
              "the simulated engine]")  # fmt: skip
@click.option("--waves", type=click.IntRange(1, 100), default=2, show_default=True,
              metavar="N", help="Batches of a bin, one after the other.")  # fmt: skip
@click.option("--num-prompts", type=click.IntRange(1), metavar="N",
              help="Only the first N requests.")  # fmt: skip
@click.option("--validate", is_flag=True,
              help="Replay the same requests too, and print the error.")  # fmt: skip
@click.option("--gpu", type=click.Choice(sorted(GPUS)), default="h100",
              show_default=True, metavar="NAME",
              help=f"Simulated: {', '.join(GPUS)}.")  # fmt: skip
@click.option("--model", "sim_model", type=click.Choice(sorted(MODELS)),
              default="llama-3.1-8b", show_default=True, metavar="NAME",
              help=f"Simulated: {', '.join(MODELS)}.")  # fmt: skip
@click.option("--n-gpus", type=click.IntRange(1, 64), default=1, show_default=True,
              metavar="N", help="GPUs that the model is spread over.")  # fmt: skip
@click.option("--real-time", is_flag=True, help="Run the simulated stack with proxy "
              "and sensor, instead of the engine in virtual time.")  # fmt: skip
@click.option("--url", metavar="URL", help="Measure this server.")
@click.option("--power", metavar="SOURCE", help="Its sensors, as of loadgen replay.")
@click.option("--ledger", metavar="URL",
              help="Admin URL of the proxy that stands before it.")  # fmt: skip
@click.option("--replay-option", multiple=True, metavar="NAME=VALUE",
              help="A further option of every replay, such as backend=tgi.",
)  # fmt: skip
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False),
              help="Where runs are kept, to go on after an interruption. [default: "
              "runs/estimate-<trace>]")  # fmt: skip
@click.option("--trace-format", type=click.Choice(list(READERS)), metavar="NAME",
              help="The trace's format. [default: by its content]")  # fmt: skip
@result_options
def estimate(
    trace: Path, edges: str, lengths: str, batch: int | None, waves: int,
    num_prompts: int | None, validate: bool, gpu: str, sim_model: str, n_gpus: int,
    real_time: bool, url: str | None, power: str | None, ledger: str | None,
    replay_option: tuple[str, ...], folder: Path | None, trace_format: str | None,
    form: str, out: Path | None,
) -> None:  # fmt: skip
    """Estimate a workload's energy from batches of its bins.

    The sum over bins of requests / batch size x energy of a batch in the bin
    (Fernandez et al. 2025, section 4.1). Without --url the batches run on a SIMULATED
    engine in virtual time; with it each is a closed-loop run of its own, kept in
    --folder. --validate replays the trace's own requests in one queue.
    """
    from loadgen.analysis.bins import bin_table, edges_of
    from loadgen.report.sheet import to_csv
    from loadgen.studies import estimate_sheet
    from loadgen.studies.estimate import plans_of

    inside = _lengths(trace, trace_format, num_prompts)
    table = bin_table(edges, edges_of(edges, inside), inside)
    if not table.bins:
        raise UsageError(f"{trace}: every request is longer than the last edge; give "
                         "--edges percentile")  # fmt: skip
    is_live = real_time or url is not None
    if url is None and (power or ledger):
        raise UsageError("--power and --ledger are of a server: give its --url")
    if is_live:
        plans = plans_of(table, lengths, batch=batch)
        options = {
            "url": url, "power": power, "ledger": ledger, "rate": "inf",
            "quiet": True,
        } | _pairs(replay_option)  # fmt: skip
        if url is None:
            options |= {"sim-gpu": gpu, "sim-model": sim_model, "sim-gpus": n_gpus}
        where = folder or Path("runs") / f"estimate-{trace.name.split('.')[0]}"
        report = _measured(
            trace, table, inside, plans, options, where, waves, validate=validate,
            lengths=lengths, batch=batch,
        )  # fmt: skip
    else:
        if replay_option or folder:
            raise UsageError(
                "--replay-option and --folder are of runs: give --url or --real-time"
            )
        report = _played(
            trace, table, inside, (gpu, sim_model, n_gpus), waves, validate=validate,
            lengths=lengths, batch=batch,
        )  # fmt: skip
    show_result(
        form, out, document=report, sheets=estimate_sheet.sheets(report),
        lines=lambda: to_csv(list(report.bins)),
    )  # fmt: skip


def _lengths(trace: Path, format: str | None, count: int | None) -> Lengths:
    """Lengths of the requests. Raises UsageError where none is known."""
    from array import array

    from loadgen.analysis.bins import lengths_of_trace
    from loadgen.traces.readers.open import open_trace

    _, sessions = open_trace(trace, format)
    found = lengths_of_trace(sessions)
    if not len(found):
        raise UsageError(
            f"{trace}: no request has both lengths known: prompts that are text are "
            "the engine's to count; give a trace with input_length and output_length"
        )
    if count is not None:
        found.input_tokens = array("q", found.input_tokens[:count])
        found.output_tokens = array("q", found.output_tokens[:count])
    return found


def _pairs(texts: Sequence[str]) -> dict[str, Any]:
    found = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not name.strip() or not separator:
            raise UsageError(f"--replay-option {text}: expected NAME=VALUE")
        found[name.strip().lstrip("-")] = value
    return found


def _played(
    trace: Path, table: BinTable, inside: Lengths, engine: tuple[str, str, int],
    waves: int, *, validate: bool, lengths: str, batch: int | None,
) -> Any:  # fmt: skip
    from loadgen.simulator.core.aggregate import step_cost
    from loadgen.simulator.core.config import EngineConfig
    from loadgen.studies.estimate import (
        plans_of,
        played_batch,
        played_replay,
        sessions_inside,
        summed,
        total_joules,
    )

    gpu, model, n_gpus = engine
    config = EngineConfig(gpu=GPUS[gpu], model=MODELS[model], n_gpus=n_gpus)
    cost = step_cost(config)

    def terms(where: str) -> Any:
        plans = plans_of(
            table, where, batch=batch, capacity_tokens=cost.capacity_tokens,
            max_num_seqs=cost.max_num_seqs,
        )  # fmt: skip
        return summed(plans, {p.name: played_batch(p, waves, cost) for p in plans})

    bins = terms(lengths)
    measured: float | str | None = None
    edge_joules = None
    if validate:
        measured = played_replay(sessions_inside(inside, table), batch, cost)
        if lengths != "edge":
            edge_joules = total_joules(terms("edge"))
    return _report(
        trace, table, bins, measured, lengths=lengths, batch=batch,
        engine=f"{model} on {n_gpus} x {config.gpu.name}", simulated=True,
        boundary="gpu", edge_joules=edge_joules,
    )  # fmt: skip


def _measured(
    trace: Path, table: BinTable, inside: Lengths, plans: Sequence[BinPlan],
    options: dict[str, Any], folder: Path, waves: int, *, validate: bool,
    lengths: str, batch: int | None,
) -> Any:  # fmt: skip
    from loadgen.run.finish import load_run
    from loadgen.studies.cells import cell, run_of
    from loadgen.studies.estimate import (
        sessions_inside,
        sessions_of_batches,
        summed,
    )
    from loadgen.studies.launch import open_study
    from loadgen.traces.readers.open import sha256_of

    context = {"trace_sha256": sha256_of(trace)}
    traces = folder / "traces"
    made: list[tuple[str, Path, list[Session], int]] = [
        (p.name, traces / f"{p.name}.jsonl", sessions_of_batches(p, waves), p.batch)
        for p in plans
    ]
    if validate:
        whole = sessions_inside(inside, table)
        assert batch is not None
        made.append((REPLAY, traces / f"{REPLAY}.jsonl", whole, batch))
    cells = [
        cell(name, path, options | {"max-concurrency": size},
             context | {"lengths": [len(sessions), *_first_lengths(sessions)]})
        for name, path, sessions, size in made
    ]  # fmt: skip
    asked = {
        "trace": str(trace), "edges": table.edge_set, "lengths": lengths,
        "batch": batch, "waves": waves, **options,
    }  # fmt: skip
    found: dict[str, float | str] = {}
    boundaries: set[str | None] = set()
    simulated = False
    with open_study(folder, "estimate", asked, cells) as study:
        traces.mkdir(exist_ok=True)
        for (name, path, sessions, _), each in zip(made, cells, strict=True):
            _write_trace(path, name, sessions)
            outcome = study.run(each)
            if outcome.status == "failed":
                found[name] = (outcome.reason or "it failed").splitlines()[-1]
                continue
            summary = load_run(run_of(folder, each))
            energy, simulated = summary.energy, simulated or summary.simulated
            answered = energy.requests_with_energy
            if energy.joined_joules is None or not answered:
                found[name] = energy.reason or "its run has no energy"
                continue
            boundaries.add(energy.boundary)
            found[name] = energy.joined_joules / answered * len(sessions)
    measured = found.pop(REPLAY, None)
    bins = summed(plans, {
        p.name: _per_batch(found[p.name], waves) for p in plans
    })  # fmt: skip
    if len(boundaries) > 1:
        raise UsageError(
            f"the runs in {folder} were measured inside "
            f"{' and '.join(sorted(map(str, boundaries)))}: joules of two boundaries "
            "are never added; name another --folder"
        )
    named = str(options["url"] or "the simulated stack")
    return _report(
        trace, table, bins, measured, lengths=lengths, batch=batch, engine=named,
        simulated=simulated, boundary=next(iter(boundaries), None),
    )  # fmt: skip


def _per_batch(joules: float | str, waves: int) -> float | str:
    return joules if isinstance(joules, str) else joules / waves


def _first_lengths(sessions: Sequence[Session]) -> tuple[int, int]:
    turn = sessions[0].turns[0]
    return turn.input_tokens or 0, turn.output_tokens or 0


def _write_trace(path: Path, name: str, sessions: Sequence[Session]) -> None:
    import msgspec

    from loadgen.traces.trace import TraceInfo
    from loadgen.traces.writers import loadtrace, loadtrace_header

    info = TraceInfo(name=name.replace("=", "-"), format="loadtrace")
    head = loadtrace_header(info, count=len(sessions), span_seconds=0.0)
    lines = [msgspec.json.encode(head).decode(), *loadtrace(sessions, info)]
    write_output(path, "".join(f"{line}\n" for line in lines).encode())


def _report(
    trace: Path, table: BinTable, bins: Any, measured: float | str | None, *,
    lengths: str, batch: int | None, engine: str, simulated: bool,
    boundary: str | None, edge_joules: float | None = None,
) -> Any:  # fmt: skip
    from loadgen.studies.estimate import EstimateReport, total_joules

    total = total_joules(bins)
    requests = sum(each.requests for each in bins)
    notes = [f"full replay: {measured}"] if isinstance(measured, str) else []
    if batch is not None and requests < _FEW_BATCHES * batch:
        notes.append(
            f"{requests:,} requests are few for a batch of {batch:,}: it runs empty at "
            "the end of the replay, which no bin knows of"
        )
    real = measured if isinstance(measured, float) else None

    def error(joules: float | None) -> float | None:
        return None if joules is None or not real else joules / real - 1

    return EstimateReport(
        trace=trace.name, engine=engine, simulated=simulated, boundary=boundary,
        edge_set=table.edge_set, lengths=lengths, batch=batch, requests=requests,
        beyond=table.beyond, unknown=table.unknown, joules=total,
        joules_per_request=None if total is None else total / requests,
        measured_joules=real, error_fraction=error(total), edge_joules=edge_joules,
        edge_error_fraction=error(edge_joules), bins=tuple(bins), notes=tuple(notes),
    )  # fmt: skip
