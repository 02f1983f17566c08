"""One HTTP/1.1 connection: writes a request, stamps and keeps what comes back.

This is the hot path: per read it takes one stamp, lets httptools strip the HTTP
framing and keeps the bytes. Nobody looks into them before the last one is here,
so the stamps are those of the network and not of our parsing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import httptools

from loadgen.results.progress import Progress

_KEPT_ERROR_BYTES = 64 * 1024  # of a body that is no stream; its message is short


@dataclass(slots=True)
class Exchange:
    """What happened to one request so far, stamps on the monotonic clock.

    Filled in place, so that a request cut off by a timeout or by Ctrl-C still
    has all that came before.
    """

    sent_at: float | None = None
    """When the whole request was handed to the socket; None if it never was."""
    is_reused: bool | None = None
    """The connection had served an earlier request."""
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    """Of the reply, names in lower case."""
    stamps: list[float] = field(default_factory=list)
    """One per piece; pieces that came in one read have equal stamps."""
    pieces: list[bytes] = field(default_factory=list)
    finished_at: float | None = None
    """End of the body, or of the connection."""
    failure: str | None = None
    """Why there is no whole reply, for a person; None if there is one."""


class Connection(asyncio.Protocol):
    """A connection that serves one exchange at a time."""

    def __init__(
        self,
        now: Callable[[], float],
        progress: Progress,
        on_lost: Callable[[Connection], None],
    ) -> None:
        self.served = 0
        self.idle_since = now()
        self.is_open = False
        self._now = now
        self._progress = progress
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser = httptools.HttpResponseParser(self)
        self._stamp = 0.0
        self._kept_bytes = 0
        self._ends_with_connection = False
        self._exchange: Exchange | None = None
        self._done: asyncio.Future[None] | None = None

    async def perform(self, request: bytes, exchange: Exchange) -> None:
        """Send `request` and fill `exchange` until the reply ends or fails."""
        assert self._transport is not None, "perform() before connection_made()"
        exchange.is_reused = self.served > 0
        exchange.headers.clear()
        self.served += 1
        self._exchange = exchange
        self._kept_bytes = 0
        self._done = asyncio.get_running_loop().create_future()
        exchange.sent_at = self._now()
        self._transport.write(request)
        try:
            await self._done
        finally:
            self._exchange = self._done = None

    def close(self) -> None:
        """Drop the connection at once; the server sees a disconnect."""
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        # uvloop's transports are no subclasses of asyncio.Transport.
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        """Stamp the read, then take off the HTTP framing."""
        self._stamp = self._now()
        if self._exchange is None:  # nobody asked: an unannounced 408, or worse
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._finish(f"the reply is not HTTP: {error}")
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        """The other side, or the network, ended it."""
        self.is_open = False
        self._on_lost(self)
        if self._exchange is None:
            return
        self._stamp = self._now()
        if self._exchange.status is None:
            self._finish("the connection was closed before any reply")
        elif self._ends_with_connection and error is None:
            self._finish()
        else:
            self._finish("the connection was closed in the middle of the reply")

    # httptools callbacks

    def on_message_begin(self) -> None:
        """A reply starts."""
        if self._exchange is None:  # a second one in the same read
            self.close()
        self._ends_with_connection = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header line."""
        if self._exchange is None:
            return
        key = name.decode("latin-1").lower()
        self._exchange.headers[key] = value.decode("latin-1")
        if key in ("content-length", "transfer-encoding"):
            self._ends_with_connection = False

    def on_headers_complete(self) -> None:
        """The status is known."""
        if self._exchange is not None:
            self._exchange.status = self._parser.get_status_code()

    def on_body(self, piece: bytes) -> None:
        """A piece of the body: kept with the stamp of its read."""
        exchange = self._exchange
        if exchange is None:
            return
        if exchange.status == 200:
            self._progress.tokens += 1
        else:
            if self._kept_bytes > _KEPT_ERROR_BYTES:
                return
            self._kept_bytes += len(piece)
        exchange.stamps.append(self._stamp)
        exchange.pieces.append(piece)

    def on_message_complete(self) -> None:
        """The reply is whole; 1xx ones only announce the real one."""
        exchange = self._exchange
        if exchange is None:
            return
        if exchange.status is not None and exchange.status < 200:
            exchange.status = None
            exchange.headers.clear()
            return
        self.is_open = self._parser.should_keep_alive()
        self._finish()

    def _finish(self, failure: str | None = None) -> None:
        if self._exchange is None:
            return
        self._exchange.finished_at = self.idle_since = self._stamp
        self._exchange.failure = failure
        self._exchange = None  # whatever else is in this read, nobody asked for it
        if self._done is not None and not self._done.done():
            self._done.set_result(None)
