"""`metering-proxy meter`: options to one `MeasureConfig`, figures to stderr."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from proxy.errors import ProxyError
from proxy.measure.config import MeasureConfig
from proxy.process.command import Command, asks_for
from proxy.process.terminal import echo

if TYPE_CHECKING:
    from proxy.measure.report import CommandReport

EXAMPLES = """\b
Examples:
  metering-proxy meter -- python train.py --epochs 3
  metering-proxy meter --power nvml,rapl --gpus 0,1 -- vllm bench latency
  metering-proxy meter --power rapl --tdp host=350 -- make -j
  metering-proxy meter --json run.json --label job=17 -- ./batch.sh < prompts
  metering-proxy meter --power redfish=https://bmc --baseline 10 -- ./job
  metering-proxy meter --textfile /var/lib/node_exporter --name train \\
      -- ./train.sh
"""


@click.command(
    cls=Command, epilog=EXAMPLES, context_settings={"allow_interspersed_args": False}
)
@asks_for(MeasureConfig)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def meter(config: MeasureConfig) -> None:
    """Run a command and report the energy it took.

    Energy of training, batch inference or anything else, for each device, with
    its error, beside the figure that running time alone would give. It is that of
    the devices while the command ran: whatever else used them is in it.

    The command keeps its input, output, signals and exit code (128 + n for signal
    n, 127 not found, 126 not executable); the figures go to standard error. A
    sensor that fails stops nothing: the energy is unknown then, never 0.
    """
    from proxy.measure.report import describe
    from proxy.measure.run import meter_command
    from proxy.measure.textfile import check_textfile

    if config.textfile_folder is not None:
        check_textfile(config.textfile_folder, config.run_name, config.labels)
    report = meter_command(config)
    failures = _write(report, config.json_path, config.textfile_folder)
    with suppress(OSError):  # whoever read our standard error may be gone
        if not config.quiet:
            echo(describe(report), err=True)
        for failure in failures:
            echo(f"metering-proxy: {failure}", err=True)
    sys.exit(report.exit_code)


def _write(
    report: CommandReport, json_path: str | None, textfile_folder: Path | None
) -> list[str]:
    """Write it where it was asked; returns what failed, a line each."""
    import json

    from proxy.measure.report import as_json
    from proxy.measure.textfile import update_textfile

    failures = []
    if json_path is not None:
        text = json.dumps(as_json(report), indent=2)
        try:
            if json_path == "-":
                echo(text)
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
    """Who runs this, by the system's records: the environment may hold anything."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's arbitrary user
        return str(os.getuid())
