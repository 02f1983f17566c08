"""Batches of one size as a sheet: rendering only."""

from __future__ import annotations

from collections.abc import Iterator

from loadgen.analysis.offline import BatchRow, OfflineReport
from loadgen.report import format as fmt
from loadgen.report.sheet import Sheet

HEADS = (
    "in", "out", "batch", "batches", "s/batch", "J/batch", "+-", "J/request", "J/token",
    "tokens/s", "power",
)  # fmt: skip


def sheet(report: OfflineReport) -> Sheet:
    """A row per length and batch size."""
    name = report.version or report.engine
    title = (
        f"{report.engine} ({name}), {report.model or 'its model'}, {report.decoding}"
    )
    return Sheet(
        title=f"{title}{' (SIMULATED)' if report.simulated else ''}",
        heads=HEADS,
        rows=tuple(_cells(row) for row in report.rows),
        notes=tuple(_notes(report)),
        left=frozenset(),
    )


def _cells(row: BatchRow) -> tuple[str, ...]:
    lengths = (fmt.count(row.input_tokens), fmt.count(row.output_tokens))
    size = fmt.MISSING if row.batch is None else fmt.count(row.batch)
    if row.is_largest:
        size += " *"
    if row.status != "measured":
        return (*lengths, size, row.status, *[""] * (len(HEADS) - 4))
    error = row.uncertainty_joules
    speed = row.output_tokens_per_second
    return (
        *lengths,
        size,
        fmt.count(row.batches),
        fmt.seconds(row.seconds_per_batch),
        fmt.joules(row.joules_per_batch),
        "" if error is None else fmt.joules(error),
        fmt.joules(row.joules_per_request),
        fmt.joules(row.joules_per_output_token),
        fmt.MISSING if speed is None else fmt.digits(speed),
        fmt.watts(row.mean_watts),
    )


def _notes(report: OfflineReport) -> Iterator[str]:
    if any(row.is_largest for row in report.rows):
        yield "* the largest that fits"
    for row in report.rows:
        name = f"{row.input_tokens} in, {row.output_tokens} out, batch {row.batch}"
        if row.next_fails is not None:
            yield f"{name}: more does not fit: {row.next_fails}"
        if row.reason is not None:
            yield f"{name}: {row.status}: {row.reason}"
        if row.energy_reason is not None:
            yield f"{name}: energy unknown: {row.energy_reason}"
    yield from report.notes
    if report.boundary is not None:
        yield f"joules inside {report.boundary}, by {report.power}; loading is in none"
    if report.simulated:
        yield "SIMULATED: no measurement"
