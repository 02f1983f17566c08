"""The admin port's own limits: it takes nothing from the serving port."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from proxy.process.options import Option

Seconds = Annotated[float, Meta(gt=0)]


@dataclass(frozen=True, kw_only=True)
class AdminLimits:
    """What scrapers, dashboards and strangers may take of the admin port."""

    admin_max_connections: Annotated[
        int,
        Meta(ge=1),
        Option(
            "Connections; the oldest without a whole request makes room for the next "
            "one.",
            "N",
            heading="Limits of the admin port",
        ),
    ] = 64
    """Scrapers, dashboards and a load's ledger."""
    admin_max_unread_bytes: Annotated[
        int,
        Meta(ge=1),
        Option(
            "Memory for replies that are unread; beyond, whoever has stood still "
            "longest is cut.",
            "N",
        ),
    ] = 32 * 1024 * 1024
    """A page of 10,000 records is 6 MB."""
    admin_header_timeout_seconds: Annotated[
        Seconds,
        Option("From a request's first byte to its blank line.", "S"),
    ] = 10.0
    """A TLS handshake has as long."""
    admin_idle_timeout_seconds: Annotated[
        Seconds, Option("Between two requests of a connection.", "S")
    ] = 75.0
    """Longer than any scrape interval in use."""
    admin_reply_timeout_seconds: Annotated[
        Seconds, Option("For making one reply.", "S")
    ] = 120.0
