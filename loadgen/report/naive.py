"""Naive estimates beside the measurement, for people: rendering only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from loadgen.analysis.schema import NaiveBlock, NaiveEstimate
from loadgen.report import format as fmt
from loadgen.report.sheet import Sheet

LABELS = {
    "flops_dense_peak": "FLOPs at dense peak x TDP",
    "flops_sparse_peak": "FLOPs at sparse peak x TDP",
    "tdp_runtime": "TDP x runtime",
    "utilization_tdp": "utilization x TDP x runtime",
    "tokens_ecologits": "tokens x EcoLogits constant",
    "tokens_quoted": "tokens x quoted constant",
    "tokens_given": "tokens x given constant",
}


class Row(NamedTuple):
    """One estimate as text."""

    name: str
    joules: str
    ratio: str
    text: str
    """The formula with its constants, or why there is none."""
    source: str


def rows(block: NaiveBlock) -> Iterator[Row]:
    """A row per estimate."""
    for each in block.estimates:
        yield Row(
            LABELS.get(each.name, each.name),
            fmt.joules(each.joules),
            ratio_text(each),
            each.formula or each.reason or "",
            each.source or "",
        )


def ratio_text(estimate: NaiveEstimate) -> str:
    """How often the estimate goes into the measurement."""
    ratio = estimate.measured_over_naive
    return fmt.MISSING if ratio is None else f"{fmt.digits(ratio)} x"


def facts(block: NaiveBlock) -> str:
    """What the estimates are held against, in a sentence."""
    if block.measured_joules is None:
        return f"measured: unknown ({block.measured_reason})"
    inside = block.boundary or "device"
    text = f"measured: {fmt.joules(block.measured_joules)} inside {inside}, idle too"
    if block.boundary not in (None, "gpu"):
        text += "; the estimates are of GPUs alone"
    return text


def sheets(name: str, block: NaiveBlock, *, is_simulated: bool) -> list[Sheet]:
    """The table, then each estimate's constants and their sources."""
    found = list(rows(block))
    board = "GPU unknown" if block.gpu is None else f"{block.gpus or '?'} x {block.gpu}"
    notes = [facts(block)]
    if is_simulated:
        notes.append("SIMULATED: the joules come from a model, not from a machine")
    for row in found:
        notes.append(f"{row.name}: {row.text}")
        if row.source:
            notes.append(f"    {row.source}")
    return [
        Sheet(
            f"{name}: naive estimates, {board}, {block.model or 'unknown model'}",
            ("estimate", "joules", "measured/naive"),
            tuple((row.name, row.joules, row.ratio) for row in found),
            tuple(notes),
        )
    ]
