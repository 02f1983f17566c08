"""The requests of an engine that some boundary has yet to settle.

Rule: a request stays until every boundary has settled it, or has given it up; whoever
asks is told in order of keys.
"""

from __future__ import annotations

import math
from operator import attrgetter

from proxy.meter.activity.request import RequestTimeline


class UnsettledRequests:
    """Who was there, or still is, and when."""

    def __init__(self) -> None:
        self.by_key: dict[int, RequestTimeline] = {}
        self._last_key = -1
        self._is_in_order = True
        """Their keys have risen so far, as keys do."""

    def add(self, timeline: RequestTimeline) -> None:
        """A request was forwarded. Raises ValueError for a key that is in use."""
        key = timeline.key
        if key in self.by_key:
            raise ValueError(f"request {key} is open already")
        self.by_key[key] = timeline
        self._is_in_order = self._is_in_order and key > self._last_key
        self._last_key = key

    def in_order(self) -> list[RequestTimeline]:
        """All that have not left, in order of keys."""
        requests = list(self.by_key.values())
        if not self._is_in_order:
            requests.sort(key=attrgetter("key"))
        return requests

    def among(self, start_seconds: float, end_seconds: float) -> list[RequestTimeline]:
        """Who was there in between, in order of keys."""
        return [
            timeline
            for timeline in self.in_order()
            if timeline.arrived_seconds < end_seconds
            and (
                timeline.closed_seconds is None or timeline.end_seconds > start_seconds
            )
        ]

    def were_there(self, start_seconds: float, end_seconds: float) -> bool:
        """Whether anybody was there in between."""
        return any(
            timeline.arrived_seconds < end_seconds
            and (left is None or left > start_seconds)
            for timeline in self.by_key.values()
            for left in (timeline.left_seconds,)
        )

    def ended_before(self, before_seconds: float) -> float:
        """When the last of them left before an instant; -inf where nobody did."""
        ends = [
            timeline.left_seconds
            for timeline in self.by_key.values()
            if timeline.left_seconds is not None
            and timeline.left_seconds <= before_seconds
        ]
        return max(ends, default=-math.inf)
