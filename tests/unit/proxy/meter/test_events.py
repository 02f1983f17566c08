"""The six messages: written down, read back, fed again, with nothing lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.meter.config import MeterConfig
from proxy.meter.ledger import Books, RequestRecord
from proxy.meter.meter import Meter
from proxy.wire.events import EngineObserved, Event, HardwareObserved, PowerSampled
from proxy.wire.facts import EngineGauges, HardwareState, Labels
from tests.support.meter_scenes import Asked, counter_of, events_of, in_order
from tests.support.profiles import examples

BOUNDARIES = ("gpu", "node")
quickly = examples(40)


def through_json(events: Sequence[Event]) -> list[Event]:
    return msgspec.json.decode(msgspec.json.encode(events), type=list[Event])


def through_msgpack(events: Sequence[Event]) -> list[Event]:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(events), type=list[Event])


WAYS = {"as they were": list, "json": through_json, "msgpack": through_msgpack}


def outcome(
    events: Sequence[Event], beats: Sequence[float]
) -> tuple[list[RequestRecord], list[Books]]:
    """Records and books of a fresh meter that is settled at these instants."""
    meter = Meter(MeterConfig(boundaries=BOUNDARIES))
    records: list[RequestRecord] = []
    due = list(beats)
    for event in events:
        while due and event.at_seconds > due[0]:
            records += meter.settle(due.pop(0))
        meter.feed(event)
    for now in (*due, 200.0, 300.0):
        records += meter.settle(now)
    return records, [meter.books_of(name) for name in BOUNDARIES]


@st.composite
def recordings(draw: st.DrawFn) -> list[Event]:
    """All that a meter may hear, in order of time."""
    requests = []
    for _ in range(draw(st.integers(1, 5))):
        arrived = draw(st.floats(0.6, 4.0))
        first = arrived + draw(st.floats(0.01, 0.5))
        count = draw(st.integers(0, 30))
        requests.append(
            Asked(
                arrived,
                [first + 0.025 * number for number in range(count)],
                prompt=draw(st.integers(1, 4000)),
                cached=draw(st.none() | st.integers(0, 9)),
                closed=None if count else first,
                labels=Labels(tenant=draw(st.text(max_size=3))),
                outcome=draw(st.sampled_from(["ok", "aborted"])),
                running_usage=draw(st.booleans()),
                prefill_seconds=draw(st.none() | st.floats(0.0, 1.0)),
            )
        )
    watts = st.lists(st.floats(1.0, 900.0), min_size=60, max_size=60)
    counters = [counter_of(draw(watts), boundary=name) for name in BOUNDARIES]
    gap = PowerSampled("node", draw(st.floats(0.0, 6.0)), gap_reason="away")
    pages = [
        EngineObserved(0.4 + n, EngineGauges(draw(st.integers(0, 4)), 0, 0, float(n)))
        for n in range(6)
    ]
    states = [
        HardwareObserved("gpu", 0.3 + n, (HardwareState("gpu0", process_ids=(7, 8)),))
        for n in range(6)
    ]
    return in_order(events_of(requests), *counters, [gap], pages, states)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@quickly
@given(
    events=recordings(), beats=st.lists(st.floats(0.0, 9.0), max_size=20).map(sorted)
)
def test_a_recording_fed_again_gives_the_same_to_the_last_bit(
    way: Callable[[Sequence[Event]], list[Event]],
    events: list[Event],
    beats: list[float],
) -> None:
    again = way(events)
    assert again == events
    assert outcome(again, beats) == outcome(events, beats)


def test_every_message_says_what_it_is() -> None:
    events: list[Event] = [
        *events_of([Asked(1.0, [1.1])]),
        PowerSampled("node", 2.0, gap_reason="no answer"),
        EngineObserved(3.0, EngineGauges(1, 0)),
        HardwareObserved("gpu", 4.0, (HardwareState("gpu0", throttle_reasons=()),)),
    ]
    written = msgspec.json.decode(msgspec.json.encode(events))
    assert [message["type"] for message in written] == [
        "RequestOpened", "TokensReceived", "TokensReceived", "RequestClosed",
        "PowerSampled", "EngineObserved", "HardwareObserved",
    ]  # fmt: skip
    assert written[4] == {
        "type": "PowerSampled", "boundary": "node", "at_seconds": 2.0,
        "readings": [], "gap_reason": "no answer",
    }  # fmt: skip
