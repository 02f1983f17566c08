"""Requests that their client has left and the engine may still be computing.

Rule: two scrapes must show it, in the second of which the engine made progress:
one alone may be a gauge left standing. Then it ran until the second, and so on,
for a bounded time; otherwise it ended with its last byte.
"""

from __future__ import annotations

from dataclasses import dataclass

from proxy.meter.activity.request import RequestTimeline

ORPHAN_SECONDS = 6.0
"""Less than a window waits. What an engine does that has not noticed by then that
its client left is nobody's who could be asked."""

LEFT = frozenset({"aborted", "timeout"})
"""Outcomes after which the engine may not know that nobody listens."""


@dataclass(slots=True)
class _Suspect:
    timeline: RequestTimeline
    heard_seconds: float
    sightings: int = 0


class RunOns:
    """Those suspected, until a scrape without them or the end of their time."""

    def __init__(self) -> None:
        self._suspects: dict[int, _Suspect] = {}
        self._ended: list[RequestTimeline] = []

    def suspect(self, timeline: RequestTimeline) -> None:
        """Its client has left just now."""
        timeline.may_be_orphan = True
        self._suspects[timeline.key] = _Suspect(
            timeline, timeline.closed_seconds or 0.0
        )

    def claim(self, at_seconds: float, outside: int, *, not_before: float) -> int:
        """How many of the sequences that nobody sent are those of suspects.

        A suspect whose close is less than `not_before` seconds old is left alone.
        """
        claimed = 0
        for suspect in list(self._suspects.values()):
            timeline = suspect.timeline
            closed = timeline.closed_seconds or 0.0
            if at_seconds <= closed + not_before:
                continue
            is_there = claimed + timeline.sequences <= outside
            if not is_there or at_seconds > closed + ORPHAN_SECONDS:
                self._release(timeline)
                continue
            claimed += timeline.sequences
            suspect.sightings += 1
            suspect.heard_seconds = at_seconds
            if suspect.sightings > 1:
                timeline.ran_on_seconds = at_seconds
        return claimed

    def give_up(self, before_seconds: float) -> None:
        """No scrape came: those not heard of since an instant ended with it."""
        for suspect in list(self._suspects.values()):
            if suspect.heard_seconds < before_seconds:
                self._release(suspect.timeline)

    def take_ended(self) -> list[RequestTimeline]:
        """Those that ran on and have ended since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def _release(self, timeline: RequestTimeline) -> None:
        timeline.may_be_orphan = False
        del self._suspects[timeline.key]
        if timeline.ran_on_seconds is not None:
            self._ended.append(timeline)
