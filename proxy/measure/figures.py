"""A command's joules and how sure they are: pure, from device curves.

A counter is known at its edges only, so the energy between two instants lies
between what was counted surely inside and what was counted surely around them.
The figure is read off the curve; those bounds are its error, not an estimate of
one. Where time was not measured the energy is unknown, with a lower bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from proxy.meter.curve import COUNTER_RESET, GAP_REASONS, SENSOR_GAP, DeviceCurve

TOO_SHORT = "too_short"
NOT_READ_BEFORE = "not_read_before"
NOT_READ_AFTER = "not_read_after"
NO_DEVICE = "no_device"

REASON_TEXTS = {
    TOO_SHORT: "the command is too short for this sensor",
    NOT_READ_BEFORE: "the sensor had not changed yet when the command began",
    NOT_READ_AFTER: "the sensor did not change any more after the command",
    SENSOR_GAP: "the sensor could not be read for a while",
    COUNTER_RESET: "the counter started anew, its driver was reloaded",
    NO_DEVICE: "the sensor never answered",
}
"""Why joules are unknown, for the report."""


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a device's curve."""

    seconds: float
    joules: float


@dataclass(frozen=True, slots=True)
class Bracket:
    """A device at one instant: what is read off its curve, and what bounds that."""

    before: Point | None = None
    """The last point that was seen before the instant."""
    joules: float | None = None
    """Cumulative, between the points around the instant."""
    after: Point | None = None
    """The first point that surely was reached after it."""


@dataclass(frozen=True, slots=True)
class Energy:
    """Energy of one device, or of all devices of a source, over a command."""

    device: str
    joules: float | None
    """None where it is not known; `unknown_because` has the reason."""
    at_least_joules: float
    at_most_joules: float | None
    """None where nothing bounds it."""
    mean_watts: float | None
    peak_watts: float | None
    baseline_watts: float | None
    """Mean before the command began; None where that was not measured."""
    above_baseline_joules: float | None
    """What the command added; below 0 where it drew less than before."""
    unmeasured_seconds: float
    """Time of the command whose energy no reading contains."""
    gap_seconds: dict[str, float]
    """Time without readings by reason, also where the counter counted on."""
    unknown_because: str | None
    has_counter: bool = True
    period_seconds: float | None = None
    counter_power_ratio: float | None = None

    @property
    def uncertainty_joules(self) -> float | None:
        """The figure is off by this at most; None where nothing bounds it."""
        if self.joules is None or self.at_most_joules is None:
            return None
        return max(
            self.at_most_joules - self.joules, self.joules - self.at_least_joules
        )


def last_point(curve: DeviceCurve) -> Point | None:
    """The newest one; None while there is none."""
    return Point(curve.seconds[-1], curve.joules[-1]) if len(curve.seconds) else None


def joules_at(curve: DeviceCurve, at_seconds: float) -> float | None:
    """Cumulative joules at an instant; None outside the measured span."""
    seconds = np.array(curve.seconds)
    if not len(seconds) or not seconds[0] <= at_seconds <= seconds[-1]:
        return None
    return float(np.interp(at_seconds, seconds, np.array(curve.joules)))


def bracket_at(curve: DeviceCurve, at_seconds: float) -> Bracket:
    """An instant in retrospect, between the points of a whole curve.

    An edge of a counter is off by up to half a reading interval, so the points around
    the instant are taken that much further away.
    """
    slack = curve.edge_seconds * math.sqrt(12) if curve.has_counter else 0.0
    seconds = np.array(curve.seconds)
    before = int(np.searchsorted(seconds, at_seconds - slack, side="right")) - 1
    after = int(np.searchsorted(seconds, at_seconds + slack, side="left"))
    return Bracket(
        Point(curve.seconds[before], curve.joules[before]) if before >= 0 else None,
        joules_at(curve, at_seconds),
        Point(curve.seconds[after], curve.joules[after])
        if after < len(seconds)
        else None,
    )


def mean_watts(curve: DeviceCurve) -> float | None:
    """Mean from the first point, or the last gap, on; None for fewer than two."""
    gaps = np.flatnonzero(np.array(curve.reasons))
    first = int(gaps[-1]) if len(gaps) else 0
    if len(curve.seconds) - first < 2:
        return None
    joules = curve.joules[-1] - curve.joules[first]
    return joules / (curve.seconds[-1] - curve.seconds[first])


def device_energy(
    device: str,
    curve: DeviceCurve,
    span_seconds: tuple[float, float],
    opened: Bracket,
    closed: Bracket,
    *,
    baseline_watts: float | None,
    peak_watts: float | None,
    has_counter: bool,
    is_lost: bool,
) -> Energy:
    """One device over a command; `is_lost`: not read any more in the end."""
    start, end = span_seconds
    least, most = _bounds(opened, closed)
    unmeasured, gaps = _unmeasured(curve, start, end)
    if is_lost and closed.after is None:
        gaps[SENSOR_GAP] = gaps.get(SENSOR_GAP, 0.0) + _seconds_after(curve, start, end)
    because = _unknown_because(curve, opened, closed, unmeasured, gaps)
    joules = None if because else (closed.joules or 0.0) - (opened.joules or 0.0)
    return Energy(
        device=device,
        joules=joules,
        at_least_joules=least,
        at_most_joules=None if unmeasured > 0 else most,
        mean_watts=None if joules is None else joules / (end - start),
        peak_watts=peak_watts,
        baseline_watts=baseline_watts,
        above_baseline_joules=None
        if joules is None or baseline_watts is None
        else joules - baseline_watts * (end - start),
        unmeasured_seconds=end - start if because == TOO_SHORT else unmeasured,
        gap_seconds=gaps,
        unknown_because=because,
        has_counter=has_counter,
        period_seconds=curve.period_seconds,
        counter_power_ratio=curve.counter_power_ratio,
    )


def _bounds(opened: Bracket, closed: Bracket) -> tuple[float, float | None]:
    least, most = 0.0, None
    if opened.after is not None and closed.before is not None:
        least = max(0.0, closed.before.joules - opened.after.joules)
    if opened.before is not None and closed.after is not None:
        most = closed.after.joules - opened.before.joules
    return least, most


def _unmeasured(
    curve: DeviceCurve, start: float, end: float
) -> tuple[float, dict[str, float]]:
    """Seconds that no joule covers, and seconds without readings by reason.

    A counter that could not be read for a while counted on: the rise over the
    gap is measured, only its course is not. After a reset, or where power was to
    be integrated, nothing is known, and the curve stands still there.
    """
    seconds, joules = np.array(curve.seconds), np.array(curve.joules)
    if not len(seconds):
        return end - start, {}
    before = min(max(0.0, float(seconds[0]) - start), end - start)
    after = _seconds_after(curve, start, end)
    overlap = np.minimum(seconds[1:], end) - np.maximum(seconds[:-1], start)
    overlap = np.maximum(overlap, 0.0)
    codes = np.array(curve.reasons)[1:]
    lost = overlap[(codes != 0) & (np.diff(joules) <= 0)]
    gaps = {
        reason: float(overlap[codes == 1 + index].sum())
        for index, reason in enumerate(GAP_REASONS)
        if (overlap[codes == 1 + index] > 0).any()
    }
    return float(lost.sum()) + before + after, gaps


def _seconds_after(curve: DeviceCurve, start: float, end: float) -> float:
    """Part of the command that lies behind the last point."""
    last = last_point(curve)
    return end - start if last is None else max(0.0, end - max(start, last.seconds))


def _unknown_because(
    curve: DeviceCurve,
    opened: Bracket,
    closed: Bracket,
    unmeasured: float,
    gaps: dict[str, float],
) -> str | None:
    if unmeasured > 0 and gaps:
        return max(gaps, key=GAP_REASONS.index)
    if not len(curve.seconds):
        return TOO_SHORT
    if opened.before is None or opened.joules is None:  # None is never taken for 0
        return NOT_READ_BEFORE
    if closed.after is None or closed.joules is None:
        return NOT_READ_AFTER
    if opened.after is None or closed.before is None:
        return TOO_SHORT
    # Two points inside: less would be a guess between 0 and twice the figure.
    return TOO_SHORT if closed.before.seconds <= opened.after.seconds else None


def total_energy(
    devices: Iterable[Energy], seconds: float, peak_watts: float | None
) -> Energy:
    """All devices of a source together; unknown where one of them is."""
    every = tuple(devices)
    joules = _sum(each.joules for each in every)
    because = [each.unknown_because for each in every if each.unknown_because]
    reasons = {reason for each in every for reason in each.gap_seconds}
    return Energy(
        device="all",
        joules=joules,
        at_least_joules=sum(each.at_least_joules for each in every),
        at_most_joules=_sum(each.at_most_joules for each in every),
        mean_watts=None if joules is None else joules / seconds,
        peak_watts=peak_watts,
        baseline_watts=_sum(each.baseline_watts for each in every),
        above_baseline_joules=_sum(each.above_baseline_joules for each in every),
        unmeasured_seconds=max(
            (each.unmeasured_seconds for each in every), default=seconds
        ),
        gap_seconds={
            reason: max(each.gap_seconds.get(reason, 0.0) for each in every)
            for reason in sorted(reasons)
        },
        unknown_because=because[0] if because else None if every else NO_DEVICE,
        has_counter=all(each.has_counter for each in every),
        period_seconds=max(
            (e.period_seconds for e in every if e.period_seconds is not None),
            default=None,
        ),
    )


def _sum(figures: Iterable[float | None]) -> float | None:
    """None where one is unknown, or where there is none: never 0 for nothing."""
    known = list(figures)
    if not known:
        return None
    total = 0.0
    for figure in known:
        if figure is None:
            return None
        total += figure
    return total
