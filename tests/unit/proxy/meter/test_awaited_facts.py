"""Facts that are waited for, where an engine tells them late."""

from __future__ import annotations

import pytest

from proxy.meter.activity.request import (
    LATE_FACTS_SECONDS,
    LATE_HITS_SECONDS,
)
from proxy.meter.activity.timeline import EngineTimeline
from proxy.wire.events import RequestClosed, RequestOpened, TokensReceived
from proxy.wire.facts import RequestFacts, Update, Usage


@pytest.mark.parametrize("is_told_first", [True, False])
def test_a_hit_counts_for_those_who_came_after_it_whenever_it_is_told(
    is_told_first: bool,
) -> None:
    timeline = EngineTimeline()
    facts = RequestFacts("chat", is_stream=True, has_running_usage=True)
    hit = (Update(True, usage=Usage(100, 1, 64)),)
    timeline.open(RequestOpened(1, 1.0, "r1", facts))

    def tell() -> None:
        timeline.receive(TokensReceived(1, 3.0, hit))
        timeline.close(RequestClosed(1, 3.0, "ok", status=200))

    if is_told_first:
        tell()
    early = timeline.open(RequestOpened(2, 2.0, "r2", facts))
    late = timeline.open(RequestOpened(3, 5.0, "r3", facts))
    if not is_told_first:
        tell()
    assert early.patience_seconds == LATE_FACTS_SECONDS
    assert late.patience_seconds == LATE_HITS_SECONDS
