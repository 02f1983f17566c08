"""Relays and their meter over a link: nothing is added, lost unsaid or told twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from itertools import count
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.engines import DIALECTS
from proxy.errors import LinkError
from proxy.meter.config import MeterConfig
from proxy.meter.estimate import EnergySoFar
from proxy.meter.ledger import Books, RequestRecord
from proxy.meter.meter import Meter
from proxy.metrics.samples import DELAY_EDGES
from proxy.process.supervise import LoopErrors
from proxy.process.tally import Tally
from proxy.relay.config import RelayConfig
from proxy.relay.counters import (
    PRESENT,
    CounterFigures,
    RelayCounters,
    add_difference,
    figures_of,
    without_present,
)
from proxy.relay.link.messages import (
    MAX_FRAME_BYTES,
    Ask,
    Closed,
    EngineFigures,
    FrameDecoder,
    Goodbye,
    Hello,
    Opened,
    Received,
    RelayMessage,
    Report,
    Unseen,
    frame_of,
)
from proxy.relay.link.meter_end import RelayConnection, RelayLinks
from proxy.relay.link.relay_end import MeterLink, RemoteMeter
from proxy.relay.upstream.upstream import open_upstream
from proxy.wire.events import Event, RequestClosed, RequestOpened, TokensReceived
from proxy.wire.facts import UNMETERED, Labels, RequestFacts, Update, Usage
from tests.support.meter_scenes import Asked, counter_of, events_of, in_order
from tests.support.profiles import examples
from tests.unit.proxy.meter.test_events import BOUNDARIES, outcome, recordings

few = examples(25)
ID = "vllm/0"
OF_RELAYS = (RequestOpened, TokensReceived, RequestClosed)

# --- bytes --------------------------------------------------------------------

labels = st.builds(Labels, model=st.text(max_size=5), tenant=st.text(max_size=5))
seconds = st.floats(0, 1e7)
keys = st.integers(0, 2**53)
updates = st.builds(
    Update,
    carries_token=st.booleans(),
    tokens=st.none() | st.integers(0, 9),
    usage=st.none() | st.builds(Usage, output_tokens=st.none() | keys),
    error=st.none() | st.text(max_size=5),
)
said = st.one_of(
    st.builds(Hello, st.integers(1, 64), st.integers(1, 9), keys, st.just(("a",))),
    st.builds(
        Opened, st.text(max_size=9), keys, seconds, st.text(max_size=9),
        st.builds(RequestFacts, st.sampled_from(["chat", UNMETERED])), labels,
    ),
    st.builds(Received, keys, seconds, st.lists(updates, max_size=3).map(tuple)),
    st.builds(
        Closed, keys, seconds, st.text(max_size=9), st.none() | st.integers(100, 599),
        st.none() | st.text(max_size=9), st.none() | labels, st.booleans(),
        st.booleans(),
    ),
    st.builds(Ask, keys, seconds),
    st.builds(Unseen, st.text(), st.text(), seconds, st.text(), st.none(), st.none()),
    st.just(Goodbye()),
)  # fmt: skip


def decoder() -> FrameDecoder[RelayMessage]:
    return FrameDecoder(cast(type[RelayMessage], RelayMessage))


@given(
    frames=st.lists(st.lists(said, max_size=5), max_size=5),
    cuts=st.lists(st.integers(1, 40), min_size=1),
)
def test_messages_keep_their_order_however_their_bytes_are_cut(
    frames: list[list[RelayMessage]], cuts: list[int]
) -> None:
    data = b"".join(map(frame_of, frames))
    reader, found, at = decoder(), list[RelayMessage](), 0
    for cut in cuts * (len(data) // sum(cuts) + 1):
        found += reader.feed(data[at : at + cut])
        at += cut
    assert found == [message for frame in frames for message in frame]


@pytest.mark.parametrize(
    "data",
    [
        (MAX_FRAME_BYTES + 1).to_bytes(4, "big"),
        b"\0\0\0\1\xc1",
        frame_of([Goodbye()]).replace(b"\x06", b"\x4d"),
        b"\0\0\0\5hello",
    ],
    ids=["long", "no message", "unknown", "text"],
)
def test_other_bytes_are_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(LinkError) as error:
        decoder().feed(data)
    assert "\n" not in str(error.value)


# --- both ends, joined without a socket ---------------------------------------


class Pipe(asyncio.Transport):
    """Takes what one end writes to the other, in pieces of any size."""

    def __init__(self, piece: int = 1 << 20) -> None:
        super().__init__()
        self.end: asyncio.Protocol
        self.piece = piece
        self.is_stuck = False
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.is_closed
        if not self.is_stuck:
            for at in range(0, len(data), self.piece):
                self.end.data_received(bytes(data[at : at + self.piece]))

    def is_closing(self) -> bool:
        return self.is_closed

    def set_write_buffer_limits(
        self, high: int | None = None, low: int | None = None
    ) -> None:
        """It holds nothing."""

    def close(self) -> None:
        self.is_closed = True

    abort = close


class Ends:
    """A relay and a process that meters, whose links come and go."""

    def __init__(self, meter: Meter | None = None, max_waiting: int = 1000) -> None:
        self.now = 0.0
        self.drained: list[tuple[str, bool]] = []
        self.counters = RelayCounters()
        self.reports = 0
        self.link = MeterLink(
            "", self.hello, self.report, self.drain, lambda: self.now, max_waiting
        )
        self.relay = RemoteMeter(self.link)
        self.relay.engine = ID
        self.replace_meter(meter or Meter(MeterConfig()))

    def replace_meter(self, meter: Meter) -> None:
        """Another process."""
        self.meter = meter
        self.delays = Tally(DELAY_EDGES)
        self.errors = LoopErrors()
        self.unseen: list[Unseen] = []
        self.links = RelayLinks(
            0, 1, lambda: [self.upstream], self.delays, lambda: self.now, self.errors,
            self.unseen.append,
        )  # fmt: skip
        self.ended: list[int] = []
        self.upstream = open_upstream(
            "vllm", RelayConfig("http://127.0.0.1:1"), meter, DIALECTS["vllm"],
            lambda: self.now, keys=count(1),
            on_closed=lambda key, _: self.ended.append(key),
        )  # fmt: skip

    def connect(self, piece: int = 1 << 20) -> None:
        self.connection = RelayConnection(self.links)
        self.up, down = Pipe(piece), Pipe()
        self.up.end, down.end = self.connection, self.link
        self.connection.connection_made(down)
        self.link.connection_made(self.up)

    def cut(self) -> None:
        self.link.connection_lost(None)
        self.connection.connection_lost(None)

    def hello(self) -> Hello:
        return Hello(1, 1, 4711)

    def report(self) -> Report:
        self.reports += 1
        engines = {ID: EngineFigures(figures_of(self.relay.counters), 2)}
        return Report(
            figures_of(self.counters), engines, 0.25, ([1] * 17, 1.0), {"link": 1}, 3
        )

    def drain(self, name: str, is_draining: bool) -> None:
        self.drained.append((name, is_draining))

    async def say(self, *events: Event) -> None:
        for event in events:
            self.now = event.at_seconds
            self.relay.feed(event)
        await asyncio.sleep(0)

    def settled(self) -> dict[str, RequestRecord]:
        return {each.request_id: each for each in self.meter.settle(1e4)}


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def rekeyed(events: Sequence[Event]) -> list[Event]:
    """The same under keys that rise with the requests, from 1."""
    known: dict[int, int] = {}
    found = []
    for event in events:
        if isinstance(event, OF_RELAYS):
            key = known.setdefault(event.key, len(known) + 1)
            event = msgspec.structs.replace(event, key=key)
        found.append(event)
    return found


@few
@given(
    events=recordings(),
    beats=st.lists(st.floats(0.0, 9.0), max_size=20).map(sorted),
    piece=st.integers(1, 300),
)
def test_a_meter_at_a_link_gives_the_same_to_the_last_bit(
    events: list[Event], beats: list[float], piece: int
) -> None:
    meter = Meter(MeterConfig(boundaries=BOUNDARIES))
    records: list[RequestRecord] = []
    books: list[Books] = []

    async def test() -> None:
        ends = Ends(meter)
        ends.connect(piece)
        due = list(beats)
        for event in events:
            while due and event.at_seconds > due[0]:
                await asyncio.sleep(0)
                records.extend(meter.settle(due.pop(0)))
            if isinstance(event, OF_RELAYS):
                ends.relay.feed(event)
            else:
                await asyncio.sleep(0)
                meter.feed(event)
        await asyncio.sleep(0)
        for now in (*due, 200.0, 300.0):
            records.extend(meter.settle(now))
        books.extend(meter.books_of(name) for name in BOUNDARIES)

    run(test)
    assert (records, books) == outcome(rekeyed(events), beats)


# --- what is lost is said, and nothing is told twice --------------------------

SCENE = [Asked(0.7 + 0.1 * n, [1.0 + 0.1 * n + 0.05 * k for k in range(10)]) for n in
         range(3)]  # fmt: skip
POWER = counter_of([300.0] * 60)


def test_a_relay_that_is_killed_takes_its_own_requests_and_nothing_else() -> None:
    async def test() -> None:
        ends = Ends()
        ends.connect()
        for event in in_order(events_of(SCENE[:1]), POWER):
            if isinstance(event, OF_RELAYS):
                await ends.say(event)
            else:
                ends.meter.feed(event)
        await ends.say(RequestOpened(9, 2.0, "cut", RequestFacts("chat")))
        ends.counters.clients_open, ends.counters.timeouts["reading"] = 4, 5
        ends.link.report()
        await asyncio.sleep(0)
        assert (ends.links.counters.clients_open, ends.upstream.in_flight) == (4, 2)
        ends.now = 3.0
        ends.connection.connection_lost(None)
        records = ends.settled()
        assert records["r0"].outcome == "ok"
        assert records["r0"].energy.energy_joules
        assert (records["cut"].outcome, records["cut"].finished_seconds) == (
            "aborted", 3.0,
        )  # fmt: skip
        assert ends.ended == [1, 2]
        assert ends.upstream.counters.requests == {"aborted": 1}
        assert (ends.links.counters.clients_open, ends.upstream.in_flight) == (0, 0)
        assert ends.links.counters.timeouts == {"reading": 5}
        assert ends.links.up == []

    run(test)


def test_a_meter_that_is_killed_leaves_no_request_counted_twice() -> None:
    async def test() -> None:
        ends = Ends()
        ends.connect()
        facts = RequestFacts("chat")
        await ends.say(RequestOpened(1, 1.0, "before", facts))
        ends.cut()
        ends.replace_meter(Meter(MeterConfig(has_sensor=False)))
        await ends.say(
            RequestOpened(2, 2.0, "between", facts),
            RequestOpened(3, 2.1, "over", facts),
            TokensReceived(1, 2.2, (Update(carries_token=True),)),
            RequestClosed(2, 2.3, "ok", 200),
        )
        ends.connect()
        await ends.say(
            TokensReceived(1, 3.0, (Update(carries_token=True),)),
            RequestClosed(1, 3.1, "ok", 200),
            RequestOpened(4, 3.2, "after", facts),
            RequestClosed(3, 3.3, "ok", 200),
            RequestClosed(4, 3.4, "ok", 200),
        )
        assert set(ends.settled()) == {"between", "over", "after"}
        assert ends.relay.counters.unseen_requests == 1
        assert ends.unseen == [Unseen(ID, "before", 3.1, "ok", 200, None)]

    run(test)


def test_an_end_that_the_killed_meter_did_not_read_is_unseen() -> None:
    async def test() -> None:
        ends = Ends()
        ends.connect()
        for key, is_stuck in (1, False), (2, True):
            ends.up.is_stuck = is_stuck
            await ends.say(
                RequestOpened(key, 1.0, f"r{key}", RequestFacts("chat")),
                RequestClosed(key, 1.1, "ok", 200),
                RequestOpened(key + 10, 1.0, "", RequestFacts(UNMETERED)),
                RequestClosed(key + 10, 1.1, "ok"),
            )
        ends.cut()
        assert ends.ended == [1]
        assert ends.relay.counters.unseen_requests == 1
        ends.replace_meter(Meter(MeterConfig(has_sensor=False)))
        ends.connect()
        await asyncio.sleep(0)
        assert ends.settled() == {}
        assert ends.unseen == [Unseen(ID, "r2", 1.1, "ok", 200, None)]

    run(test)


def test_a_request_that_outlives_its_meter_is_time_to_the_next_and_no_more() -> None:
    async def test() -> None:
        ends = Ends()
        ends.connect()
        await ends.say(RequestOpened(1, 1.0, "long", RequestFacts("chat")))
        for number in range(2, 4):  # the meter is killed twice
            ends.cut()
            ends.replace_meter(Meter(MeterConfig()))
            ends.now = float(number)
            ends.connect()
        for event in POWER:
            ends.meter.feed(event)
        await ends.say(RequestClosed(1, 5.0, "ok", 200))
        assert ends.settled() == {}
        assert ends.meter.books_at().unattributed_joules["unmetered"] > 0
        assert ends.relay.counters.unseen_requests == 1
        assert ends.ended == []

    run(test)


def test_reads_that_have_no_room_leave_their_request_without_energy() -> None:
    async def test() -> None:
        ends = Ends(max_waiting=8)
        ends.connect()
        ends.link.pause_writing()
        first, second, third = ("first", "second", "third")
        facts = RequestFacts("chat")
        await ends.say(RequestOpened(1, 1.0, first, facts))
        await ends.say(RequestOpened(2, 1.0, second, facts))
        for step in range(20):
            token = (Update(carries_token=True, tokens=1),)
            await ends.say(TokensReceived(1, 1.1 + 0.01 * step, token))
        await ends.say(RequestOpened(3, 1.5, third, facts))
        assert await asked(ends, 3) is None
        await ends.say(RequestClosed(3, 1.6, "ok", 200))
        await ends.say(RequestClosed(1, 1.6, "ok", 200))
        ends.link.resume_writing()
        await ends.say(RequestClosed(2, 1.7, "ok", 200))
        for event in POWER:
            ends.meter.feed(event)
        records = ends.settled()
        assert set(records) == {first, second}
        assert records[first].energy.energy_joules is None
        assert records[second].energy.energy_joules is not None
        assert ends.relay.counters.unseen_reads == 14
        assert ends.relay.counters.unseen_requests == 1

    run(test)


async def asked(ends: Ends, key: int) -> EnergySoFar | None:
    answer = ends.relay.estimate(key, ends.now)
    return None if answer is None else await answer


def test_energy_is_asked_for_and_told() -> None:
    async def test() -> None:
        ends = Ends(Meter(MeterConfig(has_sensor=False)))
        assert await asked(ends, 1) is None
        ends.connect()
        await ends.say(RequestOpened(1, 1.0, "r", RequestFacts("chat")))
        assert await asked(ends, 1) == ends.meter.estimate(1, 1.0)
        assert await asked(ends, 2) is None
        await ends.say(RequestClosed(1, 1.0, "ok", 200))
        assert await asked(ends, 1) == ends.meter.estimate(1, 1.0)
        ends.up.is_stuck = True
        waiting = ends.relay.estimate(1, 1.0)
        assert waiting is not None
        ends.cut()
        assert await waiting is None

    run(test)


def test_an_answer_that_does_not_come_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        ends = Ends()
        ends.connect()
        ends.up.is_stuck = True
        monkeypatch.setattr("proxy.relay.link.relay_end.ANSWER_SECONDS", 0.0)
        assert await asked(ends, 1) is None

    run(test)


def test_no_text_of_a_reply_leaves_the_relay() -> None:
    async def test() -> None:
        ends = Ends()
        ends.connect()
        sent: list[bytes] = []
        ends.up.write = lambda data: sent.append(bytes(data))  # type: ignore[method-assign]
        await ends.say(
            RequestOpened(1, 1.0, "r", RequestFacts("chat")),
            TokensReceived(1, 1.1, (Update(carries_token=True, text="a secret"),)),
        )
        assert sent
        assert b"secret" not in b"".join(sent)

    run(test)


def test_a_message_that_cannot_be_used_leaves_the_others() -> None:
    async def test() -> None:
        ends = Ends()
        ends.connect()
        odd = Report(CounterFigures({"no such": 1}, {}, {}), {}, 0.0, ([], 0.0), {}, 0)
        opened = Opened(ID, 7, 1.0, "r", RequestFacts("chat"), Labels())
        closed = Closed(7, 1.1, "ok", 200, None, None, False, False)
        elsewhere = Opened("gone", 8, 1.0, "s", RequestFacts("chat"), Labels())
        ends.up.write(frame_of([odd, elsewhere, opened, odd, closed]))
        assert ends.errors.total == {"relay link": 2}
        assert set(ends.settled()) == {"r"}

    run(test)


def test_an_upstream_is_another_one_than_that_which_had_its_name() -> None:
    async def test() -> None:
        ends = Ends(Meter(MeterConfig(has_sensor=False)))
        ends.connect()
        facts = RequestFacts("chat")
        await ends.say(RequestOpened(1, 1.0, "old", facts))
        old, was = ends.upstream, ends.meter
        ends.meter = Meter(MeterConfig(has_sensor=False))
        new = ends.upstream = open_upstream(
            "vllm", RelayConfig("http://127.0.0.1:1"), ends.meter, DIALECTS["vllm"],
            lambda: ends.now, keys=count(7),
        )  # fmt: skip
        new.brought_by = 1
        ends.links.upstreams = lambda: [new, old]
        # the relay goes over later than the meter
        await ends.say(RequestOpened(2, 1.1, "late", facts))
        ends.relay.engine = new.id
        await ends.say(
            RequestOpened(3, 1.2, "new", facts),
            RequestClosed(1, 1.3, "ok", 200),
            RequestClosed(3, 1.3, "ok", 200),
        )
        assert ends.links.uses(old)
        empty = Report(figures_of(RelayCounters()), {}, 0.0, ([0] * 17, 0.0), {}, 0)
        ends.up.write(frame_of([empty]))
        assert ends.links.uses(old)  # one of its requests is under way
        assert old.in_flight == 0
        await ends.say(RequestClosed(2, 1.4, "ok", 200))
        assert not ends.links.uses(old)
        assert {each.request_id for each in was.settle(1e4)} == {"old", "late"}
        assert set(ends.settled()) == {"new"}

    run(test)


def test_a_request_at_an_upstream_that_has_left_is_counted() -> None:
    async def test() -> None:
        ends = Ends()
        ends.connect()
        for route in ("chat", UNMETERED):
            for key, engine in (8, "vllm/1"), (9, "gone/0"):
                opened = Opened(engine, key, 1.0, "s", RequestFacts(route), Labels())
                closed = Closed(key, 1.1, "ok", 200, None, None, False, False)
                ends.up.write(
                    frame_of([opened, Received(key, 1.0, ()), Ask(key, 1.0), closed])
                )
        assert ends.upstream.counters.unseen_requests == 1
        assert ends.links.loop_errors["relay link"] == 1
        assert not ends.errors.total
        assert not ends.settled()

    run(test)


def test_draining_is_told_to_all_and_outlives_the_meter() -> None:
    async def test() -> None:
        ends = Ends()
        ends.connect()
        ends.upstream.drain(True)
        ends.links.tell_drains()
        ends.links.tell_drains()
        assert ends.drained == [(ID, True)]
        ends.cut()
        ends.replace_meter(Meter(MeterConfig()))
        ends.link._hello = lambda: Hello(1, 1, 4711, (ID,))
        ends.connect()
        assert ends.upstream.is_draining
        ends.upstream.drain(False)
        ends.links.tell_drains()
        assert ends.drained == [(ID, True), (ID, False)]

    run(test)


def test_a_goodbye_is_the_last_of_a_relay() -> None:
    async def test() -> None:
        ends = Ends()
        ends.connect()
        goodbye = asyncio.ensure_future(ends.link.say_goodbye())
        await asyncio.sleep(0)
        assert ends.connection.has_said_goodbye
        assert ends.up.is_closed
        ends.cut()
        await goodbye
        assert ends.links.loop_errors == {"link": 1}
        assert ends.links.dropped_log_lines == 3
        assert ends.delays.counts == [1] * 17

    run(test)


# --- sums ---------------------------------------------------------------------


@st.composite
def counted(draw: st.DrawFn) -> list[RelayCounters]:
    """One relay's counters at some moments, rising but for those of the present."""
    counters, moments = RelayCounters(), []
    for _ in range(draw(st.integers(1, 4))):
        figures = figures_of(counters)
        copy = RelayCounters()
        add_difference(copy, figures_of(RelayCounters()), figures)
        copy.chunks += draw(st.integers(0, 9))
        copy.in_flight = draw(st.integers(0, 9))
        copy.requests[draw(st.sampled_from(["ok", "error"]))] += 1
        copy.refusals[503, draw(st.sampled_from(["full", "down"]))] += 1
        copy.token_seconds.add(draw(st.floats(0, 1)))
        moments.append(copy)
        counters = copy
    return moments


@given(relays=st.lists(counted(), min_size=1, max_size=3))
def test_sums_are_those_of_all_relays_and_stay_when_one_ends(
    relays: list[list[RelayCounters]],
) -> None:
    total = RelayCounters()
    for moments in relays:
        before = figures_of(RelayCounters())
        for moment in moments:
            told = msgspec.msgpack.decode(
                msgspec.msgpack.encode(figures_of(moment)), type=type(before)
            )
            add_difference(total, before, told)
            before = told
        add_difference(total, before, without_present(before))
    last = [moments[-1] for moments in relays]
    assert total.chunks == sum(each.chunks for each in last)
    assert total.requests == sum((each.requests for each in last), Counter())
    assert total.refusals == sum((each.refusals for each in last), Counter())
    assert sum(total.token_seconds.counts) == sum(len(moments) for moments in relays)
    assert all(getattr(total, name) == 0 for name in PRESENT)
