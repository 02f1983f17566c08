"""What readings and records of a GPU say, in words; pure, for `gpu_validation`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.free_checks import (
    ClassCost,
    Spread,
    counter_period_seconds,
    counter_power_ratio,
    counter_watts,
    lag_seconds,
)

FloatArray = NDArray[np.float64]

GRID_SECONDS = 0.02
BEGIN, END = "<!-- hardware: begin -->", "<!-- hardware: end -->"


@dataclass(frozen=True)
class Samples:
    """Readings of a group of GPUs, summed, at instants in Unix seconds, shape (n,)."""

    at_seconds: FloatArray
    joules: FloatArray | None
    """The counter; None where the board has none."""
    watts: FloatArray | None
    """As instantaneous as the driver gives it."""
    average_watts: FloatArray | None
    """The driver's 1 s average; None where there is no other figure."""


@dataclass(frozen=True)
class Sensor:
    """What the readings over alternating load and silence say; None: not known."""

    idle_watts: float | None
    loaded_watts: float | None
    period_seconds: float | None
    counter_by_instant: float | None
    counter_by_average: float | None
    lags_seconds: Mapping[str, float]
    """How late each figure follows the load."""


@dataclass(frozen=True)
class Division:
    """What the checks without a truth say of one policy."""

    policy: str
    alike: Sequence[Spread]
    classes: Sequence[ClassCost]
    split: Mapping[str, float]


def busy_on(
    grid_seconds: FloatArray, spans: Sequence[tuple[float, float]]
) -> FloatArray:
    """1 where any span covers the instant, else 0, shape of the grid."""
    busy = np.zeros(len(grid_seconds))
    for began, ended in spans:
        busy[(grid_seconds >= began) & (grid_seconds < ended)] = 1.0
    return busy


def sensor_of(samples: Samples, spans: Sequence[tuple[float, float]]) -> Sensor:
    """Judge the sensor by when requests ran, (scheduled, last token) each."""
    at = samples.at_seconds
    grid = np.arange(at[0] + 0.5, at[-1] - 0.5, GRID_SECONDS)
    busy = busy_on(grid, spans)
    figures: dict[str, FloatArray] = {}
    period = ratio = average_ratio = None
    if samples.joules is not None:
        period = counter_period_seconds(at, samples.joules)
        figures["counter"] = counter_watts(at, samples.joules, grid)
        if samples.watts is not None:
            ratio = counter_power_ratio(at, samples.joules, samples.watts)
        if samples.average_watts is not None:
            average_ratio = counter_power_ratio(
                at, samples.joules, samples.average_watts
            )
    if samples.watts is not None:
        figures["instant power"] = np.interp(grid, at, samples.watts)
    if samples.average_watts is not None:
        figures["average power"] = np.interp(grid, at, samples.average_watts)
    best = figures.get("counter", figures.get("instant power"))
    return Sensor(
        idle_watts=_mean_where(best, busy, 0.0),
        loaded_watts=_mean_where(best, busy, 1.0),
        period_seconds=period,
        counter_by_instant=ratio,
        counter_by_average=average_ratio,
        lags_seconds={
            name: lag_seconds(watts, busy, GRID_SECONDS)
            for name, watts in figures.items()
        },
    )


def sensor_lines(sensor: Sensor) -> list[str]:
    """A table of the sensor."""
    return [
        "| sensor | |",
        "|---|---:|",
        f"| idle, engine loaded | {_shown(sensor.idle_watts, 'W')} |",
        f"| while requests ran | {_shown(sensor.loaded_watts, 'W')} |",
        f"| counter updates every | {_shown(_milli(sensor.period_seconds), 'ms')} |",
        "| counter / integrated instant power "
        f"| {_shown(sensor.counter_by_instant, '', '.3f')} |",
        "| counter / integrated average power "
        f"| {_shown(sensor.counter_by_average, '', '.3f')} |",
        *(
            f"| {name} follows the load after | {lag * 1e3:.0f} ms |"
            for name, lag in sensor.lags_seconds.items()
        ),
    ]


def division_lines(found: Sequence[Division]) -> list[str]:
    """A table of the checks, one line per policy."""
    lines = [
        "| policy | like requests, off E/n: median, p90 | regression: charged / "
        "regressed (standard error) | split runs: apart / together |",
        "|---|---|---|---|",
    ]
    for each in found:
        alike = "; ".join(f"{one.median:.1%}, {one.p90:.1%}" for one in each.alike)
        classes = ", ".join(
            f"{one.kind} {one.bias:.2f} ({one.error_joules / one.regressed_joules:.0%})"
            for one in each.classes
        )
        split = ", ".join(f"{kind} {ratio:.2f}" for kind, ratio in each.split.items())
        lines.append(f"| {each.policy} | {alike} | {classes} | {split} |")
    return lines


def with_section(document: str, section: str) -> str:
    """The document with a new hardware section. Raises ValueError where it has none."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{section.strip()}\n{END}{after}"


def _mean_where(
    watts: FloatArray | None, busy: FloatArray, value: float
) -> float | None:
    """Mean power while the load is so, a second after any change of it."""
    if watts is None:
        return None
    margin = round(1.0 / GRID_SECONDS)
    changed = np.flatnonzero(np.diff(busy)) + 1
    settled = busy == value
    for at in changed.tolist():
        settled[max(at - 5, 0) : at + margin] = False
    return float(watts[settled].mean()) if settled.any() else None


def _milli(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def _shown(value: float | None, unit: str, spec: str = ".0f") -> str:
    return "unknown" if value is None else f"{value:{spec}} {unit}".strip()
