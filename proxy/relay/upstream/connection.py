"""One connection to the engine: bytes in, heads and pieces of body out.

Knows HTTP framing and nothing about requests; `Exchange` is told once per read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import httptools

from proxy.wire.headers import Headers, value_of, values_of

MAX_HEAD_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class ReplyHead:
    """A reply up to its blank line."""

    status: int
    reason: bytes
    headers: Headers
    is_chunked: bool
    has_length: bool


class Receiver(Protocol):
    """Who gets the reply of the request in progress."""

    is_head_request: bool
    """The reply to HEAD has no body, whatever its length says."""

    def begin(self, head: ReplyHead) -> None:
        """The head is whole; `deliver` follows in the same read."""

    def deliver(self, at_seconds: float, data: bytes, is_last: bool) -> None:
        """All that one read brought (maybe nothing but the head or the end)."""

    def upstream_lost(self, reason: str) -> None:
        """The reply will not become whole."""


class UpstreamConnection(asyncio.Protocol):
    """A connection that serves one exchange after another.

    `was_used` tells a kept connection from a fresh one: only a kept one can turn
    out to be closed by the engine in the moment of its use.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        on_closed: Callable[[UpstreamConnection], None],
    ) -> None:
        self._clock = clock
        self._on_closed = on_closed
        self._receiver: Receiver | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._pieces: list[bytes] = []
        # Called by the parser for each piece: the list's own method, no frame.
        self.on_body = self._pieces.append
        self.transport: asyncio.Transport
        self.is_closed = False
        self.was_used = False
        self.idle_since_seconds = 0.0
        self._reset()

    def _reset(self) -> None:
        self._headers: Headers = []
        self._reason = b""
        self._head: ReplyHead | None = None
        self._is_new_head = False
        self._is_complete = False
        self._can_be_kept = False
        self._extra_from: int | None = None
        self._head_bytes = 0
        self._pieces.clear()

    # one exchange

    def send(self, receiver: Receiver, request: bytes) -> None:
        """Send a request; the reply goes to `receiver`."""
        self._reset()
        self._receiver = receiver
        self._parser = httptools.HttpResponseParser(self)
        self.transport.write(request)

    @property
    def has_answered(self) -> bool:
        """Whether even one byte of the reply came."""
        return self._head is not None or self._head_bytes > 0

    @property
    def can_be_kept(self) -> bool:
        """Whether another request may follow the reply that just ended."""
        return (
            self._can_be_kept
            and not self.is_closed
            and self.transport.get_write_buffer_size() == 0
        )

    def release(self) -> None:
        """The exchange is over; nobody gets what may still come."""
        self._receiver = None
        self.was_used = True

    def abort(self) -> None:
        """Close at once, unsent bytes dropped: the engine stops generating."""
        self._receiver = None
        self.transport.abort()

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        """Stamp, parse the framing, hand on."""
        at_seconds = self._clock()
        receiver = self._receiver
        if receiver is None or self._parser is None:
            self.abort()  # bytes that no request asked for
            return
        failure: str | None = None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            failure = "switched protocols"
        except httptools.HttpParserError as error:
            failure = f"sent what is not HTTP: {error}"
        pieces = self._pieces
        if self._head is not None:
            if self._extra_from is not None:
                del pieces[self._extra_from :]
            if self._is_new_head:
                self._begin(receiver)
            body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            receiver.deliver(at_seconds, body, self._is_complete)
        else:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                failure = f"sent a head of more than {MAX_HEAD_BYTES} bytes"
        if failure is not None and not self._is_complete:
            self._lose(failure)

    def eof_received(self) -> None:
        """The engine closed: the end of a reply without a length, else a loss."""
        receiver, head = self._receiver, self._head
        if receiver is None:
            return
        if head is not None and not head.is_chunked and not head.has_length:
            self._can_be_kept = False
            receiver.deliver(self._clock(), b"", True)
        else:
            self._lose("closed the connection")

    def connection_lost(self, error: Exception | None) -> None:
        """Tell the exchange, if any, and the pool."""
        self.is_closed = True
        if self._receiver is not None:
            self._lose(f"closed the connection ({error})" if error else "closed")
        self._on_closed(self)

    def pause_writing(self) -> None:
        """A request is held whole in memory anyway: nothing to slow down."""

    def resume_writing(self) -> None:
        """As above."""

    def _lose(self, reason: str) -> None:
        receiver, self._receiver = self._receiver, None
        self.transport.abort()
        if receiver is not None:
            receiver.upstream_lost(reason)

    def _begin(self, receiver: Receiver) -> None:
        assert self._head is not None
        self._is_new_head = False
        receiver.begin(self._head)
        if receiver.is_head_request:
            # The parser waits for a body that never comes; do not use it again.
            self._is_complete = True
            self._can_be_kept = False
            self._pieces.clear()

    # httptools calls these

    def on_message_begin(self) -> None:
        """A reply after the whole one: nobody asked, and it is not passed on."""
        if self._is_complete and self._extra_from is None:
            self._can_be_kept = False
            self._extra_from = len(self._pieces)

    def on_status(self, reason: bytes) -> None:
        """The reason phrase (may come in pieces)."""
        if self._head is None:
            self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; after the body they are trailers, which end here."""
        if self._head is None:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """A head, unless it is an interim one (100, 103), which ends here."""
        assert self._parser is not None
        if self._is_complete:
            return
        status = self._parser.get_status_code()
        if status < 200:
            self._headers, self._reason = [], b""
            return
        codings = (
            b",".join(values_of(self._headers, b"transfer-encoding")).strip().lower()
        )
        if codings not in (b"", b"identity", b"chunked"):
            raise ValueError("a transfer coding that nobody asked for")
        self._head = ReplyHead(
            status=status,
            reason=self._reason,
            headers=self._headers,
            is_chunked=codings == b"chunked",
            has_length=value_of(self._headers, b"content-length") is not None,
        )
        self._is_new_head = True

    def on_message_complete(self) -> None:
        """The reply is whole (not an interim one)."""
        if self._head is not None and not self._is_complete:
            assert self._parser is not None
            self._is_complete = True
            self._can_be_kept = self._parser.should_keep_alive()
