"""Steps made of reads, no sooner than all reads of their time have come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.meter.activity.request import RequestTimeline
from proxy.meter.activity.seen_steps import SeenSteps
from proxy.meter.activity.unsettled import UnsettledRequests
from proxy.wire.facts import RequestFacts, Update


def stream(*stamps: float) -> tuple[SeenSteps, RequestTimeline]:
    """One stream and the steps that its reads show."""
    requests = UnsettledRequests()
    seen = SeenSteps(requests)
    timeline = RequestTimeline(1, 0.0, RequestFacts("chat", is_stream=True))
    requests.add(timeline)
    for at in stamps:
        timeline.receive(at, (Update(carries_token=True),), seen.log)
    return seen, timeline


def test_reads_that_may_be_overtaken_are_in_no_step_yet() -> None:
    seen, _ = stream(1.0, 1.1, 1.2)
    seen.advance(1.2, 0.05)
    seen.absorb(1.2)
    assert seen.steps.end_seconds.tolist() == [1.0, 1.1]
    assert list(seen.log.seconds) == [1.2]


def test_reads_that_no_window_came_for_are_made_into_steps_once_a_second() -> None:
    seen, _ = stream(1.0)
    seen.advance(2.0, 0.05)
    seen.absorb_overdue()
    assert len(seen.steps.end_seconds) == 1
    later, timeline = stream(1.0)
    later.advance(2.0, 0.05)
    later.absorb(2.0)
    timeline.receive(2.1, (Update(carries_token=True),), later.log)
    later.advance(2.9, 0.05)
    later.absorb_overdue()
    assert len(later.steps.end_seconds) == 1


def test_a_cut_is_seen_once_the_step_around_it_is() -> None:
    seen, timeline = stream(1.0, 1.1)
    seen.advance(1.12, 0.05)
    assert not seen.is_cut_seen(1.05, [timeline], 1.12)
    seen.advance(1.2, 0.05)
    assert seen.is_cut_seen(1.05, [timeline], 1.2)


@given(
    stamps=st.lists(st.integers(1, 100), min_size=1, max_size=40, unique=True),
    before=st.integers(0, 110),
)
def test_every_step_keeps_its_start_when_others_are_forgotten(
    stamps: list[int], before: int
) -> None:
    seen, _ = stream(*(number / 10 for number in sorted(stamps)))
    seen.absorb_until(20.0)
    starts = dict(zip(seen.steps.end_seconds.tolist(), seen.starts, strict=True))
    seen.forget(before / 10)
    ends = seen.steps.end_seconds.tolist()
    assert all(end > before / 10 for end in ends)
    assert seen.starts.tolist() == pytest.approx([starts[end] for end in ends])
