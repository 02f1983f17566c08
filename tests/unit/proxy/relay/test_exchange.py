"""The states of an exchange: every transition of the table happens, and no other."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from itertools import product
from typing import Any, cast

import pytest

from proxy.engines import DIALECTS
from proxy.process.build import build_form
from proxy.relay.client.request import ClientRequest
from proxy.relay.config import RelayConfig, parse_upstream
from proxy.relay.counters import RelayCounters
from proxy.relay.energy_trailer import Provenance
from proxy.relay.exchange import TRANSITIONS, Core, Exchange, State
from proxy.relay.routing.labels import LabelReader
from proxy.relay.routing.routing import Chooser
from proxy.relay.tap import MeterGuard
from proxy.relay.turns import LargeReads, Turns
from proxy.relay.upstream.connection import UpstreamConnection, UpstreamPool
from proxy.relay.upstream.upstream import Upstream
from proxy.wire.http1 import ReplyHead, chunk_of
from tests.support.relaying import Clock, RecordingMeter

pytestmark = pytest.mark.skipif(
    build_form() == "compiled", reason="a native exchange takes no made up connections"
)
REACHED: set[tuple[State, State]] = set()
HEAD = ReplyHead(200, b"OK", [(b"content-type", b"application/json")], False, False)


class Wire(asyncio.Transport):
    """A transport that goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: Any) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        pass


class Connection:
    """A connection to an engine, as an exchange uses it."""

    def __init__(self, was_used: bool = False) -> None:
        self.was_used = was_used
        self.was_unread = was_used
        self.has_answered = False
        self.is_aborted = False
        self.transport = Wire()

    def send(self, receiver: object, request: tuple[bytes, ...]) -> None:
        self.transport.write(b"".join(request))

    def abort(self) -> None:
        self.is_aborted = True


class Pool:
    """The connections that a test lets an upstream have."""

    def __init__(self) -> None:
        self.idle: list[Connection] = []
        self.attempts: list[asyncio.Future[Connection]] = []
        self.given_back: list[object] = []

    def take_idle(self) -> Connection | None:
        return self.idle.pop() if self.idle else None

    async def connect(self) -> Connection:
        self.attempts.append(asyncio.get_running_loop().create_future())
        return await self.attempts[-1]

    def give_back(self, connection: object) -> None:
        self.given_back.append(connection)


class Scene:
    """One exchange between a client and some upstreams, all made up."""

    def __init__(
        self,
        upstreams: int = 1,
        target: bytes = b"/v1/completions",
        is_http_10: bool = False,
        **config: Any,
    ) -> None:
        self.clock = Clock()
        self.meter = RecordingMeter()
        self.pools = [Pool() for _ in range(upstreams)]
        self.client = Wire()
        self.done: list[bool] = []
        relay_config = RelayConfig("", **config)
        lines = [self._upstream(f"u{n}", pool) for n, pool in enumerate(self.pools)]
        loop = asyncio.get_running_loop()
        self.core = Core(
            config=relay_config,
            upstreams=tuple(lines),
            chooser=Chooser(relay_config, lines),
            labels=LabelReader(None, frozenset()),
            counters=RelayCounters(),
            clock=self.clock,
            loop=loop,
            unparsed=deque(),
            turns=Turns(loop, self.clock),
            large_reads=LargeReads(loop),
            exchanges=set(),
            on_exchange_over=lambda: None,
        )
        request = ClientRequest(
            b"POST", target, [], b'{"model":"m"}', is_http_10, True, self.clock()
        )
        self.exchange = Exchange(self.core, request, self.client, self.done.append)
        self._last = self.exchange.state

    def _upstream(self, name: str, pool: Pool) -> Upstream:
        counters = RelayCounters()
        return Upstream(
            name=name,
            address=parse_upstream("http://engine:1"),
            dialect=DIALECTS["vllm"],
            guard=MeterGuard(self.meter, counters),
            counters=counters,
            pool=cast(UpstreamPool, pool),
            provenance=Provenance,
            clock=self.clock,
            models=("m",),
        )

    async def then(self, state: State, step: Callable[[], object]) -> None:
        """Take a step that leads from one state to this one."""
        step()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        now = self.exchange.state
        assert now is state
        REACHED.add((self._last, now))
        self._last = now

    async def start(self, state: State) -> None:
        await self.then(state, self.exchange.start)

    async def connected(self, pool: int = 0, was_used: bool = False) -> None:
        attempt = self.pools[pool].attempts[-1]
        connection = Connection(was_used)
        await self.then(State.AWAITING, lambda: attempt.set_result(connection))

    async def unreachable(self, state: State, pool: int = 0) -> None:
        attempt = self.pools[pool].attempts[-1]
        await self.then(state, lambda: attempt.set_exception(OSError("refused")))

    async def replied(self, state: State) -> None:
        await self.then(State.REPLYING, lambda: self.exchange.begin(HEAD))
        last = self.exchange.deliver
        await self.then(state, lambda: last(self.clock(), b"{}", True))


async def a_reply_over_a_new_connection() -> None:
    scene = Scene()
    await scene.start(State.CONNECTING)
    await scene.connected()
    await scene.replied(State.ENDED)
    assert scene.done == [True]
    assert len(scene.pools[0].given_back) == 1


async def a_reply_over_a_kept_connection() -> None:
    scene = Scene()
    scene.pools[0].idle.append(Connection(was_used=True))
    await scene.start(State.AWAITING)
    await scene.replied(State.ENDED)


async def a_kept_connection_that_was_closed() -> None:
    scene = Scene()
    scene.pools[0].idle.append(Connection(was_used=True))
    await scene.start(State.AWAITING)
    await scene.then(State.CONNECTING, lambda: scene.exchange.upstream_lost("closed"))
    assert scene.exchange.deadline_seconds is None  # connecting has its own time
    await scene.connected()
    await scene.then(State.ENDED, lambda: scene.exchange.upstream_lost("closed"))
    assert b"502" in scene.client.written


async def a_refusal() -> None:
    scene = Scene(target=b"/pause")
    await scene.start(State.ENDED)
    assert scene.meter.requests == {}
    assert [u.in_flight for u in scene.core.upstreams] == [0]


async def nobody_can_be_reached() -> None:
    scene = Scene(upstreams=3)
    await scene.start(State.TRYING)
    await scene.unreachable(State.TRYING, pool=0)
    assert scene.meter.requests == {}  # not while another one could have it
    await scene.unreachable(State.CONNECTING, pool=1)
    await scene.unreachable(State.ENDED, pool=2)
    (request,) = scene.meter.requests.values()
    assert request.outcome == "upstream_error"


async def the_second_one_can_be_reached() -> None:
    scene = Scene(upstreams=3)
    await scene.start(State.TRYING)
    await scene.unreachable(State.TRYING, pool=0)
    await scene.connected(pool=1)
    assert [u.in_flight for u in scene.core.upstreams] == [0, 1, 0]


async def a_client_that_leaves_while_upstreams_are_tried() -> None:
    scene = Scene(upstreams=2)
    await scene.start(State.TRYING)
    await scene.then(State.ENDED, scene.exchange.client_gone)
    assert scene.pools[0].attempts[-1].cancelled()
    (request,) = scene.meter.requests.values()
    assert request.outcome == "aborted"
    scene.exchange.client_gone()  # what is over is not ended again
    scene.exchange.stop()
    assert scene.done == [False]


async def a_reply_that_waits_for_its_energy() -> None:
    scene = Scene(energy_in_response=True, energy_wait_seconds=60.0)
    await scene.start(State.CONNECTING)
    await scene.connected()
    await scene.replied(State.COMPLETING)
    assert len(scene.pools[0].given_back) == 1  # the engine is free meanwhile
    await scene.then(State.ENDED, scene.exchange.stop)


SCENES = [
    a_reply_over_a_new_connection,
    a_reply_over_a_kept_connection,
    a_kept_connection_that_was_closed,
    a_refusal,
    nobody_can_be_reached,
    the_second_one_can_be_reached,
    a_client_that_leaves_while_upstreams_are_tried,
    a_reply_that_waits_for_its_energy,
]


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: str(scene.__name__))
def test_an_exchange_goes_from_state_to_state(
    scene: Callable[[], Coroutine[Any, Any, None]],
) -> None:
    asyncio.run(scene())


def test_the_table_has_what_happens_and_nothing_else() -> None:
    async def play() -> None:
        for scene in SCENES:
            await scene()

    REACHED.clear()
    asyncio.run(play())
    assert {(a, b) for a, row in TRANSITIONS.items() for b in row} == REACHED


def test_every_state_is_in_the_table_and_leads_to_the_end() -> None:
    assert set(TRANSITIONS) == set(State)
    assert not TRANSITIONS[State.ENDED]
    assert all(State.ENDED in row for state, row in TRANSITIONS.items()
               if state is not State.ENDED)  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new"),
    [(a, b) for a, b in product(State, State) if b not in TRANSITIONS[a]],
    ids=lambda state: str(state.name),
)
def test_any_other_transition_is_refused(old: State, new: State) -> None:
    async def play() -> None:
        exchange = Scene().exchange
        exchange.state = old
        with pytest.raises(RuntimeError, match=f"from {old} to {new}"):
            exchange._enter(new)

    asyncio.run(play())


def test_what_is_over_takes_no_more_of_a_reply() -> None:
    async def play() -> None:
        scene = Scene()
        await scene.start(State.CONNECTING)
        await scene.connected()
        await scene.replied(State.ENDED)
        with pytest.raises(RuntimeError, match="from State"):
            scene.exchange.begin(HEAD)

    asyncio.run(play())


def test_the_time_between_two_reads_is_bounded_whatever_the_first_may_take() -> None:
    async def play() -> None:
        scene = Scene(first_byte_timeout_seconds=None, read_timeout_seconds=5.0)
        await scene.start(State.CONNECTING)
        await scene.connected()
        await scene.then(State.REPLYING, lambda: scene.exchange.begin(HEAD))
        for _ in range(3):
            scene.exchange.deliver(scene.clock(), b"{", False)
            scene.clock.now_seconds += 4.0
            scene.exchange.check_deadline(scene.clock())
        assert not scene.done
        scene.clock.now_seconds += 2.0
        await scene.then(
            State.ENDED, lambda: scene.exchange.check_deadline(scene.clock())
        )
        assert scene.done == [False]

    asyncio.run(play())


@pytest.mark.parametrize("is_http_10", [False, True])
@pytest.mark.parametrize("has_energy", [False, True])
def test_a_whole_chunk_is_sent_on_and_metered_like_any_other_read(
    is_http_10: bool, has_energy: bool
) -> None:
    async def play() -> None:
        scene = Scene(is_http_10=is_http_10, energy_in_response=has_energy)
        exchange, written = scene.exchange, b""
        await scene.start(State.CONNECTING)
        await scene.connected()
        head = ReplyHead(
            200, b"OK", [(b"content-type", b"text/event-stream")], True, False
        )
        await scene.then(State.REPLYING, lambda: exchange.begin(head))
        for word in (b"one", b"two", b"three"):
            scene.clock.now_seconds += 1.0
            event = b'data: {"choices":[{"index":0,"text":"%b"}]}\n\n' % word
            chunk = chunk_of(event).upper().replace(event.upper(), event)
            exchange.deliver_chunk(scene.clock(), chunk, chunk.index(b"\n") + 1)
            sent = scene.client.written[len(written) :]
            if not written:
                sent = sent[sent.index(b"\r\n\r\n") + 4 :]
            written = scene.client.written
            assert sent == event if is_http_10 else sent.lower() == chunk_of(event)
        for tap in scene.core.unparsed:
            tap.drain()
        (request,) = scene.meter.requests.values()
        assert [(at, [u.text for u in read]) for at, read in request.reads] == [
            (1001.0, ["one"]), (1002.0, ["two"]), (1003.0, ["three"]),
        ]  # fmt: skip
        assert scene.core.upstreams[0].counters.reply_bytes == 3 * len(event) - 4
        exchange.stop()

    asyncio.run(play())


def test_a_connection_and_a_pool_have_what_an_exchange_uses() -> None:
    for fake, real in ((Connection, UpstreamConnection), (Pool, UpstreamPool)):
        assert {n for n in vars(fake) if n[0] != "_"} <= {n for n in vars(real)}


def test_what_the_relay_adds_is_its_own_time_and_never_the_engines() -> None:
    async def play() -> RelayCounters:
        scene = Scene()
        scene.pools[0].idle.append(Connection(was_used=True))
        scene.clock.now_seconds += 0.004
        await scene.start(State.AWAITING)
        scene.clock.now_seconds += 0.9  # the engine's, which then closes
        lost = partial(scene.exchange.upstream_lost, "closed")
        await scene.then(State.CONNECTING, lost)
        await scene.connected()
        await scene.then(State.REPLYING, lambda: scene.exchange.begin(HEAD))
        read_seconds = scene.clock()
        scene.clock.now_seconds += 0.001
        deliver = scene.exchange.deliver
        await scene.then(State.ENDED, lambda: deliver(read_seconds, b"{}", True))
        return scene.core.upstreams[0].counters

    counters = asyncio.run(play())
    request, reply = counters.request_seconds, counters.reply_seconds
    assert (sum(request.counts), sum(reply.counts)) == (1, 1)
    assert request.total == pytest.approx(0.004)
    assert reply.total == pytest.approx(0.001)
