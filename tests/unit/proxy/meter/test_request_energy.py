"""What a request has cost, and what all records of a beat have in common."""

from __future__ import annotations

from proxy.meter.config import MeterConfig
from proxy.meter.meter import Meter
from tests.support.meter_scenes import Asked, counter, events_of, in_order, ticks


def test_the_sensor_is_asked_once_a_beat_and_not_before_there_is_a_record() -> None:
    asked: list[str] = []

    def fraction(boundary: str) -> float:
        asked.append(boundary)
        return 0.01

    meter = Meter(MeterConfig(idle_watts=50.0, sensor_fraction=fraction))
    assert not asked
    requests = [Asked(1.0, ticks(1.1, 2.0)) for _ in range(3)]
    for event in in_order(events_of(requests), counter(8.0)):
        meter.feed(event)
    assert not asked
    assert len(meter.settle(8.0)) == 3
    assert asked == ["gpu"]
