"""`metering-proxy calibrate`: the fitted constants, with units and trust."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from proxy.errors import ProxyError
from proxy.process.command import Command
from proxy.process.terminal import echo, echo_json, escaped
from proxy.security.secrets import ADMIN_TOKEN_VARIABLE, read_admin_token

if TYPE_CHECKING:
    from proxy.wire.api import SavedCalibration

EXAMPLES = """\b
Examples:
  metering-proxy calibrate constants.json
  metering-proxy calibrate --json http://127.0.0.1:9464
"""


@click.command(cls=Command, epilog=EXAMPLES)
@click.argument("where", metavar="PATH|ADMIN_URL")
@click.option("--json", "is_json", is_flag=True, help="The document on stdout.")
@click.option(
    "--admin-token-file",
    default=None,
    metavar="PATH",
    help="Token of ADMIN_URL, where it asks for one; else from "
    f"{ADMIN_TOKEN_VARIABLE}.",
)
def calibrate(where: str, is_json: bool, admin_token_file: str | None) -> None:
    """Show the constants that policy `calibrated` has fitted, per engine and model.

    PATH is what `serve --calibration` writes; ADMIN_URL is a running proxy's
    admin address, such as http://127.0.0.1:9464.
    """
    from proxy.store.fits import decoded, encoded

    entries = decoded(_content(where, admin_token_file), where)
    if is_json:
        echo_json(encoded(entries).rstrip())
    else:
        echo(as_text(entries))


def as_text(entries: Iterable[SavedCalibration]) -> str:
    """One paragraph per engine and model."""
    return "\n\n".join(_paragraph(entry) for entry in entries) or "no calibration yet"


def _paragraph(entry: SavedCalibration) -> str:
    trust = "trusted" if entry.is_fitted else f"not trusted: {entry.reason}"
    lines = [
        escaped(f"{entry.engine}, {entry.model or 'no model yet'}: {trust}"),
        f"  {entry.rows:.0f} rows of {entry.row_seconds:g} s of load",
    ]
    if entry.form is not None:
        lines.append(f"  form of the cost model: {escaped(entry.form)}")
    for name, constant in entry.constants.items():
        lines.append(
            f"  {escaped(name):26} {constant.joules:10.3g} "
            f"+- {constant.standard_error_joules:8.2g}  {escaped(constant.unit)}"
        )
    if entry.misfit is not None:
        condition = "infinite" if entry.condition is None else f"{entry.condition:.0f}"
        lines.append(
            f"  condition {condition}; {entry.misfit:.1%} of a row's energy unexplained"
        )
    if entry.form_errors:
        missed = ", ".join(
            f"{escaped(name)} {error:.1%}" for name, error in entry.form_errors.items()
        )
        lines.append(f"  rows not yet seen are missed by: {missed}")
    return "\n".join(lines)


def _content(where: str, token_file: str | None) -> bytes:
    if where.startswith(("http://", "https://")):
        from proxy.admin.client import AdminClient

        with AdminClient(where, token=read_admin_token(token_file)) as client:
            return client.calibration()
    try:
        return Path(where).read_bytes()
    except OSError as error:
        raise ProxyError(f"{where}: {error.strerror or error}") from None
