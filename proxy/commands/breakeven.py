"""`metering-proxy breakeven`: how long idle before unloading the model pays."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import click

from proxy.errors import ConfigError
from proxy.process.command import Command
from proxy.process.files import os_reason
from proxy.process.terminal import echo, echo_json
from proxy.security.secrets import ADMIN_TOKEN_VARIABLE, read_admin_token

EXAMPLES = """\b
Examples:
  metering-proxy meter --power nvml --baseline-seconds 30 --json -- \\
      ./start-engine-and-wait.sh > load.json
  metering-proxy breakeven load.json --admin http://127.0.0.1:9464
  metering-proxy breakeven --loaded-watts 72 --bare-watts 48 \\
      --load-joules 9000
"""


@click.command(cls=Command, epilog=EXAMPLES)
@click.argument("report", required=False, metavar="[REPORT]")
@click.option("--admin", default=None, metavar="URL",
              help="Proxy that has measured loaded idle, such as "
              "http://127.0.0.1:9464.")  # fmt: skip
@click.option("--loaded-watts", type=float, metavar="W",
              help="Idle power with the model loaded; else that of --admin, at rest "
              "where it was seen.")  # fmt: skip
@click.option("--bare-watts", type=float, metavar="W",
              help="Idle power without it; else REPORT's baseline, or that of "
              "--admin.")  # fmt: skip
@click.option("--load-joules", type=float, metavar="J",
              help="Energy to load it, above bare idle; else REPORT's.")  # fmt: skip
@click.option("--json", "is_json", is_flag=True, help="One JSON object on stdout.")
@click.option(
    "--admin-token-file", default=None, metavar="PATH",
    help=f"Token of the admin port, where it asks for one; else "
    f"{ADMIN_TOKEN_VARIABLE}.",
)  # fmt: skip
def breakeven(
    report: str | None,
    admin: str | None,
    loaded_watts: float | None,
    bare_watts: float | None,
    load_joules: float | None,
    is_json: bool,
    admin_token_file: str | None,
) -> None:
    """Tell how long a model must be idle before unloading it saves energy.

    REPORT is what `metering-proxy meter --json` wrote of the command that starts the
    engine and waits until it serves: its baseline is the bare idle of the boards, the
    rest is the energy of loading.
    """
    from proxy.measure.breakeven import Breakeven, as_text

    load = _Load()
    is_simulated = False
    if report is not None:
        load = _load_of(report)
        is_simulated = load.is_simulated
        bare_watts = load.bare_watts if bare_watts is None else bare_watts
        load_joules = load.joules if load_joules is None else load_joules
    if admin is not None:
        idle = _idle_of(admin, admin_token_file)
        is_simulated = is_simulated or idle.is_simulated
        loaded_watts = idle.loaded_watts if loaded_watts is None else loaded_watts
        bare_watts = idle.bare_watts if bare_watts is None else bare_watts
        if (
            None not in (load.boundary, idle.boundary)
            and load.boundary != idle.boundary
        ):
            raise ConfigError(
                f"{report} is of the boundary {load.boundary} and {admin} of "
                f"{idle.boundary}: watts of one tell nothing of the other; meter the "
                "command with the proxy's --power"
            )
    for figure, where in (
        (loaded_watts, "--loaded-watts W, or --admin of a proxy that was idle"),
        (bare_watts, "--bare-watts W, or the REPORT of a run with a baseline"),
        (load_joules, "--load-joules J, or the REPORT of a run with a baseline"),
    ):
        if figure is None:
            raise click.UsageError(f"needs {where}")
    assert loaded_watts is not None
    assert bare_watts is not None
    assert load_joules is not None
    found = Breakeven(loaded_watts, bare_watts, load_joules, load.seconds, is_simulated)
    if is_json:
        import json

        shown = {
            "model_watts": found.model_watts,
            "breakeven_seconds": found.idle_seconds,
            "hour_saves_joules": found.saved_joules(3600.0),
        }
        echo_json(json.dumps(asdict(found) | shown))
    else:
        echo(as_text(found))


def _load_of(path: str) -> _Load:
    """What a metered command has shown of loading."""
    import msgspec

    try:
        content = Path(path).read_bytes()
    except OSError as error:
        reason = os_reason(error)
        raise ConfigError(f"{path}: {reason}") from None
    try:
        report = msgspec.json.decode(content, type=_report_type())
    except msgspec.MsgspecError as error:
        raise ConfigError(
            f"{path}: no report of `metering-proxy meter --json`: {error}"
        ) from None
    if not report.sources:
        raise ConfigError(
            f"{path}: no report of `metering-proxy meter --json` with a source"
        )
    if report.exit_code or report.signal:
        ended = f"code {report.exit_code}"
        if report.signal:
            ended = f"signal {report.signal}"
        raise ConfigError(
            f"{path}: its command ended with {ended}: an engine that did not start "
            "tells nothing of loading; meter one that does"
        )
    first = report.sources[0]
    return _Load(
        first.baseline_watts,
        first.above_baseline_joules,
        report.duration_seconds,
        report.simulated,
        first.boundary,
    )


class _Load(NamedTuple):
    """Bare watts, joules above them and seconds of a metered command."""

    bare_watts: float | None = None
    joules: float | None = None
    seconds: float | None = None
    is_simulated: bool = False
    boundary: str | None = None


class _Idle(NamedTuple):
    """What a running proxy knows of idle."""

    loaded_watts: float | None
    bare_watts: float | None
    is_simulated: bool
    boundary: str | None


def _report_type() -> Any:
    """The parts of the report that are read here; made late, as msgspec is slow."""
    import msgspec

    source = msgspec.defstruct(
        "Source",
        [
            ("baseline_watts", float | None),
            ("above_baseline_joules", float | None),
            ("boundary", str | None, None),
        ],
    )
    return msgspec.defstruct(
        "Report",
        [
            ("sources", list[source]),  # type: ignore[valid-type]  # made above
            ("duration_seconds", float | None, None),
            ("exit_code", int | None, None),
            ("signal", int | str | None, None),
            ("simulated", bool, False),
        ],
    )


def _idle_of(url: str, token_file: str | None) -> _Idle:
    """Loaded watts, at rest where that was seen, and bare ones as configured."""
    from proxy.admin.client import AdminClient

    with AdminClient(url, token=read_admin_token(token_file)) as client:
        books = client.books()
    rest = books.rest_watts
    loaded = books.idle_watts if rest is None else rest
    return _Idle(loaded, books.bare_idle_watts, books.simulated, books.boundary)
