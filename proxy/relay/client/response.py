"""The client's side of a reply: the engine's, or the relay's own in its place.

`Outgoing.write` is called once per read of the engine; the head leaves with the
first bytes. The relay's own errors have the shape of the OpenAI API.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus

import msgspec

from proxy.relay.event_search import UsageFilter
from proxy.wire.headers import Headers, frame_reply, is_compressed, is_event_stream
from proxy.wire.http1 import ReplyHead, chunk_of

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request, or a connection, that the relay answers without the engine."""

    status: int
    code: str
    """For programs: stable, snake case."""
    message: str
    """For readers: one line."""
    retry_after_seconds: int | None = None
    """When asking again may help."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The JSON that the relay answers itself: there is no one engine to ask."""

    body: bytes


def own_reply(
    answer: Answer | Refusal, request_id: bytes, *, closes: bool, has_body: bool = True
) -> bytes:
    """The bytes of a reply of the relay's own; `has_body` is false for HEAD."""
    status, more = 200, []
    if isinstance(answer, Refusal):
        status, body = answer.status, _error_body(answer)
        if answer.retry_after_seconds is not None:
            more.append(b"retry-after: %d" % answer.retry_after_seconds)
    else:
        body = answer.body
    if closes:
        more.append(b"connection: close")
    lines = [
        b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode()),
        b"content-type: application/json",
        b"content-length: %d" % len(body),
        b"x-request-id: " + request_id,
        *more,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + (body if has_body else b"")


def _error_body(refusal: Refusal) -> bytes:
    is_upstreams = refusal.code.startswith(("upstream_", "models_"))
    kind = "upstream_error" if is_upstreams else "invalid_request_error"
    error = {"message": refusal.message, "type": kind, "code": refusal.code}
    return msgspec.json.encode({"error": error})


class Outgoing:
    """The client's side of one reply."""

    __slots__ = (
        "_filter",
        "_head",
        "_is_chunked",
        "_is_head_request",
        "_is_http_10",
        "_request_id",
        "_transport",
        "_unread_bytes",
        "_unread_since_seconds",
        "has_left",
        "keeps_alive",
        "status",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        request_id: bytes,
        *,
        is_http_10: bool,
        is_head_request: bool,
        keeps_alive: bool,
    ) -> None:
        self._transport = transport
        self._request_id = request_id
        self._is_http_10 = is_http_10
        self._is_head_request = is_head_request
        self._filter: UsageFilter | None = None
        self._head = b""
        self._is_chunked = False
        self._unread_bytes = 0
        self._unread_since_seconds = 0.0
        self.has_left = False
        """Whether the client has been sent any of the reply."""
        self.keeps_alive = keeps_alive
        """Whether the client's connection outlives this reply."""
        self.status: int | None = None
        """Status of the reply that is being sent."""

    def drop_usage(self, usage_filter: UsageFilter | None) -> None:
        """The relay asked for usage itself: take the event out of a stream again.

        None: it was refused that, and asks no more.
        """
        self._filter = usage_filter

    def begin(self, head: ReplyHead) -> None:
        """Decide the framing; again, with another head, while nothing has left."""
        may_be_stream = is_event_stream(head.headers) or not head.has_length
        if not may_be_stream or is_compressed(head.headers):
            self._filter = None  # else a stream, whatever its type is called
        framing = frame_reply(
            head.status,
            head.reason,
            head.headers,
            request_id=self._request_id,
            has_body=not (self._is_head_request or head.status in (204, 304)),
            has_length=head.has_length and not head.is_chunked and not self._filter,
            is_http_10=self._is_http_10,
            keeps_alive=self.keeps_alive,
        )
        self._head = framing.head
        self.status = head.status
        self._is_chunked = framing.is_chunked
        self.keeps_alive = framing.keeps_alive

    def write(self, data: bytes, *, is_last: bool) -> None:
        """Send one read of the body on, as far as the filter lets it pass."""
        out = data
        if self._filter is not None:
            out = self._filter.feed(data)
            if is_last:
                out += self._filter.flush()
        if self._is_chunked:
            if out:
                out = chunk_of(out)
            if is_last:
                out += b"0\r\n\r\n"
        if not self.has_left:
            out = self._head + out
            self.has_left = True
        if out:
            self._transport.write(out)

    def pass_chunk(self, chunk: bytes) -> bool:
        """Send a chunk on as it came; false where it has to be written anew."""
        passes = (
            self._is_chunked
            and self.has_left
            and (self._filter is None or self._filter.passes(chunk))
        )
        if passes:
            self._transport.write(chunk)
        return passes

    def is_stuck(self, now_seconds: float, limit_seconds: float | None) -> bool:
        """Whether the client has taken no byte for so long; asked while it is behind.

        However slowly it reads, it is not: then what waits for it changes. The first
        question, without a limit, begins the time.
        """
        unread = self._transport.get_write_buffer_size()
        if limit_seconds is None or unread != self._unread_bytes:
            self._unread_bytes = unread
            self._unread_since_seconds = now_seconds
            return False
        return now_seconds - self._unread_since_seconds >= limit_seconds

    def answer(self, answer: Answer | Refusal) -> None:
        """The relay's own reply instead of the engine's; nothing has left yet."""
        self.status = answer.status if isinstance(answer, Refusal) else 200
        self._transport.write(
            own_reply(
                answer,
                self._request_id,
                closes=not self.keeps_alive,
                has_body=not self._is_head_request,
            )
        )


def with_length(headers: Headers, length: int) -> Headers:
    """The same headers, with another Content-Length where they have one."""
    return [
        (name, b"%d" % length if name.lower() == b"content-length" else value)
        for name, value in headers
    ]
