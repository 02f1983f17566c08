"""The summary in a terminal: readable from 80 columns on, without colour, by anyone.

Figures are never cut: words beside them are folded. Only a failure's text is shortened,
with a mark.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.table import Table
from rich.text import Text

from loadgen.analysis.distribution import Stats
from loadgen.analysis.schema import EnergyBlock, Goodput, NaiveBlock, Summary
from loadgen.report import format as fmt
from loadgen.report import naive, text

LATENCIES = (
    ("ttft", "TTFT", "first token after the send"),
    ("tpot", "TPOT", "per further token, mean of a request"),
    ("itl", "ITL", "gap between arriving pieces"),
    ("e2el", "E2E", "last token after the send"),
)
STATUS_STYLES = {"valid": "bold green", "degraded": "bold yellow"}
WIDTH = 98
"""Columns at most: a wider line is not read across."""
_LONGEST_ERROR = 200
_FIGURE = 7
"""Columns of a figure with its unit, such as `12.3 kJ`."""


def render(summary: Summary, report_path: Path | None = None) -> RenderableType:
    """The whole table of one run."""
    parts: list[RenderableType] = [Text()]
    if summary.simulated:
        parts.append(Text(text.simulation(summary), style="bold magenta"))
    parts += _verdict(summary)
    if text.headline(summary):
        parts.append(Text(text.headline(summary), style="bold"))
    tables = [_load(summary), _latency(summary), *_energy(summary)]
    if len(summary.by_kind) > 1:
        tables.append(_kinds(summary))
    boards = [*text.board_rows(summary.hardware), *text.warm_up_rows(summary.hardware)]
    if boards:
        tables.append(_boards(boards))
    if summary.naive is not None:
        tables.append(_naive(summary.naive))
    runs = list(text.run_rows(summary))
    if runs:
        tables.append(_runs(runs))
    for table in tables:
        parts += [Text(), table]
    parts += [Text(), Text(text.how_to_read(summary), style="dim")]
    if report_path is not None:
        parts.append(Text(f"report: {report_path}", style="bold"))
    return Constrain(Group(*parts), WIDTH)


def _verdict(summary: Summary) -> Iterator[RenderableType]:
    status = summary.verdict.status
    line = Text("verdict: ")
    line.append(status, style=STATUS_STYLES.get(status, "bold red"))
    if not summary.verdict.reasons:
        line.append("  (sent on time, no failure, books closed)", style="dim")
    yield line
    for reason in summary.verdict.reasons:
        yield Text(f"  - {reason}")


def _load(summary: Summary) -> Table:
    schedule = summary.schedule
    table = _section("Load")
    _line(table, "requests", text.outcomes_text(summary))
    _line(
        table,
        "rate",
        f"{text.rates_text(summary)} ({summary.arrival or 'arrival unknown'})",
    )
    note = text.ramp_note(summary)
    if note:
        _line(table, "", note)
    _line(
        table,
        "throughput",
        f"{fmt.rate(summary.request_throughput, 'requests/s')}, "
        f"{fmt.rate(summary.output_throughput, 'output tokens/s')}, "
        f"{fmt.rate(summary.total_token_throughput, 'tokens/s')} with prompts",
    )
    for lengths in text.length_rows(summary):
        _line(table, lengths.name, lengths.text)
        if lengths.note:
            _line(table, "", lengths.note)
    if schedule.lag_ms is not None:
        lag = schedule.lag_ms
        _line(
            table,
            "schedule lag",
            f"p50 {fmt.seconds(lag.p50 / 1000)}, p99 {fmt.seconds(lag.p99 / 1000)}, "
            f"max {fmt.seconds(lag.max / 1000)} (send minus intended start)",
        )
    processes = schedule.processes
    shown = text.late_processes(processes)
    for each in shown:
        name = f"process {each.process}" if each.worker is None else each.worker
        _line(table, name, text.process_text(each))
    if len(processes) > len(shown):
        _line(table, "", f"the latest of {len(processes)}")
    if schedule.mean_concurrency is not None:
        in_flight = f"mean {fmt.digits(schedule.mean_concurrency)}"
        _line(table, "in flight", f"{in_flight}, peak {schedule.peak_concurrency}")
    _line(table, "window", _window(summary))
    if summary.goodput is not None:
        _line(
            table,
            "goodput",
            f"{fmt.rate(summary.request_goodput, 'requests/s')}: "
            f"{fmt.percent(summary.goodput.fraction_of_attempted)} met "
            f"{_limits(summary.goodput)}",
        )
    for row in summary.errors[:3]:
        _line(
            table,
            "error",
            f"{row.count:,} × {fmt.shortened(row.error, _LONGEST_ERROR)}",
        )
    return table


def _window(summary: Summary) -> str:
    window, seconds = summary.window, fmt.duration(summary.duration)
    if not window.requests_outside:
        return seconds
    return (
        f"{seconds} of {fmt.duration(window.run_seconds)}; "
        f"{window.requests_outside:,} requests of warm-up and cool-down left out"
    )


def _limits(goodput: Goodput) -> str:
    return ", ".join(
        f"{name} ≤ {fmt.joules(limit) if name == 'energy' else fmt.seconds(limit)}"
        for name, limit in goodput.limits.items()
    )


def _latency(summary: Summary) -> Table:
    table = _figures("Latency", ("mean", "p50", "p90", "p99"))
    for name, short, meaning in LATENCIES:
        _figure_row(table, f"{short}  {meaning}", summary.measures.get(name))
    return table


def _energy(summary: Summary) -> Iterator[Table]:
    energy = summary.energy
    if energy.measured_joules is None and energy.joules_per_request is None:
        table = _section("Energy")
        _line(table, "unknown", energy.reason or "not measured")
        yield table
        return
    yield _accounts(energy)
    yield _per_request(summary)
    yield _per_token(energy)
    if energy.boundaries:
        yield _boundaries(energy)


def _accounts(energy: EnergyBlock) -> Table:
    total = energy.measured_joules
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True, show_edge=False)
    label = f"Energy ({energy.boundary}, {energy.source}, policy {energy.policy})"
    table.add_column(label, ratio=1)
    for head in ("joules", "share", "mean power"):
        table.add_column(head, justify="right", no_wrap=True)
    seconds = energy.window_seconds
    rows = [("measured", total, fmt.adding_up(total, [])[0])]
    rows += [
        (f"  {a.name}: {a.meaning}", a.joules, a.shown) for a in text.accounts(energy)
    ]
    for name, joules, shown in rows:
        share = joules / total if total and joules is not None else None
        mean = joules / seconds if seconds and joules is not None else None
        table.add_row(name, shown, fmt.percent(share), fmt.watts(mean))
    return table


def _per_request(summary: Summary) -> Table:
    table = _figures("Energy per request", ("mean", "p50", "p90", "p99"))
    energy = summary.energy
    _figure_row(
        table, "whole: prefill + decode + idle share", summary.measures["energy"]
    )
    _figure_row(
        table, "active: without the idle share", summary.measures["active_energy"]
    )
    _figure_row(
        table, "energy-delay product: whole x E2E", summary.measures.get("energy_delay")
    )
    if energy.interval is not None:
        bounds = energy.interval
        table.add_row(
            f"90 % interval, +- {fmt.percent(bounds.half_width_fraction)}: from, to",
            fmt.joules(bounds.low_joules),
            fmt.joules(bounds.high_joules),
        )
    for policy, found in energy.policy_joules_per_request.items():
        if policy != energy.policy:
            points = ((found.p50, 50), (found.p90, 90), (found.p99, 99))
            note = text.policy_note(energy, policy)
            table.add_row(
                f"active, had it been divided by '{policy}'"
                + (f": {note}" if note else ""),
                fmt.joules(found.mean),
                *[fmt.percentile(value, "J", p, found.n) for value, p in points],
            )
    return table


def _per_token(energy: EnergyBlock) -> Table:
    table = _section("Energy per token")
    _line(
        table,
        "requests",
        f"{fmt.joules(energy.joules_per_output_token)} per output token, "
        f"{fmt.joules(energy.joules_per_total_token)} with prompt tokens counted too",
    )
    _line(
        table,
        "everything",
        f"{fmt.joules(energy.measured_joules_per_output_token)} per output token, "
        "idle and unattributed joules included",
    )
    if text.speculation_text(energy):
        _line(table, "speculation", text.speculation_text(energy))
    if energy.output_tokens_per_joule is not None:
        _line(table, "per joule", text.per_joule_text(energy))
    if text.idle_text(energy):
        _line(table, "idle", text.idle_text(energy))
    if text.records_text(energy):
        _line(table, "records", text.records_text(energy))
    if energy.grade:
        _line(table, "trust", text.counted(energy.grade))
    if energy.grade_reasons:
        _line(table, "not good", text.counted(energy.grade_reasons))
    for line in text.constants_lines(energy):
        _line(table, "constants", line)
    if energy.failed_request_joules:
        _line(table, "failed requests", fmt.joules(energy.failed_request_joules))
    if energy.reason:
        _line(table, "note", energy.reason)
    return table


def _boundaries(energy: EnergyBlock) -> Table:
    """Side by side and never added: a node's joules contain its GPUs'."""
    table = _figures(
        "Boundaries (they overlap)",
        ("measured", "of the node", "power", "J/request", "active", "J/token"),
    )
    for row in text.boundary_rows(energy):
        table.add_row(
            row.name,
            fmt.joules(row.measured_joules),
            fmt.percent(row.of_node),
            fmt.watts(row.mean_watts),
            fmt.joules(row.mean_joules),
            fmt.joules(row.mean_active_joules),
            fmt.joules(row.joules_per_output_token),
        )
        if row.note:
            table.add_row(f"  {row.note}")
    return table


def _boards(rows: Sequence[text.BoardRow]) -> Table:
    table = _section("GPU state")
    for row in rows:
        _line(table, row.name, row.text)
    return table


def _runs(rows: Sequence[tuple[str, str]]) -> Table:
    table = _section("Run")
    for name, shown in rows:
        _line(table, name, shown)
    return table


def _naive(block: NaiveBlock) -> Table:
    table = _figures("Naive estimates", ("joules", "measured/naive"))
    for row in naive.rows(block):
        known = row.joules != fmt.MISSING
        table.add_row(Text(row.name if known else f"{row.name}: {row.text}"),
                      row.joules, row.ratio)  # fmt: skip
    return table


def _kinds(summary: Summary) -> Table:
    heads = ("requests", "tokens in", "out", "TTFT p50", "J mean", "J p90", "J/token")
    table = _figures("By kind", heads)
    for kind, row in summary.by_kind.items():
        table.add_row(
            kind,
            fmt.count(row.requests),
            fmt.count(row.mean_prompt_tokens),
            fmt.count(row.mean_output_tokens),
            fmt.seconds(row.p50_ttft_seconds),
            fmt.joules(row.mean_joules),
            fmt.joules(row.p90_joules),
            fmt.joules(row.joules_per_output_token),
        )
    return table


# -- pieces --------------------------------------------------------------------


def _section(title: str) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, expand=True, show_edge=False,
        show_header=bool(title),
    )  # fmt: skip
    table.add_column(title, width=16, style="dim", header_style="bold")
    table.add_column("", ratio=1)
    return table


def _line(table: Table, name: str, content: str) -> None:
    table.add_row(name, Text(content))


def _figures(title: str, heads: Sequence[str]) -> Table:
    """A wide first column of words, which are folded, then figures, which are not."""
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, expand=True, show_edge=False,
        padding=(0, 1, 0, 0),
    )  # fmt: skip
    table.add_column(title, ratio=1, overflow="fold")
    for head in heads:
        table.add_column(Text(head), justify="right", no_wrap=True, min_width=_FIGURE)
    return table


def _figure_row(table: Table, name: str, stats: Stats | None) -> None:
    if stats is None:
        table.add_row(name, *[fmt.MISSING] * 4)
        return
    table.add_row(
        name,
        fmt.quantity(stats.mean, stats.unit),
        fmt.percentile(stats.p50, stats.unit, 50, stats.n),
        fmt.percentile(stats.p90, stats.unit, 90, stats.n),
        fmt.percentile(stats.p99, stats.unit, 99, stats.n),
    )
