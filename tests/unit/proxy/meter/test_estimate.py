"""What a request has consumed so far: before its records, and without touching them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.meter.config import MeterConfig
from proxy.meter.estimate import EnergySoFar
from proxy.meter.ledger import RequestRecord
from proxy.meter.meter import Meter
from proxy.wire.events import PowerSampled, RequestClosed, RequestOpened, TokensReceived
from proxy.wire.facts import Labels, RequestFacts, Update, Usage
from tests.support.meter_scenes import Asked, counter, events_of, in_order, play

WATTS = 300.0
IDLE = MeterConfig(idle_watts=100.0)


def steady(arrived: float, tokens: int, **changes: object) -> Asked:
    """A request with a token every 20 ms, the first after 50 ms."""
    stamps = [arrived + 0.05 + 0.02 * number for number in range(tokens)]
    return replace(Asked(arrived, stamps), **changes)  # type: ignore[arg-type]


def told(
    requests: list[Asked], config: MeterConfig = IDLE, *, watts: float = WATTS
) -> tuple[Meter, dict[int, EnergySoFar], dict[str, RequestRecord]]:
    """Settled every 50 ms; an estimate of each right after its last token."""
    meter = Meter(config)
    until = max(asked.closed_seconds for asked in requests) + 2.0
    so_far: dict[int, EnergySoFar] = {}
    records: list[RequestRecord] = []
    beats = 0
    for event in in_order(events_of(requests), counter(until, watts)):
        while event.at_seconds >= 0.05 * beats:
            records += meter.settle(0.05 * beats)
            beats += 1
        if isinstance(event, RequestClosed):
            so_far[event.key] = meter.estimate(event.key, event.at_seconds)
        meter.feed(event)
    records += meter.settle(until + 100.0)
    return meter, so_far, {record.request_id: record for record in records}


def joules(value: float | None) -> float:
    assert value is not None
    return value


@pytest.mark.parametrize("running_usage", [True, False])
def test_an_estimate_comes_near_to_what_is_settled_later(running_usage: bool) -> None:
    requests = [
        steady(0.5 + 0.31 * number, 20 + 17 * number, running_usage=running_usage)
        for number in range(6)
    ]
    _, so_far, records = told(requests)
    for key in range(6):
        estimate, record = so_far[key].energy, records[f"r{key}"].energy
        assert not so_far[key].is_settled
        assert estimate.quality == "estimated"
        assert estimate.policy == record.policy == "phase"
        final = joules(record.energy_joules)
        assert joules(estimate.energy_joules) == pytest.approx(final, rel=0.2)
        assert joules(estimate.energy_joules) == pytest.approx(
            joules(estimate.prefill_joules)
            + joules(estimate.decode_joules)
            + joules(estimate.idle_share_joules)
        )


def test_alone_on_the_engine_it_is_all_that_was_measured() -> None:
    _, so_far, _ = told([steady(1.0, 100)])
    assert joules(so_far[0].energy.energy_joules) == pytest.approx(
        WATTS * 2.03, rel=0.03
    )


@given(
    asked=st.lists(
        st.tuples(st.floats(0.3, 3.0), st.integers(1, 80), st.booleans()),
        min_size=1,
        max_size=5,
    ),
)
def test_asking_changes_no_record(asked: list[tuple[float, int, bool]]) -> None:
    requests = [
        steady(arrived, tokens, running_usage=running)
        for arrived, tokens, running in asked
    ]
    meter, _, records = told(requests)
    silent = Meter(IDLE)
    until = max(one.closed_seconds for one in requests) + 2.0
    found: list[RequestRecord] = []
    beats = 0
    for event in in_order(events_of(requests), counter(until, WATTS)):
        while event.at_seconds >= 0.05 * beats:
            found += silent.settle(0.05 * beats)
            beats += 1
        silent.feed(event)
    found += silent.settle(until + 100.0)
    assert {record.request_id: record for record in found} == records
    assert silent.books_at() == meter.books_at()


@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    now=st.floats(1.0, 2.5),
)
def test_estimates_give_out_no_more_than_was_measured(
    counts: list[int], now: float
) -> None:
    requests = [steady(0.8 + 0.05 * n, count) for n, count in enumerate(counts)]
    meter = Meter(IDLE)
    play(
        meter,
        sorted(
            (
                e
                for e in [*events_of(requests), *counter(now, WATTS)]
                if e.at_seconds <= now
            ),
            key=lambda event: event.at_seconds,
        ),
    )
    meter.settle(0.4)
    parts = [
        meter.estimate(key, now).energy.energy_joules or 0.0
        for key, asked in enumerate(requests)
        if asked.arrived <= now
    ]
    assert min(parts, default=0.0) >= 0
    assert sum(parts) <= WATTS * now + 1e-6


def test_once_recorded_it_is_the_record_and_settled() -> None:
    meter, _, records = told([steady(0.5, 10), steady(0.6, 10)])
    for key in range(2):
        so_far = meter.estimate(key, 99.0)
        assert so_far.is_settled
        assert so_far.energy == records[f"r{key}"].energy


def test_without_a_sensor_nothing_is_known_and_nothing_will_be() -> None:
    _, so_far, _ = told([steady(0.5, 10)], MeterConfig(has_sensor=False))
    assert so_far[0].is_settled
    assert so_far[0].energy.energy_joules is None
    assert so_far[0].energy.quality == "unknown"


def test_a_gap_or_a_late_first_edge_leaves_it_unknown() -> None:
    meter = Meter(IDLE)
    play(meter, [e for e in counter(1.5, WATTS) if e.at_seconds > 0.5])
    meter.settle(1.0)
    facts = RequestFacts("chat", is_stream=True, has_running_usage=True)
    for key, arrived in ((1, 0.2), (2, 1.1)):
        meter.feed(RequestOpened(key, arrived, f"r{key}", facts, Labels()))
        update = Update(carries_token=True, usage=Usage(5, 1))
        meter.feed(TokensReceived(key, 1.3, (update,)))
    assert meter.estimate(1, 1.5).energy.energy_joules is None
    assert joules(meter.estimate(2, 1.5).energy.energy_joules) > 0
    meter.feed(PowerSampled("gpu", 1.51, gap_reason="sensor_gap"))
    assert meter.estimate(2, 1.52).energy.energy_joules is None
    assert not meter.estimate(2, 1.52).is_settled


def test_a_sensor_that_fell_silent_gives_no_estimate() -> None:
    meter = Meter(IDLE)
    play(meter, counter(1.5, WATTS))
    facts = RequestFacts("chat", is_stream=True, has_running_usage=True)
    meter.settle(0.5)
    meter.feed(RequestOpened(1, 1.1, "r1", facts, Labels()))
    assert joules(meter.estimate(1, 2.0).energy.energy_joules) >= 0
    assert meter.estimate(1, 30.0).energy.energy_joules is None


def test_a_whole_reply_is_estimated_when_it_is_closed() -> None:
    meter = Meter(IDLE)
    play(meter, counter(1.0, WATTS))
    meter.settle(0.9)
    facts = RequestFacts("chat")
    meter.feed(RequestOpened(1, 1.0, "r1", facts, Labels()))
    play(meter, [e for e in counter(2.0, WATTS) if e.at_seconds > 1.0])
    meter.feed(
        TokensReceived(1, 2.0, (Update(usage=Usage(50, 40), carries_token=True),))
    )
    meter.feed(RequestClosed(1, 2.0, "ok", status=200))
    energy = meter.estimate(1, 2.0).energy
    assert joules(energy.energy_joules) == pytest.approx(WATTS, rel=0.1)
    assert joules(energy.decode_joules) > joules(energy.prefill_joules) > 0
