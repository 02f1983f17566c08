"""A metered command as data, as JSON, and as text for a terminal of 100 columns."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from proxy.measure.figures import REASON_TEXTS, Energy

COLUMNS = 100
NAME_COLUMNS = 30
WIDTHS = (12, 10, 10, 10, 10, 13)
MAX_PHASE_LINES = 40
HEADINGS = ("energy", "+-", "mean", "peak", "baseline", "above it")

GAP_TEXTS = {
    "sensor_gap": "not read",
    "counter_reset": "counter started anew",
}


@dataclass(frozen=True, slots=True)
class Runtime:
    """The figure that running time alone would give, and its error."""

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
    """The sensor's first error."""


@dataclass(frozen=True, slots=True)
class PhaseReport:
    """A part of the command that it named itself."""

    name: str
    begin_seconds: float
    """From the command's start."""
    duration_seconds: float
    energies: Mapping[str, Energy]
    """All devices of each source, by the source's name."""


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
    phases: tuple[PhaseReport, ...] = ()
    phases_failure: str | None = None
    """Why phases are lacking; None where none were asked for, or all are there."""

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
        "phases": [_phase(phase) for phase in report.phases],
        "phases_failure": report.phases_failure,
    }


def _phase(phase: PhaseReport) -> dict[str, Any]:
    return {
        "name": phase.name,
        "begin_seconds": phase.begin_seconds,
        "duration_seconds": phase.duration_seconds,
        "sources": {
            name: {
                "joules": energy.joules,
                "uncertainty_joules": energy.uncertainty_joules,
                "at_least_joules": energy.at_least_joules,
                "at_most_joules": energy.at_most_joules,
                "mean_watts": energy.mean_watts,
                "above_baseline_joules": energy.above_baseline_joules,
                "unknown_because": energy.unknown_because,
            }
            for name, energy in phase.energies.items()
        },
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


def describe(report: CommandReport) -> str:
    """Several lines: the command, then a table and remarks for each source."""
    command = "".join(c if c.isprintable() else " " for c in shlex.join(report.command))
    lines = [_cut(f"metering-proxy: {command}", COLUMNS)]
    end = f"exit code {report.exit_code}"
    if report.signal is not None:
        end = f"ended by {report.signal}, {end}"
    lines.append(f"  {report.duration_seconds:.3f} s, {end}")
    for source in report.sources:
        lines.append("")
        lines.extend(_block(source, report.duration_seconds))
    lines.extend(_phase_lines(report))
    if report.is_simulated:
        lines += ["", "  SIMULATED: these joules come from a model, not from a device"]
    return "\n".join(lines)


def _phase_lines(report: CommandReport) -> Iterator[str]:
    """A row per phase and source; the first ones of many."""
    if report.phases:
        yield ""
        yield f"  {'phase':{NAME_COLUMNS}}{'seconds':>12}{'energy':>12}{'+-':>10}"
    for phase in report.phases[:MAX_PHASE_LINES]:
        name = "".join(c if c.isprintable() else " " for c in phase.name)
        for source, energy in phase.energies.items():
            label = _cut(
                f"{name} ({source})" if len(phase.energies) > 1 else name, NAME_COLUMNS
            )
            joules = "unknown" if energy.joules is None else joules_text(energy.joules)
            error = _or_blank(energy.uncertainty_joules, joules_text)
            seconds = f"{phase.duration_seconds:.3f}"
            row = f"  {label:{NAME_COLUMNS}}{seconds:>12}{joules:>12}{error:>10}"
            yield row.rstrip()
    if len(report.phases) > MAX_PHASE_LINES:
        yield f"  ... {len(report.phases)} phases, all of them in the JSON"
    if report.phases_failure is not None:
        yield _cut(f"  phases: {report.phases_failure}", COLUMNS)


def _block(source: SourceReport, duration_seconds: float) -> Iterator[str]:
    simulated = " SIMULATED" if source.is_simulated else ""
    title = f"{source.boundary} ({source.source}){simulated}"
    yield _row(title, HEADINGS if source.devices else ("",) * len(HEADINGS))
    for energy in source.devices:
        yield _row(energy.device, _cells(energy))
    if len(source.devices) > 1:
        yield _row("all", _cells(source.total))
    for remark in _remarks(source, duration_seconds):
        yield from textwrap.wrap(
            remark, COLUMNS, initial_indent="  ", subsequent_indent="    "
        )


def _row(name: str, cells: tuple[str, ...]) -> str:
    padded = "".join(
        cell.rjust(width) for cell, width in zip(cells, WIDTHS, strict=True)
    )
    return f"  {_cut(name, NAME_COLUMNS):{NAME_COLUMNS}}{padded}".rstrip()


def _cells(energy: Energy) -> tuple[str, ...]:
    return (
        "unknown" if energy.joules is None else joules_text(energy.joules),
        _or_blank(energy.uncertainty_joules, joules_text),
        _or_blank(energy.mean_watts, _watts),
        _or_blank(energy.peak_watts, _watts),
        _or_blank(energy.baseline_watts, _watts),
        _above(energy),
    )


def _above(energy: Energy) -> str:
    above, uncertainty = energy.above_baseline_joules, energy.uncertainty_joules
    if above is None:
        return ""
    is_lost = uncertainty is not None and abs(above) <= uncertainty
    return "within +-" if is_lost else joules_text(above)


def _remarks(source: SourceReport, duration_seconds: float) -> Iterator[str]:
    if not source.devices:
        yield f"energy unknown: {source.failure or 'no reading came'}"
    reasons = {(each.unknown_because, *each.gap_seconds) for each in source.devices}
    is_same_for_all = len(reasons) == 1 and len(source.devices) > 1
    for energy in (source.total,) if is_same_for_all else source.devices:
        if energy.joules is None:
            yield f"{energy.device} unknown: {_why_unknown(energy)}; {_limits(energy)}"
        for reason, seconds in energy.gap_seconds.items():
            what = GAP_TEXTS[reason]
            counted = (
                "; its counter counted on" if energy.joules is not None
                else f"; {energy.unmeasured_seconds:.3g} s are in no figure"
            )  # fmt: skip
            yield f"{energy.device}: {what} for {seconds:.3g} s{counted}"
    if source.devices and source.failure is not None:
        yield f"the sensor failed {source.errors} times, first: {source.failure}"
    if source.devices and not source.total.has_counter:
        yield (
            "no energy counter: integrated from power readings, whose own averaging "
            "is not in +-"
        )
    runtime = source.runtime
    if runtime is not None:
        text = (
            f"{duration_seconds:.3f} s x {runtime.watts:,.0f} W ({runtime.origin}) "
            f"would say {joules_text(runtime.joules)}"
        )
        error = runtime.error_percent
        if error is not None:
            text += f": {abs(error):.0f} % too {'much' if error >= 0 else 'little'}"
        yield text


def _why_unknown(energy: Energy) -> str:
    """The reason, with the sensor's period where that is the matter."""
    text = REASON_TEXTS.get(energy.unknown_because or "", "for no known reason")
    period = energy.period_seconds
    if energy.unknown_because in ("too_short", "not_read_before") and period:
        text += f", which changes every {period:.3g} s"
    return text


def _limits(energy: Energy) -> str:
    least = joules_text(energy.at_least_joules)
    if energy.at_most_joules is None:
        return f"at least {least}"
    return f"between {least} and {joules_text(energy.at_most_joules)}"


def joules_text(joules: float) -> str:
    """Four digits, or whole joules up to ten megajoules."""
    size = abs(joules)
    if size >= 10_000_000:
        return f"{joules / 1_000_000:,.2f} MJ"
    if size >= 1000:
        return f"{joules:,.0f} J"
    return f"{joules:.4g} J"


def _watts(watts: float) -> str:
    return f"{watts:,.1f} W"


def _or_blank(figure: float | None, text: Callable[[float], str]) -> str:
    return "" if figure is None else text(figure)


def _cut(text: str, columns: int) -> str:
    """The middle goes: command lines and UUIDs differ at both ends."""
    if len(text) <= columns:
        return text
    tail = (columns - 1) // 3
    return f"{text[: columns - 1 - tail]}…{text[-tail:]}"
