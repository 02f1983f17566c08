"""Runs against a baseline, for people and for papers: rendering only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from loadgen.analysis.compare import FIGURES, Change, Comparison
from loadgen.report import format as fmt
from loadgen.report.sheet import markdown, markdown_row
from proxy.process.csv_rows import csv_text

LEVEL = "95 %"
HEADS = ("", "baseline", "run", "change", f"{LEVEL} interval", "")


def render(comparisons: Sequence[Comparison]) -> RenderableType:
    """A table per run: figures, changes with their intervals, what else differs."""
    parts: list[RenderableType] = []
    for comparison in comparisons:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for place, head in enumerate(HEADS):
            table.add_column(head, justify="right" if 0 < place < 5 else "left")
        for row in rows(comparison):
            *cells, verdict = row
            style = "bold" if verdict == "real" else "dim" if verdict else ""
            table.add_row(*cells, Text(verdict, style=style))
        parts += [Text(), Text(title(comparison), style="bold"), table, Text()]
        parts += [Text(line) for line in notes(comparison)]
    return Group(*parts)


def title(comparison: Comparison) -> str:
    """Who is compared with whom, and how."""
    how = "the same sessions, one by one" if comparison.is_paired else "sessions apart"
    return f"{comparison.run} against {comparison.baseline} ({how})"


def rows(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    """Label, baseline, run, change, interval, and whether it is real."""
    for change in comparison.changes:
        interval = fmt.MISSING
        if change.change_low is not None and change.change_high is not None:
            interval = f"{signed(change.change_low)} to {signed(change.change_high)}"
        yield (
            FIGURES[change.figure].label,
            _figure(change.baseline, change.unit),
            _figure(change.value, change.unit),
            fmt.MISSING if change.change is None else signed(change.change),
            interval,
            _verdict(change),
        )


def notes(comparison: Comparison) -> Iterator[str]:
    """What a reader must know before a figure is quoted."""
    for who, status in zip(
        (comparison.baseline, comparison.run), comparison.verdicts, strict=True
    ):
        if status != "valid":
            yield f"{who} is {status}: see its report for the reasons"
    reasons: dict[str, list[str]] = {}
    for change in comparison.changes:
        if change.reason:
            reasons.setdefault(change.reason, []).append(FIGURES[change.figure].label)
    for reason, labels in reasons.items():
        yield f"{reason}: {', '.join(labels)}"
    for found in comparison.differences:
        yield f"differs: {found.name}: {found.baseline} -> {found.value}"
    if comparison.simulated:
        yield "SIMULATED: at least one of the runs is no measurement"


def to_csv(comparisons: Sequence[Comparison]) -> str:
    """A row per run and figure; changes and their ends are fractions."""
    return csv_text(*columns(comparisons))


def columns(
    comparisons: Sequence[Comparison],
) -> tuple[list[str], list[list[object]]]:
    """Names and rows of the table that csv and parquet hold."""
    fields = [field.name for field in msgspec.structs.fields(Change)]
    names = ["baseline_run", "run", "is_paired", "simulated", *fields]
    lines = [
        [c.baseline, c.run, c.is_paired, c.simulated]
        + [getattr(change, field) for field in fields]
        for c in comparisons
        for change in c.changes
    ]
    return names, lines


def to_markdown(comparisons: Sequence[Comparison]) -> str:
    """Tables for a pull request or a README."""
    parts = []
    for comparison in comparisons:
        parts += [f"**{markdown(title(comparison))}**", "", markdown_row(HEADS)]
        parts.append("|---|" + "---:|" * (len(HEADS) - 2) + "---|")
        parts += [*(markdown_row(cells) for cells in rows(comparison)), ""]
        parts += [f"- {markdown(line)}" for line in notes(comparison)]
        parts.append("\n")
    return "\n".join(parts).rstrip() + "\n"


def to_latex(comparisons: Sequence[Comparison]) -> str:
    """`tabular` environments with booktabs rules, for a paper."""
    parts = []
    for comparison in comparisons:
        parts += [f"% {title(comparison)}", r"\begin{tabular}{lrrrrl}", r"\toprule"]
        parts += [_latex_row(HEADS), r"\midrule"]
        parts += [_latex_row(row) for row in rows(comparison)]
        parts += [r"\bottomrule", r"\end{tabular}"]
        parts += [f"% {note}" for note in notes(comparison)]
    return "\n".join(parts) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}", "%": r"\%", "&": r"\&", "$": r"\$", "#": r"\#",
    "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "µ": r"\textmu{}", fmt.MISSING: "--",
}  # fmt: skip


def _latex_row(cells: Sequence[str]) -> str:
    written = ("".join(_LATEX.get(sign, sign) for sign in cell) for cell in cells)
    return " & ".join(written) + r" \\"


def _verdict(change: Change) -> str:
    if change.is_real is None:
        return ""
    return "real" if change.is_real else "not told apart"


def _figure(value: float | None, unit: str) -> str:
    if unit:
        return fmt.quantity(value, unit)
    return fmt.MISSING if value is None else fmt.digits(value)


def signed(fraction: float) -> str:
    """A change in percent, such as `-73.0 %`."""
    return f"{100 * fraction:+.1f} %"
