"""Connections to one engine: bytes in, heads and pieces of body out.

A connection knows HTTP framing and nothing about requests; its receiver is told once
per read. Connections are kept while warm and made without limit: no request ever
waits for the connection of another. Queueing is the engine's, and a queue here would
hide in its time to first token.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import httptools

from proxy.relay.config import RelayConfig, UpstreamAddress
from proxy.relay.counters import RelayCounters
from proxy.security.tls import distrust_of
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


class UpstreamPool:
    """Idle connections, youngest used first, and the making of new ones."""

    def __init__(
        self,
        config: RelayConfig,
        upstream: UpstreamAddress,
        counters: RelayCounters,
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._upstream = upstream
        self._counters = counters
        self._clock = clock
        self._idle: dict[UpstreamConnection, None] = {}  # oldest first
        self._open: set[UpstreamConnection] = set()
        self._tls = config.upstream_tls.context() if upstream.is_tls else None

    def take_idle(self) -> UpstreamConnection | None:
        """The connection used last, if it is still young and open."""
        oldest = self._clock() - self._config.upstream_idle_seconds
        while self._idle:
            connection, _ = self._idle.popitem()
            self._counters.upstream_idle = len(self._idle)
            if connection.is_closed or connection.transport.is_closing():
                continue
            if connection.idle_since_seconds >= oldest:
                return connection
            connection.abort()
        return None

    async def connect(self) -> UpstreamConnection:
        """A fresh connection. Raises OSError (also for a timeout) without one."""
        loop = asyncio.get_running_loop()
        self._counters.upstream_connects += 1
        try:
            async with asyncio.timeout(self._config.connect_timeout_seconds):
                _, connection = await loop.create_connection(
                    lambda: UpstreamConnection(self._clock, self._closed),
                    self._upstream.host,
                    self._upstream.port,
                    ssl=self._tls,
                )
        except ssl.SSLError as error:
            raise OSError(distrust_of(error)) from None
        except TimeoutError:
            seconds = self._config.connect_timeout_seconds
            raise OSError(f"no connection within {seconds:g} s") from None
        if connection.is_closed:
            raise OSError("the connection was closed at once")
        self._open.add(connection)
        self._counters.upstream_open = len(self._open)
        return connection

    def give_back(self, connection: UpstreamConnection) -> None:
        """Keep a connection whose reply is whole, or close it."""
        connection.release()
        if not connection.can_be_kept:
            connection.transport.close()
            return
        connection.idle_since_seconds = self._clock()
        self._idle[connection] = None
        self._counters.upstream_idle = len(self._idle)

    def close_stale(self, now_seconds: float) -> None:
        """Close connections before the engine does (uvicorn at 5 s)."""
        oldest = now_seconds - self._config.upstream_idle_seconds
        while self._idle:
            connection = next(iter(self._idle))
            if connection.idle_since_seconds >= oldest:
                break
            del self._idle[connection]
            connection.abort()
        self._counters.upstream_idle = len(self._idle)

    def close(self) -> None:
        """Close every connection, used or not."""
        for connection in list(self._open):
            connection.abort()
        self._idle.clear()

    def _closed(self, connection: UpstreamConnection) -> None:
        self._open.discard(connection)
        self._counters.upstream_open = len(self._open)
        self._idle.pop(connection, None)
        self._counters.upstream_idle = len(self._idle)
