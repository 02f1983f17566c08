"""A reply on its way to the client: its head, its framing, its usage event dropped.

`write` is called once per read of the engine; the head leaves with the first bytes.
"""

from __future__ import annotations

import asyncio

from proxy.relay.replies import Answer, Refusal, json_reply, refusal_bytes
from proxy.relay.upstream.connection import ReplyHead
from proxy.relay.usage_filter import UsageFilter
from proxy.wire.headers import Headers, frame_reply, is_compressed, is_event_stream


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
        "has_begun",
        "keeps_alive",
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
        self._head: bytes | None = None
        self._is_chunked = False
        self._unread_bytes = 0
        self._unread_since_seconds = 0.0
        self.has_begun = False
        self.keeps_alive = keeps_alive
        """Whether the client's connection outlives this reply."""

    @property
    def has_left(self) -> bool:
        """Whether the client has seen any of the reply."""
        return self.has_begun and self._head is None

    def drop_usage(self, usage_filter: UsageFilter) -> None:
        """The relay asked for usage itself: take the event out of a stream again."""
        self._filter = usage_filter

    def begin(self, head: ReplyHead) -> None:
        """Decide the framing; again, with another head, while nothing has left."""
        self.has_begun = True
        if not is_event_stream(head.headers) or is_compressed(head.headers):
            self._filter = None
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
        self._is_chunked = framing.is_chunked
        self.keeps_alive = framing.keeps_alive

    def write(self, data: bytes, *, is_last: bool) -> None:
        """Out with it."""
        out = data
        if self._filter is not None:
            out = self._filter.feed(data)
            if is_last:
                out += self._filter.flush()
        if self._is_chunked:
            if out:
                out = b"%x\r\n%b\r\n" % (len(out), out)
            if is_last:
                out += b"0\r\n\r\n"
        if self._head is not None:
            out = self._head + out
            self._head = None
        if out:
            self._transport.write(out)

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

    def answer(self, answer: Answer) -> None:
        """The relay's own reply where there is no one engine to ask."""
        self._transport.write(
            json_reply(
                200,
                answer.body,
                self._request_id,
                closes=not self.keeps_alive,
                has_body=not self._is_head_request,
            )
        )

    def refuse(self, refusal: Refusal) -> None:
        """The relay's own reply instead of the engine's; nothing has left yet."""
        self._transport.write(
            refusal_bytes(
                refusal,
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
