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
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from operator import itemgetter

from proxy.meter.activity.awaited_facts import AwaitedFacts
from proxy.meter.activity.engine_count import GAUGES_SECONDS, EngineCount
from proxy.meter.activity.engine_load import (
    ALIVE_SECONDS,
    FLIGHT_SECONDS,
    LEFT,
    GaugeLog,
)
from proxy.meter.activity.placement import PromptPlacement
from proxy.meter.activity.request import RequestTimeline
from proxy.meter.activity.seen_steps import SeenSteps
from proxy.meter.activity.speculation import SpeculationLog
from proxy.meter.activity.steps import FloatArray, Steps
from proxy.meter.activity.unmetered import Unmetered
from proxy.meter.activity.unsettled import UnsettledRequests
from proxy.meter.activity.unspread import UnspreadReplies
from proxy.meter.activity.unstreamed import STEP_SECONDS, spread_orphan
from proxy.meter.lateness import Lateness
from proxy.wire.events import (
    EngineObserved,
    RequestClosed,
    RequestOpened,
    TokensReceived,
)

PREEMPTING_SECONDS = 60.0
"""An engine that has set somebody aside may do so again for so long: its cache is too
small for the load."""

REFUSALS = frozenset(range(400, 500)) | {503}
"""The engine turned the request away: it never computed anything for it."""


class EngineTimeline:
    """All requests of an engine that some boundary has yet to settle."""

    def __init__(self, *, has_sensor: bool = True) -> None:
        """Without a sensor nobody asks who ran when, and tokens are only counted."""
        self._has_sensor = has_sensor
        self.late_reads_total = 0
        """Reads with tokens that came for time already settled; counted as later."""
        self.open_requests = 0
        self.gauges = GaugeLog()
        self.unmetered = Unmetered()
        self.speculation = SpeculationLog()
        self.lateness = Lateness()
        self.requests = UnsettledRequests()
        self.seen = SeenSteps(self.requests)
        self._placement = PromptPlacement()
        self._unspread = UnspreadReplies(
            self.requests, self.seen, self.gauges, self._placement.speed
        )
        self.count = EngineCount(
            self.requests,
            self.seen,
            self._placement,
            gauges=self.gauges,
            unmetered=self.unmetered,
            lateness=self.lateness,
        )
        self.awaited = AwaitedFacts(self.requests, self.seen, self.gauges, self.count)
        self._busy_until_seconds = -math.inf
        """End of the last work of those who are gone."""
        self._preempted_seconds = -math.inf
        """When the engine last told that it had set somebody aside."""

    # what is seen

    def open(self, event: RequestOpened) -> RequestTimeline:
        """A request was forwarded. Raises ValueError for a key that is in use."""
        timeline = RequestTimeline(event.key, event.at_seconds, event.facts)
        since_seconds = event.at_seconds - self._preempted_seconds
        timeline.notes_short_pauses = since_seconds < PREEMPTING_SECONDS
        self.requests.add(timeline)
        self.awaited.open(timeline)
        self._unspread.open(timeline)
        self.open_requests += 1
        return timeline

    def receive(self, event: TokensReceived) -> None:
        """Tokens came; for a request that is not open they are nobody's."""
        timeline, at_seconds = self.requests.by_key.get(event.key), event.at_seconds
        if timeline is None or timeline.closed_seconds is not None:
            return
        if at_seconds <= self.seen.settled_seconds:
            self.late_reads_total += 1
            at_seconds = math.nextafter(self.seen.settled_seconds, math.inf)
        timeline.receive(at_seconds, event.updates, self.seen.log)

    def close(self, event: RequestClosed) -> None:
        """A reply ended; an unstreamed one is spread over its time."""
        timeline = self.requests.by_key[event.key]
        self.open_requests -= 1
        is_refused = event.status in REFUSALS and not event.was_computed
        timeline.close(
            event.at_seconds, is_refused=is_refused, is_cut=event.outcome != "ok"
        )
        if not timeline.is_streamed and self._has_sensor:
            self._unspread.close(timeline, event.at_seconds)
        has_left = event.outcome in LEFT and not is_refused
        # the engine may not notice: its gauges, where there are any, will tell
        if has_left and self.gauges.is_alive(event.at_seconds):
            self.gauges.orphans.suspect(timeline)
        self.awaited.close(timeline, event.at_seconds)

    def observe(self, event: EngineObserved) -> None:
        """What the engine says of itself."""
        self.speculation.add(event.at_seconds, event.gauges)
        requests = list(self.requests.by_key.values())
        unmetered = self.unmetered.count_at(event.at_seconds, FLIGHT_SECONDS)
        seen = self.gauges.add(event.at_seconds, event.gauges, requests, unmetered)
        self._unspread.observe(event)
        self.count.observe(event)
        for timeline in self.gauges.orphans.take_ended():
            spread_orphan(
                timeline, self.seen.book, self.seen.log, step_seconds=STEP_SECONDS
            )
        if seen.preempted:
            self._preempted_seconds = event.at_seconds
            for timeline in requests:
                timeline.notes_short_pauses = True
                was_there = timeline.arrived_seconds < event.at_seconds
                timeline.has_preemption |= (
                    was_there and timeline.end_seconds > seen.since_seconds
                )

    # what is made of it

    def advance(self, now_seconds: float, straggler_seconds: float) -> None:
        """A beat: reads up to `straggler_seconds` ago have come."""
        if not self._has_sensor:
            self.seen.log.clear()
            return
        self.seen.advance(now_seconds, straggler_seconds)
        self._unspread.spread(now_seconds)
        self.seen.absorb_overdue()
        self.gauges.orphans.give_up(now_seconds - ALIVE_SECONDS)

    def settle_until(
        self, end_seconds: float, among: Sequence[RequestTimeline]
    ) -> tuple[Steps, FloatArray]:
        """Make who ran when final up to an instant; the steps and their starts.

        `among` are those who were there before it and are not settled.
        """
        seen = self.seen
        if end_seconds > seen.settled_seconds:
            self.count.compare_in_time(end_seconds)
            self._unspread.spread(seen.now_seconds, end_seconds)
            self._unspread.spread_open(end_seconds, among)
            self._place(end_seconds, among)
            self.count.settle(end_seconds)
            self._placement.forget(end_seconds, seen.ground(end_seconds))
            seen.settled_seconds = end_seconds
            self.count.compare_late(end_seconds)
        return seen.steps, seen.starts

    def was_quiet(self, start_seconds: float, end_seconds: float) -> bool:
        """Whether nobody was there in between."""
        if self.unmetered.were_there(start_seconds, end_seconds):
            return False
        is_over = self._busy_until_seconds <= start_seconds
        return is_over and not self.requests.were_there(start_seconds, end_seconds)

    def worked_until(self, before_seconds: float) -> float:
        """End of the last work that is known before an instant; -inf without any."""
        return max(
            self.requests.ended_before(before_seconds),
            self.unmetered.ended_before(before_seconds),
            self._busy_until_seconds,
        )

    def leave(self, timeline: RequestTimeline) -> None:
        """Every boundary has settled the request, or has given it up."""
        del self.requests.by_key[timeline.key]
        self.count.leave(timeline)
        if timeline.left_seconds is not None:
            self._busy_until_seconds = max(
                self._busy_until_seconds, timeline.left_seconds
            )

    def forget(self, settled_seconds: float, unmeasured_seconds: float) -> None:
        """Drop what all boundaries have settled, and what no window came for.

        Before the first window closes nobody has a place yet: all steps are kept.
        """
        settled_seconds = min(settled_seconds, self.seen.settled_seconds)
        self.seen.forget(max(settled_seconds, unmeasured_seconds))
        self._busy_until_seconds = max(
            self._busy_until_seconds,
            self.unmetered.forget(max(settled_seconds, unmeasured_seconds)),
        )
        self._unspread.forget(settled_seconds)
        self.gauges.forget(settled_seconds - GAUGES_SECONDS)
        self.count.forget(settled_seconds)

    @property
    def prompt_token_seconds(self) -> float:
        """How long the engine takes for a prompt token, as observed."""
        return self._placement.speed.token_seconds

    # prompts

    def _place(self, end_seconds: float, among: Sequence[RequestTimeline]) -> None:
        """Place who may have run before an instant, and who was done before them.

        In order of completion, up to the first that still waits for facts: it, and
        those after it, are only placed if they were there, as then they must be.
        """
        until_seconds = self._needed_until(end_seconds, among)
        if until_seconds == -math.inf:
            return
        # prompts that end in one step are placed together, whoever was read first
        ends = self.seen.steps.end_seconds
        step = int(ends.searchsorted(until_seconds))
        if step < len(ends) and ends[step] <= self.seen.until_seconds:
            until_seconds = float(ends[step])
        present: set[int] = set()
        due: list[RequestTimeline] = []
        is_in_order = True
        for _, timeline in self._completed(until_seconds):
            if is_in_order and not self.awaited.are_complete(timeline):
                is_in_order = False
                present = {timeline.key for timeline in among}
            if is_in_order or timeline.key in present:
                self._hold_back(timeline)
                due.append(timeline)
        paused = [
            timeline
            for timeline in self.requests.in_order()
            if timeline.pauses and timeline.scheduled_seconds is not None
        ]
        seen = self.seen.ground(
            until_seconds,
            self.gauges.was_set_aside,
            end_seconds,
            self.gauges.will_tell_after_seconds(self.seen.now_seconds),
        )
        self._placement.place(due, seen, paused)

    def _needed_until(
        self, end_seconds: float, among: Iterable[RequestTimeline]
    ) -> float:
        """When the last prompt was done that may have run before an instant."""
        last = -math.inf
        for timeline in among:
            for stop, go, *_ in timeline.pauses:
                if stop < end_seconds and last < go <= self.seen.until_seconds:
                    last = go
            if timeline.scheduled_seconds is None:
                completed = self.awaited.completed_seconds(timeline)
                if completed is not None and completed > last:
                    last = completed
        return last

    def _completed(self, until_seconds: float) -> list[tuple[float, RequestTimeline]]:
        """Those without a place whose prompts were done by an instant, in order."""
        found = [
            (completed, timeline)
            for timeline in self.requests.in_order()
            if timeline.scheduled_seconds is None
            and (completed := self.awaited.completed_seconds(timeline)) is not None
            and completed <= until_seconds
        ]
        return sorted(found, key=itemgetter(0))

    def _hold_back(self, timeline: RequestTimeline) -> None:
        """It was not scheduled while the engine's gauges say that it waited."""
        before = timeline.first_token_seconds or timeline.left_seconds
        if timeline.scheduled_seconds is None and before is not None:
            waited = self.gauges.waiting_until(timeline.arrived_seconds, before)
            if waited is not None:
                timeline.waited_until_seconds = waited
