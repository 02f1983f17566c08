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

from loadgen.results.progress import Progress
from proxy.process.protocol import NativeProtocol
from proxy.wire.headers import by_name
from proxy.wire.http1 import ReplyParser

_KEPT_ERROR_BYTES = 64 * 1024  # of a body that is no stream; its message is short

MAX_REPLY_BYTES = 64 * 1024 * 1024
"""Kept of one reply: a stream of 128k tokens in events of 250 bytes is half of it."""
PIECE_BYTES = 100
"""Memory of one piece beside its bytes: its object, its stamp, its places."""


@dataclass(slots=True)
class Response:
    """The reply to one request as far as it came, stamps on the monotonic clock.

    Filled in place, so that a request cut off by a timeout or by Ctrl-C still
    has all that came before.
    """

    sent_at: float | None = None
    """When the whole request was handed to the socket; None if it never was."""
    connect_seconds: float = 0.0
    """What a connection took that had to be made first."""
    written_at: float | None = None
    """When the kernel, or our own buffer, had all of the request."""
    first_byte_at: float | None = None
    """First byte of the reply, of its head that is."""
    is_reused: bool | None = None
    """The connection had served an earlier request."""
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    """Names in lower case."""
    stamps: list[float] = field(default_factory=list)
    """One per piece; pieces that came in one read have equal stamps."""
    pieces: list[bytes] = field(default_factory=list)
    finished_at: float | None = None
    """End of the body, or of the connection."""
    failure: str | None = None
    """Reason, as text, why the reply is not complete; None if it is."""


class Connection(NativeProtocol):
    """A connection that serves one request at a time."""

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
        self._transport: asyncio.Transport
        self._reply = ReplyParser()
        self._response: Response | None = None
        self._kept_bytes = 0
        self._done: asyncio.Future[None]

    async def perform(self, request: bytes, response: Response) -> None:
        """Send `request` and fill `response` until the reply ends or fails."""
        response.is_reused = self.served > 0
        self.served += 1
        self._response = response
        self._kept_bytes = 0
        self._reply.begin(response.pieces)
        self._done = asyncio.get_running_loop().create_future()
        response.sent_at = self._now()
        self._transport.write(request)
        response.written_at = self._now()
        try:
            await self._done
        finally:
            self._response = None

    def close(self) -> None:
        """Drop the connection at once; the server sees a disconnect."""
        self.is_open = False
        self._transport.abort()

    # the event loop calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        # uvloop's transports are no subclasses of asyncio.Transport.
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        """Stamp the read, take off the HTTP framing, keep what is left."""
        stamp = self._now()
        response, reply = self._response, self._reply
        if response is None:  # no request in progress: an unannounced 408, or worse
            self.close()
            return
        failure = reply.feed(data)
        if response.first_byte_at is None:
            response.first_byte_at = stamp
        if response.status != 200:
            self._take_head(response)
        stamps = response.stamps
        fresh = len(response.pieces) - len(stamps)
        if fresh == 1:
            stamps.append(stamp)
        else:
            stamps += [stamp] * fresh
        if response.status == 200:
            self._progress.tokens += fresh
        self._kept_bytes += len(data) + PIECE_BYTES * fresh
        if failure is None and self._kept_bytes > MAX_REPLY_BYTES:
            failure = f"larger than {MAX_REPLY_BYTES >> 20} MiB; the rest was not read"
        if failure is not None:
            self._finish(response, stamp, f"the reply is {failure}")
            self.close()
        elif reply.is_complete:
            self.is_open = reply.keeps_alive
            self._finish(response, stamp)

    def connection_lost(self, error: Exception | None) -> None:
        """The other side, or the network, ended it."""
        self.is_open = False
        self._on_lost(self)
        response, stamp = self._response, self._now()
        if response is None:
            return
        if response.status is None:
            failure = "the connection was closed before any reply"
            self._finish(response, stamp, failure)
        elif error is None and self._reply.end():
            self._finish(response, stamp)
        else:
            failure = "the connection was closed in the middle of the reply"
            self._finish(response, stamp, failure)

    def _take_head(self, response: Response) -> None:
        """Take the head once it is there; bound a body that is no stream."""
        head = self._reply.head
        if response.status is None and head is not None:
            response.status = head.status
            response.headers = by_name(head.headers)
        kept_bytes = 0
        for number, piece in enumerate(response.pieces):
            if kept_bytes > _KEPT_ERROR_BYTES and response.status != 200:
                del response.pieces[number:]
                return
            kept_bytes += len(piece)

    def _finish(
        self, response: Response, stamp: float, failure: str | None = None
    ) -> None:
        response.finished_at = self.idle_since = stamp
        response.failure = failure
        self._response = None
        if not self._done.done():
            self._done.set_result(None)
