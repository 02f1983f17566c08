"""Who some boundary has yet to settle, in order of keys, and when they were there."""

from __future__ import annotations

import math

import pytest

from proxy.meter.activity.request import RequestTimeline
from proxy.meter.activity.unsettled import UnsettledRequests
from proxy.wire.facts import RequestFacts


def there(*stays: tuple[int, float, float | None]) -> UnsettledRequests:
    """(key, arrival, close) of each, in the order they were forwarded."""
    requests = UnsettledRequests()
    for key, arrived, closed in stays:
        timeline = RequestTimeline(key, arrived, RequestFacts("chat", is_stream=True))
        if closed is not None:
            timeline.close(closed)
        requests.add(timeline)
    return requests


@pytest.mark.parametrize("keys", [(1, 2, 3), (2, 3, 1)], ids=str)
def test_they_are_told_in_order_of_keys(keys: tuple[int, ...]) -> None:
    requests = there(*((key, 0.0, None) for key in keys))
    assert [each.key for each in requests.in_order()] == [1, 2, 3]


def test_a_key_in_use_is_refused() -> None:
    requests = there((1, 0.0, None))
    with pytest.raises(ValueError, match="request 1 is open already"):
        requests.add(RequestTimeline(1, 1.0, RequestFacts("chat")))


def test_who_was_there_ends_and_begins_with_the_stretch() -> None:
    requests = there((1, 0.0, 1.0), (2, 0.5, None), (3, 2.0, 3.0))
    assert [each.key for each in requests.among(1.0, 2.0)] == [2]
    assert [each.key for each in requests.among(0.9, 2.1)] == [1, 2, 3]
    gone = there((1, 0.0, 1.0))
    assert gone.were_there(0.9, 2.0)
    assert not gone.were_there(1.0, 2.0)


def test_the_last_who_left_is_told() -> None:
    requests = there((1, 0.0, 1.0), (2, 0.0, 2.0), (3, 0.0, None))
    assert requests.ended_before(2.5) == 2.0
    assert requests.ended_before(1.5) == 1.0
    assert requests.ended_before(0.5) == -math.inf
