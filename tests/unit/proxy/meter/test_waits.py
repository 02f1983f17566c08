"""What a boundary waits for, and no more once no request comes."""

from __future__ import annotations

import pytest

from proxy.meter.attribution.lag import LagWatch
from proxy.meter.config import MeterConfig
from proxy.meter.curve import GroupCurve
from proxy.meter.waits import Waits


def waits(*, is_up: bool = True) -> Waits:
    made = Waits(MeterConfig(), GroupCurve(), LagWatch())
    made.is_up = is_up
    made.beat()
    return made


def test_a_sensor_that_is_down_is_not_waited_for() -> None:
    assert waits().join_seconds(1.0) > 0.0
    assert waits(is_up=False).join_seconds(1.0) == 0.0


@pytest.mark.parametrize("is_up", [True, False])
def test_nothing_is_waited_for_for_ever_after_a_stop(is_up: bool) -> None:
    made = waits(is_up=is_up)
    assert not made.is_stopped
    longest = made.stop(10.0)
    assert made.is_stopped
    assert not made.is_given_up(closed_seconds=10.0, now_seconds=10.0)
    assert made.is_given_up(closed_seconds=10.0, now_seconds=10.0 + longest)
    assert made.join_seconds(10.0 + longest) == 0.0


def test_a_request_is_given_up_some_time_after_its_end() -> None:
    made = waits()
    seconds = made.current.give_up_seconds
    assert not made.is_given_up(closed_seconds=5.0, now_seconds=5.0 + seconds)
    assert made.is_given_up(closed_seconds=5.0, now_seconds=5.01 + seconds)
