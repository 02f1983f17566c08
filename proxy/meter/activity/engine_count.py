"""The engine's own count, compared with the proxy's own tokens.

Rule: what the engine counted beyond them was somebody else's work, or came from a
cache that replies do not tell of. Scrapes are compared in pairs, in order, each once;
news that a window could not wait for is charged to nobody.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from proxy.meter.activity.engine_load import ALIVE_SECONDS, GaugeLog
from proxy.meter.activity.external import (
    CONTEXT_TOKENS,
    LAGS_SECONDS,
    LONGEST_SECONDS,
    WORK_KEY,
    ExternalWork,
    Found,
    Ground,
    Scrape,
    WorkLog,
    work_rows,
)
from proxy.meter.activity.hidden_cache import HiddenCache
from proxy.meter.activity.late_reads import Instant
from proxy.meter.activity.own_count import OwnCount
from proxy.meter.activity.placement import PromptPlacement
from proxy.meter.activity.request import RequestTimeline
from proxy.meter.activity.seen_steps import SeenSteps
from proxy.meter.activity.unmetered import Unmetered
from proxy.meter.activity.unsettled import UnsettledRequests
from proxy.meter.activity.unstreamed import STEP_SECONDS
from proxy.meter.lateness import Lateness
from proxy.wire.events import EngineObserved

GAUGES_SECONDS = 30.0
"""Scrapes are kept so long: prompts wait in queues, idle windows for a scrape."""


@dataclass(frozen=True, slots=True)
class Unseen:
    """Those who ran in an interval and get no record, in order of keys."""

    by_work: Sequence[RequestTimeline]
    """Their work is known by the engine's count."""
    by_time: Sequence[RequestTimeline]
    """Of these only the time is known."""
    reasons: Sequence[str]
    """Why the joules of each are unattributed; first those known by their work."""


class EngineCount:
    """What the engine counted, and who did what no request of the proxy's did."""

    def __init__(
        self,
        requests: UnsettledRequests,
        seen: SeenSteps,
        placement: PromptPlacement,
        *,
        gauges: GaugeLog,
        unmetered: Unmetered,
        lateness: Lateness,
    ) -> None:
        self._requests, self._seen, self._placement = requests, seen, placement
        self._gauges, self._unmetered, self._lateness = gauges, unmetered, lateness
        self._work = WorkLog()
        self._cache = HiddenCache()
        self._own = OwnCount()
        self._external: list[ExternalWork] = []
        self._external_total = 0
        self._counted_from_seconds = math.inf
        """Since then all scrapes were compared, and told something."""

    def observe(self, event: EngineObserved) -> None:
        """What the engine says that it has counted so far."""
        self._work.add(Scrape(event.at_seconds, event.spread_seconds, event.gauges))

    @property
    def tells_cache(self) -> bool:
        """Whether the engine counts what its cache held of prompts."""
        return self._work.tells_cache

    def awaits(
        self, end_seconds: float, now_seconds: float, wait_seconds: float
    ) -> bool:
        """Whether the next scrape says what others did before an instant."""
        if end_seconds <= self._seen.settled_seconds:
            return False
        if not self._work.is_told:
            return self._gauges.awaits(end_seconds, now_seconds)
        if not self._expects_news(end_seconds):
            return False
        scrape = self._work.scrape_after(end_seconds)
        if scrape is None:
            return self._gauges.is_alive(now_seconds)
        until_seconds = self._told_at(scrape, is_in_time=True).known_seconds
        if self._seen.until_seconds < until_seconds:
            return True
        return now_seconds < end_seconds + wait_seconds and any(
            not self._is_counted(timeline, until_seconds)
            for timeline in self._requests.by_key.values()
        )

    def compare_in_time(self, end_seconds: float) -> None:
        """Take the news that a window that ends here waited for."""
        while self._is_pair_due(end_seconds):
            self._compare(is_in_time=True)

    def settle(self, end_seconds: float) -> None:
        """Keep what becomes settled now: the engine's count is compared later."""
        if self._work.is_told:
            self._own.settle(
                self._requests.by_key,
                self._seen.steps,
                self._seen.settled_seconds,
                end_seconds,
            )

    def compare_late(self, end_seconds: float) -> None:
        """Compare what no window waits for any more, up to a settled instant."""
        while (scrape := self._work.next_scrape()) is not None:
            # what a cache held has to be known before its prompts are settled
            _, cached = self._work.prompt_rises() or (0.0, 0.0)
            told = self._told_at(scrape, is_in_time=cached > 0)
            if told.known_seconds > end_seconds:
                break
            self._compare(is_in_time=False)

    def unseen(self, start_seconds: float, end_seconds: float) -> Unseen:
        """Who ran in between and has no record: settled, so the same to all."""
        by_work = [
            work
            for work in self._external
            if work.arrived_seconds < end_seconds and work.end_seconds > start_seconds
        ]
        reasons = [work.reason for work in by_work]
        unmetered = self._unmetered.between(start_seconds, end_seconds)
        external = self._gauges.external(start_seconds, end_seconds)
        by_time = [*unmetered, *external]
        timed = ["unmetered"] * len(unmetered) + ["external"] * len(external)
        is_counted = (
            self._counted_from_seconds <= start_seconds
            and self._work.compared_seconds >= end_seconds
        )
        if is_counted:  # they did what the engine counted, and nothing else
            return Unseen([*by_work, *by_time], [], (*reasons, *timed))
        return Unseen(by_work, by_time, (*reasons, *timed))

    def has_doubt(self, requests: Iterable[RequestTimeline]) -> bool:
        """Whether a cache may have held prompts of these, and nobody has told."""
        return self._work.is_told and any(
            timeline.has_unknown_cache and timeline.inferred_cached_tokens is None
            for timeline in requests
        )

    def cache_verdict(self, at_seconds: float) -> bool | None:
        """Whether a cache was found that replies do not tell of; None: not known yet.

        Without scrapes for a while nobody will tell: then there is none.
        """
        if self._work.compared_seconds >= at_seconds:
            return self._cache.is_hidden(at_seconds)
        is_waiting = self._work.is_told and self._seen.settled_seconds < at_seconds + (
            2 * ALIVE_SECONDS
        )
        return None if is_waiting else self._cache.is_hidden(at_seconds)

    def knows_cache_of(self, timeline: RequestTimeline) -> bool:
        """Whether it is known what of a prompt was cached: told, or all had none."""
        if timeline.is_cache_known:
            return True
        if timeline.cached_tokens is not None or timeline.prompt_tokens is None:
            return False
        is_hidden = self._cache.is_hidden(timeline.end_seconds)
        is_inferred = timeline.inferred_cached_tokens is not None
        return self._work.tells_cache and not is_hidden and not is_inferred

    def leave(self, timeline: RequestTimeline) -> None:
        """A request has its record; a scrape of its time may still be compared."""
        if self._work.is_told:
            self._own.leave(timeline)

    def forget(self, settled_seconds: float) -> None:
        """Drop what all boundaries have settled."""
        self._external = [
            work for work in self._external if work.end_seconds > settled_seconds
        ]
        self._work.forget(settled_seconds - GAUGES_SECONDS)
        unasked_seconds = settled_seconds - 2 * LONGEST_SECONDS
        if self._work.compared_seconds < unasked_seconds:  # no scrape comes any more
            self._own.forget(self._requests.by_key, unasked_seconds)

    def _expects_news(self, end_seconds: float) -> bool:
        """Whether the next scrape may tell of hidden work since the last one."""
        compared_seconds = self._work.compared_seconds
        return compared_seconds < end_seconds and (
            self._work.is_expected()
            or self._cache.is_hidden(compared_seconds)
            or self._unmetered.were_there(compared_seconds, end_seconds)
        )

    def _is_pair_due(self, end_seconds: float) -> bool:
        """Whether the next pair has to be compared before a window that ends here."""
        scrape = self._work.next_scrape()
        return (
            scrape is not None
            and self._expects_news(end_seconds)
            and self._told_at(scrape, is_in_time=True).known_seconds
            <= self._seen.until_seconds
        )

    def _told_at(self, scrape: Scrape, *, is_in_time: bool) -> Instant:
        """When a scrape was, and until when reads are looked at to compare with it.

        News that cannot wait is taken as it is known by then, at every beat alike.
        """
        at_seconds, flight_seconds = scrape.at_seconds, scrape.flight_seconds
        stalled_until_seconds = self._lateness.stalled_until(at_seconds)
        known_seconds = at_seconds + flight_seconds
        if not is_in_time:
            known_seconds = scrape.known_seconds
        return Instant(
            at_seconds,
            flight_seconds,
            max(known_seconds, stalled_until_seconds + flight_seconds),
            stalled_until_seconds,
        )

    def _is_counted(self, timeline: RequestTimeline, until_seconds: float) -> bool:
        """Whether it is known what the engine had counted for it by an instant."""
        if timeline.closed_seconds is not None:
            return not timeline.may_be_orphan
        if timeline.arrived_seconds >= until_seconds or timeline.is_exact_so_far:
            return True
        return timeline.is_streamed and timeline.first_token_seconds is None

    def _compare(self, *, is_in_time: bool) -> None:
        """The next pair of scrapes; what it shows is charged if it is in time."""
        scrape = self._work.next_scrape()
        assert scrape is not None
        self._seen.absorb_until(self._seen.until_seconds)
        before_seconds = self._work.compared_seconds
        at = self._told_at(scrape, is_in_time=is_in_time)
        count = self._own.with_live(
            self._requests.by_key,
            self._seen.steps,
            self._seen.log,
            self._seen.settled_seconds,
            at,
        )
        was_hidden = self._cache.is_hidden(before_seconds)
        rises = self._work.prompt_rises()
        found = self._work.compare(count.prompts, count.outputs)
        if rises is not None:
            span = before_seconds, scrape.at_seconds
            self._look_for_cache(span, *rises, was_hidden)
        self._own.forget(
            self._requests.by_key,
            scrape.at_seconds - 2 * scrape.flight_seconds - float(LAGS_SECONDS[-1]),
        )
        if found is None:
            self._counted_from_seconds = scrape.at_seconds
            return
        is_long = scrape.at_seconds - before_seconds > ALIVE_SECONDS
        if is_long or not is_in_time:
            self._counted_from_seconds = scrape.at_seconds
        elif not found.is_nothing:
            known_seconds = scrape.at_seconds + scrape.flight_seconds
            self._stand_in(found.after(self._seen.settled_seconds), known_seconds)

    def _look_for_cache(
        self,
        span: tuple[float, float],
        prompts: float,
        cached: float,
        was_hidden: bool,
    ) -> None:
        """Infer what a cache held of prompts, where the engine tells only the sum."""
        since_seconds, until_seconds = span
        requests = [
            timeline
            for timeline in self._requests.in_order()
            if timeline.prompt_tokens is not None
            and timeline.first_token_seconds is not None
            and since_seconds < timeline.first_token_seconds <= until_seconds
        ]
        hits = self._cache.observe(until_seconds, requests, cached)
        if not was_hidden and hits:
            self._placement.restart()  # learnt from prompts as if all computed
        if not was_hidden or self._seen.settled_seconds > since_seconds:
            return
        steps = self._seen.steps
        is_in = (steps.end_seconds > since_seconds) & (
            steps.end_seconds <= until_seconds
        )
        self._cache.infer(
            span,
            requests,
            self._seen.starts[is_in],
            steps.end_seconds[is_in],
            prompts - cached,
            prompts,
            self._placement.speed,
        )

    def _stand_in(self, found: Found, known_seconds: float) -> None:
        """Somebody did that work, on the time that the own work leaves.

        What fell on time already settled is charged to nobody. Only what was known at
        some instant is looked at, or a later beat would put it elsewhere.
        """
        stayed = self._unmetered.span(found.start_seconds, found.end_seconds)
        if stayed is not None:
            found = replace(found, start_seconds=stayed[0], end_seconds=stayed[1])
        start_seconds, end_seconds = found.start_seconds, found.end_seconds
        own = [
            timeline
            for timeline in self._requests.among(
                self._seen.settled_seconds, end_seconds
            )
            if timeline.prompt_tokens is not None
            and timeline.first_token_seconds is not None
            and self._seen.settled_seconds
            < timeline.first_token_seconds
            <= known_seconds
        ]
        prompt_tokens = float(CONTEXT_TOKENS)
        if own:
            prompt_tokens = sum(each.prompt_tokens or 0 for each in own) / len(own)
        seen = self._seen.ground(end_seconds)
        ends = self._seen.steps.end_seconds
        is_open = (ends > self._seen.settled_seconds) & (ends <= known_seconds)
        ground = Ground(
            self._seen.starts[is_open],
            ends[is_open],
            self._placement.taken_seconds(own, seen)[is_open],
            STEP_SECONDS,
        )
        key = WORK_KEY + self._external_total
        work = ExternalWork(key, start_seconds, end_seconds, work_rows(found, ground))
        work.estimated_prompt_tokens = prompt_tokens
        if stayed is not None:
            work.reason = "unmetered"
        self._external_total += 1
        self._external.append(work)
