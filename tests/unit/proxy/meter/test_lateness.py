"""Stalls of the proxy's loop: what came meanwhile is stamped late."""

from __future__ import annotations

import pytest

from proxy.meter.config import MeterConfig
from proxy.meter.lateness import Lateness
from proxy.meter.ledger import RequestEnergy, RequestRecord
from proxy.meter.meter import Meter
from tests.support.meter_scenes import Asked, counter, events_of, in_order


def test_a_stamp_is_late_with_the_chance_of_the_stall_and_by_up_to_it() -> None:
    lateness = Lateness()
    lateness.beat(10.3, 0.3)
    assert lateness.square_between(10.0, 10.5) == pytest.approx(0.6 * 0.3**2 / 3)
    assert lateness.square_between(10.3, 10.8) == 0.0
    assert lateness.square_between(9.5, 10.0) == 0.0


def test_a_loop_that_is_in_time_makes_nothing_late() -> None:
    lateness = Lateness()
    for beat in range(100):
        lateness.beat(beat * 0.05, 0.001)
    assert lateness.square_between(0.0, 5.0) == 0.0
    assert not lateness.may_be_late(2.5)


@pytest.mark.parametrize(
    ("at_seconds", "is_late"), [(9.9, False), (10.1, True), (10.3, True), (10.4, False)]
)
def test_only_what_came_in_a_stall_is_late(at_seconds: float, is_late: bool) -> None:
    lateness = Lateness()
    lateness.beat(10.3, 0.3)
    lateness.beat(10.35, 0.0)
    assert lateness.may_be_late(at_seconds) is is_late


def test_a_short_stall_leaves_stamps_as_they_are() -> None:
    lateness = Lateness()
    lateness.beat(10.02, 0.02)
    assert not lateness.may_be_late(10.01)
    assert lateness.square_between(10.0, 10.1) > 0.0


def test_stalls_of_long_ago_are_forgotten() -> None:
    lateness = Lateness()
    lateness.beat(10.3, 0.3)
    lateness.beat(200.0, 0.0)
    assert not lateness.may_be_late(10.2)


def energies(late_seconds: float) -> dict[str, RequestEnergy]:
    """Three requests; the loop stands still while the second's first token comes."""
    requests = [
        Asked(start, [start + 0.1 * n for n in range(1, 9)], prefill_seconds=0.05)
        for start in (1.0, 4.0, 6.0)
    ]
    meter = Meter(MeterConfig(idle_watts=50.0))
    records: list[RequestRecord] = []
    due = 0.05
    for event in in_order(events_of(requests), counter(8.0)):
        while event.at_seconds > due:
            is_stalled = 4.1 < due < 4.2
            records += meter.settle(due, late_seconds if is_stalled else 0.0)
            due += 0.05
        meter.feed(event)
    records += meter.settle(100.0)
    return {record.request_id: record.energy for record in records}


def test_a_record_whose_stamps_are_late_is_not_timed_and_its_interval_is_wider() -> (
    None
):
    still, going = energies(0.08), energies(0.0)
    assert [going[key].timing for key in ("r1", "r2")] == ["timed", "timed"]
    assert [still[key].timing for key in ("r1", "r2")] == ["estimated", "timed"]
    low, lower = going["r1"].low_joules, still["r1"].low_joules
    assert low is not None
    assert lower is not None
    assert lower < low
    assert still["r1"].energy_joules == going["r1"].energy_joules
