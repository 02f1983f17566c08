"""What a request has cost at one boundary, and how sure that is.

Rule: unknown where not all of the time it ran was measured, never a part of it. Every
window adds to a request's joules and to the doubts about them; what else befell it is
kept by its key until it has its record.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from proxy.meter.activity.request import RequestTimeline
from proxy.meter.activity.timeline import EngineTimeline
from proxy.meter.activity.work import Population
from proxy.meter.attribution.divide import Division
from proxy.meter.attribution.fit import moved_joules, variance_of
from proxy.meter.attribution.forms import CONSTANTS
from proxy.meter.attribution.interval import (
    CENTRE,
    GUESSED_DOUBT,
    SPREAD,
    WHOLE_REPLY_DOUBT,
    BoolArray,
    Bounds,
    ErrorScale,
    Evidence,
    FloatArray,
    bounds_of,
    doubts_of,
    grade_of,
    grade_reasons,
)
from proxy.meter.attribution.policies import CostModel, both
from proxy.meter.config import MeterConfig
from proxy.meter.curve import GroupCurve, Window
from proxy.meter.learnt import FITTED, PHASE, LearntSoFar
from proxy.meter.ledger import Ledger, RequestEnergy, unknown_energy

PHASE_JOULES = np.array([getattr(CostModel(), name) for name in CONSTANTS])
BEST = "calibrated"
"""The policy that knows this engine best; `phase` until its constants are trusted."""

SEEN_DOUBT = 1.0
"""Of a stream whose facts have all come: others are held against it."""


@dataclass(frozen=True, slots=True)
class _Moment:
    """What all intervals of a moment have in common."""

    scale: ErrorScale
    edge_seconds: float
    sensor_fraction: float
    has_counter: bool

    def bounds(
        self,
        energy_joules: float,
        active_joules: float,
        doubts: Sequence[float],
        *,
        is_watched: bool,
        late_part: float = 0.0,
    ) -> Bounds:
        """The interval around what one request was charged."""
        return bounds_of(
            energy_joules,
            active_joules,
            doubts,
            self.scale,
            edge_seconds=self.edge_seconds,
            sensor_fraction=self.sensor_fraction,
            is_watched=is_watched,
            late_part=late_part,
        )


class RequestEnergies:
    """The energies of requests, and the doubts about them."""

    def __init__(
        self,
        config: MeterConfig,
        name: str,
        *,
        curve: GroupCurve,
        timeline: EngineTimeline,
        ledger: Ledger,
        learnt: LearntSoFar,
    ) -> None:
        self._config, self._name = config, name
        self._curve, self._timeline = curve, timeline
        self._ledger, self._learnt = ledger, learnt
        self.with_gap: set[int] = set()
        """Requests of whose time a part was not measured."""
        self.without_idle: set[int] = set()
        """Requests in a window that was divided while idle watts were not known."""
        self.on_shared: set[int] = set()
        """Requests in a window in which the devices were not the engine's alone."""
        self.beside_others: set[int] = set()
        """Requests in a window in which somebody else was charged."""
        names = tuple(config.policies)
        self._headline = names.index(config.policy)
        self._best = names.index(BEST if BEST in names else config.policy)
        """The policy that intervals lie around."""
        self._unfitted = names.index(PHASE) if PHASE in names else self._best
        self._of_beat: _Moment | None = None
        """What the records of this beat have in common, once one is made."""

    def beat(self) -> None:
        """Windows were closed, and readings came since the last beat."""
        self._of_beat = None

    def energy(
        self,
        timeline: RequestTimeline,
        settled_seconds: float,
        measured_from_seconds: float,
    ) -> RequestEnergy:
        """Unknown where not all of the time it ran was measured, never a part of it."""
        key = timeline.key
        scheduled = timeline.scheduled_seconds
        if (
            scheduled is None
            or timeline.end_seconds > settled_seconds
            or scheduled < measured_from_seconds
            or key in self.with_gap
        ):
            return unknown_energy(self._config.policy)
        return self._known_energy(timeline)

    def forget(self, key: int) -> None:
        """A request has its record."""
        for keys in (
            self.with_gap, self.without_idle, self.beside_others, self.on_shared,
        ):  # fmt: skip
            keys.discard(key)

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
        doubts = self._ledger.doubts(key)
        doubts[SPREAD] += GUESSED_DOUBT * guessed_joules
        doubts[CENTRE] += guessed_joules
        return self._now().bounds(
            energy_joules, active_joules, doubts, is_watched=is_watched
        )

    def _beat(self) -> _Moment:
        if self._of_beat is None:
            self._of_beat = self._now()
        return self._of_beat

    def _now(self) -> _Moment:
        return _Moment(
            self._learnt.errors.scale(self._learnt.cost_in_use),
            self._curve.edge_seconds,
            self._config.sensor_fraction(self._name),
            self._curve.has_counter,
        )

    def doubts(
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
            self.beside_others.update(timeline.key for timeline in ran)
        residual = 0.0
        moved = np.zeros(len(ran))
        if len(ran):
            fit, work = self._learnt.calibration.fit, division.work
            covariance = self._learnt.calibration.covariance(
                work, division.caused_joules
            )
            moved = moved_joules(division.own_work, active, covariance)
            predicted = {PHASE: float(work[: len(PHASE_JOULES)] @ PHASE_JOULES)}
            if fit is not None:
                predicted[FITTED] = float(fit.joules_of(work))
            found = self._learnt.errors.learn(
                predicted,
                division.caused_joules,
                seconds=end - start,
                keys=population.keys[: len(ran)],
                joules=active,
                doubts=relative,
                external_joules=external,
                constants_joules=math.sqrt(float(variance_of(work, covariance))),
                edge_seconds=self._curve.edge_seconds,
            )
            residual = found[self._learnt.cost_in_use]
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

    def _known_energy(self, timeline: RequestTimeline) -> RequestEnergy:
        key, ledger = timeline.key, self._ledger
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
            and key not in self.without_idle
            and not self._has_late_stamps(timeline)
        )
        timing = "timed" if is_exact else "estimated"
        energy = prefill + decode + idle_share
        evidence = self._evidence(timeline)
        bounds = self._beat().bounds(
            energy,
            prefill + decode,
            ledger.doubts(key),
            is_watched=evidence.is_watched,
            late_part=timeline.late_part,
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

    def _has_late_stamps(self, timeline: RequestTimeline) -> bool:
        """Whether its first or last token came while the loop stood still."""
        may_be_late = self._timeline.lateness.may_be_late
        first, last = timeline.first_token_seconds, timeline.last_token_seconds
        return (first is not None and may_be_late(first)) or (
            last is not None and may_be_late(last)
        )

    def _evidence(self, timeline: RequestTimeline) -> Evidence:
        """What is known about a request's surroundings."""
        is_watched = self._timeline.gauges.is_alive(timeline.end_seconds)
        return Evidence(
            is_cache_told=self._timeline.count.knows_cache_of(timeline),
            is_cache_inferred=timeline.inferred_cached_tokens is not None,
            is_seen=_relative_doubt(timeline) <= SEEN_DOUBT,
            is_watched=is_watched,
            is_alone=is_watched and timeline.key not in self.beside_others,
            has_counter=self._beat().has_counter,
            distrust="shared"
            if timeline.key in self.on_shared
            else self._learnt.distrust,
        )


def _relative_doubts(
    requests: Sequence[RequestTimeline],
) -> tuple[FloatArray, BoolArray]:
    """How much more the joules of each may be wrong than those of one that was seen.

    And whether the cached part of its prompt was inferred. Shapes (requests,).
    """
    relative: list[float] = []
    is_inferred: list[bool] = []
    for timeline in requests:  # in one loop, as there are many of them
        relative.append(_relative_doubt(timeline))
        is_inferred.append(timeline.inferred_cached_tokens is not None)
    return np.array(relative, np.float64), np.array(is_inferred, np.bool_)


def _relative_doubt(timeline: RequestTimeline) -> float:
    if not timeline.is_streamed:
        return WHOLE_REPLY_DOUBT
    if (
        timeline.is_forced
        or timeline.has_preemption
        or timeline.prompt_tokens is None
        or timeline.output_tokens is None
    ):
        return GUESSED_DOUBT
    return SEEN_DOUBT
