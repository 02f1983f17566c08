"""What the relay says itself: one JSON error, in the shape of the OpenAI API. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

import msgspec

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request, or a connection, that the relay answers without the engine."""

    status: int
    code: str
    """For programs: stable, snake case."""
    message: str
    """For people: one line."""
    retry_after_seconds: int | None = None
    """When asking again may help."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the relay can say itself, as JSON: there is no one engine to ask."""

    body: bytes


def refusal_bytes(
    refusal: Refusal, request_id: bytes, *, closes: bool, has_body: bool = True
) -> bytes:
    """The whole reply; `has_body` is false for HEAD."""
    is_upstreams = refusal.code.startswith(("upstream_", "models_"))
    kind = "upstream_error" if is_upstreams else "invalid_request_error"
    error = {"message": refusal.message, "type": kind, "code": refusal.code}
    body = msgspec.json.encode({"error": error})
    more = []
    if refusal.retry_after_seconds is not None:
        more.append(b"retry-after: %d" % refusal.retry_after_seconds)
    return json_reply(
        refusal.status, body, request_id, closes=closes, has_body=has_body, more=more
    )


def json_reply(
    status: int,
    body: bytes,
    request_id: bytes,
    *,
    closes: bool,
    has_body: bool = True,
    more: Sequence[bytes] = (),
) -> bytes:
    """A whole reply of the relay's own; `more` are header lines."""
    lines = [
        b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode()),
        b"content-type: application/json",
        b"content-length: %d" % len(body),
        b"x-request-id: " + request_id,
        *more,
    ]
    if closes:
        lines.append(b"connection: close")
    return b"\r\n".join(lines) + b"\r\n\r\n" + (body if has_body else b"")
