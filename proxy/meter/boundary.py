"""One boundary of an engine: a sensor's curve, cut into windows, and their ledger.

Windows are closed strictly in order, once, with all their joules, and never opened
again; what is learnt from one (idle watts, constants) serves the next. Who ran when is
the engine's timeline's to say, to all boundaries the same: here joules are divided
over it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from proxy.meter.activity.request import RequestTimeline
from proxy.meter.activity.steps import FloatArray, Steps
from proxy.meter.activity.timeline import EngineTimeline
from proxy.meter.activity.work import Population, population_of
from proxy.meter.attribution.divide import Division, divide
from proxy.meter.attribution.interval import total_bounds
from proxy.meter.attribution.lag import MAX_REQUESTS
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
from proxy.meter.final_windows import EDGE_SECONDS, FinalWindows
from proxy.meter.learnt import AFTERGLOW_SECONDS, LearntSoFar
from proxy.meter.ledger import QUALITY_OF, Books, Closing, Ledger, RequestEnergy
from proxy.meter.request_energy import RequestEnergies
from proxy.meter.state import MeterState, RecordCounts
from proxy.meter.waits import Waits
from proxy.wire.events import PowerSampled
from proxy.wire.facts import Labels

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
        self._timeline = timeline
        self.curve = GroupCurve(
            join_readings=JOIN_READINGS,
            join_seconds=JOIN_SECONDS,
            leave_seconds=LEAVE_SECONDS,
        )
        self.ledger = Ledger(list(config.policies), config.policy)
        self.learnt = LearntSoFar(config, name, self.curve, timeline)
        self.waits = Waits(config, self.curve, self.learnt.lag)
        self.energies = RequestEnergies(
            config,
            name,
            curve=self.curve,
            timeline=timeline,
            ledger=self.ledger,
            learnt=self.learnt,
        )
        self._windows = FinalWindows(self.curve, timeline, self.waits)
        self.settled_seconds = -math.inf
        """End of the last closed window; -inf before the first edge."""
        self.measured_from_seconds = math.inf
        """The first edge; inf before it."""
        self.shared_because: str | None = None
        """Why the devices' joules are not the engine's alone, as last observed."""
        self._newest_seconds: float | None = None
        self._samples_total = 0
        self._gaps_total = 0
        self._open: set[int] = set()
        self._counts = RecordCounts()
        self._headline = tuple(config.policies).index(config.policy)

    # what is seen

    def sample(self, event: PowerSampled) -> None:
        """All devices read at one moment, or the reason why they were not."""
        reason = event.gap_reason
        self.waits.is_up = reason is None
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
            self.learnt.calibration.serve(labels.model)

    def classify(self, key: int, labels: Labels) -> None:
        """The labels of a request that was opened with provisional ones."""
        self.ledger.classify(key, (labels.model, labels.kind, labels.tenant))
        self.learnt.calibration.serve(labels.model)

    # settlement

    def settle(self, now_seconds: float) -> None:
        """Close every final window. The timeline has advanced to the same instant."""
        if not self.config.has_sensor:
            return
        self.waits.beat()
        if self.settled_seconds == -math.inf:
            self._begin()
        if self.settled_seconds == -math.inf:
            return
        windows, learnt = self._windows, self.learnt
        if not windows.is_still_blocked(now_seconds):
            while True:
                final = windows.next_after(self.settled_seconds, now_seconds)
                if final is None:
                    break
                self._close(*final)
                learnt.learn_idle(now_seconds)
        learnt.learn_idle(now_seconds)
        self.curve.forget(self.settled_seconds)
        learnt.beat()
        self.energies.beat()

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
        return self.waits.is_given_up(closed_seconds, now_seconds)

    def finish(self, timeline: RequestTimeline) -> RequestEnergy:
        """What a request that is done has cost; its entry is closed."""
        key = timeline.key
        energy = self.energies.energy(
            timeline, self.settled_seconds, self.measured_from_seconds
        )
        self._counts.add(energy)
        self.ledger.count_tokens(
            key,
            (
                timeline.prompt_tokens,
                timeline.cached_tokens,
                timeline.recorded_output_tokens,
            ),
        )
        self.ledger.release(key)
        self._open.discard(key)
        self.energies.forget(key)
        return energy

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
            idle_watts=self.learnt.idle.watts,
            idle_source=self.learnt.idle.source,
            rest_watts=self.learnt.idle.rest_watts,
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
            window_seconds=self.waits.deadlines().window_seconds,
            quality_requests={
                QUALITY_OF.get(timing, timing): count
                for timing, count in self._counts.timing.items()
            },
            timing_requests=dict(self._counts.timing),
            grade_requests=dict(self._counts.grade),
            doubted_requests=dict(self._counts.doubted),
            half_width_fraction=self._counts.half_width_fraction,
            unsettled_requests=len(self._open),
            late_reads_total=timeline.late_reads_total,
            counter_resets_total=curve.resets,
            devices_joined_total=curve.joined_total,
            devices_left_total=curve.left_total,
            external_requests=None
            if newest is None
            else timeline.gauges.external_at(newest),
            speculation=timeline.speculation.totals_at(),
            calibration=self.learnt.calibration.state,
        )

    # what closing a window takes

    def _begin(self) -> None:
        """Open the books where the last device of the group was first measured."""
        start, end = self.curve.start_seconds, self.curve.end_seconds
        # before every device has an edge there, what they drew until then is unknown
        if start is not None and end is not None and end >= start:
            self.settled_seconds = self.measured_from_seconds = start
            before = self.curve.joules_at(np.array([start]))
            self.ledger.begin(start, float(before[0]))

    def _close(self, window: Window, among: Sequence[RequestTimeline]) -> None:
        """Divide the window among those who ran in it, post it to the ledger."""
        start, end = window.start_seconds, window.end_seconds
        measured = float(window.joules[-1])
        joules = float(window.joules[-1] - window.joules[0])
        steps, starts = self._timeline.settle_until(end, among)
        ran, let_in, is_placed = _present(end, among)
        if window.gap_reason is not None:
            self.energies.with_gap.update(timeline.key for timeline in ran)
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
                idle_watts=self.learnt.idle.watts,
                policies=[self.learnt.bound(policy) for policy in policies.values()],
                idle_policy=self.learnt.idle_policy,
                headline=self._headline,
                by_work=len(unseen.by_work),
                by_time=len(unseen.by_time),
            )
            if not self.learnt.lag.is_done and len(everybody) <= MAX_REQUESTS:
                self.learnt.watch_lag(window, population, steps, starts)
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
                self.learnt.quiet(window, joules)
        self.ledger.close(closing)
        self.settled_seconds = end
        self.learnt.learn_costs()

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
        self.learnt.calibration.shared_because = self.shared_because
        if self.shared_because is not None:
            self.energies.on_shared.update(keys)
        if self.learnt.idle.watts is None:
            self.energies.without_idle.update(keys)
        self.learnt.divided(window, ran, division, is_whole=is_whole)
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
            doubts=self.energies.doubts(window, ran, population, division),
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


def _labels_of(key: tuple[str, ...]) -> Labels:
    model, kind, tenant = key
    return Labels(model, kind, tenant)
