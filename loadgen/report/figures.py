"""The figures of a run's page: what is drawn, and the numbers behind each drawing.

One colour means one thing on the whole page: accounts have theirs (the same as on the
live page), kinds have theirs, turns are shades of one, and what is of all requests is
drawn in the colour of none of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from loadgen.analysis.distribution import Distribution
from loadgen.analysis.samples import LAST_TURN, Point, Samples, lanes, turn_name
from loadgen.analysis.schema import PowerSeries, Summary
from loadgen.report import charts
from loadgen.report import format as fmt
from loadgen.report.page import Figure, table

ACCOUNTS = ("idle", "idle_share", "prefill", "decode", "unattributed")
"""From the bottom of the stack to its top."""
KIND_COLOURS = 6
PERCENTS = (*range(100), 99.5, 99.9, 100)
"""Points of a distribution's line."""


def timeline(summary: Summary, samples: Samples) -> Figure | None:
    """Power by account above the requests that ran; None without either."""
    power, spans = summary.energy.power, samples.spans.kept
    if power is None and not spans:
        return None
    bars = [
        charts.Bar(
            lane, span.sent_seconds,
            span.first_token_seconds if span.outcome == "ok" else None,
            span.finished_seconds,
        )
        for lane, span in zip(lanes(spans), spans, strict=True)
    ]  # fmt: skip
    legend = [
        (css(name), _legend_name(name, bool(spans))) for name in ACCOUNTS if power
    ]
    if power is None:
        legend += [("to-first", UNTIL["prefill"]), ("to-last", UNTIL["decode"])]
    if any(bar.middle_seconds is None for bar in bars):
        legend.append(("broken", "failed, stopped or without a token"))
    window = summary.window
    svg = charts.timeline(
        power.edges_seconds if power else [],
        {css(name): _watts(power, name) for name in ACCOUNTS} if power else {},
        bars,
        run_seconds=max(
            window.run_seconds, power.edges_seconds[-1] if power else 0.0
        ),
        window=(window.start_seconds, min(window.end_seconds, window.run_seconds)),
        title="power by account and requests", legend=legend, format=fmt.watts,
    )  # fmt: skip
    tables = {}
    if power is not None:
        tables["power"] = _power_table(power)
    if spans:
        heads = (
            "lane", "sent_seconds", "first_token_seconds", "finished_seconds", "kind",
            "turn", "outcome", "energy_joules",
        )  # fmt: skip
        rows = sorted((bar.lane, *span) for bar, span in zip(bars, spans, strict=True))
        tables["requests"] = table(heads, rows)
    note = _sampled(len(spans), samples.spans.seen, "requests")
    if power is None:
        note = "; ".join(filter(None, ["power over time is not known", note]))
    return Figure("power-and-requests", "Power and requests", svg, tables, note)


def energy_histogram(samples: Samples) -> Figure | None:
    """How many requests took how much; None where no joules are known."""
    edges, counts = samples.energy.bars()
    if not edges:
        return None
    svg = charts.histogram(
        edges, counts, title="energy of single requests", x="energy of a request",
        format=fmt.joules,
    )  # fmt: skip
    rows = zip(edges, edges[1:], counts, strict=False)
    return Figure(
        "energy-histogram", "How many requests took how much", svg,
        {"": table(("from_joules", "to_joules", "requests"), rows)},
    )  # fmt: skip


def energy_scatters(samples: Samples) -> list[Figure]:
    """Energy against output and prompt length, by kind and, with several, by turn."""
    points = sorted(samples.points.kept)
    if not points:
        return []
    kinds = {
        kind: f"s{index % KIND_COLOURS + 1}"
        for index, kind in enumerate(dict.fromkeys(point.kind for point in points))
    }
    turns = {turn_name(turn): f"t{turn}" for turn in range(1, LAST_TURN + 1)}
    by_kind = _grouped(points, {point: point.kind for point in points})
    by_turn = _grouped(
        sorted(points, key=lambda point: point.turn),
        {point: turn_name(point.turn) for point in points},
    )
    note = _sampled(len(points), samples.points.seen, "requests")
    found = []
    for groups, colours, of in ((by_kind, kinds, "kind"), (by_turn, turns, "turn")):
        if of == "turn" and len(groups) < 2:
            continue
        for length, field in (("output", "output_tokens"), ("prompt", "prompt_tokens")):
            dots = {
                name: [(float(getattr(p, field)), p.joules) for p in group]
                for name, group in groups.items()
            }
            title = f"Energy against {length} length, by {of}"
            svg = charts.scatter(
                dots, colours, title=title, x=f"{length} tokens",
                y="energy of a request", format_x=fmt.count, format_y=fmt.joules,
            )  # fmt: skip
            heads = (of, field, "energy_joules")
            rows = ((name, *dot) for name, group in dots.items() for dot in group)
            stem = f"energy-by-{length}-length-and-{of}"
            found.append(Figure(stem, title, svg, {"": table(heads, rows)}, note))
    return found


def latency_lines(samples: Samples) -> list[Figure]:
    """Cumulative distributions from the send and from the intended start."""
    found = []
    for name, title, stem in (
        ("ttft", "Time to first token", "ttft"),
        ("e2el", "End-to-end latency", "end-to-end-latency"),
    ):
        series = {}
        rows: list[tuple[object, ...]] = []
        for key, css_name, start in (
            (name, "from-send", "from the send"),
            (f"{name}_sched", "from-schedule", "from the intended start"),
        ):
            line = _quantiles(samples.latencies[key])
            if line:
                fractions = [percent / 100 for percent in PERCENTS]
                series[start] = (css_name, line, fractions)
                rows += zip([start] * len(line), line, fractions, strict=True)
        if not series or max(line[-1] for _, line, _ in series.values()) <= 0:
            continue
        svg = charts.cumulative(
            series, title=title, x=title.lower(), y="requests at or below",
            format=fmt.seconds,
        )  # fmt: skip
        heads = ("counted", "seconds", "fraction_of_requests")
        found.append(Figure(stem, title, svg, {"": table(heads, rows)}))
    return found


def rates(samples: Samples) -> Figure:
    """Planned starts and answers per second over the run."""
    due, done = samples.rates_per_second()
    edges = samples.time_edges_seconds
    svg = charts.step_lines(
        edges, {"planned starts": ("planned", due), "answered": ("answered", done)},
        title="requests over time", y="requests per second", format=fmt.digits,
    )  # fmt: skip
    heads = (
        "from_seconds", "to_seconds", "planned_per_second", "answered_per_second",
    )  # fmt: skip
    rows = zip(edges, edges[1:], due, done, strict=False)
    return Figure("request-rate", "Requests per second", svg, {"": table(heads, rows)})


UNTIL = {"prefill": "send to first token", "decode": "first to last token"}
"""What a lane shows in the colour of an account."""


def _legend_name(account: str, has_lanes: bool) -> str:
    name = account.replace("_", " ")
    return f"{name} | {UNTIL[account]}" if has_lanes and account in UNTIL else name


def css(account: str) -> str:
    """The class of an account's colour."""
    return account.replace("_", "-")


def _watts(power: PowerSeries, account: str) -> list[float]:
    watts: list[float] = getattr(power, f"{account}_watts")
    return watts


def _power_table(power: PowerSeries) -> str:
    edges = power.edges_seconds
    heads = ("from_seconds", "to_seconds", *(f"{name}_watts" for name in ACCOUNTS))
    columns = (_watts(power, name) for name in ACCOUNTS)
    return table(heads, zip(edges, edges[1:], *columns, strict=False))


def _quantiles(values: Distribution) -> list[float]:
    return values.percentiles(*PERCENTS) or []


def _grouped(
    points: Iterable[Point], names: Mapping[Point, str]
) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(names[point], []).append(point)
    return found


def _sampled(shown: int, seen: int, what: str) -> str:
    if shown == seen:
        return ""
    return f"{fmt.count(shown)} of {fmt.count(seen)} {what} are drawn, taken at random"
