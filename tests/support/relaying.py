"""A relay between a raw client and a scripted upstream, for tests of the relay."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import uvloop

from proxy.engines import DIALECTS
from proxy.meter.estimate import EnergySoFar
from proxy.meter.ledger import RequestEnergy
from proxy.relay.config import RelayConfig
from proxy.relay.counters import RelayCounters
from proxy.relay.server import RelayServer, start_relay
from proxy.relay.tap import RequestMeter
from proxy.wire.events import Event, RequestClosed, RequestOpened, TokensReceived
from proxy.wire.facts import Labels, RequestFacts, Update
from tests.support.scripted import (
    LAST_CHUNK,
    Message,
    Peer,
    Script,
    ScriptedServer,
    chunk,
    connect,
    request_bytes,
    stream_head,
)

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
PATIENCE_SECONDS = 60.0
"""Nothing here takes long; a test that hangs should say where."""


def run(loop: str, test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test's coroutine on one of `LOOPS`."""

    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await test()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(bounded())


def refusals_by_status(counters: RelayCounters) -> Counter[int]:
    """Refusals by status."""
    by_status: Counter[int] = Counter()
    for (status, _), count in counters.refusals.items():
        by_status[status] += count
    return by_status


# --- engines ------------------------------------------------------------------


def answering(*pieces: bytes) -> Script:
    """Answers every request with the same pieces, each written by itself."""

    async def script(peer: Peer) -> None:
        while await peer.request() is not None:
            await peer.send(*pieces)

    return script


def streaming(*reads: bytes) -> Script:
    """Answers every request with an event stream of these reads."""
    return answering(stream_head(), *(chunk(read) for read in reads), LAST_CHUNK)


def cutting(*pieces: bytes) -> Script:
    """Answers one request with these pieces and closes."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*pieces)

    return script


def holding(*pieces: bytes) -> Script:
    """Answers one request with these pieces, then waits for the other side to go."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*pieces)
        await peer.gone.wait()

    return script


async def ask(client: Peer, *line: Any, **request: Any) -> Message:
    """The reply to a request on this connection; arguments as `request_bytes`."""
    await client.send(request_bytes(*line, **request))
    return await client.reply()


# --- the meter ----------------------------------------------------------------


@dataclass
class Clock:
    """Time that passes only where a test says so."""

    now_seconds: float = 1000.0

    def __call__(self) -> float:
        return self.now_seconds


@dataclass
class Metered:
    """What the meter was told of one request."""

    request_id: str
    opened_seconds: float
    facts: RequestFacts
    labels: Labels
    reads: list[tuple[float, list[Update]]] = field(default_factory=list)
    outcome: str | None = None
    status: int | None = None
    error: str | None = None
    closed_seconds: float | None = None

    @property
    def updates(self) -> list[Update]:
        """All updates, in order."""
        return [update for _, updates in self.reads for update in updates]


class RecordingMeter:
    """Keeps every event; can be told to fail on all of them."""

    def __init__(self) -> None:
        self.requests: dict[int, Metered] = {}
        self.fails = False
        self.energy = RequestEnergy(
            1.5, 2.25, 0.25, 4.0, "phase", "estimated",
            low_joules=3.5, high_joules=5.0, grade="poor",
        )  # fmt: skip
        self.settles = False
        """Whether the energy of a closed request is settled at once, or never."""
        self.estimates: list[tuple[int, float]] = []
        self._closings = 0
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []

    async def closings(self, count: int = 1) -> list[Metered]:
        """All requests, once `count` of them are closed."""
        if self._closings < count:
            future = asyncio.get_running_loop().create_future()
            self._waiters.append((count, future))
            await future
        return list(self.requests.values())

    async def only(self) -> Metered:
        """The one request, once it is closed."""
        (request,) = await self.closings()
        return request

    def feed(self, event: Event) -> None:
        self._may_fail()
        if isinstance(event, RequestOpened):
            self.requests[event.key] = Metered(
                event.request_id, event.at_seconds, event.facts, event.labels
            )
        elif isinstance(event, TokensReceived):
            reads = self.requests[event.key].reads
            reads.append((event.at_seconds, list(event.updates)))
        elif isinstance(event, RequestClosed):
            self._close(event)
        else:
            raise NotImplementedError(f"the relay does not say {event}")

    def _close(self, event: RequestClosed) -> None:
        request = self.requests[event.key]
        assert request.outcome is None, "closed twice"
        request.outcome, request.status = event.outcome, event.status
        request.error, request.closed_seconds = event.error, event.at_seconds
        request.labels = event.labels or request.labels
        self._closings += 1
        for count, future in self._waiters:
            if count <= self._closings and not future.done():
                future.set_result(None)

    def _may_fail(self) -> None:
        if self.fails:
            raise RuntimeError("the meter is broken")

    def estimate(self, key: int, at_seconds: float) -> EnergySoFar:
        self._may_fail()
        self.estimates.append((key, at_seconds))
        request = self.requests[key]
        is_settled = self.settles and request.outcome is not None
        return EnergySoFar(self.energy, is_settled)


# --- both around a relay ------------------------------------------------------


@dataclass
class Bench:
    """Client side, relay, upstream and meter of one test."""

    relay: RelayServer
    upstream: ScriptedServer
    meter: RecordingMeter
    clients: list[Peer] = field(default_factory=list)

    async def client(self) -> Peer:
        """A new connection to the relay; the bench closes it at the end."""
        self.clients.append(await connect(self.relay.port))
        return self.clients[-1]

    async def ask(self, *line: Any, **request: Any) -> Message:
        """The reply to a request on a new connection."""
        return await ask(await self.client(), *line, **request)


@contextlib.asynccontextmanager
async def serving(
    url: str,
    meter: RequestMeter,
    engine: str = "vllm",
    clock: Callable[[], float] = time.monotonic,
    **config: Any,
) -> AsyncIterator[RelayServer]:
    """A relay in front of `url`; `config` as in `RelayConfig`."""
    relay = await start_relay(
        RelayConfig(url, **config), meter, DIALECTS[engine], clock
    )
    try:
        yield relay
    finally:
        await relay.close()


@contextlib.asynccontextmanager
async def relaying(
    script: Script,
    engine: str = "vllm",
    *,
    path: str = "",
    tls: ssl.SSLContext | None = None,
    clock: Callable[[], float] = time.monotonic,
    **config: Any,
) -> AsyncIterator[Bench]:
    """A relay in front of `script`; `config` as in `RelayConfig`."""
    meter = RecordingMeter()
    async with (
        ScriptedServer(script, tls=tls) as upstream,
        serving(upstream.url + path, meter, engine, clock, **config) as relay,
    ):
        bench = Bench(relay, upstream, meter)
        try:
            yield bench
        finally:
            for client in bench.clients:
                client.abort()
                await client.lost.wait()
