"""The admin port: its own limits, so that it takes nothing from the serving port.

aiohttp serves; in front of it stands a bound on connections and on their silence. Who
has sent no whole request yet makes room for whoever comes: a scraper gets in while
strangers hold half heads. Who reads nothing of its replies makes room for others', too.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Iterator
from typing import cast

from aiohttp import web
from aiohttp.typedefs import Middleware

from proxy.admin.limits import AdminLimits
from proxy.process.supervise import Seldom

log = logging.getLogger("servewatt.admin")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class AdminConnections:
    """Every open connection of the admin port, oldest first; makes new ones."""

    def __init__(self, limits: AdminLimits | None = None) -> None:
        self.limits = limits or AdminLimits()
        self._seldom = Seldom()
        self._open: dict[asyncio.BaseTransport, AdminConnection] = {}
        self.make: Callable[[], asyncio.Protocol]
        """aiohttp's server, once it is set up."""

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[AdminConnection]:
        return iter(list(self._open.values()))

    def __call__(self) -> AdminConnection:
        """A connection that is about to be made."""
        return AdminConnection(self, self.make())

    def enter(self, connection: AdminConnection) -> bool:
        """Count it; whether there is room, made by closing the oldest idle one."""
        if len(self._open) >= self.limits.admin_max_connections:
            idle = (c for c in self._open.values() if not c.is_serving)
            oldest = next(idle, None)
            if oldest is None:
                return False
            oldest.drop()
        self._open[connection.transport] = connection
        return True

    def relieve(self) -> None:
        """Cut those that have stood still longest while too much is unread."""
        behind = [each for each in self._open.values() if each.is_behind]
        unread = sum(each.unread_bytes for each in behind)
        behind.sort(key=lambda each: each.behind_since_seconds)
        for connection in behind:
            if unread <= self.limits.admin_max_unread_bytes:
                return
            unread -= connection.unread_bytes
            if self._seldom.count("unread") is not None:
                log.warning(
                    "the admin port's replies are not read: a connection is cut "
                    "(--admin-max-unread-bytes)"
                )
            connection.drop()

    def leave(self, connection: AdminConnection) -> None:
        """It is gone; a second call does nothing."""
        self._open.pop(connection.transport, None)

    def middleware(self) -> Middleware:
        """Tells a connection that its request is whole, and that it was answered."""

        @web.middleware
        async def serve(request: web.Request, handler: Handler) -> web.StreamResponse:
            transport = request.transport
            connection = None if transport is None else self._open.get(transport)
            if connection is None:
                return await handler(request)
            connection.begin()
            try:
                return await handler(request)
            finally:
                connection.answered()

        return serve


class AdminConnection(asyncio.Protocol):
    """A connection that aiohttp serves, bounded in its silence."""

    def __init__(self, connections: AdminConnections, served: asyncio.Protocol) -> None:
        self._connections = connections
        self._limits = connections.limits
        self._served = served
        self._timer: asyncio.TimerHandle | None = None
        self._is_admitted = False
        self._is_idle = False
        self.is_serving = False
        self.is_behind = False
        """Its client reads slower than it is written to."""
        self.behind_since_seconds = 0.0
        self.transport: asyncio.Transport

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A new client."""
        self.transport = cast(asyncio.Transport, transport)
        self._is_admitted = self._connections.enter(self)
        if not self._is_admitted:
            self.transport.abort()
            return
        self._served.connection_made(transport)
        self._give(self._limits.admin_header_timeout_seconds)

    def data_received(self, data: bytes) -> None:
        """Part of a request."""
        if not self._is_admitted:
            return
        if self._is_idle:
            self._is_idle = False
            self._give(self._limits.admin_header_timeout_seconds)
        self._served.data_received(data)

    def eof_received(self) -> bool | None:
        """The client sends no more."""
        return self._served.eof_received() if self._is_admitted else None

    def pause_writing(self) -> None:
        """The client reads slowly."""
        if self._is_admitted:
            self._served.pause_writing()
            self.is_behind = True
            loop = asyncio.get_running_loop()
            self.behind_since_seconds = loop.time()
            # not in here: it may be this one that is cut, and it is being written to
            loop.call_soon(self._connections.relieve)

    def resume_writing(self) -> None:
        """The client has caught up."""
        self.is_behind = False
        if self._is_admitted:
            self._served.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        """It is gone."""
        self._connections.leave(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._is_admitted:
            self._served.connection_lost(error)

    # the connections call these

    def begin(self) -> None:
        """A request of it is whole."""
        self.is_serving = True
        self._give(self._limits.admin_reply_timeout_seconds)

    def answered(self) -> None:
        """Its reply is made; the client has as long to read it as to ask again."""
        self.is_serving, self._is_idle = False, True
        self._give(self._limits.admin_idle_timeout_seconds)

    @property
    def unread_bytes(self) -> int:
        """What waits for its client."""
        return self.transport.get_write_buffer_size()

    def drop(self) -> None:
        """Close it at once."""
        self._connections.leave(self)
        self.transport.abort()

    def _give(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds, self.drop)


class AdminServer:
    """A listening admin port; made by `listen`."""

    def __init__(self, runner: web.AppRunner, server: asyncio.Server) -> None:
        self._runner = runner
        self._server = server
        self.port = int(server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Close the port and every connection."""
        self._server.close()
        await self._runner.cleanup()


async def listen(
    app: web.Application,
    host: str,
    port: int,
    tls: ssl.SSLContext | None,
    connections: AdminConnections | None = None,
) -> AdminServer:
    """Serve `app` within the limits. Raises OSError for a port that is taken."""
    if connections is None:
        connections = AdminConnections()
    limits = connections.limits
    app.middlewares.insert(0, connections.middleware())
    runner = web.AppRunner(
        app, access_log=None, keepalive_timeout=limits.admin_idle_timeout_seconds
    )
    await runner.setup()
    assert runner.server is not None
    connections.make = runner.server
    try:
        server = await asyncio.get_running_loop().create_server(
            connections,
            host,
            port,
            ssl=tls,
            ssl_handshake_timeout=(
                None if tls is None else limits.admin_header_timeout_seconds
            ),
        )
    except OSError:
        await runner.cleanup()
        raise
    return AdminServer(runner, server)
