"""Connections to one engine: bytes in, heads and pieces of body out.

A connection knows HTTP framing and nothing about requests; it calls its receiver once
per read. Connections are kept while warm and made without limit: no request ever
waits for the connection of another. Queueing is the engine's, and a queue here would
hide in its time to first token.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from typing import cast

from proxy.process.protocol import NativeProtocol, factory_of
from proxy.relay.config import RelayConfig, UpstreamAddress
from proxy.relay.counters import RelayCounters
from proxy.security.tls import distrust_of
from proxy.wire.http1 import ReplyHead, ReplyParser
from proxy.wire.outline import Buffer


class Receiver:
    """The exchange that gets the reply of the request in progress.

    A base class and no `Protocol`, whose methods are looked up at each call.
    """

    __slots__ = ("is_head_request",)

    is_head_request: bool
    """The reply to HEAD has no body, whatever its length says."""

    def begin(self, head: ReplyHead) -> None:
        """The head is whole; `deliver` follows in the same read."""

    def deliver(self, at_seconds: float, data: bytes, is_last: bool) -> None:
        """All that one read brought (maybe nothing but the head or the end)."""

    def deliver_chunk(self, at_seconds: float, chunk: bytes, data_at: int) -> None:
        """All that one read brought: a whole chunk, see `ReplyParser.chunk_at`."""

    def upstream_lost(self, reason: str) -> None:
        """The reply will not become whole."""


class UpstreamConnection(NativeProtocol):
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
        self._reply = ReplyParser()
        self._pieces: list[bytes] = []
        self._has_passed_head = False
        self.transport: asyncio.Transport
        self.is_closed = False
        self.was_used = False
        self.was_unread = False
        """The request was lost, and the engine had not received a byte of it."""
        self.idle_since_seconds = 0.0
        self._acked_bytes: int | None = None

    # one exchange

    def send(self, receiver: Receiver, request: Sequence[Buffer | memoryview]) -> None:
        """Send a request, in pieces; the reply goes to `receiver`."""
        self._receiver = receiver
        self._has_passed_head = False
        self._pieces.clear()
        if self.was_used:
            self._acked_bytes = acked_bytes(self.transport)
        self._reply.begin(self._pieces, is_head_request=receiver.is_head_request)
        for piece in request:
            self.transport.write(piece)

    @property
    def has_answered(self) -> bool:
        """Whether even one byte of the reply came."""
        return self._reply.has_begun

    @property
    def can_be_kept(self) -> bool:
        """Whether another request may follow the reply that just ended."""
        return (
            self._reply.keeps_alive
            and not self.is_closed
            and self.transport.get_write_buffer_size() == 0
        )

    def release(self) -> None:
        """The exchange is over; bytes that still come are dropped."""
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
        receiver, reply = self._receiver, self._reply
        if receiver is None:
            self.abort()  # bytes that no request asked for
            return
        data_at = reply.chunk_at(data)
        if data_at:
            receiver.deliver_chunk(at_seconds, data, data_at)
            return
        failure = reply.feed(data)
        if reply.head is not None:
            if not self._has_passed_head:
                self._has_passed_head = True
                receiver.begin(reply.head)
            pieces = self._pieces
            body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            receiver.deliver(at_seconds, body, reply.is_complete)
        if failure is not None:
            self._lose(f"sent a reply that is {failure}")

    def eof_received(self) -> None:
        """The engine closed: the end of a reply without a length, else a loss."""
        receiver = self._receiver
        if receiver is None:
            return
        if self._reply.end():
            receiver.deliver(self._clock(), b"", True)
        else:
            self._lose("closed the connection")

    def connection_lost(self, error: Exception | None) -> None:
        """Tell the exchange, if any, and the pool."""
        self.is_closed = True
        if self._receiver is not None:
            self._lose(f"closed the connection ({error})" if error else "closed")
        self._on_closed(self)

    def _lose(self, reason: str) -> None:
        receiver, self._receiver = self._receiver, None
        if self.was_used and self._acked_bytes is not None:
            self.was_unread = acked_bytes(self.transport) == self._acked_bytes
        self.transport.abort()
        if receiver is not None:
            receiver.upstream_lost(reason)


_TCP_INFO_BYTES = 128
_ACKED_BYTES = slice(120, 128)
"""`tcpi_bytes_acked` in Linux's `struct tcp_info`, since 4.1."""


def acked_bytes(transport: asyncio.BaseTransport) -> int | None:
    """Bytes the other side's kernel has received; None where nobody counts them."""
    sock = transport.get_extra_info("socket")
    option = getattr(socket, "TCP_INFO", None)
    if sock is None or option is None or sys.platform != "linux":
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, option, _TCP_INFO_BYTES)
    except OSError:
        return None
    if len(info) < _TCP_INFO_BYTES:
        return None
    return int.from_bytes(info[_ACKED_BYTES], sys.byteorder)


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

    def use_tls(self, context: ssl.SSLContext) -> None:
        """For new connections of an https upstream; kept ones close when idle."""
        if self._tls is not None:
            self._tls = context

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
        connection = UpstreamConnection(self._clock, self._closed)
        try:
            async with asyncio.timeout(self._config.connect_timeout_seconds):
                await loop.create_connection(
                    factory_of(connection),
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
