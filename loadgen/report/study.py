"""The table of a study, for people, papers and programs: rendering only."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from loadgen.analysis.compare import FIGURES, Change
from loadgen.analysis.study import StudyRow, StudyTable
from loadgen.report import format as fmt
from loadgen.report import naive
from loadgen.report.comparison import signed
from loadgen.report.sheet import markdown, markdown_row
from proxy.process.csv_rows import csv_text

HEADLINE = "joules_per_request"
HEADS = (
    "J/request", "change", "95 % interval", "J/token", "TTFT", "TPOT", "E2E p99",
    "req/s",
)  # fmt: skip
AXIS_HEADS = {
    "servers": "server",
    "decoding": "decoding",
    "workloads": "workload",
    "loads": "load",
}
MAX_NAME = 22
"""Columns of an entry's name in a terminal; the files have it whole."""


def render(table: StudyTable) -> RenderableType:
    """A table for each set of rows that are compared with each other, then notes."""
    parts: list[RenderableType] = [Text(_title(table), style="bold")]
    row_axis, *others = row_axes(table)
    sections: dict[tuple[str, ...], list[StudyRow]] = {}
    for row in table.rows:
        sections.setdefault(tuple(row.names[axis] for axis in others), []).append(row)
    width = max(len(row.names[row_axis]) for row in table.rows)
    for names, rows in sections.items():
        shown = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
        shown.add_column(
            AXIS_HEADS[row_axis], no_wrap=True, min_width=min(width, MAX_NAME)
        )
        for head in HEADS:
            shown.add_column(head, justify="right", no_wrap=True)
        for row in rows:
            style = "bold" if row.is_baseline else "dim" if not row.runs else ""
            label = row.names[row_axis]
            short = label if len(label) <= MAX_NAME else f"{label[: MAX_NAME - 1]}…"
            shown.add_row(short, *_cells(row), style=style)
        parts += [Text(), *([Text(", ".join(names))] if names else []), shown]
    parts += [Text(), *(Text(line) for line in notes(table))]
    return Group(*parts)


def row_axes(table: StudyTable) -> list[str]:
    """The axes, that which is compared along first."""
    compared = [axis for axis in table.axes if axis in table.baseline]
    first = (compared or table.axes)[0]
    return [first, *(axis for axis in table.axes if axis != first)]


def notes(table: StudyTable) -> Iterator[str]:
    """Failures, verdicts, what is no difference, what was not simulated."""
    for row in table.rows:
        name = _name(table, row)
        if row.status in ("failed", "partly"):
            lines = (row.reason or "not all of its runs are finished").splitlines()
            yield f"{name} {row.status}: {lines[0]}"
        elif row.status == "missing":
            yield f"{name}: not run yet"
        if row.verdict not in (None, "valid"):
            doubts = "; ".join(row.doubts) or "see its report"
            yield f"{name} is {row.verdict}: {doubts}"
        if row.failed:
            every = row.failed + row.completed
            yield f"{name}: {row.failed} of {every} requests failed"
    told = [row for row in table.rows if _is_real(row) is False]
    if told:
        names = ", ".join(_name(table, row) for row in told)
        yield f"~ energy per request not told apart from the baseline: {names}"
    reasons: dict[str, list[str]] = {}
    for row in table.rows:
        change = _change(row)
        if change is not None and change.reason:
            reasons.setdefault(change.reason, []).append(_name(table, row))
    for reason, rows in reasons.items():
        yield f"{reason}: {', '.join(rows)}"
    rules = {row.output_length_rule for row in table.rows if row.runs}
    if len(rules) > 1:
        caps = [
            _name(table, row) for row in table.rows if row.output_length_rule == "cap"
        ]
        yield (
            "output lengths are caps here and forced elsewhere, so compare per token: "
            f"{', '.join(caps)}"
        )
    boundaries = {row.boundary for row in table.rows if row.boundary is not None}
    if len(boundaries) > 1:
        yield f"joules inside different boundaries, not compared: {sorted(boundaries)}"
    ratios = naive.ranges([row.measured_over_naive for row in table.rows if row.runs])
    if ratios is not None:
        yield ratios
    idle = [r for r in table.rows if r.idle_accelerators_joules_per_request]
    for row in idle:
        joules = fmt.joules(row.idle_accelerators_joules_per_request)
        yield (
            f"{_name(table, row)}: the host's other GPUs stood idle, {joules} for each "
            "request, which no figure above holds"
        )
    unknown: dict[str, list[str]] = {}
    for row in table.rows:
        for what in row.not_simulated:
            unknown.setdefault(what, []).append(_name(table, row))
    for what, rows in unknown.items():
        yield f"not simulated, shows no effect: {what} ({', '.join(rows)})"
    if table.simulated:
        yield (
            "SIMULATED: no measurement; frameworks differ by assumed step overheads "
            "and batch limits"
        )


def to_markdown(table: StudyTable) -> str:
    """All rows in one table, for a pull request or a README."""
    axes = row_axes(table)
    lines = [f"**{_title(table)}**", ""]
    lines.append(markdown_row([*(AXIS_HEADS[axis] for axis in axes), *HEADS]))
    lines.append("|---" * len(axes) + "|---:" * len(HEADS) + "|")
    for row in table.rows:
        lines.append(markdown_row([*(row.names[axis] for axis in axes), *_cells(row)]))
    lines.append("")
    lines += [f"- {markdown(line)}" for line in notes(table)]
    return "\n".join(lines) + "\n"


def to_csv(table: StudyTable) -> str:
    """A row per configuration: base units, changes as fractions."""
    plain = (
        "status", "is_baseline", "verdict", "simulated", "boundary", "completed",
        "failed", "request_throughput", "output_throughput", "mean_watts",
        "measured_joules_per_request", "idle_accelerators_joules_per_request",
    )  # fmt: skip
    ends = ("", "_low", "_high", "_change", "_change_low", "_change_high", "_is_real")
    axes = list(AXIS_HEADS)
    estimates = naive.known_names(row.measured_over_naive for row in table.rows)
    heads = [
        *axes,
        *plain,
        *(f"measured_over_naive_{name}" for name in estimates),
        *(f"{figure}{end}" for figure in FIGURES for end in ends),
    ]
    rows = []
    for row in table.rows:
        cells: list[object] = [row.names.get(axis) for axis in axes]
        cells += [getattr(row, name) for name in plain]
        cells += [row.measured_over_naive.get(name) for name in estimates]
        changes = {change.figure: change for change in row.changes}
        for name in FIGURES:
            value, change = row.figures.get(name), changes.get(name)
            cells += (
                [None] * 3 if value is None else [value.value, value.low, value.high]
            )
            cells += (
                [None] * 4
                if change is None
                else [
                    change.change, change.change_low, change.change_high,
                    change.is_real,
                ]
            )  # fmt: skip
        rows.append(cells)
    return csv_text(heads, rows)


def _title(table: StudyTable) -> str:
    baseline = ", ".join(table.baseline.values())
    against = f", against {baseline}" if baseline else ""
    return f"{table.study}{against}{' (SIMULATED)' if table.simulated else ''}"


def _cells(row: StudyRow) -> list[str]:
    if not row.runs:
        return [row.status, *[""] * (len(HEADS) - 1)]
    headline = _change(row)
    if row.is_baseline:
        change, interval = "baseline", ""
    elif headline is None or headline.change is None:
        change, interval = fmt.MISSING, ""
    else:
        mark = fmt.ROUGH if headline.is_real is False else ""
        change, interval = f"{mark}{signed(headline.change)}", _ends(headline)

    def figure(name: str) -> str:
        found = row.figures.get(name)
        value = None if found is None else found.value
        return fmt.quantity(value, FIGURES[name].unit)

    rate = row.request_throughput
    return [
        figure(HEADLINE),
        change,
        interval,
        figure("joules_per_output_token"),
        figure("p50_ttft_seconds"),
        figure("p50_tpot_seconds"),
        figure("p99_e2el_seconds"),
        fmt.MISSING if rate is None else fmt.digits(rate),
    ]


def _ends(change: Change) -> str:
    """The interval of a change, in percent once."""
    if change.change_low is None or change.change_high is None:
        return fmt.MISSING
    low, high = 100 * change.change_low, 100 * change.change_high
    return f"{low:+.1f} to {high:+.1f} %"


def _change(row: StudyRow) -> Change | None:
    return next((c for c in row.changes if c.figure == HEADLINE), None)


def _is_real(row: StudyRow) -> bool | None:
    change = _change(row)
    return None if change is None else change.is_real


def _name(table: StudyTable, row: StudyRow) -> str:
    return "+".join(row.names[axis] for axis in table.axes)
