"""The `metering-proxy` command: options to one frozen `Config`, errors as a line."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import click

from proxy import __version__
from proxy.commands.calibrate import calibrate
from proxy.commands.upstreams import upstreams
from proxy.engines import DIALECTS
from proxy.errors import ProxyError
from proxy.measure.cli import meter
from proxy.meter.attribution.policies import POLICIES
from proxy.power.probe import as_json, describe_sources, find_sources
from proxy.power.sources import SOURCES, split_sources
from proxy.security.secrets import ADMIN_TOKEN_VARIABLE, without_user
from proxy.serve.app import Config, run
from proxy.serve.config_file import read_config
from proxy.serve.limit_options import limit_options, take_limits
from proxy.serve.tls_options import tls_options
from proxy.serve.upstream import MeterOptions, UpstreamConfig
from proxy.store.address import Retention, parse_retention, sqlite_url, store_url

SERVE_EXAMPLES = """\b
Examples:
  metering-proxy serve --upstream http://127.0.0.1:8000 --power nvml
  metering-proxy serve --upstream http://127.0.0.1:8000 --power nvml --gpus 0,1
  metering-proxy serve --upstream http://127.0.0.1:8000 \\
      --power nvml,rapl,redfish=https://bmc
  metering-proxy serve --upstream http://gpu-host:8000 \\
      --power dcgm=http://gpu-host:9400/metrics
  metering-proxy serve --upstream http://127.0.0.1:3000 --engine tgi --power none
"""


@click.group()
@click.version_option(__version__, prog_name="metering-proxy")
def cli() -> None:
    """Stand in front of an LLM server and say what each request cost in joules."""


def main() -> NoReturn:
    """Run the command; every expected failure is one line and an exit code."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ProxyError as error:
        click.echo(f"metering-proxy: {error}", err=True)
        sys.exit(error.exit_code)
    sys.exit(0)


def _address(
    context: click.Context, option: click.Parameter, text: str
) -> tuple[str, int]:
    """`host:port`, `:port` or `port`; port 0 is any free one."""
    host, _, port = text.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise click.BadParameter(f"{text!r} is not HOST:PORT, such as 127.0.0.1:8080")
    return host.strip("[]") or "127.0.0.1", int(port)


def _upstream(
    context: click.Context, option: click.Parameter, url: str | None
) -> str | None:
    return None if url is None else _base_url(url)


def _base_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise click.BadParameter(
            f"{without_user(url)!r} is not a base URL, such as http://127.0.0.1:8000"
        )
    if "@" in parts.netloc:
        raise click.BadParameter(
            f"the URL of {parts.hostname} holds a user or password, which would show "
            "in logs; give only host, port and path"
        )
    return url.rstrip("/")


def _engine_metrics(context: click.Context, option: click.Parameter, text: str) -> str:
    return text if text in {"auto", "none"} else _base_url(text)


def _powers(
    context: click.Context, option: click.Parameter, texts: tuple[str, ...]
) -> tuple[str, ...]:
    """Sources in order; commas separate them, and the option may be repeated."""
    found = tuple(source for text in texts for source in split_sources(text))
    if texts and not found:
        raise click.BadParameter("names no source; `none` meters no energy")
    return found


def _idle_watts(
    context: click.Context, option: click.Parameter, text: str
) -> float | None:
    """Watts, or None for `auto`: measured while nothing runs."""
    if text == "auto":
        return None
    try:
        watts = float(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither watts nor auto") from None
    if watts < 0:
        raise click.BadParameter(f"{watts:g} is below 0")
    return watts


def _names(
    context: click.Context, option: click.Parameter, text: str
) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _store(context: click.Context, option: click.Parameter, text: str) -> str | None:
    """A database URL; by default a file in the user's state folder."""
    if text == "none":
        return None
    if text == "default":
        try:
            state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        except RuntimeError:  # a user without a home, as in some containers
            raise click.BadParameter(
                "no home folder; name a database, or none"
            ) from None
        folder = Path(state) / "servewatt"
        with suppress(OSError):  # the store says what it cannot open, and goes on
            folder.mkdir(parents=True, exist_ok=True)
        return sqlite_url(folder / "records.sqlite")
    store_url(text)
    return text


def _retention(context: click.Context, option: click.Parameter, text: str) -> Retention:
    return parse_retention(text)


def _serve_options(command: Callable[..., None]) -> Callable[..., None]:
    """Every option of `serve`, in the order of its help page."""
    options = [
        click.option("--upstream", callback=_upstream, metavar="URL",
                     help="Base URL of the engine."),
        click.option("--config", default=None, metavar="PATH",
                     help="Several upstreams, each with its own sensors, and any "
                     "other option, from a TOML file; in place of --upstream."),
        click.option("--listen", default="127.0.0.1:8080", show_default=True,
                     callback=_address, help="Where clients connect."),
        click.option("--admin", default="127.0.0.1:9464", show_default=True,
                     callback=_address, help="Metrics, books and records."),
        click.option("--admin-token-file", default=None, metavar="PATH",
                     help="Secret that the admin port asks for, needed beyond "
                     f"loopback; else from {ADMIN_TOKEN_VARIABLE}."),
        click.option("--power", multiple=True, callback=_powers,
                     metavar="SOURCE[,SOURCE]",
                     help=f"Sensors: {', '.join(SOURCES)}; `sources` shows how. One "
                     "per boundary (gpu, host, node), the first is the headline."),
        click.option("--gpus", default="", callback=_names, metavar="0,1",
                     help="The engine's GPUs: indices or UUIDs.  [default: all]"),
        click.option("--engine", default="vllm", show_default=True,
                     type=click.Choice(sorted(DIALECTS)),
                     help="What the upstream speaks."),
        click.option("--engine-metrics", default="auto", show_default=True,
                     metavar="URL|auto|none", callback=_engine_metrics,
                     help="The engine's own gauges of who runs and who waits."),
        click.option("--default-model", default=None, metavar="NAME",
                     help="Of requests that name none, with several upstreams.  "
                     "[default: the first upstream's first]"),
        click.option("--session-header", default="x-session-id", show_default=True,
                     metavar="NAME", help="Requests with the same value of it go to "
                     "the same replica."),
        click.option("--policy", default="phase", show_default=True,
                     type=click.Choice(list(POLICIES)),
                     help="Headline attribution policy."),
        click.option("--calibration", default=None, metavar="PATH",
                     help="Keep the fitted constants in this JSON file."),
        click.option("--idle-watts", default="auto", show_default=True,
                     callback=_idle_watts, metavar="W|auto",
                     help="Loaded idle power; auto measures it while nothing runs."),
        click.option("--bare-idle-watts", default=None, metavar="W",
                     type=click.FloatRange(0),
                     help="Power with no weights loaded, to be shown beside loaded "
                     "idle."),
        click.option("--sample-interval", "sample_interval_seconds", default=0.02,
                     show_default=True, type=click.FloatRange(0.001, 60),
                     metavar="S", help="Seconds between two reads of the sensor."),
        click.option("--window", "window_seconds", default=0.5, show_default=True,
                     type=click.FloatRange(0.05, 60), metavar="S",
                     help="Reconcile the model with the counter over this long."),
        click.option("--tenant-header", default=None, metavar="NAME",
                     help="Request header that names the tenant."),
        click.option("--tenants", default="", callback=_names, metavar="A,B",
                     help="Tenants shown by name; any other is `other`."),
        click.option("--tenant-hash-key-file", default=None, metavar="PATH",
                     help="Show any other as a hash under this secret; then the "
                     "header may be a secret too, such as authorization."),
        click.option("--allow-unknown-routes", is_flag=True,
                     help="Pass routes on that are neither metered nor known."),
        click.option("--energy-in-response", is_flag=True,
                     help="Tell clients the energy of each reply, in the reply; "
                     "one asks or declines with `x-servewatt-energy: 1` or 0."),
        click.option("--energy-wait", "energy_wait_seconds", default=0.0,
                     show_default=True, type=click.FloatRange(0, 60), metavar="S",
                     help="Hold the end of such a reply for settled figures."),
        click.option("--store", default="default", metavar="URL|none",
                     callback=_store, help="Database of finished requests: "
                     "sqlite:///PATH, postgresql://USER@HOST/NAME, or none.  "
                     "[default: a SQLite file in ~/.local/state/servewatt]"),
        click.option("--retain", "retention", default="30d", show_default=True,
                     callback=_retention, metavar="AGE,ROWS",
                     help="Keep records for 12h, 30d, 8w; at most so many; forever."),
        click.option("--announce", is_flag=True, hidden=True),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@cli.command(epilog=SERVE_EXAMPLES)
@_serve_options
@limit_options
@tls_options
@click.pass_context
def serve(
    context: click.Context, /, announce: bool, config: str | None, **options: Any
) -> None:
    """Relay requests to --upstream, or to those of --config, and meter them.

    Bytes pass untouched and first; if a sensor fails, requests still flow and
    their energy is unknown, counted, never invented.
    """
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # httpx logs every scrape of a sensor, fifty a second
    logging.getLogger("httpx").setLevel(logging.WARNING)
    several: tuple[UpstreamConfig, ...] = ()
    if config is not None:
        several, shared = read_config(context, config)
        options |= shared
    run(
        _config(options, several), _announce if announce else _greet, until_eof=announce
    )


def _config(options: dict[str, Any], several: tuple[UpstreamConfig, ...]) -> Config:
    """Options told apart: what is the upstream's, how to meter, and the rest."""
    own = {
        name: options.pop(name)
        for name in UpstreamConfig.__dataclass_fields__
        if name in options
    }
    metering = {name: options.pop(name) for name in MeterOptions.__dataclass_fields__}
    url = options.pop("upstream")
    if not several:
        for name, value in (("upstream", url), ("power", own["power"])):
            if not value:
                raise click.UsageError(
                    f"Missing option '--{name}'; or name upstreams in a file: --config."
                )
        several = (UpstreamConfig(name=own["engine"], url=url, **own),)
    limits = take_limits(options)
    return Config(
        upstreams=several, metering=MeterOptions(**metering), limits=limits, **options
    )


@cli.command()
@click.argument("asked", nargs=-1, metavar="[SOURCE[=ADDRESS]]...")
@click.option(
    "--gpus", default="", callback=_names, metavar="0,1", help="Indices or UUIDs."
)
@click.option("--json", "is_json", is_flag=True, help="One JSON list on stdout.")
def sources(asked: tuple[str, ...], gpus: tuple[str, ...], is_json: bool) -> None:
    """Show which sensors this host has, and what the others lack.

    Each is read for a second or more to see how often it changes. Sensors
    reached over the network are tried when given as for --power.
    """
    found = find_sources(asked, gpus)
    if is_json:
        click.echo(json.dumps(as_json(found), indent=2))
    else:
        click.echo(describe_sources(found, shutil.get_terminal_size().columns))


cli.add_command(meter)
cli.add_command(calibrate)
cli.add_command(upstreams)


def _announce(addresses: dict[str, Any]) -> None:
    print(json.dumps({"ready": True, **addresses}), flush=True)


def _greet(addresses: dict[str, Any]) -> None:
    click.echo(
        f"metering-proxy {__version__}: clients at {addresses['url']}, "
        f"metrics at {addresses['admin_url']}/metrics, Ctrl-C to stop"
    )
