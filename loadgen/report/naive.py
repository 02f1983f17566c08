"""Naive estimates beside the measurement, for people: rendering only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from loadgen.analysis.schema import NaiveBlock
from loadgen.report import format as fmt
from loadgen.report.sheet import Sheet

Ratios = Mapping[str, float | None]
"""Measured over naive by the estimate's name."""

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
            ratio_text(each.measured_over_naive),
            each.formula or each.reason or "",
            each.source or "",
        )


def ratio_text(ratio: float | None) -> str:
    """How often the estimate goes into the measurement."""
    return fmt.MISSING if ratio is None else f"{fmt.digits(ratio)} x"


def known_names(settings: Iterable[Ratios]) -> list[str]:
    """Estimates that at least one of several settings has, in their usual order."""
    found = {
        name
        for ratios in settings
        for name, ratio in ratios.items()
        if ratio is not None
    }
    return [*(name for name in LABELS if name in found), *sorted(found - {*LABELS})]


def ranges(settings: Sequence[Ratios]) -> str | None:
    """Measured over naive of several settings in one sentence; None without any."""
    told = []
    for name in known_names(settings):
        values = [v for ratios in settings if (v := ratios.get(name)) is not None]
        low, high = fmt.digits(min(values)), fmt.digits(max(values))
        told.append(
            f"{LABELS.get(name, name)} {low if low == high else f'{low} to {high}'}"
        )
    return f"measured over naive estimate: {'; '.join(told)}" if told else None


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
