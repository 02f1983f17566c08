"""What the windows of a boundary teach, for those that follow.

Rule: each is learnt from once, in order, and only where its work and its joules are
both known: idle watts of quiet windows, constants of divided ones, how late the sensor
is, and by how much predictions miss.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from proxy.meter.activity.request import RequestTimeline
from proxy.meter.activity.steps import Steps
from proxy.meter.activity.timeline import EngineTimeline
from proxy.meter.activity.work import Population, activity_between
from proxy.meter.attribution.divide import REST_SECONDS, Division, IdleWatts
from proxy.meter.attribution.fit import Calibration
from proxy.meter.attribution.forms import APPROXIMATE
from proxy.meter.attribution.interval import ErrorTracker, FloatArray
from proxy.meter.attribution.lag import SPAN_SECONDS, LagWatch, Span
from proxy.meter.attribution.policies import Policy, by_calibration, by_phase
from proxy.meter.config import MeterConfig
from proxy.meter.curve import GroupCurve, Window

PHASE, FITTED = "phase", "fitted"
"""Cost models whose residuals are watched."""

AFTERGLOW_SECONDS = 1.0
"""Clocks and averages take so long to settle after load; not loaded idle yet."""


class LearntSoFar:
    """Idle watts, constants, errors, and how late the sensor is."""

    def __init__(
        self,
        config: MeterConfig,
        name: str,
        curve: GroupCurve,
        timeline: EngineTimeline,
    ) -> None:
        self._curve, self._timeline = curve, timeline
        self.idle = IdleWatts(config.idle_watts, config.last_idle_watts.get(name))
        self.calibration = Calibration(
            config.fit_rules, config.calibrations, config.stale_models
        )
        self.durations = Calibration(config.fit_rules)
        """The same for the seconds that steps take: by them idle is divided."""
        self.errors = ErrorTracker()
        self.lag = LagWatch()
        self.distrust: str | None = "rows"
        """Why the constants are not trusted, as of the last beat; None: they are."""
        self._maybe_idle: deque[tuple[float, float, float, float]] = deque()
        """Start, end, joules and seconds since work of quiet windows."""
        self._to_learn: deque[tuple[Window, Division, bool]] = deque()
        """Windows that are divided and not fitted yet; whether a cache is in doubt."""

    def beat(self) -> None:
        """Whether the constants are trusted, until the next beat."""
        doubt = self.calibration.doubt
        self.distrust = None if doubt is None else doubt.kind
        fit = self.calibration.fit
        if doubt is None and fit is not None and fit.form in APPROXIMATE:
            self.distrust = fit.form

    @property
    def cost_in_use(self) -> str:
        """The cost model that headline joules are divided by."""
        return PHASE if self.calibration.cost is None else FITTED

    def bound(self, policy: Policy) -> Policy:
        """The policy as it ranks now, with the constants in use."""
        return self.calibration.bound(policy)

    @property
    def idle_policy(self) -> Policy:
        """The rule of the idle share, with the constants in use; weights are seconds.

        Until they are trusted, those of `phase`: what takes energy takes time.
        """
        return self.durations.bound(by_calibration)

    def divided(
        self,
        window: Window,
        ran: Sequence[RequestTimeline],
        division: Division,
        *,
        is_whole: bool,
    ) -> None:
        """A measured window was divided among those who ran; is its work known?"""
        seconds = window.end_seconds - window.start_seconds
        if is_whole:
            self.durations.learn(division.learnt, division.busy_seconds, seconds)
        if self.idle.watts is None:
            return
        if is_whole:  # work and joules are both known
            has_doubt = self._timeline.count.has_doubt(ran)
            self._to_learn.append((window, division, has_doubt))
        elif division.external_joules.any():
            self.calibration.miss(seconds, "work past the proxy was there")
        elif division.caused_joules > 0:
            self.calibration.miss(seconds, "it was not known who ran when")

    def quiet(self, window: Window, joules: float) -> None:
        """A measured window in which nobody was there, as far as is known by now."""
        start, end = window.start_seconds, window.end_seconds
        worked = self._timeline.worked_until(start)
        self._maybe_idle.append((start, end, joules, start - worked))

    def watch_lag(
        self, window: Window, population: Population, steps: Steps, starts: FloatArray
    ) -> None:
        """Hold what short spans cost against what the sensor showed."""
        edges = window.edges_seconds
        start = 0
        for stop in range(1, len(edges)):
            if edges[stop] - edges[start] < SPAN_SECONDS and stop < len(edges) - 1:
                continue
            began, ended = float(edges[start]), float(edges[stop])
            costs = np.zeros(2)
            if len(population.keys):
                did = activity_between(began, ended, population, steps, starts)
                costs = by_phase(did).sum(axis=0)
            shown = float(window.joules[stop] - window.joules[start])
            span = Span(began, ended, shown, *costs.tolist())
            self.lag.add(span, has_counter=self._curve.has_counter)
            start = stop
        if (lateness := self.lag.lateness) is not None:
            self._curve.correct(*lateness)
            self.calibration.restart()
            if lateness.averaging_seconds:
                self.calibration.lag_seconds = lateness.mean_seconds

    def learn_costs(self) -> None:
        """Fit what windows cost, in order, each once its work is beyond doubt.

        One whose prompts a cache may have held waits for the scrape that tells, and
        is left out if it tells of a cache.
        """
        while self._to_learn:
            window, division, has_doubt = self._to_learn[0]
            verdict = self._timeline.count.cache_verdict(window.end_seconds)
            if has_doubt and verdict is None:
                return
            self._to_learn.popleft()
            seconds = window.end_seconds - window.start_seconds
            if has_doubt and verdict:
                self.calibration.miss(seconds, "a cache that is not told of was used")
            else:
                self.calibration.learn(division.learnt, division.caused_joules, seconds)

    def learn_idle(self, now_seconds: float) -> None:
        """Quiet windows are loaded idle unless the engine's gauges object."""
        waiting, gauges = self._maybe_idle, self._timeline.gauges
        while waiting and gauges.covers(waiting[0][1], now_seconds):
            start, end, joules, since_work = waiting.popleft()
            if not gauges.is_quiet(start - AFTERGLOW_SECONDS, end):
                continue
            if since_work >= REST_SECONDS and not gauges.is_quiet(
                start - REST_SECONDS, end
            ):  # it may come right after somebody else's work
                since_work = AFTERGLOW_SECONDS
            self.idle.learn(joules, end - start, since_work)
