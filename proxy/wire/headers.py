"""Header lists from one side to the other: what is dropped, kept and added. Pure.

Hop-by-hop fields end at every proxy (RFC 9110 section 7.6.1), and so does every
field that `Connection` names. `x-servewatt-` fields are between a client and this
proxy: none goes up, and none that an engine made up comes down. Order, case and
duplicates of the rest are kept.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass

Headers = list[tuple[bytes, bytes]]
"""As they came; httptools has already refused control characters."""

HOP_BY_HOP = frozenset(
    [
        b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer",
        b"transfer-encoding", b"upgrade", b"proxy-authenticate",
        b"proxy-authorization",
    ]
)  # fmt: skip
OWN_PREFIX = b"x-servewatt-"
REQUEST_ID = b"x-request-id"
MAX_REQUEST_ID_BYTES = 200

_REQUEST_SETS = frozenset([b"host", b"content-length", b"expect", REQUEST_ID])
_METERED_SETS = _REQUEST_SETS | {b"accept-encoding"}


def values_of(headers: Headers, name: bytes) -> list[bytes]:
    """Every value of a header; `name` in lower case."""
    return [value for key, value in headers if key.lower() == name]


def value_of(headers: Headers, name: bytes) -> bytes | None:
    """The first value of a header, None where it is missing."""
    return next((value for key, value in headers if key.lower() == name), None)


def end_to_end(headers: Headers, dropped: Collection[bytes] = ()) -> Headers:
    """The headers that pass a proxy, less `dropped` (lower case)."""
    named = {
        token.strip().lower()
        for value in values_of(headers, b"connection")
        for token in value.split(b",")
    }
    return [
        (name, value)
        for name, value in headers
        if (low := name.lower()) not in HOP_BY_HOP
        and low not in named
        and low not in dropped
        and not low.startswith(OWN_PREFIX)
    ]


def request_id_of(headers: Headers) -> bytes:
    """The client's `x-request-id`, or a new one where it has none fit to pass on."""
    value = value_of(headers, REQUEST_ID) or b""
    text = value.decode("latin-1")
    if 0 < len(text) <= MAX_REQUEST_ID_BYTES and text.isascii() and text.isprintable():
        return value
    return uuid.uuid4().hex.encode()


def staying_here(headers: Headers, authority: bytes, prefix: bytes) -> Headers:
    """A redirect to the address that an upstream is asked at, as a path of this proxy.

    An engine makes it of the Host that it was sent, its own (vLLM answers a trailing
    slash so): a client that follows it would get there and pass the proxy by. Any other
    location stays as it is, and so does one that as a path would name another host.
    """
    return [
        (name, _path_here(value, authority, prefix))
        if name.lower() == b"location"
        else (name, value)
        for name, value in headers
    ]


def _path_here(location: bytes, authority: bytes, prefix: bytes) -> bytes:
    scheme, _, rest = location.partition(b"://")
    host, slash, path = rest.partition(b"/")
    is_own = scheme.lower() in (b"http", b"https") and host.lower() == authority.lower()
    if not (is_own and slash) or not (slash + path).startswith(prefix + b"/"):
        return location
    here = (slash + path).removeprefix(prefix)
    return location if here.startswith((b"//", b"/\\")) else here


def request_head(
    method: bytes,
    target: bytes,
    headers: Headers,
    *,
    authority: bytes,
    request_id: bytes,
    body_size: int,
    is_metered: bool,
) -> bytes:
    """The head of the request to the engine.

    A metered reply must be readable, so compression is not offered for it.
    """
    dropped = _METERED_SETS if is_metered else _REQUEST_SETS
    lines = [b"%s %s HTTP/1.1" % (method, target), b"Host: " + authority]
    lines += [b"%s: %s" % field for field in end_to_end(headers, dropped)]
    if is_metered:
        lines.append(b"accept-encoding: identity")
    lines.append(b"x-request-id: " + request_id)
    if body_size or method in (b"POST", b"PUT", b"PATCH"):
        lines.append(b"content-length: %d" % body_size)
    return b"\r\n".join(lines) + b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class ReplyFraming:
    """The head of a reply to this client, and how its body ends."""

    head: bytes
    is_chunked: bool
    keeps_alive: bool


def frame_reply(
    status: int,
    reason: bytes,
    headers: Headers,
    *,
    request_id: bytes,
    has_body: bool,
    has_length: bool,
    is_http_10: bool,
    keeps_alive: bool,
) -> ReplyFraming:
    """The engine's length where it holds (`has_length`), else chunks.

    HTTP/1.0 has no chunks: there the end of the connection ends the body.
    """
    passed = end_to_end(headers, {REQUEST_ID})
    # An engine may name its length in `Connection`: then it does not pass.
    has_length = has_length and value_of(passed, b"content-length") is not None
    is_framed = has_length or not has_body
    is_chunked = not is_framed and not is_http_10
    keeps_alive = keeps_alive and (is_framed or is_chunked)
    if not is_framed:
        passed = [field for field in passed if field[0].lower() != b"content-length"]
    lines = [b"HTTP/1.1 %d %s" % (status, reason)]
    lines += [b"%s: %s" % field for field in passed]
    lines.append(b"x-request-id: " + request_id)
    if is_event_stream(headers) and value_of(passed, b"x-accel-buffering") is None:
        lines.append(b"X-Accel-Buffering: no")
    if is_chunked:
        lines.append(b"transfer-encoding: chunked")
    if not keeps_alive:
        lines.append(b"connection: close")
    elif is_http_10:
        lines.append(b"connection: keep-alive")
    head = b"\r\n".join(lines) + b"\r\n\r\n"
    return ReplyFraming(head, is_chunked, keeps_alive)


def is_event_stream(headers: Headers) -> bool:
    """Whether a reply says that it is `text/event-stream`."""
    content_type = value_of(headers, b"content-type") or b""
    return content_type.lstrip().lower().startswith(b"text/event-stream")


def is_compressed(headers: Headers) -> bool:
    """Whether a reply's bytes must be decoded before anyone can read them."""
    codings = values_of(headers, b"content-encoding")
    return any(value.strip().lower() not in (b"", b"identity") for value in codings)


def media_type(headers: Mapping[str, str]) -> str:
    """What a reply says that it is, without parameters; empty if it does not."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def by_name(headers: Headers) -> dict[str, str]:
    """Lower-case names to values, for a dialect; the last of duplicates."""
    return {
        name.decode("latin-1").lower(): value.decode("latin-1")
        for name, value in headers
    }
