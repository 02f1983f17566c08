"""One boundary of an engine: a sensor's curve, cut into windows, and their ledger.

A window is final once the facts of every request that overlapped it are known, or
after a bounded wait, and then those requests are marked (`is_forced`). Windows are
closed strictly in order, once, with all their joules, and never opened again; what is
learnt from one (idle watts, constants) serves the next. Who ran when is the engine's
timeline's to say, to all boundaries the same: here joules are divided over it.

No window ends right after somebody began on an idle engine. An edge of the counter is
off by half a polling interval and by what the sensor is late; work that lies within
that of the window's end may have its energy behind it, and a prefill of a few
milliseconds would then be charged nothing, or twice.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from proxy.meter.activity.request import RequestTimeline
from proxy.meter.activity.speculation import Speculation
from proxy.meter.activity.steps import Steps
from proxy.meter.activity.timeline import EngineTimeline
from proxy.meter.activity.work import Population, activity_between, population_of
from proxy.meter.attribution.divide import (
    REST_SECONDS,
    Division,
    IdleWatts,
    divide,
)
from proxy.meter.attribution.fit import (
    Calibration,
    CalibrationState,
    moved_joules,
    variance_of,
)
from proxy.meter.attribution.forms import APPROXIMATE, CONSTANTS
from proxy.meter.attribution.interval import (
    CENTRE,
    GRADE_REASONS,
    GRADES,
    GUESSED_DOUBT,
    SPREAD,
    WHOLE_REPLY_DOUBT,
    BoolArray,
    Bounds,
    ErrorTracker,
    Evidence,
    FloatArray,
    bounds_of,
    doubts_of,
    grade_of,
    grade_reasons,
    total_bounds,
)
from proxy.meter.attribution.lag import MAX_REQUESTS, SPAN_SECONDS, LagWatch, Span
from proxy.meter.attribution.policies import (
    CostModel,
    Policy,
    both,
    by_calibration,
    by_phase,
)
from proxy.meter.config import MeterConfig
from proxy.meter.curve import (
    GAP_REASONS,
    JOIN_READINGS,
    JOIN_SECONDS,
    LEAVE_SECONDS,
    SENSOR_GAP,
    GroupCurve,
    Window,
)
from proxy.meter.deadlines import Deadlines
from proxy.meter.ledger import QUALITY_OF, Books, Closing, Ledger, RequestEnergy
from proxy.wire.events import PowerSampled
from proxy.wire.facts import Labels


@dataclass(frozen=True, slots=True)
class MeterState:
    """Everything the metrics and the admin API show, taken at one moment."""

    books: Books
    idle_watts: float | None
    idle_source: str
    """`given`, `measured` or `unknown`."""
    rest_watts: float | None
    """Idle long after work, where a board draws less than right after it."""
    open_requests: int
    unsettled_seconds: float
    """How far settlement lags behind the newest reading."""
    device_joules: Mapping[str, float]
    """Measured since start, by device."""
    device_watts: Mapping[str, float]
    """Mean power over the last interval, by device."""
    counter_period_seconds: float | None
    counter_power_ratio: float | None
    samples_total: int
    gaps_total: int
    policy: str
    class_joules: Mapping[Labels, tuple[float, float, float]] = field(
        default_factory=dict
    )
    """Settled prefill, decode and idle share joules, headline policy, by class."""
    class_tokens: Mapping[Labels, tuple[int, int, int]] = field(default_factory=dict)
    """Prompt, cached and output tokens of settled requests, by class."""
    policy_joules: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Settled prefill and decode joules of all requests, under every policy."""
    window_seconds: float = 0.5
    """How wide windows are made; wider than asked for where the sensor is slow."""
    quality_requests: Mapping[str, int] = field(default_factory=dict)
    """Settled requests by quality, the older name of `timing`."""
    timing_requests: Mapping[str, int] = field(default_factory=dict)
    """Settled requests by timing."""
    grade_requests: Mapping[str, int] = field(default_factory=dict)
    """Settled requests by grade."""
    doubted_requests: Mapping[str, int] = field(default_factory=dict)
    """Settled requests that are not `good`, by each of `GRADE_REASONS`."""
    half_width_fraction: float | None = None
    """Mean half width of the newest records' intervals by their joules."""
    unsettled_requests: int = 0
    """In flight, or finished without a record yet."""
    late_reads_total: int = 0
    """Reads with tokens that came for time already settled; counted as later."""
    counter_resets_total: int = 0
    devices_joined_total: int = 0
    """Devices that came after the first reading."""
    devices_left_total: int = 0
    external_requests: int | None = None
    """Running in the engine, by its last scrape, and not the proxy's; None: no scrape
    that is new enough."""
    speculation: Speculation | None = None
    """Tokens drafted and accepted; None where the engine tells of none."""
    calibration: CalibrationState | None = None
    """The constants of the policy `calibrated`, and whether they are in use."""


PHASE, FITTED = "phase", "fitted"
"""Cost models whose residuals are watched."""
PHASE_JOULES = np.array([getattr(CostModel(), name) for name in CONSTANTS])
BEST = "calibrated"
"""The policy that knows this engine best; `phase` until its constants are trusted."""
NEWEST_RECORDS = 512
"""So many make the mean half width that is shown."""

AFTERGLOW_SECONDS = 1.0
"""Clocks and averages take so long to settle after load; not loaded idle yet."""

NO_BOOKS = Books(-math.inf, 0.0, 0.0, 0.0, 0.0, 0.0, {}, 0.0)
"""Before the first edge."""


class Boundary:
    """Closes windows of one group of devices into one ledger."""

    def __init__(
        self, config: MeterConfig, timeline: EngineTimeline, name: str = ""
    ) -> None:
        """`config` has the idle watts and the saved fits that are this boundary's."""
        self.config = config
        self._name = name
        self.curve = GroupCurve(
            join_readings=JOIN_READINGS,
            join_seconds=JOIN_SECONDS,
            leave_seconds=LEAVE_SECONDS,
        )
        self.ledger = Ledger(list(config.policies), config.policy)
        self.idle = IdleWatts(config.idle_watts, config.last_idle_watts.get(name))
        self.calibration = Calibration(
            config.fit_rules, config.calibrations, config.stale_models
        )
        self.durations = Calibration(config.fit_rules)
        """The same for the seconds that steps take: by them idle is divided."""
        self.settled_seconds = -math.inf
        """End of the last closed window; -inf before the first edge."""
        self.measured_from_seconds = math.inf
        """The first edge; inf before it."""
        self.is_up = False
        """The sensor answered when it was last read."""
        self.shared_because: str | None = None
        """Why the devices' joules are not the engine's alone, as last observed."""
        self._timeline = timeline
        self._asked = self._deadlines = Deadlines(
            min_window_seconds=config.window_seconds, wait_seconds=config.wait_seconds
        )
        """As of the last beat."""
        self._give_up_seconds = self._deadlines.give_up_seconds
        """From the end of a request; asked for with every one that waits."""
        self._stopped_seconds = math.inf
        self._blocked: tuple[RequestTimeline, Window] | None = None
        self._maybe_idle: deque[tuple[float, float, float, float]] = deque()
        """Start, end, joules and seconds since work of quiet windows."""
        self._to_learn: deque[tuple[Window, Division, bool]] = deque()
        """Windows that are divided and not fitted yet; whether a cache is in doubt."""
        self._with_gap: set[int] = set()
        """Requests of whose time a part was not measured."""
        self._without_idle: set[int] = set()
        """Requests in a window that was divided while idle watts were not known."""
        self._newest_seconds: float | None = None
        self._samples_total = 0
        self._gaps_total = 0
        self._open: set[int] = set()
        self._timing_requests = {"timed": 0, "estimated": 0, "unknown": 0}
        self._grade_requests = dict.fromkeys(GRADES, 0)
        self._doubted_requests = dict.fromkeys(GRADE_REASONS, 0)
        self._half_widths: deque[float] = deque(maxlen=NEWEST_RECORDS)
        self._errors = ErrorTracker()
        self._lag = LagWatch()
        self._distrust: str | None = "rows"
        """Why the constants are not trusted, as of the last beat; None: they are."""
        self._on_shared: set[int] = set()
        """Requests in a window in which the devices were not the engine's alone."""
        self._beside_others: set[int] = set()
        """Requests in a window in which somebody else was charged."""
        names = tuple(config.policies)
        self._headline = names.index(config.policy)
        self._best = names.index(BEST if BEST in names else config.policy)
        """The policy that intervals lie around."""
        self._unfitted = names.index(PHASE) if PHASE in names else self._best

    # what is seen

    def sample(self, event: PowerSampled) -> None:
        """All devices read at one moment, or the reason why they were not."""
        reason = event.gap_reason
        self.is_up = reason is None
        if reason is not None:
            self._gaps_total += 1
            self.curve.interrupt(reason if reason in GAP_REASONS else SENSOR_GAP)
            return
        self._samples_total += 1
        self._newest_seconds = event.at_seconds
        self.curve.observe(
            event.at_seconds,
            [(one.device, one.joules, one.watts) for one in event.readings],
        )

    def open(self, key: int, labels: Labels) -> None:
        """A request was forwarded: from here on it may be charged."""
        self._open.add(key)
        if labels.is_provisional:
            self.ledger.open(key, None)
        else:
            self.ledger.open(key, (labels.model, labels.kind, labels.tenant))
            self.calibration.serve(labels.model)

    def classify(self, key: int, labels: Labels) -> None:
        """The labels of a request that was opened with provisional ones."""
        self.ledger.classify(key, (labels.model, labels.kind, labels.tenant))
        self.calibration.serve(labels.model)

    # deadlines

    @property
    def oldest_seconds(self) -> float | None:
        """The earliest instant whose accounts are known."""
        return self.ledger.oldest_seconds

    def deadlines(self) -> Deadlines:
        """Every wait, for the sensor as it is known now."""
        period_seconds = self.curve.likely_period_seconds
        lateness = self._lag.lateness
        if lateness is None:
            return replace(self._asked, period_seconds=period_seconds)
        late_seconds = lateness.averaging_seconds + lateness.delay_seconds
        width_seconds = max(self._asked.min_window_seconds, lateness.averaging_seconds)
        return replace(
            self._asked,
            period_seconds=(period_seconds or 0.0) + late_seconds,
            min_window_seconds=width_seconds,
            is_steady=True,
        )

    def stop(self, now_seconds: float) -> float:
        """No request will come any more; how long the last may take at most."""
        self._stopped_seconds = now_seconds
        return self.deadlines().stop_seconds

    def join_seconds(self, now_seconds: float) -> float:
        """How long a record of another boundary may wait for this one's joules."""
        if not self.is_up or self._is_stop_over(now_seconds):
            return 0.0
        return self._deadlines.join_seconds

    def _is_stop_over(self, now_seconds: float) -> bool:
        """Whether nothing is waited for any more; a sensor that is down is not long."""
        if now_seconds <= self._stopped_seconds:
            return False
        at_stop = self._deadlines.at_stop
        seconds = at_stop.give_up_seconds if self.is_up else at_stop.down_seconds
        return now_seconds > self._stopped_seconds + seconds

    # settlement

    def settle(self, now_seconds: float) -> None:
        """Close every final window. The timeline has advanced to the same instant."""
        if not self.config.has_sensor:
            return
        self._deadlines = self.deadlines()
        self._give_up_seconds = self._deadlines.give_up_seconds
        if self.settled_seconds == -math.inf:
            self._begin()
        if self.settled_seconds == -math.inf:
            return
        if not self._is_still_blocked(now_seconds):
            while (final := self._next_final(now_seconds)) is not None:
                self._close(*final)
                self._learn_idle(now_seconds)
        self._learn_idle(now_seconds)
        self.curve.forget(self.settled_seconds)
        doubt = self.calibration.doubt
        self._distrust = None if doubt is None else doubt.kind
        fit = self.calibration.fit
        if doubt is None and fit is not None and fit.form in APPROXIMATE:
            self._distrust = fit.form

    @property
    def straggler_seconds(self) -> float:
        """How long reads may still be on their way when their time is settled."""
        return self._asked.straggler_seconds

    @property
    def forget_seconds(self) -> float:
        """For how long steps are kept that no window came for."""
        return self._deadlines.forget_seconds

    def is_done(self, timeline: RequestTimeline, now_seconds: float) -> bool:
        """Settled, or it can not be: nobody waits for energy that never comes."""
        closed_seconds = timeline.closed_seconds
        if closed_seconds is None:
            return False
        if not self.config.has_sensor:
            return True
        if (
            timeline.scheduled_seconds is not None
            and (end_seconds := timeline.end_seconds) <= self.settled_seconds
        ):
            # the next scrape may tell of a preemption: then it was not exact
            return not timeline.is_scheduled_exact or self._timeline.gauges.covers(
                end_seconds, now_seconds
            )
        give_up_seconds = closed_seconds + self._give_up_seconds
        return now_seconds > give_up_seconds or (
            now_seconds > self._stopped_seconds and self._is_stop_over(now_seconds)
        )

    def finish(self, timeline: RequestTimeline) -> RequestEnergy:
        """What a request that is done has cost; its entry is closed."""
        key = timeline.key
        energy = self._energy(timeline)
        self._timing_requests[energy.timing] += 1
        self._grade_requests[energy.grade] += 1
        for reason in energy.grade_reasons:
            self._doubted_requests[reason] += 1
        if energy.energy_joules and energy.high_joules is not None:
            assert energy.low_joules is not None
            width = energy.high_joules - energy.low_joules
            self._half_widths.append(width / 2 / energy.energy_joules)
        self.ledger.count_tokens(
            key,
            (
                timeline.prompt_tokens,
                timeline.cached_tokens,
                timeline.recorded_output_tokens,
            ),
        )
        self.ledger.release(key)
        for keys in (
            self._open, self._with_gap, self._without_idle, self._beside_others,
            self._on_shared,
        ):  # fmt: skip
            keys.discard(key)
        return energy

    def has_gap(self, key: int) -> bool:
        """Whether a part of a request's time was not measured."""
        return key in self._with_gap

    def unknown_energy(self) -> RequestEnergy:
        """Nothing was measured, or not all of the request's time."""
        return RequestEnergy(None, None, None, None, self.config.policy, "unknown")

    def books_at(self, at_seconds: float | None = None) -> Books:
        """Accounts up to an instant (None: all that is settled); no side effects."""
        books = self.ledger.books_at(at_seconds)
        if books is None:
            return NO_BOOKS
        others = books.unattributed_joules
        low, high = total_bounds(
            books.prefill_joules + books.decode_joules + books.idle_share_joules,
            others.get("external", 0.0) + others.get("unmetered", 0.0),
            sensor_fraction=self.config.sensor_fraction(self._name),
        )
        return replace(books, attributed_low_joules=low, attributed_high_joules=high)

    def state(self) -> MeterState:
        """One consistent picture; no side effects."""
        curve, ledger = self.curve, self.ledger
        devices = curve.devices
        newest = self._newest_seconds
        lag = 0.0
        if newest is not None and self.settled_seconds > -math.inf:
            lag = max(newest - self.settled_seconds, 0.0)
        timeline = self._timeline
        return MeterState(
            books=self.books_at(),
            idle_watts=self.idle.watts,
            idle_source=self.idle.source,
            rest_watts=self.idle.rest_watts,
            open_requests=timeline.open_requests,
            unsettled_seconds=lag,
            device_joules={name: d.total_joules for name, d in devices.items()},
            device_watts={
                name: d.watts for name, d in devices.items() if d.watts is not None
            },
            counter_period_seconds=curve.period_seconds,
            counter_power_ratio=curve.counter_power_ratio,
            samples_total=self._samples_total,
            gaps_total=self._gaps_total + curve.resets,
            policy=self.config.policy,
            class_joules={_labels_of(k): v for k, v in ledger.class_joules.items()},
            class_tokens={_labels_of(k): v for k, v in ledger.class_tokens.items()},
            policy_joules=ledger.policy_joules,
            window_seconds=self.deadlines().window_seconds,
            quality_requests={
                QUALITY_OF.get(timing, timing): count
                for timing, count in self._timing_requests.items()
            },
            timing_requests=dict(self._timing_requests),
            grade_requests=dict(self._grade_requests),
            doubted_requests=dict(self._doubted_requests),
            half_width_fraction=(
                sum(self._half_widths) / len(self._half_widths)
                if self._half_widths
                else None
            ),
            unsettled_requests=len(self._open),
            late_reads_total=timeline.late_reads_total,
            counter_resets_total=curve.resets,
            devices_joined_total=curve.joined_total,
            devices_left_total=curve.left_total,
            external_requests=None
            if newest is None
            else timeline.gauges.external_at(newest),
            speculation=timeline.speculation.totals_at(),
            calibration=self.calibration.state,
        )

    # which window is final

    def _begin(self) -> None:
        """Open the books where the last device of the group was first measured."""
        start, end = self.curve.start_seconds, self.curve.end_seconds
        # before every device has an edge there, what they drew until then is unknown
        if start is not None and end is not None and end >= start:
            self.settled_seconds = self.measured_from_seconds = start
            before = self.curve.joules_at(np.array([start]))
            self.ledger.begin(start, float(before[0]))

    def _next_final(
        self, now_seconds: float
    ) -> tuple[Window, list[RequestTimeline]] | None:
        """The next window to close and who was there; None: not yet."""
        timeline = self._timeline
        found = self._next_window(self._width_seconds())
        if found is None:
            return None
        window, among = found
        start, end = window.start_seconds, window.end_seconds
        if timeline.count.awaits(end, now_seconds, self._asked.wait_seconds):
            return None
        unknown = timeline.awaited.unknown(among, start, end)
        if unknown and now_seconds < end + self._asked.wait_seconds:
            self._blocked = unknown[0], window
            return None
        if not timeline.seen.is_cut_seen(end, among, now_seconds):
            return None
        for each in unknown:
            each.is_forced = True
        return window, among

    def _is_still_blocked(self, now_seconds: float) -> bool:
        """Whether the request that the next window waited for is still unknown.

        It then holds back a wider window as well, so nobody else needs a look.
        """
        if self._blocked is None:
            return False
        timeline, window = self._blocked
        end_seconds = window.end_seconds
        is_in_time = now_seconds < end_seconds + self._asked.wait_seconds
        if is_in_time and not self._timeline.awaited.is_known(
            timeline, window.start_seconds, end_seconds
        ):
            return True
        self._blocked = None
        return False

    def _width_seconds(self) -> float:
        """How wide the next window is to be; a last one may be as narrow as it is."""
        width_seconds = self._deadlines.window_seconds
        newest = self.curve.end_seconds
        if self._stopped_seconds == math.inf or newest is None:
            return width_seconds
        ends = (timeline.end_seconds for timeline in self._timeline.requests.in_order())
        if newest < max(ends, default=-math.inf):
            return width_seconds
        return min(width_seconds, newest - self.settled_seconds)

    def _next_window(
        self, width_seconds: float
    ) -> tuple[Window, list[RequestTimeline]] | None:
        """The next window, wider where its end would cut badly, and who was there.

        None while it is not measured, or stragglers may still come.
        """
        start_seconds = self.settled_seconds
        window = self.curve.next_window(start_seconds, width_seconds)
        if window is None or window.end_seconds > self._timeline.seen.until_seconds:
            return None
        among = self._timeline.requests.among(start_seconds, window.end_seconds)
        began_seconds = too_late_to_cut(window.end_seconds, among)
        if began_seconds is None:
            return window, among
        wider_seconds = began_seconds + EDGE_SECONDS - start_seconds
        is_gap_ahead = wider_seconds <= width_seconds
        if is_gap_ahead or wider_seconds > self._deadlines.widest_seconds:
            return window, among
        return self._next_window(wider_seconds)

    # what closing a window takes

    def _close(self, window: Window, among: Sequence[RequestTimeline]) -> None:
        """Divide the window among those who ran in it, post it to the ledger."""
        start, end = window.start_seconds, window.end_seconds
        measured = float(window.joules[-1])
        joules = float(window.joules[-1] - window.joules[0])
        steps, starts = self._timeline.settle_until(end, among)
        ran, let_in, is_placed = _present(end, among)
        if window.gap_reason is not None:
            self._with_gap.update(timeline.key for timeline in ran)
            closing = Closing(
                end,
                measured,
                unattributed_joules={window.gap_reason: joules},
                gap_seconds=end - start,
            )
        else:
            unseen = self._timeline.count.unseen(start, end)
            policies = self.config.policies
            everybody = [*ran, *unseen.by_work, *unseen.by_time]
            population = population_of(
                everybody, let_in, _earliest_of(start, steps, starts)
            )
            division = divide(
                window,
                population,
                steps,
                starts,
                idle_watts=self.idle.watts,
                policies=[self.bound(policy) for policy in policies.values()],
                idle_policy=self.idle_policy,
                headline=self._headline,
                by_work=len(unseen.by_work),
                by_time=len(unseen.by_time),
            )
            if not self._lag.is_done and len(everybody) <= MAX_REQUESTS:
                self._watch_lag(window, population, steps, starts)
            is_whole = not unseen.by_time and is_placed
            closing = self._divided(
                window,
                measured,
                ran,
                population,
                division,
                unseen.reasons,
                is_whole=is_whole,
            )
            if self._timeline.was_quiet(start - AFTERGLOW_SECONDS, end + EDGE_SECONDS):
                worked = self._timeline.worked_until(start)
                self._maybe_idle.append((start, end, joules, start - worked))
        self.ledger.close(closing)
        self.settled_seconds = end
        self._learn_costs()

    def _divided(
        self,
        window: Window,
        measured: float,
        ran: Sequence[RequestTimeline],
        population: Population,
        division: Division,
        reasons: Sequence[str],
        *,
        is_whole: bool,
    ) -> Closing:
        """What a measured window posts; `is_whole`: its work is known.

        `ran` are the first of the `population`; `reasons` are why those that get no
        record are unattributed.
        """
        keys = population.keys[: len(ran)].tolist()
        calibration = self.calibration
        calibration.shared_because = self.shared_because
        if self.shared_because is not None:
            self._on_shared.update(keys)
        seconds = window.end_seconds - window.start_seconds
        if is_whole:
            self.durations.learn(division.learnt, division.busy_seconds, seconds)
        if self.idle.watts is None:
            self._without_idle.update(keys)
        elif is_whole:  # work and joules are both known
            self._to_learn.append(
                (window, division, self._timeline.count.has_doubt(ran))
            )
        elif division.external_joules.any():
            calibration.miss(seconds, "work past the proxy was there")
        elif division.caused_joules > 0:
            calibration.miss(seconds, "it was not known who ran when")
        return Closing(
            window.end_seconds,
            measured,
            idle_joules=division.idle_joules,
            unattributed_joules={
                reason: sum(
                    joules
                    for why, joules in zip(
                        reasons, division.external_joules.tolist(), strict=True
                    )
                    if why == reason
                )
                for reason in ("unmetered", "external")
            },
            keys=keys,
            idle_share_joules=division.idle_share_joules,
            idle_by_time_joules=division.idle_by_time_joules,
            policy_joules=division.policy_joules,
            doubts=self._doubts(window, ran, population, division),
        )

    def _watch_lag(
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
            self._lag.add(span, has_counter=self.curve.has_counter)
            start = stop
        if (lateness := self._lag.lateness) is not None:
            self.curve.correct(*lateness)
            self.calibration.restart()
            if lateness.averaging_seconds:
                self.calibration.lag_seconds = lateness.mean_seconds

    def _learn_costs(self) -> None:
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

    def _doubts(
        self,
        window: Window,
        ran: Sequence[RequestTimeline],
        population: Population,
        division: Division,
    ) -> FloatArray:
        """What the window adds to the intervals of those who ran in it."""
        start, end = window.start_seconds, window.end_seconds
        active = both(division.policy_joules[self._best])
        relative, is_inferred = _relative_doubts(ran)
        prefill = division.policy_joules[self._best, :, 0]
        external = float(division.external_joules.sum())
        if external > 0:
            self._beside_others.update(timeline.key for timeline in ran)
        residual = 0.0
        moved = np.zeros(len(ran))
        if len(ran):
            fit, work = self.calibration.fit, division.work
            covariance = self.calibration.covariance(work, division.caused_joules)
            moved = moved_joules(division.own_work, active, covariance)
            predicted = {PHASE: float(work[: len(PHASE_JOULES)] @ PHASE_JOULES)}
            if fit is not None:
                predicted[FITTED] = float(fit.joules_of(work))
            found = self._errors.learn(
                predicted,
                division.caused_joules,
                seconds=end - start,
                keys=population.keys[: len(ran)],
                joules=active,
                doubts=relative,
                external_joules=external,
                constants_joules=math.sqrt(float(variance_of(work, covariance))),
                edge_seconds=self.curve.edge_seconds,
            )
            residual = found[self._cost_in_use]
        return doubts_of(
            active,
            inclusive_joules=active + division.idle_share_joules,
            unfitted_joules=both(division.policy_joules[self._unfitted]),
            inferred_joules=np.where(is_inferred, prefill, 0.0),
            constants_joules=moved,
            doubts=relative,
            residual_joules=residual,
            external_joules=external,
            seconds=end - start,
            began=np.array([(t.scheduled_seconds or start) >= start for t in ran]),
            ended=population.end_seconds[: len(ran)] <= end,
            late_square=self._timeline.lateness.square_between(start, end),
        )

    @property
    def _cost_in_use(self) -> str:
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

    def _learn_idle(self, now_seconds: float) -> None:
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

    # what a request has cost

    def _is_settled(self, timeline: RequestTimeline) -> bool:
        """Whether every window that the request ran in is closed."""
        return (
            timeline.scheduled_seconds is not None
            and timeline.end_seconds <= self.settled_seconds
        )

    def _energy(self, timeline: RequestTimeline) -> RequestEnergy:
        """Unknown where not all of the time it ran was measured, never a part of it."""
        key = timeline.key
        scheduled = timeline.scheduled_seconds
        if (
            scheduled is None
            or not self._is_settled(timeline)
            or scheduled < self.measured_from_seconds
            or key in self._with_gap
        ):
            return self.unknown_energy()
        return self._known_energy(timeline)

    def _known_energy(self, timeline: RequestTimeline) -> RequestEnergy:
        key, ledger = timeline.key, self.ledger
        joules, idle_share = ledger.entry(key)
        by_policy: list[list[float]] = joules.tolist()
        active = {
            name: prefill + decode
            for name, (prefill, decode) in zip(ledger.policies, by_policy, strict=True)
        }
        prefill, decode = by_policy[self._headline]
        is_exact = (
            timeline.is_scheduled_exact
            and timeline.is_count_exact
            and not timeline.is_forced
            and not timeline.has_preemption
            and key not in self._without_idle
            and not self._has_late_stamps(timeline)
        )
        timing = "timed" if is_exact else "estimated"
        energy = prefill + decode + idle_share
        evidence = self._evidence(timeline)
        bounds = self.bounds(
            key, energy, prefill + decode, is_watched=evidence.is_watched
        )
        reasons = grade_reasons(energy, bounds, timing, evidence)
        return RequestEnergy(
            prefill_joules=prefill,
            decode_joules=decode,
            idle_share_joules=idle_share,
            idle_share_by_time_joules=ledger.idle_by_time(key),
            energy_joules=energy,
            policy=ledger.headline,
            timing=timing,
            policy_joules=active,
            low_joules=bounds.low_joules,
            high_joules=bounds.high_joules,
            grade=grade_of(energy, bounds, reasons),
            grade_reasons=reasons,
        )

    def bounds(
        self,
        key: int,
        energy_joules: float,
        active_joules: float,
        *,
        guessed_joules: float = 0.0,
        is_watched: bool = True,
    ) -> Bounds:
        """The interval of what a request was charged; part of it may be a guess yet."""
        doubts = self.ledger.doubts(key)
        doubts[SPREAD] += GUESSED_DOUBT * guessed_joules
        doubts[CENTRE] += guessed_joules
        return bounds_of(
            energy_joules,
            active_joules,
            doubts,
            self._errors.scale(self._cost_in_use),
            edge_seconds=self.curve.edge_seconds,
            sensor_fraction=self.config.sensor_fraction(self._name),
            is_watched=is_watched,
        )

    def _has_late_stamps(self, timeline: RequestTimeline) -> bool:
        """Whether its first or last token came while the loop stood still."""
        return any(
            at_seconds is not None and self._timeline.lateness.may_be_late(at_seconds)
            for at_seconds in (
                timeline.first_token_seconds, timeline.last_token_seconds,
            )
        )  # fmt: skip

    def _evidence(self, timeline: RequestTimeline) -> Evidence:
        """What is known about a request's surroundings."""
        is_watched = self._timeline.gauges.is_alive(timeline.end_seconds)
        return Evidence(
            is_cache_told=self._timeline.count.knows_cache_of(timeline),
            is_cache_inferred=timeline.inferred_cached_tokens is not None,
            is_seen=_relative_doubts((timeline,))[0][0] <= 1.0,
            is_watched=is_watched,
            is_alone=is_watched and timeline.key not in self._beside_others,
            has_counter=self.curve.has_counter,
            distrust="shared" if timeline.key in self._on_shared else self._distrust,
        )


def _earliest_of(start_seconds: float, steps: Steps, starts: FloatArray) -> float:
    """Where the first step of a window began, if before it, else the window."""
    first = int(steps.end_seconds.searchsorted(start_seconds, side="right"))
    return min(start_seconds, float(starts[first:].min(initial=math.inf)))


def _present(
    end_seconds: float, among: Sequence[RequestTimeline]
) -> tuple[list[RequestTimeline], frozenset[int], bool]:
    """Those who ran in a window, those of them without a place, if all have one.

    An unstreamed reply that has no place yet may have run all the time since it
    arrived. Where everybody still waits, the first does: nobody else can have used
    the energy.
    """
    ran: list[RequestTimeline] = []
    let_in: list[int] = []
    waiting = 0
    for timeline in among:
        scheduled = timeline.scheduled_seconds
        if scheduled is None:
            waiting += 1
            if timeline.is_streamed:
                continue
            let_in.append(timeline.key)
        elif scheduled >= end_seconds:
            continue
        ran.append(timeline)
    if among and waiting == len(among) and not let_in:
        ran, let_in = [among[0]], [among[0].key]
    return ran, frozenset(let_in), not waiting


def _relative_doubts(
    requests: Sequence[RequestTimeline],
) -> tuple[FloatArray, BoolArray]:
    """How much more the joules of each may be wrong than those of one that was seen.

    And whether the cached part of its prompt was inferred. Shapes (requests,).
    """
    relative: list[float] = []
    is_inferred: list[bool] = []
    for timeline in requests:  # in one loop, as there are many of them
        doubt = 1.0
        if not timeline.is_streamed:
            doubt = WHOLE_REPLY_DOUBT
        elif (
            timeline.is_forced
            or timeline.has_preemption
            or timeline.prompt_tokens is None
            or timeline.output_tokens is None
        ):
            doubt = GUESSED_DOUBT
        relative.append(doubt)
        is_inferred.append(timeline.inferred_cached_tokens is not None)
    return np.array(relative, np.float64), np.array(is_inferred, np.bool_)


def _labels_of(key: tuple[str, ...]) -> Labels:
    model, kind, tenant = key
    return Labels(model, kind, tenant)


EDGE_SECONDS = 0.05
"""A 20 ms poll is off by 10 ms, reading a remote sensor may take some more."""


def too_late_to_cut(
    end_seconds: float, timelines: Sequence[RequestTimeline]
) -> float | None:
    """When the engine went to work so shortly before an end that it has to move.

    None where the end is a good one. `timelines` are those that ran before it.
    """
    since_seconds = end_seconds - EDGE_SECONDS
    late = [
        (timeline.arrived_seconds, timeline.end_seconds)
        for timeline in timelines
        if since_seconds < timeline.arrived_seconds < end_seconds
        and not timeline.is_refused
    ]
    if not late:
        return None
    busy_until_seconds = -math.inf
    for timeline in timelines:
        if timeline.arrived_seconds <= since_seconds and not timeline.is_refused:
            busy_until_seconds = max(busy_until_seconds, timeline.end_seconds)
            if busy_until_seconds == math.inf:
                return None
    for began, ended in sorted(late):
        if began > busy_until_seconds:
            return began
        busy_until_seconds = max(busy_until_seconds, ended)
    return None
