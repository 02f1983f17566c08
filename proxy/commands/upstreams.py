"""`metering-proxy upstreams`: which serve, which are down, and draining by hand."""

from __future__ import annotations

import time

import click

from proxy.process.command import Command
from proxy.process.terminal import echo, escaped
from proxy.security.secrets import ADMIN_TOKEN_VARIABLE, read_admin_token
from proxy.wire.api import UpstreamReply

EXAMPLES = """\b
Examples:
  metering-proxy upstreams
  metering-proxy upstreams drain llama-a
  metering-proxy upstreams resume llama-a
"""


@click.command(cls=Command, epilog=EXAMPLES)
@click.argument("action", required=False, type=click.Choice(["drain", "resume"]))
@click.argument("name", required=False)
@click.option("--admin", default="http://127.0.0.1:9464", show_default=True,
              metavar="URL", help="Admin address of the proxy.")  # fmt: skip
@click.option(
    "--admin-token-file", default=None, metavar="PATH",
    help=f"Token of the admin port, where it asks for one; else "
    f"{ADMIN_TOKEN_VARIABLE}.",
)  # fmt: skip
def upstreams(
    action: str | None, name: str | None, admin: str, admin_token_file: str | None
) -> None:
    """Show the upstreams of a running proxy; drain one, or let it serve again.

    An upstream that is drained gets nothing new and finishes what it has: wait
    until nothing is in flight there, then restart it.
    """
    if action is not None and name is None:
        raise click.UsageError(f"{action} needs the NAME of an upstream")
    from proxy.admin.client import AdminClient

    with AdminClient(admin, token=read_admin_token(admin_token_file)) as client:
        if action is None or name is None:
            shown = client.upstreams()
        else:
            shown = [client.set_draining(name, action == "drain")]
    echo(table(shown, time.time()))


def table(shown: list[UpstreamReply], unix_seconds: float) -> str:
    """One line for each upstream, and why one is down."""
    row = "{:<16} {:<9} {:>6} {:>9}  {:<28} {}".format
    lines = [row("upstream", "state", "since", "in flight", "url", "models")]
    for each in shown:
        lines.append(
            row(
                escaped(each.name),
                each.state,
                _age(unix_seconds - each.since_unix_seconds),
                each.requests_in_flight,
                escaped(each.url),
                "any" if each.models is None else escaped(", ".join(each.models)),
            ).rstrip()
        )
        if each.reason:
            lines.append(f"  {escaped(each.reason)}")
    return "\n".join(lines)


def _age(seconds: float) -> str:
    seconds = max(0.0, seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"
