"""Other processes on the engine's boards: what the meter is told, and keeps."""

from __future__ import annotations

import pytest

from proxy.meter.config import MeterConfig
from proxy.meter.meter import Meter
from proxy.wire.events import HardwareObserved
from proxy.wire.facts import HardwareState
from tests.support.meter_scenes import (
    Asked,
    counter,
    events_of,
    in_order,
    settled_on_beat,
)


def reason_after(*observed: HardwareObserved) -> str | None:
    meter = Meter(MeterConfig(boundaries=("gpu", "node")))
    for event in observed:
        meter.feed(event)
    assert meter.shared_because("node") is None
    return meter.shared_because("gpu")


def seen(*boards: tuple[int, ...] | None, at_seconds: float = 1.0) -> HardwareObserved:
    states = tuple(
        HardwareState(f"gpu{index}", process_ids=pids)
        for index, pids in enumerate(boards)
    )
    return HardwareObserved("gpu", at_seconds, states)


@pytest.mark.parametrize("boards", [(None,), ((),), ((41,),), ((41,), (42,)), ()])
def test_one_process_on_each_board_is_the_engine(
    boards: tuple[tuple[int, ...] | None, ...],
) -> None:
    assert reason_after(seen(*boards)) is None


def test_a_second_process_is_named_with_its_board() -> None:
    assert reason_after(seen((41,), (42, 7, 9))) == (
        "processes beside the engine: 2 on gpu1"
    )


def test_the_newest_observation_counts() -> None:
    assert reason_after(seen((41, 42)), seen((41,), at_seconds=2.0)) is None
    assert reason_after(seen((41, 42)), HardwareObserved("gpu", 2.0)) is None


def test_the_records_of_that_time_say_so_and_are_poor() -> None:
    requests = [
        Asked(start, [start + 0.1 * n for n in range(1, 9)], cached=0)
        for start in (1.0, 3.0, 5.0)
    ]
    watched = [seen((41,), at_seconds=0.5), seen((41, 7), at_seconds=2.5)]
    watched.append(seen((41,), at_seconds=4.5))
    events = in_order(events_of(requests), counter(8.0), watched)
    meter = Meter(MeterConfig(idle_watts=50.0))
    records = settled_on_beat(meter, events, beat=0.05, until=100.0)
    found = {each.request_id: each.energy for each in records}
    assert ["shared" in found[f"r{key}"].grade_reasons for key in range(3)] == [
        False, True, False,
    ]  # fmt: skip
    assert found["r1"].grade == "poor"
