"""What closing a window takes: prompts placed, joules divided, the ledger posted.

Rule: a window is closed once, with all its joules, and what is learnt from it
(idle watts, prompt speed, constants) serves the next one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from proxy.meter.activity.columns import population_of
from proxy.meter.activity.cut import EDGE_SECONDS
from proxy.meter.activity.engine_load import GaugeLog
from proxy.meter.activity.placement import PromptPlacement, Seen, step_starts
from proxy.meter.activity.request import RequestTimeline
from proxy.meter.activity.steps import StepBook
from proxy.meter.attribution.divide import IdleWatts, divide
from proxy.meter.attribution.fit import Calibration
from proxy.meter.attribution.policies import Policy
from proxy.meter.curve.group import Window
from proxy.meter.entry import Entry
from proxy.meter.ledger.accounts import Closing, Ledger

AFTERGLOW_SECONDS = 1.0
"""Clocks and averages take so long to settle after load; not loaded idle yet."""


class WindowCloser:
    """Closes windows into one ledger, in the order they are handed in."""

    def __init__(
        self,
        ledger: Ledger,
        policies: Mapping[str, Policy],
        *,
        idle_watts: float | None,
        calibration: Calibration,
    ) -> None:
        self.steps = StepBook()
        self.gauges = GaugeLog()
        self.idle = IdleWatts(idle_watts)
        self.calibration = calibration
        self.placement = PromptPlacement()
        self._ledger = ledger
        self._policies = list(policies.values())
        self._busy_until_seconds = -np.inf
        self._until_seconds = -np.inf
        self._arrivals = (np.empty(0, np.int64), np.empty(0))
        self._maybe_idle: deque[tuple[float, float, float]] = deque()

    def close(
        self,
        window: Window,
        among: Sequence[Entry],
        present: Sequence[Entry],
        until_seconds: float,
    ) -> None:
        """Place the prompts that are due, divide the window, post it to the ledger.

        `among` were there in the window; `present` are all not yet `left`; steps are
        known up to `until_seconds`.
        """
        self._until_seconds = until_seconds
        self._arrivals = (
            np.array([entry.timeline.serial for entry in present], np.int64),
            np.array([entry.timeline.arrived_seconds for entry in present]),
        )
        joules = float(window.joules[-1] - window.joules[0])
        measured = float(window.joules[-1])
        unplaced = self._place(window, among)
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
            is_whole = not unplaced and all(
                entry.timeline.scheduled_seconds is not None for entry in among
            )
            closing = self._divided(window, measured, ran, is_whole)
            if self._is_quiet(window, present):
                self._maybe_idle.append(
                    (window.start_seconds, window.end_seconds, joules)
                )
        self._ledger.close(closing)
        for timeline in unplaced:
            timeline.scheduled_seconds = None

    def learn_idle(self, now_seconds: float) -> None:
        """Quiet windows are loaded idle unless the engine's gauges object."""
        waiting = self._maybe_idle
        while waiting and self.gauges.covers(waiting[0][1], now_seconds):
            start_seconds, end_seconds, joules = waiting.popleft()
            if self.gauges.is_quiet(start_seconds - AFTERGLOW_SECONDS, end_seconds):
                self.idle.learn(joules, end_seconds - start_seconds)

    def left(self, timeline: RequestTimeline) -> None:
        """A request's record is written; it is no longer among the entries."""
        left = timeline.left_seconds
        if left is not None:
            self._busy_until_seconds = max(self._busy_until_seconds, left)

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

    def _divided(
        self, window: Window, measured: float, ran: list[Entry], is_whole: bool
    ) -> Closing:
        external = self.gauges.external(window.start_seconds, window.end_seconds)
        population = population_of([*(entry.timeline for entry in ran), *external])
        steps = self.steps.steps
        starts = step_starts(steps, *self._arrivals)
        division = divide(
            window,
            population,
            steps,
            starts,
            idle_watts=self.idle.watts,
            policies=[self.calibration.bound(policy) for policy in self._policies],
            external=len(external),
        )
        is_whole = is_whole and not external
        for entry in ran:
            entry.lacks_idle |= self.idle.watts is None
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
            unattributed_joules=division.external_joules,
            unattributed_reason="external",
            slots=np.array([entry.slot for entry in ran], np.int64),
            idle_share_joules=division.idle_share_joules,
            policy_joules=division.policy_joules,
        )

    def _place(self, window: Window, among: Sequence[Entry]) -> list[RequestTimeline]:
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
        for timeline in due:
            self._hold_back(timeline)
        self.placement.place(
            due, Seen(steps, starts, window.start_seconds, window.end_seconds)
        )
        still = [t for t in waiting if t.scheduled_seconds is None]
        unplaced = [t for t in still if not t.is_streamed]
        if still and not unplaced and len(still) == len(timelines):
            unplaced = still[:1]  # nobody else can have used the energy
        for timeline in unplaced:
            timeline.scheduled_seconds = timeline.arrived_seconds
        return unplaced

    def _hold_back(self, timeline: RequestTimeline) -> None:
        """It was not scheduled while the engine's gauges say that it waited."""
        before = timeline.first_token_seconds or timeline.left_seconds
        if timeline.scheduled_seconds is None and before is not None:
            waited = self.gauges.waiting_until(timeline.arrived_seconds, before)
            if waited is not None:
                timeline.waited_until_seconds = waited

    def _is_located(self, timeline: RequestTimeline) -> bool:
        """Whether the step that ended the prefill, or the request, is known."""
        first = timeline.first_token_seconds
        if first is None:
            return timeline.closed_seconds is not None
        return first <= self._until_seconds
