"""A client's request, whole."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.wire.headers import Headers


@dataclass(slots=True)
class Request:
    """A whole request of a client, as parsed."""

    method: bytes
    target: bytes
    headers: Headers
    body: bytes
    is_http_10: bool
    keeps_alive: bool
    arrived_seconds: float
