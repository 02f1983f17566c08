"""Tokens on the wire: one write per token, past the response object's own path.

After the headers are out, events go straight to the transport as HTTP chunks.
There is no waiting for a slow reader: like a real engine's queue, the buffer of
one stream can grow to the size of its reply and no further.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from uuid import uuid4

from aiohttp import HttpVersion11, web

from loadgen.simulator.wire import EngineRefusal, TokenEvents, compact

USABLE_ID = re.compile(r"[\x21-\x7e]{1,256}")
SERVER = {"server": "servewatt-simulator"}


def request_id_of(request: web.Request) -> str:
    """The caller's `X-Request-Id` where it fits on a line, else a new one."""
    given = request.headers.get("x-request-id", "")
    return given if USABLE_ID.fullmatch(given) else uuid4().hex


class NoSink:
    """The sink of an unstreamed reply: the ticket holds its words."""

    def token(self, index: int, word: bytes, count: int, is_last: bool) -> None:
        """Nothing to send yet."""


class StreamSink:
    """One open event stream; use `opened` to make it."""

    def __init__(
        self,
        response: web.StreamResponse,
        transport: asyncio.Transport,
        events: Sequence[TokenEvents],
        *,
        is_chunked: bool,
    ) -> None:
        self._response = response
        self._transport = transport
        self._events = events
        self._is_chunked = is_chunked

    def token(self, index: int, word: bytes, count: int, is_last: bool) -> None:
        """Send the events of one token."""
        events = self._events[index]
        data = events.token(word, count, is_last)
        if self._is_chunked and data:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if count == 1:
            data = self._framed(events.opening()) + data
        if not self._transport.is_closing():
            self._transport.write(data)

    async def close(self, last_events: bytes = b"") -> web.StreamResponse:
        """Send what is left and end the stream properly."""
        for part in last_events.split(b"\n\n"):
            if part and not self._transport.is_closing():
                self._transport.write(self._framed(part + b"\n\n"))
        await self._response.write_eof()
        return self._response

    def _framed(self, data: bytes) -> bytes:
        if not data or not self._is_chunked:
            return data
        return b"%x\r\n%b\r\n" % (len(data), data)


async def opened(
    request: web.Request, events: Sequence[TokenEvents], headers: Mapping[str, str]
) -> StreamSink:
    """Send the headers of an event stream, at once, as the engines do."""
    response = web.StreamResponse(
        headers={
            "content-type": "text/event-stream; charset=utf-8",
            **SERVER,
            **headers,
        }
    )
    await response.prepare(request)
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client left before the stream was opened")
    is_chunked = request.version >= HttpVersion11
    return StreamSink(response, transport, events, is_chunked=is_chunked)


def refusal_reply(
    refusal: EngineRefusal, headers: Mapping[str, str] | None = None
) -> web.Response:
    """A refusal by status: JSON, or the plain text of a web framework."""
    if not isinstance(refusal.body, str):
        return json_reply(refusal.body, refusal.status, headers)
    return web.Response(
        text=refusal.body, status=refusal.status, headers={**SERVER, **(headers or {})}
    )


def json_reply(
    body: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """A reply in compact JSON."""
    return web.Response(
        body=compact(body),
        status=status,
        headers={"content-type": "application/json", **SERVER, **(headers or {})},
    )
