"""Jobs metered whole as a table of their own: rendering only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from loadgen.analysis.jobs import JobRow
from loadgen.report import format as fmt
from loadgen.report.comparison import signed
from loadgen.report.sheet import Sheet

HEADS = (
    "job", "boundary", "time", "energy", "between", "mean", "above idle", "change",
    "between",
)  # fmt: skip


def sheet(rows: Sequence[JobRow]) -> Sheet:
    """A row per job and boundary."""
    return Sheet(
        title="Jobs metered whole, such as training; apart from inference",
        heads=HEADS,
        rows=tuple(_cells(row) for row in rows),
        notes=tuple(_notes(rows)),
        left=frozenset({0, 1}),
    )


def _cells(row: JobRow) -> tuple[str, ...]:
    bounds = changes = fmt.MISSING
    if row.high_joules is not None:
        bounds = f"{fmt.joules(row.low_joules)} to {fmt.joules(row.high_joules)}"
    if row.change_low is not None and row.change_high is not None:
        changes = f"{signed(row.change_low)} to {signed(row.change_high)}"
    return (
        row.job,
        row.boundary,
        fmt.seconds(row.duration_seconds),
        fmt.joules(row.joules),
        bounds,
        fmt.watts(row.mean_watts),
        fmt.joules(row.above_baseline_joules),
        fmt.MISSING if row.change is None else signed(row.change),
        changes,
    )


def _notes(rows: Sequence[JobRow]) -> Iterator[str]:
    for row in rows:
        if row.joules is None:
            why = (row.unknown_because or "for no known reason").replace("_", " ")
            least = f"{why}; at least {fmt.joules(row.low_joules)}"
            yield f"{row.job}: energy in {row.boundary} unknown: {least}"
        if row.exit_code:
            yield f"{row.job}: ended with code {row.exit_code}"
        ratio = row.runtime_times_power_over_measured
        if ratio is not None:
            yield f"{row.job}: running time x power would say {ratio:.2f} of it"
    if any(row.change is not None for row in rows):
        yield "changes are between single jobs: bounds are the sensors', not chance"
    if any(row.simulated for row in rows):
        yield "SIMULATED: at least one of the jobs is no measurement"
