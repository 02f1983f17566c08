"""`report.html`: one file that shows a run to anybody, offline, light or dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import jinja2
from markupsafe import Markup

from loadgen.analysis.samples import Samples
from loadgen.analysis.schema import Summary
from loadgen.analysis.tally import RunWindow
from loadgen.report import charts, naive, text
from loadgen.report import format as fmt
from loadgen.report.sheet import Sheet
from loadgen.results.measures import MEASURES, POOLED_MEASURES, SCHEDULE_LAG
from loadgen.results.results import Result
from proxy.process.files import write_whole
from proxy.process.terminal import escaped_lines

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


def templates() -> jinja2.Environment:
    """The pages' templates; whatever is put into them is shown as text."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("loadgen", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_html(
    summary: Summary, results: Iterable[Result], more: Sequence[Sheet] = ()
) -> str:
    """The page of one run; `results` are its records, read once.

    `more` are tables that were asked for beside its own.
    """
    window = RunWindow(summary.window.start_seconds, summary.window.end_seconds)
    samples = Samples(window, summary.window.run_seconds).add_all(results)
    environment = templates()
    environment.filters |= {
        "joules": fmt.joules, "seconds": fmt.seconds, "watts": fmt.watts,
        "percent": fmt.percent, "count": fmt.count, "digits": fmt.digits,
    }  # fmt: skip
    return environment.get_template("template.html").render(
        s=summary,
        sheets=more,
        e=summary.energy,
        fmt=fmt,
        help=HELP,
        latency_rows=LATENCY_ROWS,
        energy_rows=ENERGY_ROWS,
        simulation=text.simulation(summary) if summary.simulated else "",
        accounts=list(text.accounts(summary.energy)),
        boundaries=list(text.boundary_rows(summary.energy)),
        idle=text.idle_text(summary.energy),
        records=text.records_text(summary.energy),
        boards=list(text.board_rows(summary.hardware)),
        warm_up=list(text.warm_up_rows(summary.hardware)),
        policies=policy_bars(summary),
        naive=list(naive.rows(summary.naive)) if summary.naive else [],
        naive_facts=naive.facts(summary.naive) if summary.naive else "",
        started=_started(summary),
        ramp_note=text.ramp_note(summary),
        rates=text.rates_text(summary),
        run=list(text.run_rows(summary)),
        per_joule=text.per_joule_text(summary.energy)
        if summary.energy.output_tokens_per_joule is not None
        else "",
        outcomes=text.outcomes_text(summary),
        lengths=list(text.length_rows(summary)),
        constants=text.constants_lines(summary.energy),
        charts={name: Markup(svg) for name, svg in _charts(summary, samples).items()},
        kinds=list(samples.points()),
    )


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


def _charts(summary: Summary, samples: Samples) -> dict[str, str]:
    drawn: dict[str, str] = {}
    for name, title, written in (
        ("energy", "joules of single requests", fmt.joules),
        ("ttft", "time to first token", fmt.seconds),
        ("e2el", "end-to-end latency", fmt.seconds),
    ):
        edges, counts = samples.histograms[name].bars()
        if edges:
            drawn[name] = charts.histogram(
                edges, counts, title=title, x=title, format=written
            )
    points = samples.points()
    if points:
        drawn["scatter"] = charts.scatter(
            points, title="joules and output tokens of single requests",
            x="output tokens", y="joules", format_x=fmt.count, format_y=fmt.joules,
        )  # fmt: skip
    due, done = samples.rates_per_second()
    drawn["rate"] = charts.step_lines(
        samples.time_edges_seconds, {"planned": due, "answered": done},
        title="requests over time", y="requests per second", format=fmt.digits,
    )  # fmt: skip
    power = summary.energy.power
    if power is not None:
        drawn["power"] = charts.stacked_steps(
            power.edges_seconds,
            {
                "idle": power.idle_watts,
                "idle-share": power.idle_share_watts,
                "prefill": power.prefill_watts,
                "decode": power.decode_watts,
                "unattributed": power.unattributed_watts,
            },
            title="power over time", y="watts", format=fmt.watts,
        )  # fmt: skip
    return drawn


def _started(summary: Summary) -> str | None:
    unix = summary.window.started_unix_seconds
    if unix is None:
        return None
    return f"{datetime.fromtimestamp(unix, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _shown(value: object) -> object:
    """A value as the page shows it: text from outside turns no line round."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return escaped_lines(value)
    return value
