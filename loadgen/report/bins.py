"""Bins of a workload in a terminal, as a page and as csv: rendering only."""

from __future__ import annotations

import msgspec
import rich.box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from loadgen.analysis.bins import Bin, BinTable
from loadgen.report import charts
from loadgen.report import format as fmt
from loadgen.report.page import Figure, templates
from proxy.process.csv_rows import csv_text

ABOUT = {
    "paper": "edges as printed in Fernandez et al. 2025, 4.1",
    "powers": "powers of two, the set-builder of Fernandez et al. 2025, 4.1",
    "percentile": "edges at percentiles of these lengths",
    "given": "edges as given",
}


def render(name: str, table: BinTable) -> RenderableType:
    """The joint distribution, and for a run a line per bin."""
    parts: list[RenderableType] = [
        Text(),
        Text(f"{name}: {facts(table)}"),
        _joint(table),
    ]
    if table.is_run:
        parts.append(_per_bin(table))
    return Group(*parts)


def facts(table: BinTable) -> str:
    """Numbers of requests in and beyond the bins, in a sentence."""
    text = f"{table.requests:,} requests in {len(table.bins):,} bins"
    if table.beyond:
        share = fmt.percent(table.beyond / table.requests)
        text += f", {table.beyond:,} ({share}) longer than the last edge, in none"
    if table.unknown:
        text += f", {table.unknown:,} without known lengths"
    return f"{text}; {ABOUT[table.edge_set]}"


def to_csv(table: BinTable) -> str:
    """A row per bin, headed by the names of its fields."""
    names = [field.name for field in msgspec.structs.fields(Bin)]
    return csv_text(
        names, ([getattr(row, name) for name in names] for row in table.bins)
    )


def page(name: str, table: BinTable, *, is_simulated: bool = False) -> str:
    """A page of its own: the joint distribution, and of a run joules by bin."""
    return (
        templates()
        .get_template("bins.html")
        .render(
            name=name,
            kind="bins",
            facts=facts(table),
            is_simulated=is_simulated,
            figures=heatmaps(table),
            columns=columns(table),
            rows=[cells(row, is_run=table.is_run) for row in table.bins],
        )
    )


def heatmaps(table: BinTable) -> list[Figure]:
    """Requests by length, and of a run what they took."""
    csv_text = to_csv(table)
    figures = [("requests-by-length", "Requests by length", "requests", "")]
    if table.is_run:
        figures += [
            ("energy-by-length", "Energy of a request, mean", "mean_joules", "J"),
            (
                "energy-per-token-by-length", "Energy per output token",
                "joules_per_output_token", "J",
            ),
            (
                "latency-by-length", "End-to-end latency, p50", "p50_e2el_seconds", "s",
            ),
        ]  # fmt: skip
    return [
        Figure(
            name, title, _heatmap(table, title, field, unit), {"": csv_text},
            "each bin is named by its upper ends",
        )
        for name, title, field, unit in figures
    ]  # fmt: skip


def _heatmap(table: BinTable, title: str, field: str, unit: str) -> str:
    drawn: dict[tuple[int, int], tuple[float, str]] = {}
    for row in table.bins:
        value = getattr(row, field)
        where = (
            table.input_edges.index(row.input_tokens),
            table.output_edges.index(row.output_tokens),
        )
        if value is not None:
            label = fmt.quantity(value, unit) if unit else fmt.count(value)
            drawn[where] = (value, label)
    return charts.heatmap(
        [f"{edge:,}" for edge in table.input_edges],
        [f"{edge:,}" for edge in table.output_edges],
        drawn, title=title, x="output tokens, up to", y="input tokens, up to",
    )  # fmt: skip


def _joint(table: BinTable) -> Table:
    """Requests by input (rows) and output length (columns); empty bins are dots."""
    counts = {(row.input_tokens, row.output_tokens): row.requests for row in table.bins}
    shown = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("in \\ out up to", no_wrap=True)
    for edge in table.output_edges:
        shown.add_column(f"{edge:,}", justify="right", no_wrap=True)
    for low in table.input_edges:
        numbers = (counts.get((low, high)) for high in table.output_edges)
        shown.add_row(f"{low:,}", *(f"{n:,}" if n else "·" for n in numbers))
    return shown


def _per_bin(table: BinTable) -> Table:
    shown = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(columns(table)):
        shown.add_column(name, justify="right" if place else "left")
    for row in table.bins:
        shown.add_row(*cells(row, is_run=True))
    return shown


def columns(table: BinTable) -> list[str]:
    """Heads of the table of bins."""
    named = ["in, out up to", "requests"]
    if table.is_run:
        named += ["energy, mean", "p50", "per output token", "TTFT p50", "E2E p50"]
    else:
        named += ["share", "tokens in, mean", "tokens out, mean"]
    return named


def cells(row: Bin, *, is_run: bool) -> list[str]:
    """One bin in them."""
    found = [f"{row.input_tokens:,}, {row.output_tokens:,}", fmt.count(row.requests)]
    if is_run:
        found += [
            fmt.joules(row.mean_joules),
            fmt.joules(row.p50_joules),
            fmt.joules(row.joules_per_output_token),
            fmt.seconds(row.p50_ttft_seconds),
            fmt.seconds(row.p50_e2el_seconds),
        ]
    else:
        found += [
            fmt.percent(row.fraction),
            fmt.digits(row.mean_input_tokens),
            fmt.digits(row.mean_output_tokens),
        ]
    return found
