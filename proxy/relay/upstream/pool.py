"""Connections to the one configured engine: kept while warm, made without limit.

No request ever waits for a connection of another: queueing is the engine's, and
a queue here would hide in its time to first token.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

from proxy.relay.config import RelayConfig, UpstreamAddress
from proxy.relay.counters import RelayCounters
from proxy.relay.upstream.connection import UpstreamConnection
from proxy.security.tls import distrust_of


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
