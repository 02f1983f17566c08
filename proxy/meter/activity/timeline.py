"""The requests of one engine over time: who ran when, once for all its boundaries.

Rule: there is one answer, and it is final up to `settled_seconds`, the latest instant
that any boundary has settled. Boundaries settle at instants of their own; the first
one to close a window that ends later moves that instant on, and before it does so all
prompts are placed that may have run by then. What comes to be known afterwards (a read
that was late, a prompt that a window could not wait for) is put behind it, for every
boundary alike: a slower one, whose windows there are still open, then divides over the
same answer as the faster one did. So no boundary sees work before an instant at which
another one has already charged for that time, and none is charged twice or not at all.

Prompts are placed in order of their completion, whatever windows ask for them, so
where they are does not depend on which boundaries there are, nor on when they settle.
Only a window that was closed before its facts were known makes a difference, and its
requests are marked (`is_forced`).

Tokens that nobody saw come, of replies in one piece and of orphans, are put where they
may have been: on the steps seen meanwhile.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter, itemgetter

import numpy as np

from proxy.meter.activity.engine_load import (
    ALIVE_SECONDS,
    FLIGHT_SECONDS,
    LEFT,
    GaugeLog,
)
from proxy.meter.activity.external import (
    CONTEXT_TOKENS,
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
from proxy.meter.activity.placement import (
    MISSED_STEPS,
    PromptPlacement,
    Seen,
    step_starts,
)
from proxy.meter.activity.request import (
    LATE_HITS_SECONDS,
    RequestTimeline,
    TokenLog,
)
from proxy.meter.activity.speculation import SpeculationLog
from proxy.meter.activity.steps import (
    STEP_GAP_SECONDS,
    FloatArray,
    StepBook,
    Steps,
)
from proxy.meter.activity.unmetered import Unmetered
from proxy.meter.activity.unseen_steps import UnseenSteps
from proxy.meter.activity.unstreamed import (
    STEP_SECONDS,
    StepPace,
    arrivals_of,
    first_open,
    prompt_spans,
    spread_on_unseen,
    spread_on_unseen_so_far,
    spread_orphan,
    spread_so_far,
    spread_unstreamed,
    tokens_to_compute,
)
from proxy.meter.lateness import Lateness
from proxy.wire.events import (
    EngineObserved,
    RequestClosed,
    RequestOpened,
    TokensReceived,
)

REFUSALS = frozenset(range(400, 500)) | {503}
"""The engine turned the request away: it never computed anything for it."""

HITS_SECONDS = 60.0
"""A cache is in use for so long after a reply told of a hit."""

PATIENCE_SECONDS = 3.0
"""Replies in one piece wait so long for the facts of those that came before."""

UNSEEN_SECONDS = 30.0
"""After the last stream: since then no step was seen."""

ABSORB_SECONDS = 1.0
"""While no window closes; reads that wait longer would only grow the log."""

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


class EngineTimeline:
    """All requests of an engine that some boundary has yet to settle."""

    def __init__(self, *, has_sensor: bool = True) -> None:
        """Without a sensor nobody asks who ran when, and tokens are only counted."""
        self._has_sensor = has_sensor
        self.settled_seconds = -math.inf
        """Who ran when is final up to here."""
        self.until_seconds = -math.inf
        """Reads stamped up to here have come."""
        self.late_reads_total = 0
        """Reads with tokens that came for time already settled; counted as later."""
        self.open_requests = 0
        self.gauges = GaugeLog()
        self.unmetered = Unmetered()
        self.speculation = SpeculationLog()
        self.lateness = Lateness()
        self.log = TokenLog()
        self._book = StepBook()
        self._starts: FloatArray = np.empty(0)
        self._placement = PromptPlacement()
        self._work = WorkLog()
        self._pace = StepPace()
        self._unseen = UnseenSteps()
        self._streamed_seconds = -math.inf
        """When a stream was opened last."""
        self._unspread: list[RequestTimeline] = []
        """Replies in one piece whose tokens have no place yet."""
        self._last_scrape: EngineObserved | None = None
        self._cache = HiddenCache()
        self._counted = OwnCount()
        self._external: list[ExternalWork] = []
        self._external_total = 0
        self._counted_from_seconds = math.inf
        """Since then all scrapes were compared, and told something."""
        self._requests: dict[int, RequestTimeline] = {}
        self._last_key = -1
        self._is_in_order = True
        """Their keys have risen so far, as keys do."""
        self._engine_tells_late = False
        """The engine gives phase times or cached tokens with the last event, so
        a prefill is worth waiting for, for a while."""
        self._hits_seconds: list[float] = []
        """When replies told of hits in the engine's cache, the newest last."""
        self._opened_seconds = -math.inf
        self._absorbed_seconds = self._now_seconds = -math.inf
        self._busy_until_seconds = -math.inf

    # what is seen

    def open(self, event: RequestOpened) -> RequestTimeline:
        """A request was forwarded. Raises ValueError for a key that is in use."""
        if event.key in self._requests:
            raise ValueError(f"request {event.key} is open already")
        timeline = RequestTimeline(event.key, event.at_seconds, event.facts)
        if self._was_hit(event.at_seconds):
            timeline.patience_seconds = LATE_HITS_SECONDS
        self._opened_seconds = max(self._opened_seconds, event.at_seconds)
        self._requests[event.key] = timeline
        if timeline.is_streamed:
            self._streamed_seconds = max(self._streamed_seconds, event.at_seconds)
        self._is_in_order = self._is_in_order and event.key > self._last_key
        self._last_key = event.key
        self.open_requests += 1
        return timeline

    def receive(self, event: TokensReceived) -> None:
        """Tokens came; for a request that is not open they are nobody's."""
        timeline, at_seconds = self._requests.get(event.key), event.at_seconds
        if timeline is None or timeline.closed_seconds is not None:
            return
        if at_seconds <= self.settled_seconds:
            self.late_reads_total += 1
            at_seconds = math.nextafter(self.settled_seconds, math.inf)
        timeline.receive(at_seconds, event.updates, self.log)

    def close(self, event: RequestClosed) -> None:
        """A reply ended; an unstreamed one is spread over its time."""
        timeline = self._requests[event.key]
        self.open_requests -= 1
        is_refused = event.status in REFUSALS and not event.was_computed
        timeline.close(
            event.at_seconds, is_refused=is_refused, is_cut=event.outcome != "ok"
        )
        if not timeline.is_streamed and self._has_sensor:
            self._learn_pace(timeline)
            timeline.is_unspread = True
            self._unspread.append(timeline)
            self._spread(event.at_seconds)
        has_left = event.outcome in LEFT and not is_refused
        # the engine may not notice: its gauges, where there are any, will tell
        if has_left and self.gauges.is_alive(event.at_seconds):
            self.gauges.orphans.suspect(timeline)
        if timeline.has_late_facts:
            self._engine_tells_late = True
        if timeline.cached_tokens:
            self._tell_hit(event.at_seconds)

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
        for timeline in self._requests.values():
            if at_seconds <= timeline.arrived_seconds < at_seconds + HITS_SECONDS:
                timeline.patience_seconds = LATE_HITS_SECONDS

    def observe(self, event: EngineObserved) -> None:
        """What the engine says of itself."""
        self.speculation.add(event.at_seconds, event.gauges)
        requests = list(self._requests.values())
        unmetered = self.unmetered.count_at(event.at_seconds, FLIGHT_SECONDS)
        seen = self.gauges.add(event.at_seconds, event.gauges, requests, unmetered)
        self._count_steps(event)
        self._spread(event.at_seconds)
        self._work.add(Scrape(event.at_seconds, event.spread_seconds, event.gauges))
        for timeline in self.gauges.orphans.take_ended():
            spread_orphan(timeline, self._book, self.log, step_seconds=STEP_SECONDS)
        if seen.has_preempted:
            for timeline in requests:
                was_there = timeline.arrived_seconds < event.at_seconds
                timeline.has_preemption |= (
                    was_there and timeline.end_seconds > seen.since_seconds
                )

    # what is made of it

    def advance(self, now_seconds: float, straggler_seconds: float) -> None:
        """A beat: reads up to `straggler_seconds` ago have come."""
        if not self._has_sensor:
            self.log.clear()
            return
        self.until_seconds = now_seconds - straggler_seconds
        self._now_seconds = now_seconds
        self._spread(now_seconds)
        if now_seconds >= self._absorbed_seconds + ABSORB_SECONDS:
            self._absorb(now_seconds)
        self.gauges.orphans.give_up(now_seconds - ALIVE_SECONDS)

    def among(self, start_seconds: float, end_seconds: float) -> list[RequestTimeline]:
        """Who was there in between, in order of keys."""
        return [
            timeline
            for timeline in self.requests()
            if timeline.arrived_seconds < end_seconds
            and (
                timeline.closed_seconds is None or timeline.end_seconds > start_seconds
            )
        ]

    def requests(self) -> list[RequestTimeline]:
        """All that have not left, in order of keys."""
        requests = list(self._requests.values())
        if not self._is_in_order:
            requests.sort(key=attrgetter("key"))
        return requests

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
        if end_seconds <= self.settled_seconds:
            return []  # nothing that comes changes it
        until_seconds = self.until_seconds
        asked_seconds = self.gauges.will_tell_after_seconds(self._now_seconds)
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

    def _has_open_pause(
        self,
        timeline: RequestTimeline,
        start_seconds: float,
        end_seconds: float,
        asked_seconds: float,
    ) -> bool:
        """Whether it may have been set aside; of pauses that end after `asked_seconds`
        the next scrape will tell."""
        until_seconds = self.until_seconds
        for stop, go, _ in reversed(timeline.pauses):  # in order of time
            if stop < end_seconds and (
                go > until_seconds or (go > asked_seconds and self._is_asked(stop, go))
            ):
                return True
            if go <= until_seconds and stop < start_seconds:
                break
        return False

    def is_cut_seen(
        self, end_seconds: float, among: Iterable[RequestTimeline], now_seconds: float
    ) -> bool:
        """Whether all of the step that an instant lies in has been seen."""
        if end_seconds <= self.settled_seconds:
            return True
        self._absorb(now_seconds)
        ends = self._book.steps.end_seconds
        step = int(np.searchsorted(ends, end_seconds))
        if step < len(ends) and ends[step] < self.until_seconds - STEP_GAP_SECONDS:
            return True
        return not any(
            timeline.last_token_seconds is not None
            and timeline.last_token_seconds > self.until_seconds
            for timeline in among
        )

    def settle_until(
        self, end_seconds: float, among: Sequence[RequestTimeline]
    ) -> tuple[Steps, FloatArray]:
        """Make who ran when final up to an instant; the steps and their starts.

        `among` are those who were there before it and are not settled.
        """
        if end_seconds > self.settled_seconds:
            while self._is_pair_due(end_seconds):
                self._compare(is_in_time=True)
            self._spread(self._now_seconds, end_seconds)
            self._spread_open(end_seconds, among)
            self._place(end_seconds, among)
            self._count_own(end_seconds)
            seen = Seen(
                self._book.steps, self._starts, self.settled_seconds, end_seconds
            )
            self._placement.forget(end_seconds, seen)
            self.settled_seconds = end_seconds
            while (scrape := self._work.next_scrape()) is not None:
                # what a cache held has to be known before its prompts are settled
                _, cached = self._work.prompt_rises() or (0.0, 0.0)
                told = self._told_at(scrape, is_in_time=cached > 0)
                if told.known_seconds > end_seconds:
                    break
                self._compare(is_in_time=False)
        return self._book.steps, self._starts

    def awaits(
        self, end_seconds: float, now_seconds: float, wait_seconds: float
    ) -> bool:
        """Whether the next scrape says what others did before an instant."""
        if end_seconds <= self.settled_seconds:
            return False
        if not self._work.is_told:
            return self.gauges.awaits(end_seconds, now_seconds)
        if not self._expects_news(end_seconds):
            return False
        scrape = self._work.scrape_after(end_seconds)
        if scrape is None:
            return self.gauges.is_alive(now_seconds)
        until_seconds = self._told_at(scrape, is_in_time=True).known_seconds
        if self.until_seconds < until_seconds:
            return True
        return now_seconds < end_seconds + wait_seconds and any(
            not self._is_counted(timeline, until_seconds)
            for timeline in self._requests.values()
        )

    def unseen(self, start_seconds: float, end_seconds: float) -> Unseen:
        """Who ran in between and has no record: settled, so the same to all."""
        by_work: list[RequestTimeline] = [
            work
            for work in self._external
            if work.arrived_seconds < end_seconds and work.end_seconds > start_seconds
        ]
        reasons = [work.reason for work in self._external if work in by_work]
        unmetered = self.unmetered.between(start_seconds, end_seconds)
        external = self.gauges.external(start_seconds, end_seconds)
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
        is_waiting = self._work.is_told and self.settled_seconds < at_seconds + (
            2 * ALIVE_SECONDS
        )
        return None if is_waiting else self._cache.is_hidden(at_seconds)

    def was_quiet(self, start_seconds: float, end_seconds: float) -> bool:
        """Whether nobody was there in between."""
        if self.unmetered.were_there(start_seconds, end_seconds):
            return False
        return self._busy_until_seconds <= start_seconds and not any(
            timeline.arrived_seconds < end_seconds
            and (left is None or left > start_seconds)
            for timeline in self._requests.values()
            for left in (timeline.left_seconds,)
        )

    def worked_until(self, before_seconds: float) -> float:
        """End of the last work that is known before an instant; -inf without any."""
        ends = [
            timeline.left_seconds
            for timeline in self._requests.values()
            if timeline.left_seconds is not None
            and timeline.left_seconds <= before_seconds
        ]
        last = max(ends, default=-math.inf)
        last = max(last, self.unmetered.ended_before(before_seconds))
        return max(last, self._busy_until_seconds)

    def leave(self, timeline: RequestTimeline) -> None:
        """Every boundary has settled the request, or has given it up."""
        del self._requests[timeline.key]
        if self._work.is_told:
            self._counted.leave(timeline)
        if timeline.left_seconds is not None:
            self._busy_until_seconds = max(
                self._busy_until_seconds, timeline.left_seconds
            )

    def forget(self, settled_seconds: float, unmeasured_seconds: float) -> None:
        """Drop what all boundaries have settled, and what no window came for.

        Before the first window closes nobody has a place yet: all steps are kept.
        """
        steps = len(self._starts)
        settled_seconds = min(settled_seconds, self.settled_seconds)
        self._book.forget(max(settled_seconds, unmeasured_seconds))
        self._busy_until_seconds = max(
            self._busy_until_seconds,
            self.unmetered.forget(max(settled_seconds, unmeasured_seconds)),
        )
        self._external = [
            work for work in self._external if work.end_seconds > settled_seconds
        ]
        self._starts = self._starts[steps - len(self._book.steps.end_seconds) :]
        self._unseen.forget(settled_seconds, self._requests)
        self.gauges.forget(settled_seconds - GAUGES_SECONDS)
        self._work.forget(settled_seconds - GAUGES_SECONDS)
        unasked_seconds = settled_seconds - 2 * LONGEST_SECONDS
        if self._work.compared_seconds < unasked_seconds:  # no scrape comes any more
            self._counted.forget(self._requests, unasked_seconds)

    def knows_cache_of(self, timeline: RequestTimeline) -> bool:
        """Whether it is known what of a prompt was cached: told, or all had none."""
        if timeline.is_cache_known:
            return True
        if timeline.cached_tokens is not None or timeline.prompt_tokens is None:
            return False
        is_hidden = self._cache.is_hidden(timeline.end_seconds)
        is_inferred = timeline.inferred_cached_tokens is not None
        return self._work.tells_cache and not is_hidden and not is_inferred

    @property
    def steps(self) -> StepBook:
        """The steps that some boundary has yet to settle."""
        return self._book

    @property
    def prompt_token_seconds(self) -> float:
        """How long the engine takes for a prompt token, as observed."""
        return self._placement.speed.token_seconds

    def _spread(self, now_seconds: float, until_seconds: float = -math.inf) -> None:
        """Put tokens of replies in one piece where they were, as far as can be known.

        The engine's count of its steps is waited for: the next scrape tells it. While
        nobody streams also those who came before are waited for, for a while: what
        they had to compute was computed first. Up to `until_seconds` nothing is.
        """
        must = until_seconds > -math.inf
        if not self._unspread and not must:
            return
        known_seconds, last = now_seconds, self._last_scrape
        tells_steps = last is not None and last.gauges.steps is not None
        if last is not None and tells_steps and self.gauges.is_alive(now_seconds):
            known_seconds = last.at_seconds
        if not must and (self._unspread[0].closed_seconds or 0.0) > known_seconds:
            return  # nor is any that closed later
        is_unseen = self._is_unseen(now_seconds)
        if is_unseen:
            known_seconds = max(
                min(known_seconds, first_open(self._requests.values())),
                known_seconds - PATIENCE_SECONDS,
                min(known_seconds, until_seconds),
            )
            if not must:  # seconds of which the engine's count is known, whole
                known_seconds = self._pace.counted_until(known_seconds)
        due = [t for t in self._unspread if (t.closed_seconds or 0.0) <= known_seconds]
        if not due and not must:
            return
        if is_unseen:
            arrivals = arrivals_of(self._requests.values(), self._unseen)
            self._unseen.advance(known_seconds, arrivals, self._pace.counts)
        token_seconds = self._pace.prompt_token_seconds
        prompts: list[tuple[float, float, float]] = []
        if token_seconds is not None:
            prompts = prompt_spans(self._whole_prompts(), token_seconds)
        for timeline in due:
            timeline.is_unspread = False
            if is_unseen and spread_on_unseen(
                timeline, self._unseen, self.log, settled_seconds=self.settled_seconds
            ):
                continue
            self._absorb_until(now_seconds)
            spread_unstreamed(
                timeline,
                self._book,
                self._starts,
                self.log,
                pace=self._pace,
                prompt_token_seconds=token_seconds or self.prompt_token_seconds,
                settled_seconds=self.settled_seconds,
                prompts=prompts,
            )
        self._unspread = [each for each in self._unspread if each.is_unspread]

    def _is_unseen(self, now_seconds: float) -> bool:
        """Whether steps are made up, as no stream has shown any for some time."""
        if now_seconds < self._streamed_seconds + UNSEEN_SECONDS or any(
            timeline.is_streamed for timeline in self._requests.values()
        ):
            self._unseen.restart()
            return False
        return True

    def _whole_prompts(self) -> list[tuple[float, float]]:
        """Arrival and tokens of the prompts of replies in one piece, in order."""
        whole = [
            each
            for each in self._requests.values()
            if not each.is_streamed and not each.is_refused
        ]
        arrived = (each.arrived_seconds for each in whole)
        return sorted(zip(arrived, tokens_to_compute(whole), strict=True))

    def _spread_open(
        self, end_seconds: float, among: Iterable[RequestTimeline]
    ) -> None:
        """A window cannot wait for a reply in one piece: it decodes, as far as known.

        Its tokens so far are guessed, one in each step; those left come later.
        """
        span = self.settled_seconds, end_seconds
        whole = [
            timeline
            for timeline in among
            if not timeline.is_streamed
            and (timeline.closed_seconds is None or timeline.is_unspread)
        ]
        is_unseen = bool(whole) and self._is_unseen(self._now_seconds)
        for timeline in whole:
            if is_unseen and spread_on_unseen_so_far(
                timeline, self._unseen, self.log, span=span
            ):
                continue
            spread_so_far(
                timeline,
                self._book,
                self._starts,
                self.log,
                pace=self._pace,
                prompt_token_seconds=self.prompt_token_seconds,
                span=span,
            )
        if whole:
            self._absorb_until(max(end_seconds, self.until_seconds))

    def _learn_pace(self, timeline: RequestTimeline) -> None:
        """A reply in one piece has ended: it took so long for so many tokens."""
        output, closed = timeline.output_tokens, timeline.closed_seconds
        if output and closed is not None and not timeline.is_cut:
            self._pace.reply(
                float(timeline.prompt_tokens or 0),
                output / timeline.sequences,
                closed - timeline.arrived_seconds,
            )

    def _count_steps(self, event: EngineObserved) -> None:
        """What the engine's count of its steps says of their length."""
        last, self._last_scrape = self._last_scrape, event
        if last is None or last.gauges.steps is None or event.gauges.steps is None:
            return
        start_seconds, end_seconds = last.at_seconds, event.at_seconds
        spans = sorted(
            (max(timeline.arrived_seconds, start_seconds), min(left, end_seconds))
            for timeline in self._requests.values()
            for left in (timeline.left_seconds or end_seconds,)
        )
        busy_seconds, until_seconds = 0.0, start_seconds
        for began, ended in spans:
            busy_seconds += max(ended - max(began, until_seconds), 0.0)
            until_seconds = max(until_seconds, ended)
        steps = event.gauges.steps - last.gauges.steps
        prompts = (event.gauges.prompt_tokens or 0.0) - (last.gauges.prompt_tokens or 0)
        cached = (event.gauges.cached_tokens or 0.0) - (last.gauges.cached_tokens or 0)
        self._pace.count(
            start_seconds, end_seconds, steps, busy_seconds, max(prompts - cached, 0.0)
        )

    # the engine's own count

    def _expects_news(self, end_seconds: float) -> bool:
        """Whether the next scrape may tell of hidden work since the last one."""
        compared_seconds = self._work.compared_seconds
        return compared_seconds < end_seconds and (
            self._work.is_expected()
            or self._cache.is_hidden(compared_seconds)
            or self.unmetered.were_there(compared_seconds, end_seconds)
        )

    def _is_pair_due(self, end_seconds: float) -> bool:
        """Whether the next pair has to be compared before a window that ends here."""
        scrape = self._work.next_scrape()
        return (
            scrape is not None
            and self._expects_news(end_seconds)
            and self._told_at(scrape, is_in_time=True).known_seconds
            <= self.until_seconds
        )

    def _told_at(self, scrape: Scrape, *, is_in_time: bool) -> Instant:
        """When a scrape was, and until when reads are looked at to compare with it.

        News that cannot wait is taken as it is known by then, at every beat alike.
        """
        at_seconds, flight_seconds = scrape.at_seconds, scrape.flight_seconds
        stalled_until_seconds = self.lateness.stalled_until(at_seconds)
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
        self._absorb_until(self.until_seconds)
        before_seconds = self._work.compared_seconds
        at = self._told_at(scrape, is_in_time=is_in_time)
        count = self._counted.with_live(
            self._requests, self._book.steps, self.log, self.settled_seconds, at
        )
        was_hidden = self._cache.is_hidden(before_seconds)
        rises = self._work.prompt_rises()
        found = self._work.compare(count.prompts, count.outputs)
        if rises is not None:
            span = before_seconds, scrape.at_seconds
            self._look_for_cache(span, *rises, was_hidden)
        self._counted.forget(
            self._requests, scrape.at_seconds - 2 * scrape.flight_seconds
        )
        if found is None:
            self._counted_from_seconds = scrape.at_seconds
            return
        is_long = scrape.at_seconds - before_seconds > ALIVE_SECONDS
        if is_long or not is_in_time:
            self._counted_from_seconds = scrape.at_seconds
        elif not found.is_nothing:
            known_seconds = scrape.at_seconds + scrape.flight_seconds
            self._stand_in(found.after(self.settled_seconds), known_seconds)

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
            for timeline in self.requests()
            if timeline.prompt_tokens is not None
            and timeline.first_token_seconds is not None
            and since_seconds < timeline.first_token_seconds <= until_seconds
        ]
        hits = self._cache.observe(until_seconds, requests, cached)
        if not was_hidden and hits:
            self._placement.speed.restart()  # learnt from prompts as if all computed
        if not was_hidden or self.settled_seconds > since_seconds:
            return
        steps = self._book.steps
        is_in = (steps.end_seconds > since_seconds) & (
            steps.end_seconds <= until_seconds
        )
        self._cache.infer(
            span,
            requests,
            self._starts[is_in],
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
        stayed = self.unmetered.span(found.start_seconds, found.end_seconds)
        if stayed is not None:
            found = replace(found, start_seconds=stayed[0], end_seconds=stayed[1])
        start_seconds, end_seconds = found.start_seconds, found.end_seconds
        own = [
            timeline
            for timeline in self.among(self.settled_seconds, end_seconds)
            if timeline.prompt_tokens is not None
            and timeline.first_token_seconds is not None
            and self.settled_seconds < timeline.first_token_seconds <= known_seconds
        ]
        prompt_tokens = float(CONTEXT_TOKENS)
        if own:
            prompt_tokens = sum(each.prompt_tokens or 0 for each in own) / len(own)
        seen = Seen(self._book.steps, self._starts, self.settled_seconds, end_seconds)
        ends = self._book.steps.end_seconds
        is_open = (ends > self.settled_seconds) & (ends <= known_seconds)
        ground = Ground(
            self._starts[is_open],
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

    def _count_own(self, end_seconds: float) -> None:
        """Keep what becomes settled now: the engine's count is compared later."""
        if self._work.is_told:
            self._counted.settle(
                self._requests, self._book.steps, self.settled_seconds, end_seconds
            )

    # parts

    def _absorb(self, now_seconds: float) -> None:
        """Make steps of all reads so far: once a window, not once a beat."""
        if now_seconds != self._absorbed_seconds:
            self._absorbed_seconds = now_seconds
            self._absorb_until(self.until_seconds)

    def _absorb_until(self, at_seconds: float) -> None:
        if self._book.absorb(self.log, at_seconds):
            # who came before the first of these steps was there when it began
            floor_seconds = self._book.steps.floor_seconds[0]
            present = [
                timeline
                for timeline in self.requests()
                if timeline.arrived_seconds > floor_seconds
            ]
            self._starts = step_starts(
                self._book.steps,
                np.array([timeline.key for timeline in present], np.int64),
                np.array([timeline.arrived_seconds for timeline in present]),
            )

    def _place(self, end_seconds: float, among: Sequence[RequestTimeline]) -> None:
        """Place who may have run before an instant, and who was done before them.

        In order of completion, up to the first that still waits for facts: it, and
        those after it, are only placed if they were there, as then they must be.
        """
        until_seconds = self._needed_until(end_seconds, among)
        if until_seconds == -math.inf:
            return
        # prompts that end in one step are placed together, whoever was read first
        ends = self._book.steps.end_seconds
        step = int(ends.searchsorted(until_seconds))
        if step < len(ends) and ends[step] <= self.until_seconds:
            until_seconds = float(ends[step])
        present: set[int] = set()
        due: list[RequestTimeline] = []
        is_in_order = True
        for _, timeline in self._completed(until_seconds):
            if is_in_order and not self._has_facts(timeline):
                is_in_order = False
                present = {timeline.key for timeline in among}
            if is_in_order or timeline.key in present:
                self._hold_back(timeline)
                due.append(timeline)
        paused = [
            timeline
            for timeline in self.requests()
            if timeline.pauses and timeline.scheduled_seconds is not None
        ]
        steps = self._book.steps
        seen = Seen(
            steps,
            self._starts,
            self.settled_seconds,
            until_seconds,
            self.gauges.was_calm,
        )
        self._placement.place(due, seen, paused)

    def _needed_until(
        self, end_seconds: float, among: Iterable[RequestTimeline]
    ) -> float:
        """When the last prompt was done that may have run before an instant."""
        last = -math.inf
        for timeline in among:
            for stop, go, _ in timeline.pauses:
                if stop < end_seconds and last < go <= self.until_seconds:
                    last = go
            if timeline.scheduled_seconds is None:
                completed = self._completed_seconds(timeline)
                if completed is not None and completed > last:
                    last = completed
        return last

    def _completed(self, until_seconds: float) -> list[tuple[float, RequestTimeline]]:
        """Those without a place whose prompts were done by an instant, in order."""
        found = [
            (completed, timeline)
            for timeline in self.requests()
            if timeline.scheduled_seconds is None
            and (completed := self._completed_seconds(timeline)) is not None
            and completed <= until_seconds
        ]
        return sorted(found, key=itemgetter(0))

    def _is_asked(self, stop_seconds: float, go_seconds: float) -> bool:
        """Whether a scrape is worth waiting for to say if a pause was one."""
        self._absorb(self._now_seconds)
        ends = self._book.steps.end_seconds
        first = ends.searchsorted(stop_seconds, side="right")
        last = ends.searchsorted(go_seconds, side="left")
        return bool(last - first >= MISSED_STEPS)

    def _completed_seconds(self, timeline: RequestTimeline) -> float | None:
        """When its prompt was done, or it ended without; None: that is not known."""
        first = timeline.first_token_seconds
        if first is None:
            return None if timeline.is_unspread else timeline.left_seconds
        return first if first <= self.until_seconds else None

    def _has_facts(self, timeline: RequestTimeline) -> bool:
        """Whether all is known of its prompt that ever will be."""
        if timeline.closed_seconds is not None:
            return not timeline.may_be_orphan
        return timeline.is_exact_so_far and not self._awaits_facts(timeline)

    def _awaits_facts(self, timeline: RequestTimeline) -> bool:
        """Whether the engine may yet tell, in time, how its prompt was computed."""
        first = timeline.first_token_seconds
        if not self._engine_tells_late or first is None:
            return False
        if self._now_seconds < first + timeline.patience_seconds:
            return True
        # a cache is in use, and only the reply's end says what it held
        hits = self._hits_seconds
        has_hits = bool(hits) and timeline.arrived_seconds < hits[-1] + HITS_SECONDS
        is_unknown = timeline.cached_tokens is None
        return has_hits and is_unknown and not self._work.tells_cache

    def _hold_back(self, timeline: RequestTimeline) -> None:
        """It was not scheduled while the engine's gauges say that it waited."""
        before = timeline.first_token_seconds or timeline.left_seconds
        if timeline.scheduled_seconds is None and before is not None:
            waited = self.gauges.waiting_until(timeline.arrived_seconds, before)
            if waited is not None:
                timeline.waited_until_seconds = waited
