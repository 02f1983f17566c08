"""The `metering-proxy` command: options to one config, every failure one line.

Rule: a command imports what it does when it does it, so that help is at once there.
"""

from __future__ import annotations

import json
import shutil
from typing import Any, NoReturn

import click

from proxy import __version__
from proxy.commands.breakeven import breakeven
from proxy.commands.calibrate import calibrate
from proxy.commands.fleet import fleet
from proxy.commands.records import records
from proxy.commands.upstreams import upstreams
from proxy.errors import ProxyError
from proxy.measure.cli import meter
from proxy.process.arithmetic import import_numpy_on_one_thread
from proxy.process.build import build_form
from proxy.process.command import (
    CommandGroup,
    HeadedOption,
    given,
    with_options,
)
from proxy.process.options import configured, settings_of, split_names
from proxy.process.terminal import echo, echo_json, run_command
from proxy.serve.config import ServeConfig, UpstreamConfig

EXAMPLES = """\b
Examples:
  metering-proxy sources
  metering-proxy serve --upstream http://127.0.0.1:8000 --power nvml
  metering-proxy meter --power nvml,rapl -- python train.py
  metering-proxy upstreams drain llama-a
"""
SERVE_EXAMPLES = """\b
Examples:
  metering-proxy serve --upstream http://127.0.0.1:8000 --power nvml
  metering-proxy serve --upstream http://127.0.0.1:8000 \\
      --power nvml --gpus 0,1
  metering-proxy serve --upstream http://127.0.0.1:8000 \\
      --power nvml,rapl,redfish=https://bmc
  metering-proxy serve --upstream http://gpu-host:8000 \\
      --power dcgm=http://gpu-host:9400/metrics
  metering-proxy serve --upstream http://head:8000 \\
      --power dcgm=http://a:9400/metrics+http://b:9400/metrics
  metering-proxy serve --upstream http://127.0.0.1:3000 --engine tgi \\
      --power none
  metering-proxy serve --upstream http://127.0.0.1:8000 --power nvml \\
      --relays 4
  metering-proxy serve --config upstreams.toml
"""
SOURCES_EXAMPLES = """\b
Examples:
  metering-proxy sources
  metering-proxy sources --gpus 0,1 nvml
  metering-proxy sources 'redfish=https://bmc#user-env=U&password-env=P'
"""


@click.group(cls=CommandGroup, epilog=EXAMPLES)
@click.version_option(f"{__version__} ({build_form()})", prog_name="metering-proxy")
def cli() -> None:
    """Stand in front of an LLM server and measure the joules of each request."""


def main() -> NoReturn:
    """Run the command; every expected failure is one line and an exit code."""
    run_command("metering-proxy", lambda: cli.main(standalone_mode=False), ProxyError)


@cli.command(epilog=SERVE_EXAMPLES)
@click.option(
    "--config",
    cls=HeadedOption,
    heading="Upstream",
    metavar="PATH",
    help="Several upstreams, each with its own sensors, and any other option, from a "
    "TOML file; in place of --upstream.",
)
@with_options(settings_of(UpstreamConfig))
@with_options(settings_of(ServeConfig))
@click.option("--announce", is_flag=True, hidden=True)
@click.pass_context
def serve(
    context: click.Context, /, announce: bool, config: str | None, **values: Any
) -> None:
    """Relay requests to --upstream, or to those of --config, and meter them.

    Bytes pass untouched and first; if a sensor fails, requests still flow and
    their energy is unknown, counted, never invented.
    """
    import_numpy_on_one_thread()
    from proxy.process.logs import log_to_stderr
    from proxy.serve.app import run
    from proxy.serve.config_file import read_config

    def from_file() -> ServeConfig:
        assert config is not None
        upstreams, shared = read_config(config, given(context))
        return configured(ServeConfig, values | shared, upstreams=upstreams)

    if config is None:
        for name in ("upstream", "power"):
            if not values[name]:
                raise click.UsageError(
                    f"Missing option '--{name}'; or name upstreams in a file: --config."
                )
        upstreams = (configured(UpstreamConfig, values, name=values["engine"]),)
        serve_config = configured(ServeConfig, values, upstreams=upstreams)
    else:
        serve_config = from_file()
    log_to_stderr(serve_config.log_level, serve_config.log_format)
    run(
        serve_config,
        _announce if announce else _greet,
        until_eof=announce,
        read_again=None if config is None else from_file,
    )


@cli.command(epilog=SOURCES_EXAMPLES)
@click.argument("asked", nargs=-1, metavar="[SOURCE[=ADDRESS]]...")
@click.option("--gpus", default="", metavar="0,1", help="Indices or UUIDs.")
@click.option("--json", "is_json", is_flag=True, help="One JSON list on stdout.")
def sources(asked: tuple[str, ...], gpus: str, is_json: bool) -> None:
    """Show which sensors this host has, and what the others lack.

    Each is read for a second or more to see how often it changes. Sensors
    reached over the network are tried when given as for --power.
    """
    from proxy.power.probe import as_json, describe_sources, find_sources

    found = find_sources(asked, split_names(gpus))
    if is_json:
        echo_json(json.dumps(as_json(found), indent=2))
    else:
        echo(describe_sources(found, shutil.get_terminal_size().columns))


cli.add_command(meter)
cli.add_command(calibrate)
cli.add_command(breakeven)
cli.add_command(upstreams)
cli.add_command(fleet)
cli.add_command(records)


def _announce(addresses: dict[str, Any]) -> None:
    print(json.dumps({"ready": True, **addresses}), flush=True)


def _greet(addresses: dict[str, Any]) -> None:
    echo(
        f"metering-proxy {__version__}: clients at {addresses['url']}, "
        f"metrics at {addresses['admin_url']}/metrics, Ctrl-C to stop"
    )
