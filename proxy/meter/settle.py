"""Which window is final.

A window is final once the facts of every request that overlapped it are known,
or after a bounded wait, and then those requests are marked estimated. Windows
are closed strictly in order and never opened again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from proxy.meter.activity.cut import EDGE_SECONDS, too_late_to_cut
from proxy.meter.activity.engine_load import ALIVE_SECONDS
from proxy.meter.activity.request import RequestTimeline, TokenLog
from proxy.meter.activity.steps import STEP_GAP_SECONDS
from proxy.meter.activity.unstreamed import spread_orphan, spread_unstreamed
from proxy.meter.attribution.fit import Calibration
from proxy.meter.attribution.policies import Policy
from proxy.meter.close_window import WindowCloser
from proxy.meter.curve.group import GroupCurve, Window
from proxy.meter.deadlines import Deadlines
from proxy.meter.entry import Entry
from proxy.meter.ledger.accounts import Ledger
from proxy.wire.facts import EngineGauges

ABSORB_SECONDS = 1.0
"""While no window closes; reads that wait longer would only grow the log."""

GAUGES_SECONDS = 30.0
"""Scrapes are kept so long: prompts wait in queues, idle windows for a scrape."""


class Settlement:
    """Closes windows of one group's curve into one ledger."""

    def __init__(
        self,
        ledger: Ledger,
        policies: Mapping[str, Policy],
        *,
        idle_watts: float | None,
        window_seconds: float,
        wait_seconds: float,
        calibration: Calibration | None = None,
    ) -> None:
        self.curve = GroupCurve()
        self._closer = closer = WindowCloser(
            ledger,
            policies,
            idle_watts=idle_watts,
            calibration=calibration or Calibration(),
        )
        self.steps, self.gauges, self.idle = closer.steps, closer.gauges, closer.idle
        self.calibration = closer.calibration
        self.settled_seconds: float | None = None
        """End of the last closed window; None before the first edge."""
        self.measured_from_seconds: float | None = None
        self.engine_tells_late = False
        """The engine gives phase times or cached tokens with the last event, so
        a prefill is worth waiting for until its request is closed."""
        self._ledger = ledger
        self._asked = Deadlines(
            min_window_seconds=window_seconds, wait_seconds=wait_seconds
        )
        self._stopped_seconds: float | None = None
        self.is_up = False
        """The sensor answered when it was last read."""
        self._deadlines = self._asked
        """As of the last beat."""
        self._until_seconds = -np.inf
        self._absorbed_seconds = -np.inf
        self._blocked: tuple[Entry, Window] | None = None

    @property
    def prompt_token_seconds(self) -> float:
        """How long the engine takes for a prompt token, as observed."""
        return self._closer.placement.speed.token_seconds

    @property
    def deadlines(self) -> Deadlines:
        """Every wait, for the sensor as it is known now."""
        return replace(self._asked, period_seconds=self.curve.likely_period_seconds)

    def stop(self, now_seconds: float) -> None:
        """No request will come any more: the last window may end at the next edge."""
        self._stopped_seconds = now_seconds

    def is_given_up(self, closed_seconds: float, now_seconds: float) -> bool:
        """Whether the energy of a request that ended then is not waited for."""
        if now_seconds > closed_seconds + self.deadlines.give_up_seconds:
            return True
        return self.is_stop_over(now_seconds)

    def is_stop_over(self, now_seconds: float) -> bool:
        """Whether nothing is waited for any more; a sensor that is down is not long."""
        if self._stopped_seconds is None:
            return False
        at_stop = self.deadlines.at_stop
        seconds = at_stop.give_up_seconds if self.is_up else at_stop.down_seconds
        return now_seconds > self._stopped_seconds + seconds

    def advance(
        self, entries: Iterable[Entry], log: TokenLog, now_seconds: float
    ) -> None:
        """Close every final window. `entries` are all not yet `left`, by serial."""
        if self.settled_seconds is None:
            self._begin()
        self._deadlines = self.deadlines
        self._until_seconds = now_seconds - self._deadlines.straggler_seconds
        if now_seconds >= self._absorbed_seconds + ABSORB_SECONDS:
            self._absorb(log, now_seconds)
        self.gauges.orphans.give_up(now_seconds - ALIVE_SECONDS)
        if self.settled_seconds is not None:
            if not self._is_still_blocked(now_seconds):
                self._close_windows(list(entries), log, now_seconds)
            self._closer.learn_idle(now_seconds)
            self.gauges.forget(self.settled_seconds - GAUGES_SECONDS)
            self.curve.forget(self.settled_seconds)
        self._forget_unmeasured(now_seconds)

    def _close_windows(
        self, present: Sequence[Entry], log: TokenLog, now_seconds: float
    ) -> None:
        while (final := self._next_final(present, log, now_seconds)) is not None:
            window, among = final
            self._closer.close(window, among, present, self._until_seconds)
            self._closer.learn_idle(now_seconds)
            self.settled_seconds = window.end_seconds
            self.steps.forget(window.end_seconds)
            self._closer.placement.forget(window.end_seconds)

    def _next_final(
        self, present: Sequence[Entry], log: TokenLog, now_seconds: float
    ) -> tuple[Window, list[Entry]] | None:
        """The next window to close and who was there; None: not yet."""
        window, among = self._next_window(present, self._width_seconds(present))
        if window is None or self.gauges.awaits(window.end_seconds, now_seconds):
            return None
        unknown = [e for e in among if not self._is_known(e, window)]
        if unknown and now_seconds < window.end_seconds + self._asked.wait_seconds:
            self._blocked = unknown[0], window
            return None
        self._absorb(log, now_seconds)
        if not self._is_cut_seen(window, among):
            return None
        for entry in unknown:
            entry.is_forced = True
        return window, among

    def _begin(self) -> None:
        """Open the books where the last device of the group was first measured."""
        start, end = self.curve.start_seconds, self.curve.end_seconds
        # before every device has an edge there, what they drew until then is unknown
        if start is not None and end is not None and end >= start:
            self.settled_seconds = self.measured_from_seconds = start
            before = self.curve.joules_at(np.array([start]))
            self._ledger.begin(start, float(before[0]))

    def _absorb(self, log: TokenLog, now_seconds: float) -> None:
        """Make steps of all reads so far: once a window, not once a beat."""
        self.steps.absorb(log, self._until_seconds)
        self._absorbed_seconds = now_seconds

    def _is_still_blocked(self, now_seconds: float) -> bool:
        """Whether the request that the next window waited for is still unknown.

        It then holds back a wider window as well, so nobody else needs a look.
        """
        if self._blocked is None:
            return False
        entry, window = self._blocked
        is_in_time = now_seconds < window.end_seconds + self._asked.wait_seconds
        if is_in_time and not self._is_known(entry, window):
            return True
        self._blocked = None
        return False

    def _width_seconds(self, present: Sequence[Entry]) -> float:
        """How wide the next window is to be; a last one may be as narrow as it is."""
        width_seconds = self._deadlines.window_seconds
        newest, settled = self.curve.end_seconds, self.settled_seconds
        if self._stopped_seconds is None or newest is None or settled is None:
            return width_seconds
        ends = (entry.timeline.end_seconds for entry in present)
        if newest < max(ends, default=-np.inf):
            return width_seconds
        return min(width_seconds, newest - settled)

    def _next_window(
        self, present: Sequence[Entry], width_seconds: float
    ) -> tuple[Window | None, list[Entry]]:
        """The next window, wider where its end would cut badly, and who was there.

        None while it is not measured, or stragglers may still come.
        """
        start_seconds = self.settled_seconds
        assert start_seconds is not None
        window = self.curve.next_window(start_seconds, width_seconds)
        if window is None or window.end_seconds > self._until_seconds:
            return None, []
        among = [
            entry
            for entry in present
            if entry.timeline.arrived_seconds < window.end_seconds
            and entry.timeline.end_seconds > window.start_seconds
        ]
        began_seconds = too_late_to_cut(
            window.end_seconds, (entry.timeline for entry in among)
        )
        if began_seconds is None:
            return window, among
        wider_seconds = began_seconds + EDGE_SECONDS - start_seconds
        is_gap_ahead = wider_seconds <= width_seconds
        if is_gap_ahead or wider_seconds > self._deadlines.widest_seconds:
            return window, among
        return self._next_window(present, wider_seconds)

    def _forget_unmeasured(self, now_seconds: float) -> None:
        """Steps that no window came for: their requests are given up by now."""
        self.steps.forget(now_seconds - self._deadlines.forget_seconds)

    def spread(self, timeline: RequestTimeline, log: TokenLog) -> None:
        """A reply came in one piece: its tokens are put where they may have been."""
        spread_unstreamed(
            timeline,
            self.steps,
            log,
            prompt_token_seconds=self.prompt_token_seconds,
            settled_seconds=self.settled_seconds,
        )

    def client_left(self, timeline: RequestTimeline, at_seconds: float) -> None:
        """The engine may not notice: its gauges, where there are any, will tell."""
        if self.gauges.is_alive(at_seconds):
            self.gauges.orphans.suspect(timeline)

    def gauged(
        self,
        at_seconds: float,
        gauges: EngineGauges,
        entries: Sequence[Entry],
        log: TokenLog,
    ) -> None:
        """What the engine says of itself; `entries` are all not yet `left`."""
        timelines = [entry.timeline for entry in entries]
        seen = self.gauges.add(at_seconds, gauges, timelines)
        for timeline in self.gauges.orphans.take_ended():
            spread_orphan(timeline, self.steps, log)
        if seen.has_preempted:
            for entry in entries:
                timeline = entry.timeline
                was_there = timeline.arrived_seconds < at_seconds
                entry.has_preemption |= (
                    was_there and timeline.end_seconds > seen.since_seconds
                )

    def left(self, timeline: RequestTimeline) -> None:
        """A request's record is written; it is no longer among the entries."""
        self._closer.left(timeline)

    def _is_cut_seen(self, window: Window, among: Sequence[Entry]) -> bool:
        """Whether all of the step that the window's end lies in has been seen."""
        ends = self.steps.steps.end_seconds
        step = int(np.searchsorted(ends, window.end_seconds))
        if step < len(ends) and ends[step] < self._until_seconds - STEP_GAP_SECONDS:
            return True
        return not any(
            entry.timeline.last_token_seconds is not None
            and entry.timeline.last_token_seconds > self._until_seconds
            for entry in among
        )

    def _is_known(self, entry: Entry, window: Window) -> bool:
        """Whether all that the request did in the window is known by now."""
        timeline, until_seconds = entry.timeline, self._until_seconds
        first, last = timeline.first_token_seconds, timeline.last_token_seconds
        end_seconds = window.end_seconds
        for stop, go, _ in reversed(timeline.pauses):  # in order of time
            if go <= until_seconds:
                break
            if stop < end_seconds:
                return False
        closed = timeline.closed_seconds
        if closed is not None:
            if timeline.may_be_orphan and closed < end_seconds:
                return False
            return (closed if first is None else first) <= until_seconds
        if first is None or last is None or not timeline.is_exact_so_far:
            return False
        if self.engine_tells_late and window.start_seconds < first:
            return False
        return first <= until_seconds and last >= end_seconds
