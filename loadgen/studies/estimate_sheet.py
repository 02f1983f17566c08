"""An estimate from bins, for people: rendering only."""

from __future__ import annotations

from loadgen.report import format as fmt
from loadgen.report.bins import ABOUT
from loadgen.report.sheet import Sheet
from loadgen.studies.estimate import BinEstimate, EstimateReport


def sheets(report: EstimateReport) -> list[Sheet]:
    """The terms of the sum, then the sum and what a replay took."""
    where = "mean lengths" if report.lengths == "mean" else "upper ends"
    batch = "the largest that fits" if report.batch is None else f"{report.batch:,}"
    notes = [
        f"estimate: {fmt.joules(report.joules)} for {report.requests:,} requests, "
        f"{fmt.joules(report.joules_per_request)} each",
        *_validated(report),
        f"{ABOUT[report.edge_set]}; bins measured at their {where}; batch: {batch}",
        *_left_out(report),
        *report.notes,
    ]
    for each in report.bins:
        if each.reason is not None:
            size = f"{each.input_tokens:,}, {each.output_tokens:,}"
            notes.append(f"bin {size} is not known: {each.reason}")
    if report.simulated:
        notes.append("SIMULATED: the joules come from a model, not from a machine")
    return [
        Sheet(
            f"{report.trace} on {report.engine}: energy from {len(report.bins)} bins",
            ("in, out", "requests", "batch", "J/batch", "J/request", "joules", "part"),
            tuple(_row(each) for each in report.bins),
            tuple(notes),
        )
    ]


def _row(each: BinEstimate) -> tuple[str, ...]:
    per_request = None
    if each.batch_joules is not None:
        per_request = each.batch_joules / each.batch
    return (
        f"{each.input_tokens:,}, {each.output_tokens:,}",
        fmt.count(each.requests),
        fmt.count(each.batch),
        fmt.joules(each.batch_joules),
        fmt.joules(per_request),
        fmt.joules(each.joules),
        fmt.percent(each.fraction),
    )


def _validated(report: EstimateReport) -> list[str]:
    if report.measured_joules is None:
        return ["not validated: --validate replays the same requests and prints the "
                "error"]  # fmt: skip
    found = []
    if report.error_fraction is not None:
        found.append(
            f"full replay: {fmt.joules(report.measured_joules)}; the estimate is off "
            f"by {100 * report.error_fraction:+.1f} %"
        )
    if report.edge_error_fraction is not None:
        found.append(
            f"rounded up to the ends of the bins, as the paper does: "
            f"{fmt.joules(report.edge_joules)}, off by "
            f"{100 * report.edge_error_fraction:+.1f} %"
        )
    return found


def _left_out(report: EstimateReport) -> list[str]:
    found = []
    if report.beyond:
        found.append(
            f"{report.beyond:,} requests longer than the last edge are in no bin, in "
            "the replay neither"
        )
    if report.unknown:
        found.append(f"{report.unknown:,} requests have no known lengths: left out")
    return found
