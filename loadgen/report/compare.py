"""Several runs side by side in a terminal: one column each, one row per figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from loadgen.analysis.schema import Summary
from loadgen.report import format as fmt
from loadgen.report import text
from loadgen.report.terminal import STATUS_STYLES

Row = tuple[str, Callable[[Summary], str]]


def _latency(name: str, percent: int) -> Callable[[Summary], str]:
    def figure(summary: Summary) -> str:
        stats = summary.measures.get(name)
        if stats is None:
            return fmt.MISSING
        value = {50: stats.p50, 99: stats.p99}[percent]
        return fmt.percentile(value, stats.unit, percent, stats.n)

    return figure


def _energy(percent: int) -> Callable[[Summary], str]:
    return _latency("energy", percent)


def _share(summary: Summary) -> str:
    energy = summary.energy
    if not energy.measured_joules or energy.idle_joules is None:
        return fmt.MISSING
    return fmt.percent(energy.idle_joules / energy.measured_joules)


def _mean_joules(summary: Summary) -> str:
    per_request = summary.energy.joules_per_request
    return fmt.joules(per_request.mean if per_request else None)


def _lag(summary: Summary) -> str:
    lag = summary.schedule.lag_ms
    return fmt.seconds(lag.p99 / 1000 if lag else None)


def _lengths(summary: Summary) -> str:
    rule, served = summary.output_length_rule, summary.output_lengths.served_over_asked
    if rule is None or served is None:
        return fmt.MISSING
    return f"{'caps' if rule == 'cap' else rule}, {fmt.percent(served)} served"


def _mean_output_tokens(summary: Summary) -> str:
    if not summary.completed:
        return fmt.MISSING
    return fmt.count(summary.total_output_tokens / summary.completed)


def _prompts(summary: Summary) -> str:
    served = summary.input_lengths.served_over_asked
    return fmt.MISSING if served is None else f"{fmt.percent(served)} served"


ROWS: tuple[Row, ...] = (
    ("trace", lambda s: s.trace or fmt.MISSING),
    ("asked", lambda s: fmt.rate(s.schedule.asked_per_second, "requests/s")),
    ("achieved", lambda s: fmt.rate(s.schedule.achieved_per_second, "requests/s")),
    ("schedule lag p99", _lag),
    ("answered", lambda s: fmt.count(s.completed)),
    ("failed", lambda s: fmt.count(s.failed)),
    ("prompt lengths", _prompts),
    ("output lengths", _lengths),
    ("output tokens per reply", _mean_output_tokens),
    ("output tokens/s", lambda s: fmt.count(s.output_throughput)),
    ("TTFT p50", _latency("ttft", 50)),
    ("TTFT p99", _latency("ttft", 99)),
    ("TPOT p50", _latency("tpot", 50)),
    ("E2E p50", _latency("e2el", 50)),
    ("measured energy", lambda s: fmt.joules(s.energy.measured_joules)),
    ("mean power", lambda s: fmt.watts(s.energy.mean_watts)),
    ("idle (nobody served)", _share),
    ("per request, mean", _mean_joules),
    ("per request, p50", _energy(50)),
    ("per request, p99", _energy(99)),
    ("per output token served", lambda s: fmt.joules(s.energy.joules_per_output_token)),
    (
        "per output token, all measured",
        lambda s: fmt.joules(s.energy.measured_joules_per_output_token),
    ),
    ("policy", lambda s: s.energy.policy or fmt.MISSING),
)


def render(runs: Sequence[tuple[str, Summary]]) -> RenderableType:
    """The table; `runs` are names and summaries."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("")
    for name, _ in runs:
        table.add_column(name, justify="right", overflow="fold")
    verdicts = []
    for _, summary in runs:
        status = summary.verdict.status
        verdicts.append(Text(status, style=STATUS_STYLES.get(status, "bold red")))
    table.add_row("verdict", *verdicts)
    if any(summary.simulated for _, summary in runs):
        table.add_row("", *["SIMULATED" if s.simulated else "" for _, s in runs])
    for label, figure in ROWS:
        table.add_row(label, *[figure(summary) for _, summary in runs])
    parts: list[RenderableType] = [Text(), table]
    note = text.comparison_note([summary for _, summary in runs])
    if note:
        parts.append(Text(note, style="bold"))
    kinds = {text.simulation(summary) for _, summary in runs if summary.simulated}
    parts += [Text(kind, style="bold magenta") for kind in sorted(kinds)]
    return Group(*parts)
