"""The meter's end of the links: the requests of each relay, fed to the meters here.

Rule: a relay that ends without a goodbye takes its own requests with it: they are
closed as they stand, and keep what they consumed until then. What relays count is added
up here, and stays when one of them ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import cast

from proxy.errors import LinkError
from proxy.process.supervise import LoopErrors
from proxy.process.tally import Tally
from proxy.relay.counters import (
    CounterFigures,
    RelayCounters,
    add_difference,
    without_present,
)
from proxy.relay.energy_trailer import Provenance
from proxy.relay.link.messages import (
    Answer,
    Ask,
    Closed,
    Drain,
    EngineFigures,
    FrameDecoder,
    Hello,
    MeterMessage,
    Opened,
    Received,
    RelayMessage,
    Report,
    Taken,
    Unseen,
    frame_of,
)
from proxy.relay.upstream.upstream import Upstream
from proxy.wire.facts import UNMETERED

log = logging.getLogger("servewatt.relay")

KEPT_ENDED = 4096
"""Requests of a relay that ended and may still be asked for."""
GONE = "the relay's process ended"
NOTHING = CounterFigures({}, {}, {})


class RelayLinks:
    """All relays of a meter's process; where there is one process, its relay."""

    def __init__(
        self,
        port: int,
        relays: int,
        upstreams: Callable[[], Iterable[Upstream]],
        delays: Tally,
        clock: Callable[[], float],
        errors: LoopErrors,
        on_unseen: Callable[[Unseen], None] = lambda _: None,
    ) -> None:
        """`upstreams` are those of now; `delays` gets how late relays' beats are.

        `on_unseen` is told how requests ended that no meter saw to their end.
        """
        self.port = port
        """On which all of them listen."""
        self.relays = relays
        """How many there should be."""
        self.counters = RelayCounters()
        """Sums over the relays of what is no engine's."""
        self.restarts: Counter[int] = Counter(dict.fromkeys(range(1, relays + 1), 0))
        """Of each relay, by its number."""
        self.loop_errors: Counter[str] = Counter()
        self.dropped_log_lines = 0
        self.upstreams = upstreams
        self.delays = delays
        self.clock = clock
        self.errors = errors
        self.on_unseen = on_unseen
        self.connected: set[RelayConnection] = set()
        self._server: asyncio.Server | None = None
        self._told: dict[str, bool] = {}
        """Upstreams that the relays were told of, and whether they are draining."""

    async def listen(self, path: str) -> None:
        """Await the relays there; what a killed predecessor left is taken away."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(
            lambda: RelayConnection(self), path
        )

    @property
    def up(self) -> list[int]:
        """Numbers of the relays that are connected."""
        return sorted({each.number for each in self.connected if each.number})

    @property
    def away(self) -> list[int]:
        """Numbers of those that are not."""
        return sorted(self.restarts.keys() - set(self.up))

    @property
    def loop_lag_seconds(self) -> float:
        """The longest of their last beats' delays."""
        return max((each.loop_lag_seconds for each in self.connected), default=0.0)

    def tell_drains(self) -> None:
        """Pass on what the admin API changed; once a beat."""
        for upstream in self.upstreams():
            if self._told.get(upstream.id, False) != upstream.is_draining:
                self._told[upstream.id] = upstream.is_draining
                self._tell(Drain(upstream.id, upstream.is_draining))

    async def drain(self, timeout_seconds: float) -> int:
        """Wait until the relays have gone; how many requests they left."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                while self.connected:  # noqa: ASYNC110  relays end when they like
                    await asyncio.sleep(0.02)
        return self.counters.in_flight

    async def close(self) -> None:
        """Let go of relays that are left; their requests end now."""
        if self._server is not None:
            self._server.close()
        for each in list(self.connected):
            each.transport.abort()
        while self.connected:  # noqa: ASYNC110  gone within a turn or two of the loop
            await asyncio.sleep(0)

    def of_id(self, engine: str) -> Upstream | None:
        """The upstream that gets what relays say of this engine."""
        return next((each for each in self.upstreams() if each.id == engine), None)

    def uses(self, upstream: Upstream) -> bool:
        """Whether a relay has requests there, or may yet open one."""
        return any(each.uses(upstream) for each in self.connected)

    def welcome(self, relay: RelayConnection, hello: Hello) -> None:
        """A relay is here: it is told what it missed, and tells what a killed meter
        knew."""
        self.restarts[hello.relay] = max(self.restarts[hello.relay], hello.starts - 1)
        log.info("relay %d (process %d) is metered here", hello.relay, hello.pid)
        for engine in hello.draining:
            upstream = self.of_id(engine)
            if upstream is not None and engine not in self._told:
                self._told[engine] = True
                upstream.drain(True)
        for upstream in self.upstreams():
            if upstream.is_draining and upstream.id not in hello.draining:
                relay.tell(Drain(upstream.id, True))
            elif not upstream.is_draining and upstream.id in hello.draining:
                relay.tell(Drain(upstream.id, False))

    def _tell(self, message: MeterMessage) -> None:
        for relay in self.connected:
            relay.tell(message)


class RelayConnection(asyncio.Protocol):
    """One relay, for as long as its process or this one lives."""

    def __init__(self, links: RelayLinks) -> None:
        self._links = links
        self._decoder: FrameDecoder[RelayMessage] = FrameDecoder(
            cast(type[RelayMessage], RelayMessage)
        )
        self._requests: dict[int, tuple[Upstream, int, bool]] = {}
        """By the relay's key: engine, the meter's key, and whether it is metered."""
        self._ended: dict[int, tuple[Upstream, int, bool]] = {}
        self._order: deque[int] = deque()
        """Keys of those that ended, oldest first."""
        self._own = NOTHING
        self._engines: dict[str, EngineFigures] = {}
        self._delays: tuple[list[int], float] | None = None
        self._errors: dict[str, int] = {}
        self._dropped = 0
        self.number = 0
        """Of the relay; 0 before it said who it is."""
        self.has_said_goodbye = False
        self.loop_lag_seconds = 0.0
        self.transport: asyncio.Transport

    def tell(self, message: MeterMessage) -> None:
        """Send it a message, if it is still there."""
        if not self.transport.is_closing():
            self.transport.write(frame_of([message]))

    def uses(self, upstream: Upstream) -> bool:
        """Whether this relay has requests there, or says that it may open one."""
        return upstream.id in self._engines or any(
            found is upstream for found, _, _ in self._requests.values()
        )

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A relay's process."""
        self.transport = cast(asyncio.Transport, transport)
        self._links.connected.add(self)

    def data_received(self, data: bytes) -> None:
        """What it says, in order."""
        try:
            messages = self._decoder.feed(data)
        except LinkError as error:
            log.error("relay %d says what nobody understands: %s", self.number, error)
            self.transport.abort()
            return
        closed = [each.key for each in messages if isinstance(each, Closed)]
        for message in messages:
            try:
                self._take(message)
            except Exception as error:  # the outermost loop: it must live on
                self._links.errors.note("relay link", error)
        if closed:
            self.tell(Taken(closed))

    def connection_lost(self, error: Exception | None) -> None:
        """It is gone, and with it the requests that it had not finished."""
        links = self._links
        links.connected.discard(self)
        now = links.clock()
        if self._requests:
            log.warning(
                "relay %d is gone, and %d requests that it had under way",
                self.number, len(self._requests),
            )  # fmt: skip
        for key, (upstream, _, is_metered) in list(self._requests.items()):
            self._close(Closed(key, now, "aborted", None, GONE, None, False, False))
            if is_metered:
                upstream.counters.requests["aborted"] += 1
        for engine in list(self._engines):
            self._let_go(engine)
        add_difference(links.counters, self._own, without_present(self._own))

    # what it says

    def _take(self, message: RelayMessage) -> None:
        if isinstance(message, Received):  # first, as most are
            found = self._requests.get(message.key)
            if found is not None:
                upstream, key, _ = found
                upstream.guard.feed(message.event(key))
        elif isinstance(message, Opened):
            self._open(message)
        elif isinstance(message, Closed):
            self._close(message)
        elif isinstance(message, Ask):
            self._answer(message)
        elif isinstance(message, Report):
            self._add(message)
        elif isinstance(message, Unseen):
            self._links.on_unseen(message)
        elif isinstance(message, Hello):
            self.number = message.relay
            self._links.welcome(self, message)
        else:
            self.has_said_goodbye = True

    def _open(self, message: Opened) -> None:
        upstream = self._links.of_id(message.engine)
        if upstream is None:
            return self._miss(message)
        event = message.event(upstream.guard.new_key())
        is_metered = message.facts.route != UNMETERED
        self._requests[message.key] = (upstream, event.key, is_metered)
        upstream.guard.feed(event)
        if is_metered:
            upstream.on_opened(event)

    def _miss(self, message: Opened) -> None:
        """Count a request at an upstream that left before this process knew of it.

        Where no other one has its name it is an error of the link.
        """
        if message.facts.route == UNMETERED:
            return
        name = message.engine.rpartition("/")[0]
        for upstream in self._links.upstreams():
            if upstream.name == name:
                upstream.counters.unseen_requests += 1
                return
        self._links.loop_errors["relay link"] += 1
        log.warning("nobody meters a request at %s, which is gone", name)

    def _close(self, message: Closed) -> None:
        found = self._requests.pop(message.key, None)
        if found is None:
            return
        upstream, key, is_metered = found
        upstream.guard.feed(message.event(key))
        if not is_metered:
            return
        upstream.on_closed(key, message.at_seconds)
        self._ended[message.key] = found
        self._order.append(message.key)
        if len(self._order) > KEPT_ENDED:
            del self._ended[self._order.popleft()]

    def _answer(self, ask: Ask) -> None:
        found = self._requests.get(ask.key) or self._ended.get(ask.key)
        if found is None or not found[2]:
            return self.tell(Answer(ask.key, None, Provenance()))
        upstream, key, _ = found
        so_far = upstream.guard.estimate(key, ask.at_seconds)
        assert not isinstance(so_far, asyncio.Future), "its meter is in this process"
        self.tell(Answer(ask.key, so_far, upstream.provenance()))

    def _add(self, report: Report) -> None:
        links = self._links
        add_difference(links.counters, self._own, report.counters)
        self._own = report.counters
        for engine, figures in report.engines.items():
            self._count(engine, figures)
        for engine in self._engines.keys() - report.engines.keys():
            self._let_go(engine)
        links.delays.add_difference(self._delays, *report.loop_delays)
        self._delays = report.loop_delays
        self.loop_lag_seconds = report.loop_lag_seconds
        for loop, count in report.loop_errors.items():
            links.loop_errors[loop] += count - self._errors.get(loop, 0)
        self._errors = report.loop_errors
        links.dropped_log_lines += report.dropped_log_lines - self._dropped
        self._dropped = report.dropped_log_lines

    def _let_go(self, engine: str) -> None:
        """This relay has no more to do with it: what it counted stays."""
        self._count(
            engine,
            EngineFigures(without_present(self._engines[engine].counters), 0),
        )
        del self._engines[engine]

    def _count(self, engine: str, figures: EngineFigures) -> None:
        upstream = self._links.of_id(engine)
        before = self._engines.get(engine, EngineFigures(NOTHING, 0))
        self._engines[engine] = figures
        if upstream is not None:
            add_difference(upstream.counters, before.counters, figures.counters)
            upstream.in_flight += figures.in_flight - before.in_flight
