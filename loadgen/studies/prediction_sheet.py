"""Fitted costs and what they predict, for people: rendering only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from loadgen.report import format as fmt
from loadgen.report.sheet import Sheet
from loadgen.studies.predict import (
    Coefficient,
    Held,
    Learnt,
    Prediction,
    PredictionReport,
)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of a report, for csv."""

    part: str
    """`coefficient`, `prediction` or `held`."""
    of: str
    figure: str
    unit: str
    value: float | None
    low: float | None = None
    high: float | None = None


def sheets(report: PredictionReport) -> list[Sheet]:
    """The costs, the prediction, and each run that was held out."""
    found = [_learnt(report.learnt)]
    if report.prediction is not None:
        found.append(_prediction(report.prediction))
    if report.held:
        found.append(_held(report.held))
    return found


def rows(report: PredictionReport) -> Iterator[Row]:
    """Every figure on a line of its own."""
    for kind, group in (
        ("energy", report.learnt.joules), ("time", report.learnt.seconds),
    ):  # fmt: skip
        for each in group:
            yield Row(
                part="coefficient", of=kind, figure=each.term, unit=each.unit,
                value=each.value, low=each.low, high=each.high,
            )  # fmt: skip
    made = report.prediction
    if made is not None:
        for figure, unit, value, low, high in (
            ("joules", "J", made.joules, made.low_joules, made.high_joules),
            ("watts", "W", made.watts, made.low_watts, made.high_watts),
            ("joules_per_request", "J", made.joules_per_request, None, None),
            ("joules_per_output_token", "J", made.joules_per_output_token, None, None),
            ("seconds", "s", made.seconds, None, None),
        ):
            yield Row(
                part="prediction", of=made.trace, figure=figure, unit=unit,
                value=value, low=low, high=high,
            )  # fmt: skip
    for held in report.held:
        for figure, unit, value in (
            ("measured_joules", "J", held.measured_joules),
            ("predicted_joules", "J", held.predicted_joules),
            ("joules_error", "fraction", held.joules_error_fraction),
            ("watts_error", "fraction", held.watts_error_fraction),
        ):
            yield Row(
                part="held", of=held.run, figure=figure, unit=unit, value=value
            )  # fmt: skip


def _learnt(learnt: Learnt) -> Sheet:
    notes = [
        f"{fmt.watts(learnt.idle_watts)} idle; {learnt.requests:,} requests in "
        f"{learnt.blocks} blocks of sessions; intervals: 95 % of blocks drawn again",
        "cross-validated error: energy "
        f"{fmt.percent(learnt.energy_error_fraction)} of a left out stretch (bias "
        f"{_signed(learnt.energy_bias_fraction)}), "
        f"{fmt.percent(learnt.energy_median_request_error_fraction)} of a request "
        f"(median); time {fmt.percent(learnt.time_error_fraction)}",
        *learnt.notes,
    ]
    if learnt.simulated:
        notes.append("SIMULATED: the joules come from a model, not from a machine")
    names = " and ".join(learnt.runs)
    return Sheet(
        f"costs fitted to {names} (inside {learnt.boundary or 'device'})",
        ("cost", "value", "95 % interval"),
        tuple(_coefficient(each) for each in (*learnt.joules, *learnt.seconds)),
        tuple(notes),
    )


def _coefficient(each: Coefficient) -> tuple[str, ...]:
    unit = each.unit.partition(" per ")[0]
    if each.value is None:
        return (each.unit, fmt.MISSING, "none of it in the runs")
    return (
        each.unit,
        fmt.quantity(each.value, unit),
        f"{fmt.quantity(each.low, unit)} to {fmt.quantity(each.high, unit)}",
    )


def _prediction(made: Prediction) -> Sheet:
    joules = f"{fmt.joules(made.low_joules)} to {fmt.joules(made.high_joules)}"
    watts = f"{fmt.watts(made.low_watts)} to {fmt.watts(made.high_watts)}"
    return Sheet(
        f"predicted for {made.trace}: {made.requests:,} requests in "
        f"{fmt.seconds(made.seconds)}",
        ("", "predicted", "95 % interval"),
        (
            ("energy", fmt.joules(made.joules), joules),
            ("mean power", fmt.watts(made.watts), watts),
            ("per request", fmt.joules(made.joules_per_request), ""),
            ("per output token", fmt.joules(made.joules_per_output_token), ""),
            ("idle part of it", fmt.joules(made.idle_joules), ""),
            ("requests in flight, mean", fmt.digits(made.mean_batch), ""),
            ("TTFT p50", fmt.seconds(made.p50_ttft_seconds), ""),
            ("TPOT p50", fmt.seconds(made.p50_tpot_seconds), ""),
        ),
        made.notes,
    )


def _held(held: Sequence[Held]) -> Sheet:
    notes = [
        f"{each.run}: the measurement is outside of the prediction's interval"
        for each in held
        if not each.is_inside
    ]
    notes += [note for each in held for note in each.notes]
    return Sheet(
        "held out: predicted from the plan alone, then measured",
        ("run", "measured", "predicted", "error", "watts", "error"),
        tuple(
            (
                each.run,
                fmt.joules(each.measured_joules),
                fmt.joules(each.predicted_joules),
                _signed(each.joules_error_fraction),
                fmt.watts(each.measured_watts),
                _signed(each.watts_error_fraction),
            )
            for each in held
        ),
        tuple(notes),
    )


def _signed(fraction: float) -> str:
    return f"{100 * fraction:+.1f} %"
