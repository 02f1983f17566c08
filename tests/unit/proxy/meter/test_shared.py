"""Other processes on the engine's boards: what the meter is told, and keeps."""

from __future__ import annotations

import pytest

from proxy.meter.config import MeterConfig
from proxy.meter.meter import Meter
from proxy.wire.events import HardwareObserved
from proxy.wire.facts import HardwareState


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
