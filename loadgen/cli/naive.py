"""`loadgen naive RUN...`: what calculators would have said of a run."""

from __future__ import annotations

from pathlib import Path

import click

from loadgen.cli.output import result_options, show_result
from loadgen.errors import LoadgenError, RunError
from proxy.process.command import Command

EXAMPLES = """\b
Examples:
  loadgen naive runs/20260101T120000-sharegpt
  loadgen naive runs/a100 --gpu a100-pcie --gpus 4 --parameters 70.6e9
  loadgen naive runs/*-azure-conv --format csv -o naive.csv
"""


@click.command(cls=Command, epilog=EXAMPLES)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...",
                type=click.Path(path_type=Path))  # fmt: skip
@click.option("--gpu", metavar="NAME", help="The engine's GPU: a100-sxm, a100-pcie, "
              "h100, h100-pcie, h200, a6000, rtx-6000-ada, l40s, l4, v100-sxm, mi300x. "
              "[default: what the run knows]")  # fmt: skip
@click.option("--gpus", type=int, metavar="N", help="How many. "
              "[default: what the run knows]")  # fmt: skip
@click.option("--parameters", type=float, metavar="N", help="Parameters that a token "
              "uses, 8e9. [default: by the model's name]")  # fmt: skip
@click.option("--utilization", type=float, metavar="X", help="Mean GPU utilization, 0 "
              "to 1. [default: time with a request in flight]")  # fmt: skip
@click.option("--joules-per-token", type=float, metavar="J",
              help="Take this constant instead of the published ones.")  # fmt: skip
@result_options
def naive(
    runs: tuple[Path, ...], gpu: str | None, gpus: int | None,
    parameters: float | None, utilization: float | None,
    joules_per_token: float | None, form: str, out: Path | None,
) -> None:  # fmt: skip
    """Set naive energy estimates beside what was measured.

    FLOPs at peak times TDP (dense and sparse peak apart), TDP times runtime,
    utilization times TDP, tokens times a constant: each with its constants, their
    sources, and how often it goes into the joules measured in the run's window. RUN
    is a folder that `loadgen replay` wrote.
    """
    from loadgen.analysis.naive import Given, naive_block
    from loadgen.report import naive as shown
    from loadgen.report.sheet import to_csv
    from loadgen.run.finish import load_run, work_of_run

    given = Given(gpu, gpus, parameters, utilization, joules_per_token)
    blocks = []
    for run in runs:
        try:
            summary = load_run(run)
            work = work_of_run(run, summary)
        except LoadgenError as error:
            raise RunError(str(error)) from None
        name = run.resolve().name or str(run)
        blocks.append((name, naive_block(summary, work, given), summary.simulated))
    show_result(
        form,
        out,
        document=[
            {"run": name, "simulated": simulated, "naive": block}
            for name, block, simulated in blocks
        ],
        sheets=[
            sheet
            for name, block, simulated in blocks
            for sheet in shown.sheets(name, block, is_simulated=simulated)
        ],
        lines=lambda: "".join(
            to_csv(block.estimates, run=name, simulated=simulated)
            if not place
            else to_csv(block.estimates, run=name, simulated=simulated).split("\n", 1)[
                1
            ]
            for place, (name, block, simulated) in enumerate(blocks)
        ),
    )
