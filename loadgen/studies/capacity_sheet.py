"""Fleets under a load, for people: rendering only."""

from __future__ import annotations

from loadgen.report import format as fmt
from loadgen.report.sheet import Sheet
from loadgen.studies.capacity import CapacityReport, FleetRow


def sheets(report: CapacityReport) -> list[Sheet]:
    """The fleets that were tried, and the answer below them."""
    limits = ", ".join(f"{k} ≤ {fmt.seconds(v)}" for k, v in report.limits.items())
    notes = [_answer(report)]
    if report.reach_fraction is not None:
        notes.append(
            f"joules of work are known to +- {fmt.percent(report.reach_fraction)} "
            "(95 %, by the fit); idle watts as measured"
        )
    notes += report.notes
    if report.simulated:
        notes.append("SIMULATED: played in virtual time on a model, not measured")
    return [
        Sheet(
            f"{report.trace}: {report.requests:,} requests at "
            f"{fmt.rate(report.requests_per_second, 'requests/s')}, "
            f"{fmt.percent(report.wanted_fraction)} within {limits or 'no limit'}",
            (
                "GPUs", "met", "TTFT p99", "TPOT p99", "power", "J/request", "busy",
                "played",
            ),
            tuple(_row(row) for row in report.rows),
            tuple(notes),
            left=frozenset({7}),
        )
    ]  # fmt: skip


def _row(row: FleetRow) -> tuple[str, ...]:
    return (
        f"{row.gpus:,}",
        f"{100 * row.met_fraction:.2f} %",
        fmt.seconds(row.p99_ttft_seconds),
        fmt.seconds(row.p99_tpot_seconds),
        fmt.watts(row.watts),
        fmt.joules(row.joules_per_request),
        fmt.percent(row.busy_fraction),
        f"all {row.requests:,}" if row.basis == "whole" else "a sample",
    )


def _answer(report: CapacityReport) -> str:
    found = report.answer
    if found is None:
        return (
            f"not enough: {report.gpus_max:,} GPUs do not meet it; raise --gpus-max, "
            "or the limits of --slo"
        )
    return (
        f"{found.gpus:,} GPUs ({report.engine}): {fmt.watts(found.watts)}, "
        f"{fmt.joules(found.joules_per_request)} per request, "
        f"{fmt.joules(found.joules_per_output_token)} per output token"
    )
