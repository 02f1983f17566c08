"""What is not known yet of what requests did, and is worth waiting for.

Rule: a window waits for the facts of those in it: a stream's next token, the end of a
reply without running usage, and what an engine that tells late may still say of a
prompt. Once who ran when is final, nothing that comes changes it.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable

from proxy.meter.activity.engine_count import EngineCount
from proxy.meter.activity.engine_load import GaugeLog
from proxy.meter.activity.placement import missed_steps
from proxy.meter.activity.request import LATE_HITS_SECONDS, Pause, RequestTimeline
from proxy.meter.activity.seen_steps import SeenSteps
from proxy.meter.activity.unsettled import UnsettledRequests

HITS_SECONDS = 60.0
"""A cache is in use for so long after a reply told of a hit."""


class AwaitedFacts:
    """Whose facts have not all come, as of the last beat."""

    def __init__(
        self,
        requests: UnsettledRequests,
        seen: SeenSteps,
        gauges: GaugeLog,
        count: EngineCount,
    ) -> None:
        self._requests, self._seen, self._gauges = requests, seen, gauges
        self._count = count
        self._engine_tells_late = False
        """The engine gives phase times or cached tokens with the last event, so
        a prefill is worth waiting for, for a while."""
        self._hits_seconds: list[float] = []
        """When replies told of hits in the engine's cache, the newest last."""
        self._opened_seconds = -math.inf

    def open(self, timeline: RequestTimeline) -> None:
        """A request was forwarded; where hits are told of, it is waited for longer."""
        if self._was_hit(timeline.arrived_seconds):
            timeline.patience_seconds = LATE_HITS_SECONDS
        self._opened_seconds = max(self._opened_seconds, timeline.arrived_seconds)

    def close(self, timeline: RequestTimeline, at_seconds: float) -> None:
        """A reply ended, and with it came the engine's facts."""
        if timeline.has_late_facts:
            self._engine_tells_late = True
        if timeline.cached_tokens:
            self._tell_hit(at_seconds)

    def is_known(
        self, timeline: RequestTimeline, start_seconds: float, end_seconds: float
    ) -> bool:
        """Whether all that the request did in between is known by now."""
        return not self.unknown((timeline,), start_seconds, end_seconds)

    def unknown(
        self,
        requests: Iterable[RequestTimeline],
        start_seconds: float,
        end_seconds: float,
    ) -> list[RequestTimeline]:
        """Those of whom not all that they did in between is known by now."""
        if end_seconds <= self._seen.settled_seconds:
            return []  # nothing that comes changes it
        until_seconds = self._seen.until_seconds
        asked_seconds = self._gauges.will_tell_after_seconds(self._seen.now_seconds)
        found: list[RequestTimeline] = []
        for timeline in requests:  # in one loop, as there are many of them
            first = timeline.first_token_seconds
            if timeline.pauses and self._has_open_pause(
                timeline, start_seconds, end_seconds, asked_seconds
            ):
                is_known = False
            elif (closed := timeline.closed_seconds) is not None:
                is_known = (
                    not (timeline.may_be_orphan and closed < end_seconds)
                    and not timeline.is_unspread
                    and (closed if first is None else first) <= until_seconds
                )
            else:
                last = timeline.last_token_seconds
                is_known = (
                    first is not None
                    and last is not None
                    and last >= end_seconds
                    and first <= until_seconds
                    and timeline.has_running_usage  # as in `is_exact_so_far`
                    and timeline.prompt_tokens is not None
                    and not (start_seconds < first and self._awaits_facts(timeline))
                )
            if not is_known:
                found.append(timeline)
        return found

    def are_complete(self, timeline: RequestTimeline) -> bool:
        """Whether all is known of its prompt that ever will be."""
        if timeline.closed_seconds is not None:
            return not timeline.may_be_orphan
        return timeline.is_exact_so_far and not self._awaits_facts(timeline)

    def completed_seconds(self, timeline: RequestTimeline) -> float | None:
        """When its prompt was done, or it ended without; None: that is not known."""
        first = timeline.first_token_seconds
        if first is None:
            return None if timeline.is_unspread else timeline.left_seconds
        return first if first <= self._seen.until_seconds else None

    def _has_open_pause(
        self,
        timeline: RequestTimeline,
        start_seconds: float,
        end_seconds: float,
        asked_seconds: float,
    ) -> bool:
        """Whether it may have been set aside; of pauses that end after `asked_seconds`
        the next scrape will tell."""
        until_seconds = self._seen.until_seconds
        for pause in reversed(timeline.pauses):  # in order of time
            stop, go = pause.stopped_seconds, pause.resumed_seconds
            if stop < end_seconds and (
                go > until_seconds
                or (go > asked_seconds and self._is_asked(timeline, pause))
            ):
                return True
            if go <= until_seconds and stop < start_seconds:
                break
        return False

    def _is_asked(self, timeline: RequestTimeline, pause: Pause) -> bool:
        """Whether a scrape is worth waiting for to say if a pause was one."""
        self._seen.absorb(self._seen.now_seconds)
        ends = self._seen.book.ends
        steps = bisect_left(ends, pause.resumed_seconds)
        steps -= bisect_left(ends, pause.stopped_seconds) + 1
        return steps >= missed_steps(timeline)

    def _awaits_facts(self, timeline: RequestTimeline) -> bool:
        """Whether the engine may yet tell, in time, how its prompt was computed."""
        first = timeline.first_token_seconds
        if not self._engine_tells_late or first is None:
            return False
        if self._seen.now_seconds < first + timeline.patience_seconds:
            return True
        # a cache is in use, and only the reply's end says what it held
        hits = self._hits_seconds
        has_hits = bool(hits) and timeline.arrived_seconds < hits[-1] + HITS_SECONDS
        is_unknown = timeline.cached_tokens is None
        return has_hits and is_unknown and not self._count.tells_cache

    def _was_hit(self, at_seconds: float) -> bool:
        """Whether a hit was told in the minute before an instant."""
        before = bisect_right(self._hits_seconds, at_seconds)
        return before > 0 and at_seconds < self._hits_seconds[before - 1] + HITS_SECONDS

    def _tell_hit(self, at_seconds: float) -> None:
        """A reply told of a hit; who came after that is waited for, however told."""
        hits = self._hits_seconds
        insort(hits, at_seconds)
        if hits[0] < hits[-1] - 2 * HITS_SECONDS:
            del hits[: bisect_right(hits, hits[-1] - HITS_SECONDS)]
        if self._opened_seconds < at_seconds:
            return
        for timeline in self._requests.by_key.values():
            if at_seconds <= timeline.arrived_seconds < at_seconds + HITS_SECONDS:
                timeline.patience_seconds = LATE_HITS_SECONDS
