"""The relay as a whole: listens, beats, drains, closes."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from proxy.engines.dialect import Dialect
from proxy.errors import ProxyError
from proxy.relay.client.connection import ClientConnection
from proxy.relay.client.limits import Clients
from proxy.relay.config import RelayConfig
from proxy.relay.counters import RelayCounters
from proxy.relay.energy_trailer import Provenance
from proxy.relay.exchange import Core
from proxy.relay.routing.labels import LabelReader
from proxy.relay.routing.routing import Chooser
from proxy.relay.tap import RequestMeter
from proxy.relay.turns import LargeReads, Turns
from proxy.relay.upstream.upstream import Upstream, open_upstream

BEAT_BUDGET_SECONDS = 0.002
"""Longest stretch of parsing before chunks that have arrived get their turn."""

LOOK_BEATS = 4
"""A deadline is noticed so many beats late at most, 0.2 s: the shortest is seconds."""

BACKLOG = 4096
"""Connections of a burst that may wait for their accept; the system's cap holds."""


TLS_SHUTDOWN_SECONDS = 2.0
"""For a client's closing of TLS; the reply is out already."""


class RelayServer:
    """A listening relay; made by `start_relay`."""

    def __init__(
        self,
        config: RelayConfig,
        upstreams: Sequence[Upstream],
        counters: RelayCounters,
        clock: Callable[[], float],
        *,
        shares_port: bool = False,
    ) -> None:
        """`shares_port` with other processes: the kernel deals connections out."""
        self._shares_port = shares_port
        self.counters = counters
        self._clients = Clients(config, counters)
        self._server: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._beats = 0
        self._left: list[Upstream] = []
        """Upstreams that get nothing new and have connections."""
        self._drained: asyncio.Event = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._core = Core(
            config=config,
            upstreams=tuple(upstreams),
            chooser=Chooser(config, upstreams),
            labels=LabelReader(
                config.tenant_header, frozenset(config.tenants), config.tenant_hash_key
            ),
            counters=self.counters,
            clock=clock,
            loop=loop,
            unparsed=deque(),
            turns=Turns(loop, clock),
            large_reads=LargeReads(loop),
            exchanges=set(),
            on_exchange_over=self._exchange_over,
        )
        self.port = config.port

    async def listen(self) -> None:
        """Open the port. Raises ProxyError when it is taken or not ours."""
        config = self._core.config
        try:
            self._server = await self._core.loop.create_server(
                lambda: ClientConnection(self._core, self._clients),
                config.host,
                config.port,
                backlog=BACKLOG,
                reuse_port=self._shares_port or None,
                **_tls_arguments(config),
            )
        except OSError as error:
            reason = error.strerror or str(error)
            raise ProxyError(
                f"cannot listen on {config.host}:{config.port}: {reason}; "
                "give another --listen address, or port 0 for any free one"
            ) from None
        self.port = self._server.sockets[0].getsockname()[1]
        self._beat()

    def take_upstreams(self, upstreams: Sequence[Upstream]) -> None:
        """Route to these from now on; requests under way stay where they are."""
        core = self._core
        self._left += [each for each in core.upstreams if each not in upstreams]
        core.upstreams = tuple(upstreams)
        core.chooser = Chooser(core.config, upstreams)

    def use_hash_key(self, tenant_hash_key: str) -> None:
        """Hash tenants under this secret from now on."""
        self._core.labels.use_hash_key(tenant_hash_key)

    async def drain(self, timeout_seconds: float) -> int:
        """Take no new connections, let requests finish; how many were left over."""
        self._stop_listening()
        for client in self._clients:
            client.finish_and_close()
        if self.counters.in_flight:
            self._drained.clear()
            try:
                async with asyncio.timeout(timeout_seconds):
                    await self._drained.wait()
            except TimeoutError:
                pass
        return self.counters.in_flight

    async def close(self) -> None:
        """Cut what is left, account for it, close every connection."""
        self._stop_listening()
        for exchange in list(self._core.exchanges):
            exchange.stop()
        for client in self._clients:
            client.transport.abort()
        for upstream in self._upstreams():
            upstream.pool.close()
        if self._timer is not None:
            self._timer.cancel()
        if self.counters.in_flight:
            self._drained.clear()
            await self._drained.wait()
        # An aborted transport is gone within a turn or two of the loop.
        while self._clients or any(  # noqa: ASYNC110
            upstream.counters.upstream_open for upstream in self._upstreams()
        ):
            await asyncio.sleep(0)

    def _upstreams(self) -> tuple[Upstream, ...]:
        return (*self._core.upstreams, *self._left)

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _exchange_over(self) -> None:
        if self.counters.in_flight == 0:
            self._drained.set()

    def _beat(self) -> None:
        """Every 50 ms: parse what was copied; on some, look after deadlines."""
        core = self._core
        self._timer = core.loop.call_later(core.config.beat_seconds, self._beat)
        if self._beats % LOOK_BEATS == 0:
            self._check_deadlines(core.clock())
        self._beats += 1
        self._clients.relieve()
        self._parse()

    def _check_deadlines(self, now_seconds: float) -> None:
        core = self._core
        for client in self._clients:
            client.check_deadline(now_seconds)
        for exchange in list(core.exchanges):
            exchange.check_deadline(now_seconds)
        for upstream in self._upstreams():
            upstream.pool.close_stale(now_seconds)
        self._left = [
            each for each in self._left if each.in_flight or each.counters.upstream_open
        ]

    def _parse(self) -> None:
        core = self._core
        end_seconds = core.clock() + BEAT_BUDGET_SECONDS
        while core.unparsed:
            core.unparsed.popleft().drain()
            if core.clock() >= end_seconds:
                core.loop.call_soon(self._parse)
                return


def _tls_arguments(config: RelayConfig) -> dict[str, Any]:
    if config.identity is None:
        return {}
    return {
        "ssl": config.identity.context,
        "ssl_handshake_timeout": config.header_timeout_seconds,
        "ssl_shutdown_timeout": TLS_SHUTDOWN_SECONDS,
    }


async def start_relay(
    config: RelayConfig,
    meter: RequestMeter,
    engine: Dialect,
    clock: Callable[[], float] = time.monotonic,
    provenance: Callable[[], Provenance] = Provenance,
) -> RelayServer:
    """A relay that listens; `await drain(timeout)` and `await close()` end it.

    `provenance` is the boundary of the meter's joules, for replies with energy in them.
    Raises ConfigError for a bad upstream URL, ProxyError for a port in use.
    """
    upstream = open_upstream(
        engine.name, config, meter, engine, clock, provenance=provenance
    )
    # one upstream: what is its and what is the relay's is counted together
    server = RelayServer(config, [upstream], upstream.counters, clock)
    await server.listen()
    return server
