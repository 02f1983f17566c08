"""Which window is final, and what closing it takes.

A window is final once the facts of every request that overlapped it are known,
or after a bounded wait, and then those requests are marked estimated. Windows
are closed strictly in order and never opened again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from proxy.attribution import Policy
from proxy.energy.group import GroupCurve, Window
from proxy.ledger import Closing, Ledger
from proxy.settlement.calibration import Calibration
from proxy.settlement.cut import EDGE_SECONDS, too_late_to_cut
from proxy.settlement.divide import IdleWatts, divide
from proxy.timeline.placement import PromptPlacement, Seen, step_starts
from proxy.timeline.population import population
from proxy.timeline.request import RequestTimeline, TokenLog
from proxy.timeline.steps import StepBook

STRAGGLER_SECONDS = 0.05
"""Reads of a step may still be on their way through the event loop."""

STEP_SECONDS = 0.02
"""A decode step of an 8B model with some context; only splits unseen time."""

MOST_READS = 4096
"""A longer whole reply is spread with several tokens at each stamp."""

PATIENCE_SECONDS = 30.0
PATIENCE_PERIODS = 4.0
"""Longer than a record waits, so that steps outlive the requests in them."""

WIDEST = 2.0
"""Times a window's width: short requests that come in step with the counter, each
just before an update, would put its end off for ever."""

AFTERGLOW_SECONDS = 1.0
"""Clocks and averages take so long to settle after load; not loaded idle yet."""


@dataclass(slots=True, eq=False)
class Entry:
    """A request in the books: its timeline, its ledger slot, what is wrong with it."""

    timeline: RequestTimeline
    slot: int
    has_gap: bool = False
    """Part of its time was not measured."""
    is_forced: bool = False
    """A window was closed before all of its facts were known."""


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
        self.steps = StepBook()
        self.idle = IdleWatts(idle_watts)
        self.calibration = calibration or Calibration()
        self.settled_seconds: float | None = None
        """End of the last closed window; None before the first edge."""
        self.measured_from_seconds: float | None = None
        self.engine_tells_late = False
        """The engine gives phase times or cached tokens with the last event, so
        a prefill is worth waiting for until its request is closed."""
        self._ledger = ledger
        self._policies = list(policies.values())
        self._window_seconds = window_seconds
        self._wait_seconds = wait_seconds
        self._placement = PromptPlacement()
        self._busy_until_seconds = -np.inf
        self._until_seconds = -np.inf
        self._arrivals = (np.empty(0, np.int64), np.empty(0))

    @property
    def prompt_token_seconds(self) -> float:
        """How long the engine takes for a prompt token, as observed."""
        return self._placement.speed.token_seconds

    @property
    def window_seconds(self) -> float:
        """How wide they are made: as told, and wider for a slow sensor."""
        return self.curve.wide_enough_seconds(self._window_seconds)

    def advance(
        self, entries: Iterable[Entry], log: TokenLog, now_seconds: float
    ) -> None:
        """Close every final window. `entries` are all not yet `left`, by serial."""
        if self.settled_seconds is None and self.curve.start_seconds is not None:
            self.settled_seconds = self.curve.start_seconds
            self.measured_from_seconds = self.settled_seconds
            self._ledger.begin(self.settled_seconds)
        until_seconds = self._until_seconds = now_seconds - STRAGGLER_SECONDS
        self.steps.absorb(log, until_seconds)
        if self.settled_seconds is None:
            self._forget_unmeasured(now_seconds)
            return
        present = list(entries)
        self._arrivals = (
            np.array([entry.timeline.serial for entry in present], np.int64),
            np.array([entry.timeline.arrived_seconds for entry in present]),
        )
        while True:
            window, among = self._next_window(present, self.window_seconds)
            if window is None or window.end_seconds > until_seconds:
                break
            if not self._is_cut_seen(window, among):
                break
            unknown = [e for e in among if not self._is_known(e, window, until_seconds)]
            if unknown and now_seconds < window.end_seconds + self._wait_seconds:
                break
            for entry in unknown:
                entry.is_forced = True
            self._close(window, among, self._is_quiet(window, present))
            self.settled_seconds = window.end_seconds
            self.steps.forget(window.end_seconds)
            self._placement.forget(window.end_seconds)
        self.curve.forget(self.settled_seconds)
        self._forget_unmeasured(now_seconds)

    def _next_window(
        self, present: Sequence[Entry], width_seconds: float
    ) -> tuple[Window | None, list[Entry]]:
        """The next window and who was there; wider where its end would cut badly."""
        start_seconds = self.settled_seconds
        assert start_seconds is not None
        window = self.curve.next_window(start_seconds, width_seconds)
        if window is None:
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
        if is_gap_ahead or wider_seconds > WIDEST * self.window_seconds:
            return window, among
        return self._next_window(present, wider_seconds)

    def _forget_unmeasured(self, now_seconds: float) -> None:
        """Steps that no window came for: their requests are given up by now."""
        patience = self._wait_seconds + PATIENCE_SECONDS + self.window_seconds
        patience += PATIENCE_PERIODS * (self.curve.period_seconds or 0.0)
        self.steps.forget(now_seconds - patience)

    def spread(self, timeline: RequestTimeline, log: TokenLog) -> None:
        """Put the tokens of a reply that came in one piece where they may have been.

        Where the engine told no phase times, the time is split as if every output
        token had taken a step, and stamps are moved onto steps that were seen.
        """
        closed, output = timeline.closed_seconds, timeline.output_tokens
        if closed is None or not output:
            return
        arrived = timeline.arrived_seconds
        decode = timeline.decode_seconds
        if decode is None:
            prompt = (timeline.prompt_tokens or 0) * self.prompt_token_seconds
            whole = prompt + output / timeline.sequences * STEP_SECONDS
            decode = (closed - arrived) * (1 - prompt / whole)
        first = max(closed - decode, arrived)
        reads = min(max(output // timeline.sequences, 1), MOST_READS)
        self.steps.absorb(log, closed)
        stamps = self.steps.snap(np.linspace(first, closed, reads), not_before=first)
        floor = np.nextafter(self.settled_seconds or -np.inf, np.inf)
        timeline.spread_whole_reply(np.maximum(stamps, floor).tolist(), log)

    def left(self, timeline: RequestTimeline) -> None:
        """A request's record is written; it is no longer among the entries."""
        closed = timeline.closed_seconds
        if closed is not None:
            self._busy_until_seconds = max(self._busy_until_seconds, closed)

    def _is_cut_seen(self, window: Window, among: Sequence[Entry]) -> bool:
        """Whether the step that the window's end lies in is among those seen."""
        ends = self.steps.steps.end_seconds
        if len(ends) and ends[-1] >= window.end_seconds:
            return True
        return not any(
            entry.timeline.last_token_seconds is not None
            and entry.timeline.last_token_seconds > self._until_seconds
            for entry in among
        )

    def _is_known(self, entry: Entry, window: Window, until_seconds: float) -> bool:
        """Whether all that the request did in the window is known by now."""
        timeline = entry.timeline
        first, last = timeline.first_token_seconds, timeline.last_token_seconds
        end_seconds, pauses = window.end_seconds, timeline.pauses
        if any(stop < end_seconds and go > until_seconds for stop, go, _ in pauses):
            return False
        if timeline.closed_seconds is not None:
            ended = first if first is not None else timeline.closed_seconds
            return ended <= until_seconds
        if first is None or last is None or not timeline.is_exact_so_far:
            return False
        if self.engine_tells_late and window.start_seconds < first:
            return False
        return first <= until_seconds and last >= end_seconds

    def _is_quiet(self, window: Window, present: Sequence[Entry]) -> bool:
        """Nobody was there in the window, nor a while before it."""
        since = window.start_seconds - AFTERGLOW_SECONDS
        if self._busy_until_seconds > since:
            return False
        return not any(
            entry.timeline.arrived_seconds < window.end_seconds + EDGE_SECONDS
            and (
                entry.timeline.closed_seconds is None
                or entry.timeline.closed_seconds > since
            )
            for entry in present
        )

    def _close(self, window: Window, among: list[Entry], is_quiet: bool) -> None:
        joules = float(window.joules[-1] - window.joules[0])
        measured = float(window.joules[-1])
        guests = self._place(window, among)
        ran = [
            entry
            for entry in among
            if (entry.timeline.scheduled_seconds or 0.0) < window.end_seconds
            and entry.timeline.scheduled_seconds is not None
        ]
        if window.gap_reason is not None:
            for entry in ran:
                entry.has_gap = True
            closing = Closing(
                window.end_seconds,
                measured,
                unattributed_joules=joules,
                unattributed_reason=window.gap_reason,
                gap_seconds=window.end_seconds - window.start_seconds,
            )
        else:
            is_whole = not guests and all(
                entry.timeline.scheduled_seconds is not None for entry in among
            )
            closing = self._divided(window, measured, ran, is_whole)
            if is_quiet:
                self.idle.learn(joules, window.end_seconds - window.start_seconds)
        self._ledger.close(closing)
        for timeline in guests:
            timeline.scheduled_seconds = None

    def _divided(
        self, window: Window, measured: float, ran: list[Entry], is_whole: bool
    ) -> Closing:
        people = population([entry.timeline for entry in ran])
        steps = self.steps.steps
        starts = step_starts(steps, *self._arrivals)
        division = divide(
            window,
            people,
            steps,
            starts,
            idle_watts=self.idle.watts,
            policies=[self.calibration.bound(policy) for policy in self._policies],
        )
        if is_whole and self.idle.watts is not None:  # work and joules are both known
            self.calibration.learn(
                division.work,
                division.caused_joules,
                window.end_seconds - window.start_seconds,
            )
        return Closing(
            window.end_seconds,
            measured,
            idle_joules=division.idle_joules,
            slots=np.array([entry.slot for entry in ran], np.int64),
            idle_share_joules=division.idle_share_joules,
            policy_joules=division.policy_joules,
        )

    def _is_located(self, timeline: RequestTimeline) -> bool:
        """Whether the step that ended the prefill, or the request, is known."""
        first = timeline.first_token_seconds
        if first is None:
            return timeline.closed_seconds is not None
        return first <= self._until_seconds

    def _place(self, window: Window, among: list[Entry]) -> list[RequestTimeline]:
        """Place the prompts that are due; return those let in for this window only."""
        steps = self.steps.steps
        timelines = [entry.timeline for entry in among]
        starts = step_starts(steps, *self._arrivals)
        waiting = [t for t in timelines if t.scheduled_seconds is None]
        due = [
            t
            for t in timelines
            if t.pauses or (t.scheduled_seconds is None and self._is_located(t))
        ]
        self._placement.place(
            due, Seen(steps, starts, window.start_seconds, window.end_seconds)
        )
        still = [t for t in waiting if t.scheduled_seconds is None]
        guests = [t for t in still if not t.is_streamed]
        if still and not guests and len(still) == len(timelines):
            guests = still[:1]  # nobody else can have used the energy
        for timeline in guests:
            timeline.scheduled_seconds = timeline.arrived_seconds
        return guests
