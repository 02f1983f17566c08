"""The engine's own count: who did what no request of the proxy's did."""

from __future__ import annotations

from proxy.meter.activity.timeline import EngineTimeline
from proxy.wire.events import RequestOpened, TokensReceived
from tests.support.meter_scenes import Asked, events_of


def test_what_a_cache_held_is_known_only_if_someone_told() -> None:
    timeline = EngineTimeline()
    asked = [Asked(1.0, [2.0], cached=cached) for cached in (0, None)]
    for event in events_of(asked):
        if isinstance(event, RequestOpened):
            timeline.open(event)
        elif isinstance(event, TokensReceived):
            timeline.receive(event)
    told, untold = timeline.requests.in_order()
    assert timeline.count.knows_cache_of(told)
    assert not timeline.count.knows_cache_of(untold)
