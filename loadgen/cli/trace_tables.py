"""Tables and lines of `loadgen traces`: rendering only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import rich.box
from rich.table import Table

from loadgen.traces.catalogue import Original
from loadgen.traces.statistics import Arrivals, Spread, TraceStatistics
from loadgen.traces.trace import TraceInfo


def lengths_table(found: TraceStatistics) -> Table:
    """Prompts, outputs and turns, a column each: it fits a narrow terminal."""
    spreads = {
        "input tokens": found.input_tokens,
        "output tokens": found.output_tokens,
        "turns": found.turns if found.turns.max > 1 else None,
        "think seconds": found.think_seconds,
    }
    shown = {name: spread for name, spread in spreads.items() if spread is not None}
    table = Table(box=rich.box.SIMPLE)
    table.add_column("")
    for name in shown:
        table.add_column(name, justify="right")
    for row in zip(*(_cells(spread) for spread in shown.values()), strict=True):
        table.add_row(row[0][0], *(number for _, number in row))
    return table


def facts(info: TraceInfo, found: TraceStatistics) -> Iterator[str]:
    """What the table has no place for, a line each."""
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in found.kinds.items())
    origin = ", SYNTHETIC" if info.synthetic else ""
    yield f"{found.requests:,} requests in {found.sessions:,} sessions ({kinds})"
    yield f"format {info.format}{origin}"
    if found.input_tokens is None:
        yield "prompts are text: their tokens are the engine's to count"
    if found.arrivals is None:
        yield "no timestamps: replay it with --rate"
    else:
        yield from _arrival_lines(found.arrivals)


def losses(info: TraceInfo) -> Iterator[str]:
    """Rows left out or kept in part, and warnings."""
    for reason, count in info.dropped.items():
        yield f"dropped {count:,}: {reason}"
    for reason, count in info.shortened.items():
        yield f"kept in part {count:,}: {reason}"
    yield from (f"note: {warning}" for warning in info.warnings)


def catalogue_table(catalogue: Mapping[str, Original]) -> Table:
    """The originals there are."""
    table = Table(box=rich.box.SIMPLE)
    for column in ("name", "what", "size", "licence"):
        table.add_column(column, justify="right" if column == "size" else "left")
    for name, original in catalogue.items():
        table.add_row(name, original.about, _size(original), original.licence)
    return table


def _size(original: Original) -> str:
    if original.size_bytes is None:
        return "not said"
    megabytes = original.size_bytes / 1e6
    return f"{megabytes:,.{2 if megabytes < 1 else 1}f} MB"


def _cells(spread: Spread) -> list[tuple[str, str]]:
    """Each statistic's name and number, in the order of the rows."""
    return [
        ("n", f"{spread.n:,}"),
        ("mean", f"{spread.mean:,.1f}"),
        *((name, _short(value)) for name, value in spread.percentiles.items()),
        ("max", _short(spread.max)),
        ("sd", f"{spread.sd:,.1f}"),
    ]


def _short(value: float) -> str:
    return f"{value:,.0f}" if round(value, 1) == int(value) else f"{value:,.1f}"


def _arrival_lines(arrivals: Arrivals) -> Iterator[str]:
    yield (
        f"{arrivals.rate_per_second:.3f} sessions/s over {arrivals.span_seconds:,.1f} s"
        f", cv of gaps {arrivals.cv:.3f}, longest gap "
        f"{arrivals.longest_gap_seconds:.1f} s, {arrivals.ties:,} ties"
    )
    shown = {
        "variance/mean of counts": arrivals.dispersion,
        "peak/mean of counts": arrivals.peak_to_mean,
    }
    for name, by_window in shown.items():
        parts = [f"{w} {v:.2f}" for w, v in by_window.items() if v is not None]
        if parts:  # too short a trace has no whole window
            yield f"{name}: {', '.join(parts)}"
    yield f"{arrivals.empty_seconds_fraction:.1%} of seconds are empty"
