"""A server that does exactly what its script says, over real sockets on loopback.

A script is a coroutine that gets the server's end of every new connection:

    async def script(peer: Peer) -> None:
        request = await peer.request()          # None once the other side left
        await peer.send(stream_head(), chunk(sse("one")))
        await gate.wait()                       # pauses are events, never sleeps
        await peer.send(chunk(sse("two")), LAST_CHUNK)

    async with ScriptedServer(script) as server:
        ... server.url, server.requests, server.peers[0].gone

When the script returns, the connection is closed. `peer.gone` is set as soon as the
other side closes, whatever the script is doing. `Peer` is also the client's end
(`connect`), for tests that care about bytes. For tests without an event loop,
`running(script)` serves from a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, cast

LAST_CHUNK = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Message:
    """A request or a reply as it came: first line, headers, body without framing."""

    first_line: str
    headers: list[tuple[str, str]]
    """Names as sent, in order, duplicates kept."""
    body: bytes
    is_complete: bool = True
    """False when the other side closed before the end."""

    @property
    def method(self) -> str:
        """Of a request."""
        return self.first_line.split(" ")[0]

    @property
    def target(self) -> str:
        """Of a request."""
        return self.first_line.split(" ")[1]

    @property
    def status(self) -> int:
        """Of a reply."""
        return int(self.first_line.split(" ")[1])

    def all(self, name: str) -> list[str]:
        """Every value of a header, by name in any case."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def one(self, name: str) -> str | None:
        """The value of a header that appears at most once."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} appears {len(values)} times"
        return values[0] if values else None

    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


class Peer(asyncio.Protocol):
    """One end of a connection: reads and writes exactly what the test asks for."""

    def __init__(self, on_connect: Callable[[Peer], None] | None = None) -> None:
        self._on_connect = on_connect
        self._buffer = bytearray()
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self.transport: asyncio.Transport
        self.gone = asyncio.Event()
        """Set when the other side has closed (or reset) the connection."""
        self.lost = asyncio.Event()
        """Set when the connection is fully closed."""
        self.requests: list[Message] = []

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        if self._on_connect is not None:
            self._on_connect(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._arrived.set()

    def eof_received(self) -> bool:
        self.gone.set()
        self._arrived.set()
        return True  # the script decides when its own end closes

    def connection_lost(self, error: Exception | None) -> None:
        for event in (self.gone, self.lost, self._arrived, self._writable):
            event.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # scripts and tests call these

    async def send(self, *pieces: bytes) -> None:
        """Write each piece by itself; wait while the other side does not read."""
        for piece in pieces:
            if self.lost.is_set():
                return
            self.transport.write(piece)
            await self._writable.wait()

    def close(self) -> None:
        """Close after what is written; a second call does nothing."""
        self.transport.close()

    def abort(self) -> None:
        """Reset the connection."""
        self.transport.abort()

    async def some(self) -> bytes:
        """Whatever has arrived, at least one byte; empty once the other side left."""
        await self._more_than(0)
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    async def until(self, mark: bytes) -> bytes:
        """Bytes up to and with `mark`; empty if the other side left before."""
        while mark not in self._buffer:
            if not await self._more_than(len(self._buffer)):
                return b""
        return self._take(self._buffer.index(mark) + len(mark))

    async def exactly(self, size: int) -> bytes:
        """`size` bytes; fewer if the other side left before."""
        while len(self._buffer) < size:
            if not await self._more_than(len(self._buffer)):
                break
        return self._take(min(size, len(self._buffer)))

    async def request(self) -> Message | None:
        """The next whole request, None when the other side left instead."""
        head = await self.until(b"\r\n\r\n")
        if not head:
            return None
        message = await self._with_body(*_parse_head(head))
        self.requests.append(message)
        return message

    async def reply(self, *, is_head: bool = False) -> Message:
        """The next whole reply (up to the close if it has no length)."""
        head = await self.until(b"\r\n\r\n")
        assert head, f"no reply head, only {bytes(self._buffer)!r}"
        first_line, headers = _parse_head(head)
        if is_head or first_line.split(" ")[1] in ("100", "204", "304"):
            return Message(first_line, headers, b"")
        return await self._with_body(first_line, headers)

    async def _with_body(
        self, first_line: str, headers: list[tuple[str, str]]
    ) -> Message:
        by_name = {name.lower(): value for name, value in headers}
        if by_name.get("transfer-encoding", "").lower() == "chunked":
            body, is_complete = await self._chunked_body()
        elif "content-length" in by_name:
            size = int(by_name["content-length"])
            body = await self.exactly(size)
            is_complete = len(body) == size
        elif first_line.startswith("HTTP/"):
            while await self._more_than(len(self._buffer)):
                pass
            body, is_complete = self._take(len(self._buffer)), True
        else:
            body, is_complete = b"", True
        return Message(first_line, headers, body, is_complete)

    async def _chunked_body(self) -> tuple[bytes, bool]:
        body = b""
        while size_line := await self.until(b"\r\n"):
            size = int(size_line.split(b";")[0], 16)
            data = await self.exactly(size + 2)
            if len(data) < size + 2:
                return body + data, False
            body += data[:-2]
            if size == 0:
                return body, True
        return body, False

    async def _more_than(self, size: int) -> bool:
        """Wait for more than `size` buffered bytes; False when no more can come."""
        while len(self._buffer) <= size and not self.gone.is_set():
            self._arrived.clear()
            await self._arrived.wait()
        return len(self._buffer) > size

    def _take(self, size: int) -> bytes:
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data


Script = Callable[[Peer], Awaitable[None]]


@dataclass
class ScriptedServer:
    """Runs `script` for every connection; an exception in it fails the test."""

    script: Script
    host: str = "127.0.0.1"
    port: int = 0
    tls: ssl.SSLContext | None = None
    peers: list[Peer] = field(default_factory=list)
    """Every connection so far, oldest first."""
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """Base URL, without a slash at the end."""
        scheme = "http" if self.tls is None else "https"
        return f"{scheme}://{self.host}:{self.port}"

    @property
    def requests(self) -> list[Message]:
        """Requests that scripts have read, by connection, then in order."""
        return [request for peer in self.peers for request in peer.requests]

    async def __aenter__(self) -> ScriptedServer:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Peer(self._connected), self.host, self.port, ssl=self.tls
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception) and error is None:
                raise result

    async def stop(self) -> None:
        """Stop listening and drop every connection, as a crash would."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in self._tasks:
            task.cancel()
        for peer in self.peers:
            peer.abort()
            await peer.lost.wait()

    def _connected(self, peer: Peer) -> None:
        self.peers.append(peer)
        self._tasks.append(asyncio.get_running_loop().create_task(self._run(peer)))

    async def _run(self, peer: Peer) -> None:
        try:
            await self.script(peer)
        finally:
            peer.close()


async def connect(port: int, host: str = "127.0.0.1") -> Peer:
    """A raw client's end of a new connection."""
    loop = asyncio.get_running_loop()
    _, peer = await loop.create_connection(Peer, host, port)
    return peer


@contextlib.contextmanager
def running(script: Script) -> Iterator[ScriptedServer]:
    """A scripted server in a thread with a loop of its own, for synchronous tests."""
    started = threading.Event()
    holder: dict[str, Any] = {}

    async def serve() -> None:
        async with ScriptedServer(script) as server:
            stop = asyncio.Event()
            holder.update(server=server, stop=stop, loop=asyncio.get_running_loop())
            started.set()
            await stop.wait()

    def run() -> None:
        try:
            asyncio.run(serve())
        except Exception as error:  # handed to the test below
            holder["error"] = error
        finally:
            started.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    started.wait()
    try:
        yield holder["server"]
    finally:
        with contextlib.suppress(RuntimeError):  # its loop may have ended
            holder["loop"].call_soon_threadsafe(holder["stop"].set)
        thread.join()
    if "error" in holder:
        raise holder["error"]


# --- bytes to send ------------------------------------------------------------


def request_bytes(
    method: str = "POST",
    target: str = "/v1/chat/completions",
    headers: list[tuple[str, str]] | None = None,
    body: bytes = b"",
    *,
    version: str = "HTTP/1.1",
) -> bytes:
    """A request with Host and Content-Length, unless `headers` has its own."""
    lines = [("Host", "test"), *(headers or [])]
    names = {name.lower() for name, _ in lines}
    if body and not names & {"content-length", "transfer-encoding"}:
        lines.append(("Content-Length", str(len(body))))
    return _head(f"{method} {target} {version}", lines) + body


def reply_bytes(
    status: int = 200,
    body: bytes = b"{}",
    headers: list[tuple[str, str]] | None = None,
) -> bytes:
    """A JSON reply with its Content-Length; `headers` come first."""
    lines = list(headers or [])
    if "content-type" not in {name.lower() for name, _ in lines}:
        lines.append(("content-type", "application/json"))
    lines.append(("content-length", str(len(body))))
    return _head(f"HTTP/1.1 {status} Status", lines) + body


def stream_head(headers: list[tuple[str, str]] | None = None) -> bytes:
    """Head of a chunked event stream; pieces of body follow as `chunk`s."""
    lines = [
        ("content-type", "text/event-stream; charset=utf-8"),
        ("transfer-encoding", "chunked"),
        *(headers or []),
    ]
    return _head("HTTP/1.1 200 OK", lines)


def chunk(data: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def sse(*events: str | dict[str, Any]) -> bytes:
    """Events of a stream; a dict becomes compact JSON."""
    texts = (
        event if isinstance(event, str) else json.dumps(event, separators=(",", ":"))
        for event in events
    )
    return b"".join(b"data: %s\n\n" % text.encode() for text in texts)


def _head(first_line: str, headers: list[tuple[str, str]]) -> bytes:
    lines = [first_line, *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def _parse_head(head: bytes) -> tuple[str, list[tuple[str, str]]]:
    first_line, *lines = head[:-4].decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return first_line, [(name, value.strip()) for name, _, value in pairs]
