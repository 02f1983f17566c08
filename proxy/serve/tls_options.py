"""The options of `serve` about TLS, towards clients and towards the upstream."""

from __future__ import annotations

from collections.abc import Callable

import click


def tls_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command every TLS option; all are paths of PEM files but one flag."""
    options = [
        click.option("--tls-cert", default=None, metavar="PATH",
                     help="Certificate (and chain) to meet clients with; read again "
                     "on SIGHUP."),
        click.option("--tls-key", default=None, metavar="PATH",
                     help="Its key, without a passphrase."),
        click.option("--admin-tls", is_flag=True,
                     help="The same certificate on the admin port."),
        click.option("--upstream-ca", default=None, metavar="PATH",
                     help="Authorities that an https upstream is checked against.  "
                     "[default: the system's]"),
        click.option("--upstream-cert", default=None, metavar="PATH",
                     help="Certificate to show to an upstream that asks for one."),
        click.option("--upstream-key", default=None, metavar="PATH",
                     help="Its key, where it is a file of its own."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command
