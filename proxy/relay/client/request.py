"""A client's request, and whether its head is one that goes further. Pure."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field

import httptools

from proxy.relay.client.response import Refusal
from proxy.relay.config import RelayConfig
from proxy.wire.headers import Headers, request_id_of, value_of, values_of
from proxy.wire.outline import Outline

LARGE_BODY_BYTES = 128 * 1024
"""A body up to this size is decoded at once, in 2 ms at most; a larger one is read by
its outline, made in turns of the loop."""


@dataclass(slots=True)
class ClientRequest:
    """A client's whole request: the one thing that the relay forwards."""

    method: bytes
    target: bytes
    headers: Headers
    body: bytes | bytearray
    """A large one is an array: a copy of it would cost its size again."""
    is_http_10: bool
    keeps_alive: bool
    arrived_seconds: float
    request_id: bytes = field(init=False)
    """The client's own, or a new one."""
    outline: Outline | None = None
    """Outline of a large body, once it is made."""

    @property
    def is_large(self) -> bool:
        """Whether its body takes more than a turn of the loop to read."""
        return len(self.body) > LARGE_BODY_BYTES

    @property
    def readable_body(self) -> bytes:
        """What is read of the body here: all of it, or its outline."""
        return bytes(self.body) if self.outline is None else self.outline.text

    def __post_init__(self) -> None:
        self.request_id = request_id_of(self.headers)


def checked_target(
    target: bytes, headers: Headers, version: str, config: RelayConfig
) -> bytes | Refusal:
    """The path to ask for, or why the request is refused."""
    if version not in ("1.0", "1.1"):
        return Refusal(505, "unknown_version", f"HTTP/{version} is not spoken here")
    refusal = _refusal_of_size(target, headers, config)
    if refusal is not None:
        return refusal
    if len(values_of(headers, b"host")) != 1 and version == "1.1":
        return Refusal(400, "bad_host", "exactly one Host header is needed")
    if not all(is_host(value) for value in values_of(headers, b"host")):
        return Refusal(400, "bad_host", "the Host header names no host and port")
    expected = value_of(headers, b"expect") or b"100-continue"
    if expected.lower() != b"100-continue":
        return Refusal(417, "unknown_expectation", "only 100-continue is known")
    codings = b",".join(values_of(headers, b"transfer-encoding")).lower()
    if codings and (codings != b"chunked" or version == "1.0"):
        message = "the one transfer coding known is chunked, in HTTP/1.1"
        return Refusal(501, "unknown_coding", message)
    length = value_of(headers, b"content-length") or b"0"
    if length.isdigit() and int(length) > config.max_body_bytes:
        return body_too_large(config)
    return target if target[:1] == b"/" else _relative(target)


HOST = re.compile(
    rb"(?:\[[0-9A-Za-z:.%~_-]+\]|[0-9A-Za-z._~%!$&'()*+;=-]*)(?::(\d{0,5}))?"
)
"""A name, an address, or nothing, and a port (RFC 9112, 3.2); no user, no list."""


def is_host(value: bytes) -> bool:
    """Whether the value of a Host header is one."""
    match = HOST.fullmatch(value.strip(b" \t"))
    return match is not None and int(match[1] or 0) <= 65535


def head_too_large(config: RelayConfig) -> Refusal:
    """More bytes before the blank line than anybody needs."""
    limit = config.max_head_bytes
    return Refusal(431, "head_too_large", f"headers exceed {limit} bytes")


def body_too_large(config: RelayConfig) -> Refusal:
    """More than is kept in memory for one request."""
    limit = config.max_body_bytes
    return Refusal(413, "body_too_large", f"the body exceeds {limit} bytes")


def _refusal_of_size(
    target: bytes, headers: Headers, config: RelayConfig
) -> Refusal | None:
    fields = sum(len(name) + len(value) + 4 for name, value in headers)
    if len(target) + fields > config.max_head_bytes:
        return head_too_large(config)
    if len(target) > config.max_target_bytes:
        limit = config.max_target_bytes
        return Refusal(
            414, "target_too_long", f"the request target exceeds {limit} bytes"
        )
    if len(headers) > config.max_headers:
        limit = config.max_headers
        return Refusal(431, "too_many_headers", f"more than {limit} headers")
    return None


def _relative(target: bytes) -> bytes | Refusal:
    """`http://host/path`, as sent to forward proxies, means `/path` here."""
    with contextlib.suppress(httptools.HttpParserInvalidURLError):
        url = httptools.parse_url(target)
        if (url.schema or b"").lower() in (b"http", b"https"):
            query = b"" if url.query is None else b"?" + url.query
            return bytes((url.path or b"/") + query)
    shown = target[:80].decode("latin-1")
    return Refusal(400, "bad_target", f"request target {shown!r} is not a path")
