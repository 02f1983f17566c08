"""Which proxies a command asks, or which store: options that such commands share."""

from __future__ import annotations

import functools
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click
import msgspec

from proxy.commands.when import INSTANT
from proxy.security.secrets import (
    ADMIN_TOKEN_VARIABLE,
    read_admin_token,
    without_user,
)

EXIT_INCOMPLETE = 3
"""Something is shown, but not of every proxy that was named."""


class Missing(msgspec.Struct, frozen=True):
    """A proxy that is in no sum, and why."""

    url: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Proxies by their admin addresses, or the store that they share."""

    urls: tuple[str, ...]
    store: str | None
    since: float | None
    until: float | None
    timeout: float
    admin_token_file: str | None
    ca: str | None

    def check(self) -> None:
        """Either is named, and as URLs. Raises UsageError."""
        if bool(self.urls) == (self.store is not None):
            raise click.UsageError(
                "name the admin URLs of proxies, or --store; not both"
            )
        for url in self.urls:
            if not url.startswith(("http://", "https://")):
                raise click.UsageError(
                    f"{without_user(url)!r} is no URL such as http://host:9464"
                )
        if self.ca is not None and not self._is_tls:
            raise click.UsageError("--ca is for https:// URLs; none is named")

    @property
    def _is_tls(self) -> bool:
        return any(url.startswith("https://") for url in self.urls)

    def token(self) -> str | None:
        """The secret that every proxy is sent. Raises ConfigError."""
        return read_admin_token(self.admin_token_file)

    def tls(self) -> ssl.SSLContext | None:
        """How certificates are checked. Raises ConfigError for an unusable file."""
        from proxy.security.tls import trusting

        return trusting("--ca", self.ca) if self._is_tls else None


def asks_proxies(
    *, chosen: str, timeout: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the options to a command, which gets them as `asked`, checked.

    `chosen` begins what is said of --since and --until, `timeout` says what that is
    for.
    """
    options = (
        click.argument("urls", nargs=-1, metavar="URL..."),
        click.option("--store", metavar="URL",
                     help="Records that proxies share; no proxy is asked."),
        click.option("--since", type=INSTANT, metavar="TIME",
                     help=f"{chosen} that ended since (UTC)."),
        click.option("--until", type=INSTANT, metavar="TIME",
                     help=f"{chosen} that ended before it."),
        click.option("--timeout", type=click.FloatRange(0.1, 600.0), default=5.0,
                     metavar="S", show_default=True, help=timeout),
        click.option("--admin-token-file", metavar="PATH",
                     help="Token that is sent to every proxy named; else "
                     f"{ADMIN_TOKEN_VARIABLE}."),
        click.option("--ca", metavar="PATH",
                     help="Authorities that certificates of https proxies are "
                     "checked by; else the system's."),
    )  # fmt: skip

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def gathered(
            *, urls: tuple[str, ...], store: str | None, since: float | None,
            until: float | None, timeout: float, admin_token_file: str | None,
            ca: str | None, **own: Any,
        ) -> Any:  # fmt: skip
            asked = Asked(
                urls=urls, store=store, since=since, until=until, timeout=timeout,
                admin_token_file=admin_token_file, ca=ca,
            )  # fmt: skip
            asked.check()
            return command(asked=asked, **own)

        for option in reversed(options):
            gathered = option(gathered)
        return gathered

    return decorate
