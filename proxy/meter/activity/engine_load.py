"""The engine's gauges over time, compared with what the proxy knows itself.

Rule: a gauge is a hint, the wire is the fact. Requests in the engine count as
somebody else's only beyond all that may still be the proxy's own, in two scrapes
running, while the engine made progress. A request whose client has left and that the
engine may still be computing (an orphan) runs on for as long as two scrapes and more
show it, for a bounded time; otherwise it ended with its last byte.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from proxy.meter.activity.request import Pause, RequestTimeline
from proxy.meter.activity.unmetered import stand_in
from proxy.wire.facts import EngineGauges, RequestFacts

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


class Orphans:
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


FLIGHT_SECONDS = 0.25
"""So long after its last byte a request may still be in the gauges: they follow
the engine's steps, and a step with a large prefill takes some tenths."""

ALIVE_SECONDS = 2.5
"""Two scrapes and a half: nobody waits longer for the next one."""

MAX_EXTERNAL = 1024
EXTERNAL = RequestFacts("external")
EXTERNAL_KEY = 1 << 62
"""Beyond any key of a request."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One scrape beside the proxy's own requests at that moment."""

    at_seconds: float
    external: int
    """Sequences running that are not the proxy's."""
    since_seconds: float
    """The scrape before."""
    has_progressed: bool | None
    """The engine computed something since then; None: it does not tell."""
    preempted: int | None
    """So many sequences were set aside since then; None: it does not tell."""
    is_empty: bool
    """Nobody was in the engine."""
    has_tokens: bool
    """The engine tells its tokens: external work is known by those."""
    waits_from_seconds: float
    """Who arrived at or after this was waiting; inf: nobody is known to have been."""


class GaugeLog:
    """Scrapes that are not settled yet, oldest first."""

    def __init__(self) -> None:
        self.orphans = Orphans()
        self._seen: deque[Comparison] = deque()
        self._unfound: deque[int] = deque()
        """Preemptions told by each scrape that no pause was found for yet."""
        self._last: EngineGauges | None = None

    def add(
        self,
        at_seconds: float,
        gauges: EngineGauges,
        own: Sequence[RequestTimeline],
        unmetered: int = 0,
    ) -> Comparison:
        """One more scrape; `own` are all requests that have no record yet.

        Those `unmetered` are the proxy's too: they are no strangers.
        """
        last, self._last = self._last, gauges
        inside = [timeline for timeline in own if _may_be_inside(timeline, at_seconds)]
        total = gauges.running + gauges.waiting
        known = sum(timeline.sequences for timeline in inside) + unmetered
        outside = max(total - known, 0)
        has_progressed = _has_progressed(last, gauges)
        outside -= self.orphans.claim(
            at_seconds,
            0 if has_progressed is False else outside,
            not_before=FLIGHT_SECONDS,
        )
        external = outside * gauges.running / total if total else 0.0
        self._seen.append(
            Comparison(
                at_seconds,
                min(int(external + 0.5), MAX_EXTERNAL),
                self._seen[-1].at_seconds if self._seen else at_seconds,
                has_progressed,
                _preempted(last, gauges),
                total == 0,
                gauges.prompt_tokens is not None and gauges.output_tokens is not None,
                _waits_from(gauges.waiting - outside, inside),
            )
        )
        self._unfound.append(self._seen[-1].preempted or 0)
        return self._seen[-1]

    def forget(self, before_seconds: float) -> None:
        """Drop scrapes that no later window will ask for."""
        while len(self._seen) > 1 and self._seen[1].at_seconds <= before_seconds:
            self._seen.popleft()
            self._unfound.popleft()

    def is_alive(self, now_seconds: float) -> bool:
        """Whether another scrape can be expected soon."""
        return (
            bool(self._seen) and now_seconds - self._seen[-1].at_seconds < ALIVE_SECONDS
        )

    def covers(self, at_seconds: float, now_seconds: float) -> bool:
        """Whether nothing more will be told about an instant."""
        return not self.is_alive(now_seconds) or self._seen[-1].at_seconds >= at_seconds

    def awaits(self, end_seconds: float, now_seconds: float) -> bool:
        """External requests were there; the next scrape says whether they stayed."""
        last = self._seen[-1] if self._seen else None
        is_there = last is not None and last.external > 0 and not last.has_tokens
        return is_there and not self.covers(end_seconds, now_seconds)

    def waiting_until(
        self, arrived_seconds: float, before_seconds: float
    ) -> float | None:
        """Newest scrape, before an instant, that shows the request in the queue."""
        for seen in reversed(self._seen):
            if seen.at_seconds <= arrived_seconds:
                return None
            waited = arrived_seconds >= seen.waits_from_seconds
            if waited and seen.at_seconds < before_seconds:
                return seen.at_seconds
        return None

    def was_calm(self, start_seconds: float, end_seconds: float) -> bool:
        """The engine's own count says that it set nobody aside in between."""
        for seen in self._seen:
            if seen.at_seconds <= start_seconds:
                continue
            if seen.preempted != 0:
                return False
            if seen.at_seconds >= end_seconds:
                return True
        return False

    def was_set_aside(self, pause: Pause, missed_seconds: float) -> bool:
        """Whether a pause was a preemption, as far as the engine's own count allows.

        It was left out of a step that ended at `missed_seconds` first. A long pause was
        one wherever the count moved, or is not told; of short ones no more are than
        were counted, those that end first. Whoever asks has found it.
        """
        stopped, resumed = pause.stopped_seconds, pause.resumed_seconds
        if not pause.is_short and self.was_calm(stopped, resumed):
            return False
        for number, seen in enumerate(self._seen):
            if seen.since_seconds >= missed_seconds:
                break
            if seen.at_seconds > stopped and self._unfound[number] > 0:
                self._unfound[number] -= 1
                return True
        return not pause.is_short

    def will_tell_after_seconds(self, now_seconds: float) -> float:
        """The next scrape says if anybody was set aside by any instant after this one.

        inf: it will not tell, or there will be none.
        """
        if not self.is_alive(now_seconds) or self._seen[-1].preempted is None:
            return float("inf")
        return self._seen[-1].at_seconds

    def is_quiet(self, start_seconds: float, end_seconds: float) -> bool:
        """No scrape hints that the engine did anything in between."""
        following = [seen for seen in self._seen if seen.at_seconds > start_seconds]
        for seen in following:
            may_work = not seen.is_empty and seen.has_progressed is None
            if seen.has_progressed or may_work:
                return False
            if seen.at_seconds >= end_seconds:
                break
        return True

    def external_at(self, now_seconds: float) -> int | None:
        """How many the last scrape showed; None where it is too old."""
        return self._seen[-1].external if self.is_alive(now_seconds) else None

    def external(
        self, start_seconds: float, end_seconds: float
    ) -> list[RequestTimeline]:
        """Made-up requests that ran in between, in place of those not the proxy's.

        One for each that was there in two scrapes running, from one to the other,
        where the engine does not tell its tokens.
        """
        found: list[RequestTimeline] = []
        before: Comparison | None = None
        for seen in self._seen:
            is_by_tokens = before is not None and before.has_tokens and seen.has_tokens
            if (
                before is not None
                and seen.has_progressed is not False
                and not is_by_tokens
            ):
                began = max(before.at_seconds, start_seconds)
                ended = min(seen.at_seconds, end_seconds)
                stayed = min(before.external, seen.external)
                if ended > began and seen.at_seconds - before.at_seconds < 2 * (
                    ALIVE_SECONDS
                ):
                    found += [
                        stand_in(
                            EXTERNAL_KEY + len(found) + number, began, ended, EXTERNAL
                        )
                        for number in range(stayed)
                    ]
            before = seen
        return found


def _may_be_inside(timeline: RequestTimeline, at_seconds: float) -> bool:
    closed = timeline.closed_seconds
    if at_seconds < timeline.arrived_seconds:
        return False
    return closed is None or at_seconds <= closed + FLIGHT_SECONDS


def _has_progressed(last: EngineGauges | None, gauges: EngineGauges) -> bool | None:
    if gauges.progress is None or last is None or last.progress is None:
        return None
    return gauges.progress != last.progress


def _preempted(last: EngineGauges | None, gauges: EngineGauges) -> int | None:
    if last is None or last.preemptions is None or gauges.preemptions is None:
        return None
    return max(gauges.preemptions - last.preemptions, 0)


def _waits_from(waiting: int, inside: Sequence[RequestTimeline]) -> float:
    """Arrival of the oldest of the proxy's requests that must be in the queue.

    First come, first served: the newest wait. A request that has had a token is
    in the queue only if it was set aside, and then one of the newest is not.
    """
    newest = sorted(
        (timeline for timeline in inside if timeline.closed_seconds is None),
        key=lambda timeline: -timeline.arrived_seconds,
    )
    waiting -= sum(
        timeline.sequences
        for timeline in inside
        if timeline.closed_seconds is not None and timeline.first_token_seconds is None
    )
    oldest = float("inf")
    for timeline in newest:
        waiting -= timeline.sequences
        if waiting < 0 or timeline.first_token_seconds is not None:
            break
        oldest = timeline.arrived_seconds
    return oldest
