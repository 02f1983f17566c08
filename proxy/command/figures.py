"""What a command's joules were, and how sure that is: pure, from device curves.

A counter is known at its edges only, so the energy between two instants lies
between what was counted strictly inside and what was counted around them. The
figure is read off the curve; those two bounds are its error, not an estimate of
one. Where time was not measured the energy is unknown, with a lower bound.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from proxy.energy.device import COUNTER_RESET, GAP_REASONS, SENSOR_GAP, DeviceCurve

TOO_SHORT = "too_short"
NOT_READ_BEFORE = "not_read_before"
NOT_READ_AFTER = "not_read_after"
NO_DEVICE = "no_device"

WORDS = {
    TOO_SHORT: "the command is too short for this sensor",
    NOT_READ_BEFORE: "the sensor had not changed yet when the command began",
    NOT_READ_AFTER: "the sensor did not change any more after the command",
    SENSOR_GAP: "the sensor could not be read for a while",
    COUNTER_RESET: "the counter started anew, its driver was reloaded",
    NO_DEVICE: "the sensor never answered",
}
"""Why joules are unknown, as the report says it."""


@dataclass(frozen=True, slots=True)
class Bracket:
    """Cumulative joules at one instant: what is read off, and what it can be."""

    least_joules: float | None
    joules: float | None
    most_joules: float | None


@dataclass(frozen=True, slots=True)
class Opening:
    """What is known of a device at a command's start; later its curve gets coarser."""

    bracket: Bracket
    baseline_watts: float | None


@dataclass(frozen=True, slots=True)
class Energy:
    """Of one device, or of all devices of a source, over a command."""

    device: str
    joules: float | None
    """None where it cannot be told; `unknown_because` says why."""
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


def bracket(curve: DeviceCurve, at_seconds: float, slack_seconds: float) -> Bracket:
    """Joules at an instant, between points that surely lie before and after it.

    `slack_seconds` is how far a point's time may be off.
    """
    seconds, joules = np.array(curve.seconds), np.array(curve.joules)
    before = int(np.searchsorted(seconds, at_seconds - slack_seconds, "right")) - 1
    after = int(np.searchsorted(seconds, at_seconds + slack_seconds, "left"))
    is_inside = len(seconds) > 0 and seconds[0] <= at_seconds <= seconds[-1]
    return Bracket(
        float(joules[before]) if before >= 0 else None,
        float(np.interp(at_seconds, seconds, joules)) if is_inside else None,
        float(joules[after]) if after < len(joules) else None,
    )


def opening(
    curve: DeviceCurve, start_seconds: float, slack_seconds: float, *, baseline: bool
) -> Opening:
    """The bracket at the start and, if wanted, the mean power before it."""
    watts = _watts_before(curve, start_seconds - slack_seconds) if baseline else None
    return Opening(bracket(curve, start_seconds, slack_seconds), watts)


def _watts_before(curve: DeviceCurve, until_seconds: float) -> float | None:
    """Mean from the first point, or the last gap, to the last point by an instant."""
    count = int(np.searchsorted(np.array(curve.seconds), until_seconds, "right"))
    gaps = np.flatnonzero(np.array(curve.reasons)[:count])
    first = int(gaps[-1]) if len(gaps) else 0
    if count - first < 2:
        return None
    joules = curve.joules[count - 1] - curve.joules[first]
    return joules / (curve.seconds[count - 1] - curve.seconds[first])


def device_energy(
    device: str,
    curve: DeviceCurve,
    opened: Opening,
    span_seconds: tuple[float, float],
    *,
    slack_seconds: float,
    peak_watts: float | None,
    has_counter: bool,
    is_lost: bool,
) -> Energy:
    """One device from the start to the end of a command.

    `is_lost`: it could not be read any more in the end.
    """
    start, end = span_seconds
    closed = bracket(curve, end, slack_seconds)
    least, most = _bounds(opened.bracket, closed)
    unmeasured, gaps = _unmeasured(curve, start, end)
    if is_lost and closed.most_joules is None:
        last = max(start, curve.seconds[-1]) if len(curve.seconds) else start
        gaps[SENSOR_GAP] = gaps.get(SENSOR_GAP, 0.0) + max(0.0, end - last)
    because = _unknown_because(
        curve, opened.bracket, closed, unmeasured, gaps,
        _points_inside(curve, start + slack_seconds, end - slack_seconds),
    )  # fmt: skip
    joules = None
    if because is None and None not in (closed.joules, opened.bracket.joules):
        joules = (closed.joules or 0.0) - (opened.bracket.joules or 0.0)
    above = None
    if joules is not None and opened.baseline_watts is not None:
        above = joules - opened.baseline_watts * (end - start)
    return Energy(
        device=device,
        joules=joules,
        at_least_joules=least,
        at_most_joules=None if unmeasured > 0 else most,
        mean_watts=None if joules is None else joules / (end - start),
        peak_watts=peak_watts,
        baseline_watts=opened.baseline_watts,
        above_baseline_joules=above,
        unmeasured_seconds=end - start if because == TOO_SHORT else unmeasured,
        gap_seconds=gaps,
        unknown_because=because,
        has_counter=has_counter,
        period_seconds=curve.period_seconds,
        counter_power_ratio=curve.counter_power_ratio,
    )


def _bounds(opened: Bracket, closed: Bracket) -> tuple[float, float | None]:
    least = 0.0
    if opened.most_joules is not None and closed.least_joules is not None:
        least = max(0.0, closed.least_joules - opened.most_joules)
    if opened.least_joules is None or closed.most_joules is None:
        return least, None
    return least, closed.most_joules - opened.least_joules


def _points_inside(curve: DeviceCurve, start: float, end: float) -> int:
    seconds = np.array(curve.seconds)
    return int(((seconds >= start) & (seconds <= end)).sum())


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
    after = min(max(0.0, end - float(seconds[-1])), end - start)
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


def _unknown_because(
    curve: DeviceCurve,
    opened: Bracket,
    closed: Bracket,
    unmeasured: float,
    gaps: dict[str, float],
    points_inside: int,
) -> str | None:
    if unmeasured > 0 and gaps:
        return max(gaps, key=lambda reason: (GAP_REASONS.index(reason), reason))
    if not len(curve.seconds):
        return TOO_SHORT
    if opened.least_joules is None or opened.joules is None:
        return NOT_READ_BEFORE
    if closed.most_joules is None or closed.joules is None:
        return NOT_READ_AFTER
    if points_inside < 2:
        return TOO_SHORT
    return None


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
