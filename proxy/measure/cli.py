"""`metering-proxy meter`: options to one `MeterConfig`, figures to stderr."""

from __future__ import annotations

import json
import os
import pwd
import re
import sys
from contextlib import suppress
from pathlib import Path

import click

from proxy.errors import ProxyError
from proxy.measure.report import CommandReport, as_json
from proxy.measure.run import MeasureConfig, meter_command
from proxy.measure.text import describe
from proxy.measure.textfile import check_textfile, update_textfile
from proxy.power.argument import BOUNDARIES
from proxy.power.sources import split_sources

EXAMPLES = """\b
Examples:
  metering-proxy meter -- python train.py --epochs 3
  metering-proxy meter --power nvml,rapl --gpus 0,1 -- vllm bench throughput ...
  metering-proxy meter --power rapl --tdp host=350 -- make -j
  metering-proxy meter --json run.json --label job=17 -- ./batch.sh < prompts.txt
  metering-proxy meter --power redfish=https://bmc --baseline 10 -- ./job
  metering-proxy meter --textfile /var/lib/node_exporter --name train -- ./train.sh
"""


def _sources(
    context: click.Context, option: click.Parameter, text: str
) -> tuple[str, ...]:
    found = tuple(split_sources(text))
    if len(set(found)) < len(found):
        raise click.BadParameter(f"{text!r} names a source twice")
    return tuple(source for source in found if source != "none")


def _names(
    context: click.Context, option: click.Parameter, text: str
) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _labels(
    context: click.Context, option: click.Parameter, pairs: tuple[str, ...]
) -> dict[str, str]:
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE")
        found[key] = value
    return found


def _tdp(
    context: click.Context, option: click.Parameter, given: tuple[str, ...]
) -> dict[str, float]:
    """Watts by boundary; a bare number is of each GPU."""
    found = {}
    for text in given:
        boundary, _, number = text.rpartition("=")
        try:
            watts = float(number)
        except ValueError:
            watts = 0.0
        if not 0 < watts < float("inf") or boundary not in ("", *BOUNDARIES):
            raise click.BadParameter(
                f"{text!r} is neither watts of each GPU, such as 700, nor "
                f"BOUNDARY=WATTS with one of {', '.join(BOUNDARIES)}"
            )
        found[boundary or "each"] = watts
    return found


@click.command(epilog=EXAMPLES, context_settings={"allow_interspersed_args": False})
@click.option(
    "--power",
    "sources",
    default="nvml",
    show_default=True,
    callback=_sources,
    metavar="SOURCE,...",
    help="Sensors, side by side, as `metering-proxy sources` lists them.",
)
@click.option(
    "--gpus",
    default="",
    callback=_names,
    metavar="0,1",
    help="GPUs to count: indices or UUIDs.  [default: all]",
)
@click.option(
    "--interval",
    "sample_interval_seconds",
    default=0.02,
    show_default=True,
    type=click.FloatRange(0.001, 60),
    metavar="S",
    help="Seconds between two reads of a sensor.",
)
@click.option(
    "--baseline",
    "baseline_seconds",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, 3600),
    metavar="S",
    help="Measure this long before the start; 0 for no baseline. Longer "
    "than a slow sensor's period, or its energy stays unknown.",
)
@click.option(
    "--tdp",
    "tdp_watts",
    multiple=True,
    callback=_tdp,
    metavar="W|BOUNDARY=W",
    help="Rated watts of each GPU, or of a whole boundary, for the runtime "
    "x TDP figure.  [default: the GPUs' power limit]",
)
@click.option(
    "--json",
    "json_path",
    is_flag=False,
    flag_value="-",
    metavar="[PATH]",
    help="Write the figures as JSON: to a file, or with - or nothing to "
    "standard output, behind what the command wrote there.",
)
@click.option(
    "--textfile",
    "textfile_folder",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Add to a file in this folder of node_exporter's textfile "
    "collector, one for each user and --name.",
)
@click.option("--name", help="Name in that file.  [default: the program's]")
@click.option(
    "--label",
    "labels",
    multiple=True,
    callback=_labels,
    metavar="K=V",
    help="Kept in the JSON, and a label in the textfile: few values.",
)
@click.option("--quiet", is_flag=True, help="No figures on standard error.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def meter(
    command: tuple[str, ...], name: str | None, json_path: str | None,
    textfile_folder: Path | None, quiet: bool, sources: tuple[str, ...],
    gpus: tuple[str, ...], sample_interval_seconds: float, baseline_seconds: float,
    tdp_watts: dict[str, float], labels: dict[str, str],
) -> None:  # fmt: skip
    """Run a command and say what energy it took.

    Energy of training, batch inference or anything else, for each device, with
    its error, beside what running time alone would have said. It is that of the
    devices while the command ran: whatever else used them is in it.

    The command keeps its input, output, signals and exit code (128 + n for signal
    n, 127 not found, 126 not executable); the figures go to standard error. A
    sensor that fails stops nothing: the energy is unknown then, never 0.
    """
    name = name or re.sub(r"[^A-Za-z0-9._-]", "_", os.path.basename(command[0]))[:64]
    if textfile_folder is not None:
        check_textfile(textfile_folder, name, labels)
    report = meter_command(
        MeasureConfig(
            command, sources, gpus, name, labels, tdp_watts,
            sample_interval_seconds, baseline_seconds,
        )
    )  # fmt: skip
    failures = _write(report, json_path, textfile_folder)
    with suppress(OSError):  # whoever read our standard error may be gone
        if not quiet:
            click.echo(describe(report), err=True)
        for failure in failures:
            click.echo(f"metering-proxy: {failure}", err=True)
    sys.exit(report.exit_code)


def _write(
    report: CommandReport, json_path: str | None, textfile_folder: Path | None
) -> list[str]:
    """To where it was asked; what failed is said, the exit code stays the command's."""
    failures = []
    if json_path is not None:
        text = json.dumps(as_json(report), indent=2)
        try:
            if json_path == "-":
                click.echo(text)
            else:
                Path(json_path).write_text(text + "\n")
        except OSError as error:
            failures.append(f"--json {json_path}: {error.strerror or error}")
    if textfile_folder is not None:
        try:
            update_textfile(textfile_folder, _user(), report)
        except ProxyError as error:
            failures.append(str(error))
    return failures


def _user() -> str:
    """Who runs this, by the system's books: the environment may say anything."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's arbitrary user
        return str(os.getuid())
