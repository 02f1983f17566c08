"""The options of `serve` that bound what clients may take; defaults are the relay's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any

import click

from proxy.relay.config import RelayConfig

DEFAULTS = {
    field.name: field.default
    for field in fields(RelayConfig)
    if field.default is not MISSING
}

SIZES = {
    "max_body_bytes": "Of a request's body, which is held in memory.",
    "max_head_bytes": "Of a request line and its headers.",
    "max_target_bytes": "Of a request's path and query.",
    "max_headers": "Headers of a request.",
    "max_connections": "Connections of clients; the next one gets a 503.",
    "max_connections_per_client": "From one address (IPv6: /64); 0 is no limit. In "
    "front of this proxy there may be one that is everybody's address.",
}
SECONDS = {
    "header_timeout_seconds": "From a request's first byte to its blank line.",
    "body_timeout_seconds": "Between two reads of a request's body.",
    "request_timeout_seconds": "From a request's first byte to its last.",
    "idle_timeout_seconds": "Between two requests of a connection.",
    "first_byte_timeout_seconds": "For the engine to begin its reply; 0 is no limit.",
    "read_timeout_seconds": "Between two reads of a reply; 0 is no limit.",
    "write_timeout_seconds": "Without one byte taken by a client; 0 is no limit.",
}
LIMITS = (*SIZES, *SECONDS)
"""Fields of `RelayConfig` that options set."""
MAY_BE_NONE = frozenset(
    ["first_byte_timeout_seconds", "read_timeout_seconds", "write_timeout_seconds"]
)
AT_LEAST_ZERO = frozenset(["max_connections_per_client"])


def option_of(name: str) -> str:
    """`header_timeout_seconds` is `--header-timeout`, as the other options."""
    return "--" + name.removesuffix("_seconds").replace("_", "-")


def limit_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command every limit."""
    for name in reversed(LIMITS):
        command = _option(name)(command)
    return command


def take_limits(options: dict[str, Any]) -> dict[str, Any]:
    """The limits out of all options, as `RelayConfig` has them."""
    taken = {name: options.pop(name) for name in LIMITS}
    return {
        name: None if name in MAY_BE_NONE and value == 0 else value
        for name, value in taken.items()
    }


def _option(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    if name in SIZES:
        kind: Any = click.IntRange(0 if name in AT_LEAST_ZERO else 1)
        metavar, text = "N", SIZES[name]
    else:
        kind = click.FloatRange(0, min_open=name not in MAY_BE_NONE)
        metavar, text = "S", SECONDS[name]
    default = DEFAULTS[name]
    return click.option(
        option_of(name), name, type=kind, metavar=metavar, help=text,
        default=0 if default is None else default, show_default=True,
    )  # fmt: skip
