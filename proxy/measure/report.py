"""A metered command as data: what the text, the JSON and the textfile are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from proxy.measure.figures import WORDS, Energy


@dataclass(frozen=True, slots=True)
class Runtime:
    """What a figure made from running time alone would have said."""

    watts: float
    """Rated power of all devices of the source."""
    origin: str
    """`--tdp`, or `power limit` as the driver states it."""
    joules: float
    error_percent: float | None
    """Too much (above 0) or too little; None where the energy is unknown."""


@dataclass(frozen=True, slots=True)
class SourceReport:
    """One sensor family over the command."""

    source: str
    boundary: str
    is_simulated: bool
    devices: tuple[Energy, ...]
    total: Energy
    runtime: Runtime | None
    samples: int
    missed: int
    errors: int
    failure: str | None
    """The first one, in the sensor's words."""


@dataclass(frozen=True, slots=True)
class CommandReport:
    """One command, from its start to its exit code."""

    command: tuple[str, ...]
    name: str
    labels: Mapping[str, str]
    started_unix_seconds: float
    duration_seconds: float
    exit_code: int
    signal: str | None
    """The one that ended it, such as `SIGTERM`."""
    sample_interval_seconds: float
    sources: tuple[SourceReport, ...]

    @property
    def is_simulated(self) -> bool:
        """Does any of its joules come from a model?"""
        return any(source.is_simulated for source in self.sources)


def runtime_times_power(
    watts: float | None, origin: str, duration_seconds: float, total: Energy
) -> Runtime | None:
    """The figure that no sensor is needed for; None without rated watts."""
    if watts is None:
        return None
    joules = watts * duration_seconds
    measured = total.joules
    error = (joules / measured - 1) * 100 if measured else None
    return Runtime(watts, origin, joules, error)


def as_json(report: CommandReport) -> dict[str, Any]:
    """Base units; what is unknown is null, with its reason beside it."""
    return {
        "command": list(report.command),
        "name": report.name,
        "labels": dict(report.labels),
        "started_unix_seconds": report.started_unix_seconds,
        "duration_seconds": report.duration_seconds,
        "exit_code": report.exit_code,
        "signal": report.signal,
        "simulated": report.is_simulated,
        "sample_interval_seconds": report.sample_interval_seconds,
        "sources": [_source(source) for source in report.sources],
    }


def _source(source: SourceReport) -> dict[str, Any]:
    runtime = source.runtime
    return {
        "source": source.source,
        "boundary": source.boundary,
        "simulated": source.is_simulated,
        **_energy(source.total),
        "runtime_times_power": None if runtime is None else {
            "watts": runtime.watts,
            "watts_from": runtime.origin,
            "joules": runtime.joules,
            "error_percent": runtime.error_percent,
        },
        "devices": {energy.device: _energy(energy) for energy in source.devices},
        "samples": source.samples,
        "samples_missed": source.missed,
        "read_errors": source.errors,
        "failure": source.failure,
    }  # fmt: skip


def _energy(energy: Energy) -> dict[str, Any]:
    return {
        "joules": energy.joules,
        "uncertainty_joules": energy.uncertainty_joules,
        "at_least_joules": energy.at_least_joules,
        "at_most_joules": energy.at_most_joules,
        "mean_watts": energy.mean_watts,
        "peak_watts": energy.peak_watts,
        "baseline_watts": energy.baseline_watts,
        "above_baseline_joules": energy.above_baseline_joules,
        "unmeasured_seconds": energy.unmeasured_seconds,
        "gap_seconds": energy.gap_seconds,
        "unknown_because": energy.unknown_because,
        "measured_by": "counter" if energy.has_counter else "power",
        "counter_period_seconds": energy.period_seconds,
        "counter_power_ratio": energy.counter_power_ratio,
    }


def why_unknown(energy: Energy) -> str:
    """The reason in words, with the sensor's period where that is the matter."""
    words = WORDS.get(energy.unknown_because or "", "for no known reason")
    period = energy.period_seconds
    if energy.unknown_because in ("too_short", "not_read_before") and period:
        words += f", which changes every {period:.3g} s"
    return words
