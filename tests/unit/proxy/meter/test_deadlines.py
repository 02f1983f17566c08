"""Every wait of the meter, in order, whatever the sensor; nobody is lost at a stop."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.meter.config import MeterConfig
from proxy.meter.deadlines import Deadlines
from proxy.meter.ledger import RequestRecord
from proxy.meter.meter import Meter
from proxy.wire.events import Event, PowerSampled
from proxy.wire.facts import Reading
from tests.support.meter_scenes import Asked, events_of, in_order

periods = st.floats(0.01, 30.0)
windows = st.floats(0.05, 60.0)
waits = st.floats(0.0, 60.0)


@given(period=periods, window=windows, wait=waits)
def test_the_waits_are_in_order(period: float, window: float, wait: float) -> None:
    running = Deadlines(
        period_seconds=period, min_window_seconds=window, wait_seconds=wait
    )
    for waits in (running, running.at_stop):
        assert 0 < waits.straggler_seconds < waits.window_seconds
        assert waits.window_seconds < waits.settle_seconds < waits.give_up_seconds
        assert waits.give_up_seconds < waits.forget_seconds
    assert running.at_stop.give_up_seconds < running.stop_seconds
    assert running.at_stop.down_seconds < running.stop_seconds
    # an update of the sensor, and another one where the first just missed the end
    assert running.at_stop.settle_seconds >= 2 * period


@given(period=periods, window=windows, wait=waits)
def test_no_wait_is_without_bound(period: float, window: float, wait: float) -> None:
    waits = Deadlines(
        period_seconds=period, min_window_seconds=window, wait_seconds=wait
    )
    assert waits.stop_seconds <= 2 * period + wait + 7
    assert waits.give_up_seconds <= max(2 * window, 10 * period) + 2 * period + wait + 6
    assert waits.join_seconds <= 20


BEAT_SECONDS = 0.5
WATTS = 400.0


def counted(boundary: str, period: float, until: float) -> list[PowerSampled]:
    """A counter that changes once per period, read five times in it."""
    poll = period / 5
    return [
        PowerSampled(boundary, n * poll, (Reading("x", n // 5 * period * WATTS, None),))
        for n in range(round(until / poll))
    ]


def stopped_after(
    asked: Asked, sensors: dict[str, list[PowerSampled]], *, running_usage: bool = True
) -> tuple[list[RequestRecord], float, float]:
    """Its records, from a meter that stops when its reply ends; also how long that
    took, and how long it may have."""
    meter = Meter(MeterConfig(boundaries=tuple(sensors), idle_watts=80.0))
    events: list[Event] = in_order(events_of([asked]), *sensors.values())
    stop_seconds = asked.closed_seconds + 0.001
    records: list[RequestRecord] = []
    now, bound = 0.0, None
    while bound is None or (meter.state().unsettled_requests and now < bound):
        while events and events[0].at_seconds <= now:
            meter.feed(events.pop(0))
        records += meter.settle(now)
        if bound is None and now >= stop_seconds:
            bound = now + meter.stop(now)
        now += BEAT_SECONDS if bound is None else 0.05
    took = now - stop_seconds
    records += meter.settle(bound)
    assert meter.state().unsettled_requests == 0
    return records, took, bound - stop_seconds


@pytest.mark.parametrize("period", [0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0])
@pytest.mark.parametrize("part", [0.05, 0.5, 0.98])
def test_a_meter_that_stops_behind_a_slow_sensor_has_the_last_joules(
    period: float, part: float
) -> None:
    """Whenever in the sensor's period the request ends."""
    at = (round(8 / period) + 8 + part) * period
    asked = Asked(at, [at + 0.01 * n for n in range(1, 20)])
    sensor = {"gpu": counted("gpu", period, at + 4 * period + 2)}
    (record,), took, bound = stopped_after(asked, sensor)
    assert record.energy.energy_joules is not None
    assert record.energy.energy_joules > 0
    assert took <= 2 * period + 1.0 <= bound


@pytest.mark.parametrize("node_period", [0.5, 1.0, 5.0, 10.0, 30.0])
def test_the_joules_of_a_slow_boundary_come_too(node_period: float) -> None:
    at = 8.3 * node_period + 8
    asked = Asked(at, [at + 0.01 * n for n in range(1, 20)])
    until = at + 4 * node_period + 2
    sensors = {
        "gpu": counted("gpu", 0.1, until),
        "node": counted("node", node_period, until),
    }
    (record,), took, bound = stopped_after(asked, sensors)
    assert record.energy.energy_joules is not None
    node = record.energy.boundaries["node"]
    assert (node.energy_joules is not None) == (took < 20.0)
    assert took <= min(2 * node_period, 20.0) + 1.0 <= bound


def test_a_sensor_that_hangs_or_fails_leaves_a_record_without_joules() -> None:
    asked = Asked(12.0, [12.0 + 0.01 * n for n in range(1, 20)])
    before = [event for event in counted("gpu", 1.0, 30.0) if event.at_seconds < 12.1]
    (record,), took, bound = stopped_after(asked, {"gpu": before})
    assert (record.energy.energy_joules, record.energy.quality) == (None, "unknown")
    assert 5.0 < took < bound < 20.0
    failed = PowerSampled("gpu", 12.15, gap_reason="no answer")
    (record,), took, _ = stopped_after(asked, {"gpu": [*before, failed]})
    assert record.energy.energy_joules is None
    assert took < 6.0


def test_without_any_reading_a_stop_is_short() -> None:
    asked = Asked(2.0, [2.1, 2.2])
    (record,), took, _ = stopped_after(asked, {"gpu": []})
    assert record.energy.energy_joules is None
    assert took < 6.0
