"""`report.html`: one file that shows a run to anybody, offline, light or dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from loadgen.analysis.bins import BinTable, bin_table, edges_of
from loadgen.analysis.samples import Samples
from loadgen.analysis.schema import Summary
from loadgen.analysis.tally import RunWindow
from loadgen.report import bins, figures, naive, text
from loadgen.report import format as fmt
from loadgen.report.page import templates
from loadgen.report.sheet import Sheet
from loadgen.results.measures import MEASURES, POOLED_MEASURES, SCHEDULE_LAG
from loadgen.results.results import Result
from proxy.process.files import write_whole

HELP = {
    **{name: measure.help for name, measure in MEASURES.items()},
    **{name: pooled.help for name, pooled in POOLED_MEASURES.items()},
    "schedule_lag": SCHEDULE_LAG.help,
}
LATENCY_ROWS = (
    ("ttft", "TTFT"), ("ttft_sched", "TTFT from schedule"), ("tpot", "TPOT"),
    ("itl", "ITL"), ("e2el", "E2E"), ("e2el_sched", "E2E from schedule"),
    ("schedule_lag", "Schedule lag"), ("connect", "Connect"), ("send", "Send"),
    ("wait", "Wait for the reply's head"),
)  # fmt: skip
ENERGY_ROWS = (
    ("energy", "Whole energy"), ("active_energy", "Active energy"),
    ("energy_per_output_token", "Per output token of each request"),
    ("tokens_per_joule", "Output tokens per joule"),
    ("energy_delay", "Energy-delay product"),
)  # fmt: skip


class PolicyBar(NamedTuple):
    """Joules that one policy charges the requests of one kind."""

    policy: str
    joules: float
    of_largest: float


def write_html(
    path: Path, summary: Summary, results: Iterable[Result], more: Sequence[Sheet] = ()
) -> None:
    """Render and write, whole or not at all. Raises OSError."""
    write_whole(path, render_html(summary, results, more).encode())


def render_html(
    summary: Summary, results: Iterable[Result], more: Sequence[Sheet] = ()
) -> str:
    """The page of one run; `results` are its records, read once.

    `more` are tables that were asked for beside its own.
    """
    window = RunWindow(summary.window.start_seconds, summary.window.end_seconds)
    samples = Samples(window, summary.window.run_seconds).add_all(results)
    table = bins_of(samples)
    energy = summary.energy
    environment = templates()
    environment.filters |= {
        "joules": fmt.joules, "seconds": fmt.seconds, "watts": fmt.watts,
        "percent": fmt.percent, "count": fmt.count, "digits": fmt.digits,
    }  # fmt: skip
    return environment.get_template("template.html").render(
        s=summary,
        name=summary.trace or "run",
        kind="",
        is_simulated=summary.simulated,
        sheets=more,
        e=energy,
        fmt=fmt,
        help=HELP,
        latency_rows=LATENCY_ROWS,
        energy_rows=ENERGY_ROWS,
        simulation=text.simulation(summary) if summary.simulated else "",
        headline=text.headline(summary),
        accounts=list(text.accounts(energy)),
        measured_shown=fmt.adding_up(energy.measured_joules, [])[0],
        boundaries=list(text.boundary_rows(energy)),
        idle=text.idle_text(energy),
        records=text.records_text(energy),
        boards=list(text.board_rows(summary.hardware)),
        warm_up=list(text.warm_up_rows(summary.hardware)),
        policies=policy_bars(summary),
        policy_notes={
            policy: text.policy_note(energy, policy)
            for policy in energy.policy_joules_per_request
        },
        naive=list(naive.rows(summary.naive)) if summary.naive else [],
        naive_facts=naive.facts(summary.naive) if summary.naive else "",
        started=_started(summary),
        ramp_note=text.ramp_note(summary),
        rates=text.rates_text(summary),
        run=list(text.run_rows(summary)),
        per_joule=text.per_joule_text(energy)
        if energy.output_tokens_per_joule is not None
        else "",
        outcomes=text.outcomes_text(summary),
        lengths=list(text.length_rows(summary)),
        constants=text.constants_lines(energy),
        timeline=figures.timeline(summary, samples),
        energy_histogram=figures.energy_histogram(samples),
        energy_scatters=figures.energy_scatters(samples),
        latency_lines=figures.latency_lines(samples),
        rate_figure=figures.rates(samples),
        bin_facts=bins.facts(table) if table else "",
        bin_figures=bins.heatmaps(table)[1:3] if table else [],
        bin_columns=bins.columns(table) if table else [],
        bin_rows=[bins.cells(row, is_run=True) for row in table.bins] if table else [],
    )


def bins_of(samples: Samples) -> BinTable | None:
    """The run by length bins: the published ones where they hold every request."""
    if not len(samples.lengths):
        return None
    for name in ("paper", "percentile"):
        table = bin_table(name, edges_of(name, samples.lengths), samples.lengths)
        if not table.beyond:
            break
    return table


def policy_bars(summary: Summary) -> dict[str, list[PolicyBar]]:
    """Mean active joules per request by kind, under every policy."""
    found: dict[str, list[PolicyBar]] = {}
    for kind, row in summary.by_kind.items():
        means = {
            policy: kinds[kind] / row.requests
            for policy, kinds in summary.energy.policy_joules.items()
            if kind in kinds
        }
        largest = max([*means.values(), 1e-12])
        found[kind] = [
            PolicyBar(policy, mean, mean / largest) for policy, mean in means.items()
        ]
    if len(found) < 2:
        return {}  # of one kind alone every policy charges the same total
    return {kind: bars for kind, bars in found.items() if len(bars) > 1}


def _started(summary: Summary) -> str | None:
    unix = summary.window.started_unix_seconds
    if unix is None:
        return None
    return f"{datetime.fromtimestamp(unix, UTC):%Y-%m-%d %H:%M:%S} UTC"
