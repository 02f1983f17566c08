"""Requests that passed to the engine unread: of each only its time is known.

Rule: the engine may have worked for one as long as it was open. Nobody's record can
have those joules, and a time in which one was open is not idle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from proxy.meter.activity.request import RequestTimeline
from proxy.wire.facts import UNMETERED, RequestFacts

UNMETERED_KEY = 1 << 61
"""Beyond any key of a request, before those of strangers."""

FACTS = RequestFacts(UNMETERED)


@dataclass(slots=True)
class _Stay:
    began_seconds: float
    ended_seconds: float = math.inf


class Unmetered:
    """Those that some boundary has yet to settle."""

    def __init__(self) -> None:
        self._stays: dict[int, _Stay] = {}

    def open(self, key: int, at_seconds: float) -> None:
        """One was sent on. Raises ValueError for a key that is in use."""
        if key in self._stays:
            raise ValueError(f"request {key} is open already")
        self._stays[key] = _Stay(at_seconds)

    def close(self, key: int, at_seconds: float) -> None:
        """Its reply ended; what is said of one that is not open is ignored."""
        stay = self._stays.get(key)
        if stay is not None and stay.ended_seconds == math.inf:
            stay.ended_seconds = max(at_seconds, stay.began_seconds)

    def count_at(self, at_seconds: float, flight_seconds: float) -> int:
        """How many may be in the engine at an instant, so long after their end too."""
        return sum(
            stay.began_seconds <= at_seconds <= stay.ended_seconds + flight_seconds
            for stay in self._stays.values()
        )

    def were_there(self, start_seconds: float, end_seconds: float) -> bool:
        """Whether any was open in between."""
        return any(
            stay.began_seconds < end_seconds and stay.ended_seconds > start_seconds
            for stay in self._stays.values()
        )

    def span(
        self, start_seconds: float, end_seconds: float
    ) -> tuple[float, float] | None:
        """From when to when some were open in between; None: nobody was."""
        spans = [
            (
                max(stay.began_seconds, start_seconds),
                min(stay.ended_seconds, end_seconds),
            )
            for stay in self._stays.values()
        ]
        open_spans = [(began, ended) for began, ended in spans if ended > began]
        if not open_spans:
            return None
        return min(open_spans)[0], max(ended for _, ended in open_spans)

    def between(
        self, start_seconds: float, end_seconds: float
    ) -> list[RequestTimeline]:
        """Made-up requests that ran in between, one for each, in order of keys."""
        found: list[RequestTimeline] = []
        for stay in self._stays.values():
            began = max(stay.began_seconds, start_seconds)
            ended = min(stay.ended_seconds, end_seconds)
            if ended > began:
                found.append(stand_in(UNMETERED_KEY + len(found), began, ended, FACTS))
        return found

    def ended_before(self, before_seconds: float) -> float:
        """When the last one ended that did before an instant; -inf without any."""
        ends = [stay.ended_seconds for stay in self._stays.values()]
        return max((at for at in ends if at <= before_seconds), default=-math.inf)

    def forget(self, before_seconds: float) -> float:
        """Drop those that ended before an instant; when the last of them did."""
        last_seconds = -math.inf
        for key, stay in list(self._stays.items()):
            if stay.ended_seconds <= before_seconds:
                last_seconds = max(last_seconds, stay.ended_seconds)
                del self._stays[key]
        return last_seconds


def stand_in(
    key: int, began: float, ended: float, facts: RequestFacts
) -> RequestTimeline:
    """A request of which only the time is known, in place of one that nobody read."""
    timeline = RequestTimeline(key, began, facts)
    timeline.scheduled_seconds = timeline.first_token_seconds = began
    timeline.last_token_seconds = ended
    timeline.close(ended)
    return timeline
