"""`metering-proxy breakeven`: how long idle before unloading the model pays."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from proxy.errors import ConfigError
from proxy.process.command import Command
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

    load_seconds = None
    if report is not None:
        own_bare, own_joules, load_seconds = _load_of(report)
        bare_watts = own_bare if bare_watts is None else bare_watts
        load_joules = own_joules if load_joules is None else load_joules
    if admin is not None:
        loaded, bare = _idle_of(admin, admin_token_file)
        loaded_watts = loaded if loaded_watts is None else loaded_watts
        bare_watts = bare if bare_watts is None else bare_watts
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
    found = Breakeven(loaded_watts, bare_watts, load_joules, load_seconds)
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


def _load_of(path: str) -> tuple[float | None, float | None, float | None]:
    """Bare watts, joules above them and seconds of a metered command."""
    import msgspec

    try:
        document: Any = msgspec.json.decode(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path}: no report of `meter --json`: {error}") from None
    try:
        first = document["sources"][0]
        return (
            first["baseline_watts"],
            first["above_baseline_joules"],
            document["duration_seconds"],
        )
    except (KeyError, IndexError, TypeError):
        raise ConfigError(
            f"{path}: no report of `metering-proxy meter --json` with a source"
        ) from None


def _idle_of(url: str, token_file: str | None) -> tuple[float | None, float | None]:
    """Loaded watts, at rest where that was seen, and bare ones as configured."""
    from proxy.admin.client import AdminClient

    with AdminClient(url, token=read_admin_token(token_file)) as client:
        books = client.books()
    rest = books.rest_watts
    return books.idle_watts if rest is None else rest, books.bare_idle_watts
