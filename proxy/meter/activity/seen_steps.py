"""The steps that streams show, as far as reads have come.

Rule: reads are made into steps once they cannot be overtaken by others, up to
`until_seconds`; what is up to `settled_seconds` has been charged for and is final.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

from proxy.meter.activity.placement import Seen, is_long, step_starts
from proxy.meter.activity.request import Pause, RequestTimeline, TokenLog
from proxy.meter.activity.steps import (
    STEP_GAP_SECONDS,
    FloatArray,
    StepBook,
    Steps,
)
from proxy.meter.activity.unsettled import UnsettledRequests

ABSORB_SECONDS = 1.0
"""While no window closes; reads that wait longer would only grow the log."""


class SeenSteps:
    """Steps that some boundary has yet to settle, and reads that are in none yet."""

    def __init__(self, requests: UnsettledRequests) -> None:
        self._requests = requests
        self.settled_seconds = -math.inf
        """Who ran when is final up to here."""
        self.until_seconds = -math.inf
        """Reads stamped up to here have come."""
        self.now_seconds = -math.inf
        """As of the last beat."""
        self.log = TokenLog()
        self.book = StepBook()
        self.starts: FloatArray = np.empty(0)
        """When each step began, see `step_starts`."""
        self._absorbed_seconds = -math.inf

    @property
    def steps(self) -> Steps:
        """Those made of reads so far."""
        return self.book.steps

    def advance(self, now_seconds: float, straggler_seconds: float) -> None:
        """A beat: reads up to `straggler_seconds` ago have come."""
        self.until_seconds = now_seconds - straggler_seconds
        self.now_seconds = now_seconds

    def absorb_overdue(self) -> None:
        """Make steps of reads that no window came for."""
        if self.now_seconds >= self._absorbed_seconds + ABSORB_SECONDS:
            self.absorb(self.now_seconds)

    def absorb(self, now_seconds: float) -> None:
        """Make steps of all reads so far: once a window, not once a beat."""
        if now_seconds != self._absorbed_seconds:
            self._absorbed_seconds = now_seconds
            self.absorb_until(self.until_seconds)

    def absorb_until(self, at_seconds: float) -> None:
        """Make steps of the reads up to an instant."""
        if self.book.absorb(self.log, at_seconds):
            # who came before the first of these steps was there when it began
            floor_seconds = self.steps.floor_seconds[0]
            present = [
                timeline
                for timeline in self._requests.in_order()
                if timeline.arrived_seconds > floor_seconds
            ]
            self.starts = step_starts(
                self.steps,
                np.array([timeline.key for timeline in present], np.int64),
                np.array([timeline.arrived_seconds for timeline in present]),
            )

    def ground(
        self,
        end_seconds: float,
        was_set_aside: Callable[[Pause, float], bool] = is_long,
        window_end_seconds: float = math.inf,
        told_seconds: float = math.inf,
    ) -> Seen:
        """The steps that prompts are put on, up to an instant."""
        return Seen(
            self.steps,
            self.starts,
            self.settled_seconds,
            end_seconds,
            was_set_aside,
            window_end_seconds,
            told_seconds,
        )

    def is_cut_seen(
        self, end_seconds: float, among: Iterable[RequestTimeline], now_seconds: float
    ) -> bool:
        """Whether all of the step that an instant lies in has been seen."""
        if end_seconds <= self.settled_seconds:
            return True
        self.absorb(now_seconds)
        ends = self.steps.end_seconds
        step = int(np.searchsorted(ends, end_seconds))
        if step < len(ends) and ends[step] < self.until_seconds - STEP_GAP_SECONDS:
            return True
        return not any(
            timeline.last_token_seconds is not None
            and timeline.last_token_seconds > self.until_seconds
            for timeline in among
        )

    def forget(self, before_seconds: float) -> None:
        """Drop what was before an instant."""
        steps = len(self.starts)
        self.book.forget(before_seconds)
        self.starts = self.starts[steps - len(self.steps.end_seconds) :]
