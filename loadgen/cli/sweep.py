"""`loadgen sweep TRACE --rate 1,2,4`: energy and latency against load."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loadgen.cli.output import write_output, write_parquet
from loadgen.cli.replay import SpreadCommand
from loadgen.errors import UsageError
from loadgen.run.config import ReplayConfig
from proxy.process.command import HeadedOption
from proxy.process.options import Setting, settings_of
from proxy.process.terminal import echo, echo_json

if TYPE_CHECKING:
    from loadgen.analysis.sweep import SweepResult
    from loadgen.studies.sweep import SweepPlan

EXAMPLES = """\b
Examples:
  loadgen sweep traces/sharegpt.jsonl --rate 1,2,4,8,16,inf
  loadgen sweep traces/azure-conv.jsonl --rate 1,4,16 --repeat 3 \\
      --goodput ttft:500 tpot:50 --num-prompts 300
  loadgen sweep synthetic --input-len 128,1024 --concurrency 1,8,64
  loadgen sweep traces/sharegpt.jsonl --rate 4 --temperature 0,0.7,1
"""
NOT_HERE = ("out", "quiet", "metrics-port", "metrics-targets")


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Every option of a run that makes sense here, several values of each."""
    for setting in reversed(settings_of(ReplayConfig)):
        if setting.name not in NOT_HERE:
            function = _option(setting)(function)
    return function


def _option(setting: Setting) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    names = [f"--{setting.name}"]
    more: dict[str, Any] = {"multiple": True, "metavar": setting.option.metavar}
    if setting.option.has_opposite:
        names = [f"--{setting.name}/--no-{setting.name}"]
        more = {"default": None, "is_flag": True}
    if setting.option.alias is not None:
        names.append(f"--{setting.option.alias}")
    return click.option(
        *names, setting.variable, cls=HeadedOption, heading=setting.heading,
        help=setting.option.help, **more,
    )  # fmt: skip


@click.command(cls=SpreadCommand, epilog=EXAMPLES)
@click.argument("trace")
@click.option("--repeat", type=click.IntRange(1, 100), default=1, show_default=True,
              cls=HeadedOption, heading="Sweep", metavar="N",
              help="Runs of each point, with other arrivals.")  # fmt: skip
@click.option("--search", type=click.IntRange(0, 50), default=4, show_default=True,
              cls=HeadedOption, heading="Sweep", metavar="N",
              help="Further rates, at most, to find the one with the least joules per "
              "request that meets --goodput.")  # fmt: skip
@click.option("--settle", type=click.FloatRange(min=0), metavar="S",
              cls=HeadedOption, heading="Sweep",
              help="Seconds between runs.  [default: 10 with --url, else the "
              "stack starts anew]")  # fmt: skip
@click.option("--stop/--no-stop", default=True, cls=HeadedOption, heading="Sweep",
              help="Leave out finite rates above one that saturates the "
              "engine.  [default: stop]")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, file_okay=False),
              cls=HeadedOption, heading="Sweep", metavar="DIR",
              help="Folder; one that was interrupted is gone on with.  "
              "[default: sweeps/<utc>-<trace>]")  # fmt: skip
@click.option("--parquet", is_flag=True, cls=HeadedOption, heading="Sweep",
              help="Write sweep.parquet too.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, cls=HeadedOption, heading="Sweep",
              help="Print sweep.json; progress goes to standard error.")  # fmt: skip
@_options
def sweep(
    trace: str, repeat: int, search: int, settle: float | None, stop: bool,
    out: Path | None, parquet: bool, as_json: bool, **written: Any,
) -> None:  # fmt: skip
    """Run TRACE at each value of an option and show what load costs.

    Any option of `loadgen replay` with several values is an axis: numbers and names
    apart by commas, other options given again. Each point's figures are of its steady
    window, with 95 % intervals. The folder gets sweep.html, sweep.csv and sweep.json;
    the same command with the same --out goes on after an interruption.
    """
    from loadgen.studies.launch import open_study
    from loadgen.studies.sweep import SETTLE_SECONDS, Sweeping, cells_of, combinations

    plan = _plan(trace, repeat, search, stop, written)
    if parquet:
        _check_parquet()
    stem = Path(trace).name.split(".")[0] or "trace"
    folder = out or Path("sweeps") / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{stem}"
    if settle is None:
        settle = SETTLE_SECONDS if "url" in plan.fixed or _has_axis(plan, "url") else 0
    cells = [one for axes in combinations(plan.axes) for one in cells_of(plan, axes)]
    with open_study(folder, "sweep", plan.asked, cells) as study:
        found = Sweeping(study, plan, settle).run()
        if not found.points:
            echo(f"loadgen: no run came off; see {folder}/failed", err=True)
            sys.exit(1)
        _write(folder, found, with_parquet=parquet)
        code = study.exit_code
    _show(folder, found, as_json=as_json)
    sys.exit(code)


def _plan(
    trace: str, repeat: int, search: int, stop: bool, written: dict[str, Any]
) -> SweepPlan:
    from loadgen.results.measures import parse_goodput
    from loadgen.studies.sweep import (
        SweepPlan,
        check_points,
        check_target,
        parse_axes,
        sha256_of_trace,
    )

    texts = {name: _texts(value) for name, value in written.items()}
    headers = texts.pop("header", ())
    parse_goodput(texts.get("goodput", ()))
    axes, fixed = parse_axes(texts)
    seed = int(fixed.pop("seed", 0))
    variable = fixed.get("api-key-env")
    if variable is not None and not os.environ.get(str(variable)):
        raise UsageError(
            f"--api-key-env: environment variable {variable} is not set or empty"
        )
    plan = SweepPlan(
        trace=trace, trace_sha256=sha256_of_trace(trace), fixed=fixed, axes=axes,
        repeats=repeat, search_runs=search, stops=stop, seed=seed, headers=headers,
    )  # fmt: skip
    if not axes and repeat == 1:
        raise UsageError(
            "nothing is swept: give an option several values, such as --rate 1,2,4,inf"
        )
    check_points(plan)
    check_target(plan)
    return plan


def _texts(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, bool):
        return ("true" if value else "false",)
    return tuple(value)


def _has_axis(plan: SweepPlan, name: str) -> bool:
    return any(axis.name == name for axis in plan.axes)


def _check_parquet() -> None:
    from importlib.util import find_spec

    if find_spec("pyarrow") is None:
        raise UsageError("parquet needs pyarrow: pip install 'servewatt[parquet]'")


def _write(folder: Path, found: SweepResult, *, with_parquet: bool) -> None:
    import msgspec

    from loadgen.report import sweep as shown

    text = msgspec.json.format(msgspec.json.encode(found), indent=2)
    write_output(folder / "sweep.json", text + b"\n")
    write_output(folder / "sweep.csv", shown.to_csv(found).encode())
    name = folder.resolve().name
    write_output(folder / "sweep.html", shown.page(found, name).encode())
    if with_parquet:
        write_parquet(folder / "sweep.parquet", *shown.columns(found))


def _show(folder: Path, found: SweepResult, *, as_json: bool) -> None:
    import msgspec

    from loadgen.report import sweep as shown
    from loadgen.report.console import console

    if as_json:
        echo_json(msgspec.json.format(msgspec.json.encode(found), indent=2))
        return
    console().print(shown.render(found))
    echo(f"written: {folder}/sweep.html, sweep.csv, sweep.json")
