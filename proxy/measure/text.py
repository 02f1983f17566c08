"""A metered command in words, for a terminal of 100 columns."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Callable, Iterator

from proxy.measure.figures import Energy
from proxy.measure.report import CommandReport, SourceReport, why_unknown

COLUMNS = 100
NAME_COLUMNS = 30
WIDTHS = (12, 10, 10, 10, 10, 13)
HEADINGS = ("energy", "+-", "mean", "peak", "baseline", "above it")

REASONS = {
    "sensor_gap": "not read",
    "counter_reset": "counter started anew",
}


def describe(report: CommandReport) -> str:
    """Several lines: the command, then a table and remarks for each source."""
    words = "".join(c if c.isprintable() else " " for c in shlex.join(report.command))
    lines = [_cut(f"metering-proxy: {words}", COLUMNS)]
    end = f"exit code {report.exit_code}"
    if report.signal is not None:
        end = f"ended by {report.signal}, {end}"
    lines.append(f"  {report.duration_seconds:.3f} s, {end}")
    for source in report.sources:
        lines.append("")
        lines.extend(_source(source, report.duration_seconds))
    if report.is_simulated:
        lines += ["", "  SIMULATED: these joules come from a model, not from a device"]
    return "\n".join(lines)


def _source(source: SourceReport, duration_seconds: float) -> Iterator[str]:
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
    told = {(each.unknown_because, *each.gap_seconds) for each in source.devices}
    is_same_for_all = len(told) == 1 and len(source.devices) > 1
    for energy in (source.total,) if is_same_for_all else source.devices:
        if energy.joules is None:
            yield f"{energy.device} unknown: {why_unknown(energy)}; {_limits(energy)}"
        for reason, seconds in energy.gap_seconds.items():
            what = REASONS[reason]
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
        said = (
            f"{duration_seconds:.3f} s x {runtime.watts:,.0f} W ({runtime.origin}) "
            f"would say {joules_text(runtime.joules)}"
        )
        error = runtime.error_percent
        if error is not None:
            said += f": {abs(error):.0f} % too {'much' if error >= 0 else 'little'}"
        yield said


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


def _or_blank(figure: float | None, words: Callable[[float], str]) -> str:
    return "" if figure is None else words(figure)


def _cut(text: str, columns: int) -> str:
    """The middle goes: command lines and UUIDs differ at both ends."""
    if len(text) <= columns:
        return text
    tail = (columns - 1) // 3
    return f"{text[: columns - 1 - tail]}…{text[-tail:]}"
