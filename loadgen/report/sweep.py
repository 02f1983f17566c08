"""A sweep in a terminal, as a page and as a table for programs: rendering only."""

from __future__ import annotations

import math
from typing import Any

import rich.box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from loadgen.analysis.sweep import FIGURES, Interval, Point, SweepResult
from loadgen.report import charts, naive
from loadgen.report import format as fmt
from loadgen.report.page import Figure, templates
from loadgen.report.page import table as table_of
from proxy.process.csv_rows import csv_text

CHARTS = (
    ("joules_per_request", "Energy of a request, mean", "J"),
    ("joules_per_good", "Energy per good request, all that was measured", "J"),
    ("joules_per_output_token", "Energy per output token", "J"),
    ("p50_ttft_seconds", "Time to first token, p50", "s"),
    ("p50_e2el_seconds", "End-to-end latency, p50", "s"),
)


def render(found: SweepResult) -> RenderableType:
    """The points in 80 columns, then what they tell."""
    table = Table(
        box=rich.box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0)
    )
    table.add_column(" x ".join(found.axes) or "setting", overflow="fold")
    heads = ("achieved", "J/request", "+-", "J/good", "TTFT", "E2E", "good/s", "")
    for head in heads:
        table.add_column(head, justify="left" if not head else "right", no_wrap=True)
    for point in found.points:
        table.add_row(
            _setting(point),
            _achieved(point),
            fmt.joules(point.value("joules_per_request")),
            _reach(point.figures["joules_per_request"]),
            fmt.joules(point.value("joules_per_good")),
            fmt.seconds(point.value("p50_ttft_seconds")),
            fmt.seconds(point.value("p50_e2el_seconds")),
            _digits(point.good_per_second),
            _marks(found, point),
        )
    parts: list[RenderableType] = [table, Text()]
    parts += [Text(line) for line in answers(found)]
    if found.simulated:
        parts.append(
            Text("SIMULATED: joules come from a model, not from a machine you own",
                 style="bold magenta")
        )  # fmt: skip
    return Group(*parts)


def answers(found: SweepResult) -> list[str]:
    """What a sweep was made for, a sentence each."""
    lines = []
    if found.best is not None:
        lines.append(_best_text(found))
    if found.saturation is not None:
        lines.append(_saturation_text(found))
    if len(found.front) > 1:
        lines.append(
            "Pareto front of J/request and E2E p50: " + "; ".join(found.front) + " (*)"
        )
    if any(point.is_saturated for point in found.points):
        lines.append(
            "saturated (!): requests in flight grow to the end, or answers fall behind"
        )
    if found.skipped:
        lines.append("not run, a lower rate saturated: " + "; ".join(found.skipped))
    if found.failed:
        lines.append("failed: " + "; ".join(found.failed))
    ratios = naive.ranges([point.measured_over_naive for point in found.points])
    if ratios is not None:
        lines.append(ratios)
    not_valid = [p for p in found.points if set(p.verdicts) != {"valid"}]
    if not_valid:
        lines.append(
            f"{len(not_valid)} of {len(found.points)} points are not valid "
            "throughout; the page has the reasons"
        )
    return lines


def columns(found: SweepResult) -> tuple[list[str], list[list[Any]]]:
    """Names and rows of the table that csv and parquet hold; base units."""
    plain = [
        "repeats", "simulated", "boundary", "requests", "answered", "good",
        "asked_per_second", "achieved_per_second", "answered_per_second",
        "good_per_second", "output_tokens_per_second", "kept_up", "is_saturated",
        "mean_watts", "window_seconds",
    ]  # fmt: skip
    figures = ["joules_per_good", *FIGURES]
    names = [*found.axes, *plain]
    names += [f"{figure}{end}" for figure in figures for end in ("", "_low", "_high")]
    estimates = naive.known_names(point.measured_over_naive for point in found.points)
    names += [f"measured_over_naive_{estimate}" for estimate in estimates]
    names += ["on_front", "is_best", "verdicts"]
    rows = []
    for point in found.points:
        row = [point.axes.get(name) for name in found.axes]
        row = [str(value) if isinstance(value, list | dict) else value for value in row]
        row += [getattr(point, name) for name in plain]
        for figure in figures:
            interval = _interval(point, figure)
            row += [interval.value, interval.low, interval.high]
        row += [point.measured_over_naive.get(estimate) for estimate in estimates]
        row += [
            point.name in found.front,
            _is_best(found, point),
            ",".join(point.verdicts),
        ]
        rows.append(row)
    return names, rows


def to_csv(found: SweepResult) -> str:
    """A row per point."""
    return csv_text(*columns(found))


def page(found: SweepResult, name: str) -> str:
    """A page of its own; its figures can be saved."""
    return (
        templates()
        .get_template("sweep.html")
        .render(
            name=name,
            found=found,
            is_simulated=found.simulated,
            answers=answers(found),
            good=_good_text(found),
            kind="sweep",
            figures=_charts(found),
            columns=_page_columns(found),
            rows=[_page_row(found, point) for point in found.points],
            naive=_naive(found),
            notes=[_notes(point) for point in found.points if _notes(point)[1]],
            fixed=[(key, str(value)) for key, value in found.fixed.items()],
            rules=sorted({rule for p in found.points for rule in p.window_rules}),
        )
    )


# -- sentences -------------------------------------------------------------------


def _best_text(found: SweepResult) -> str:
    best = found.best
    assert best is not None
    what = "request within the limits" if found.goodput else "answered request"
    text = (
        f"least energy per {what}: {fmt.joules(best.joules_per_good.value)} at "
        f"{best.rate_per_second:g} requests/s"
    )
    if best.joules_per_good.low is not None and best.joules_per_good.high is not None:
        text += (
            f" (95 %: {fmt.joules(best.joules_per_good.low)} to "
            f"{fmt.joules(best.joules_per_good.high)})"
        )
    if best.low_per_second < best.high_per_second:
        text += (
            f"; from {best.low_per_second:g} to {best.high_per_second:g} requests/s "
            "it cannot be told apart"
        )
    if any("invalid" in p.verdicts for p in found.points if _is_best(found, p)):
        text += "; a run there is invalid, see the page"
    if not best.is_bracketed:
        text += "; it lies at an end of the rates tried"
    return f"{text}. Search: {best.reason}"


def _saturation_text(found: SweepResult) -> str:
    at = found.saturation
    assert at is not None
    if at.saturated_per_second is None:
        text = "no rate saturated the engine"
    elif at.kept_up_per_second is None:
        text = f"saturated at {at.saturated_per_second:g} requests/s already"
    else:
        text = (
            f"saturation between {at.kept_up_per_second:g} and "
            f"{at.saturated_per_second:g} requests/s"
        )
    if at.capacity_per_second is not None:
        text += (
            f"; at most {fmt.digits(at.capacity_per_second)} were answered per second"
        )
    return text


def _good_text(found: SweepResult) -> str:
    if not found.goodput:
        return "no --goodput limits were given, so every answered request is a good one"
    limits = ", ".join(
        f"{name} ≤ {fmt.joules(limit) if name == 'energy' else fmt.seconds(limit)}"
        for name, limit in found.goodput.items()
    )
    return f"good: answered within {limits}"


def _notes(point: Point) -> tuple[str, list[str]]:
    return point.name, point.reasons


# -- cells -----------------------------------------------------------------------


def _page_columns(found: SweepResult) -> list[str]:
    return [
        *(found.axes or ["setting"]), "asked", "achieved", "answered", "good/s",
        "power", "J/request", "J/output token", "J/good request", "TTFT p50", "p99",
        "TPOT p50", "E2E p50", "p99", "window", "verdict", "",
    ]  # fmt: skip


def _naive(found: SweepResult) -> dict[str, list[str]]:
    """Measured over naive: columns of estimates, a row per point; empty if unknown."""
    names = naive.known_names(point.measured_over_naive for point in found.points)
    if not names:
        return {}
    heads = " x ".join(found.axes) or "setting"
    rows = {heads: [naive.LABELS.get(name, name) for name in names]}
    for point in found.points:
        ratios = point.measured_over_naive
        rows[_setting(point)] = [naive.ratio_text(ratios.get(name)) for name in names]
    return rows


def _page_row(found: SweepResult, point: Point) -> list[str]:
    figures = point.figures
    return [
        *([str(point.axes.get(name)) for name in found.axes] or [point.name]),
        _digits(point.asked_per_second),
        _achieved(point),
        f"{fmt.count(point.answered)} of {fmt.count(point.requests)}",
        _digits(point.good_per_second),
        fmt.watts(point.mean_watts),
        _with_reach(figures["joules_per_request"], fmt.joules),
        _with_reach(figures["joules_per_output_token"], fmt.joules),
        _with_reach(point.joules_per_good, fmt.joules),
        *(
            fmt.seconds(figures[name].value)
            for name in (
                "p50_ttft_seconds", "p99_ttft_seconds", "p50_tpot_seconds",
                "p50_e2el_seconds", "p99_e2el_seconds",
            )
        ),
        fmt.seconds(point.window_seconds),
        ", ".join(dict.fromkeys(point.verdicts)),
        _marks(found, point),
    ]  # fmt: skip


def _setting(point: Point) -> str:
    return ", ".join(str(value) for value in point.axes.values()) or point.name


def _marks(found: SweepResult, point: Point) -> str:
    marks = ["*"] if point.name in found.front and len(found.front) > 1 else []
    marks += ["!"] if point.is_saturated else []
    marks += ["invalid"] if "invalid" in point.verdicts else []
    marks += ["least"] if _is_best(found, point) else []
    return " ".join(marks)


def _is_best(found: SweepResult, point: Point) -> bool:
    return found.best is not None and point.rate == found.best.rate_per_second


def _interval(point: Point, figure: str) -> Interval:
    if figure == "joules_per_good":
        return point.joules_per_good
    return point.figures[figure]


def _reach(interval: Interval) -> str:
    """Half the interval as a part of the figure."""
    low, high, value = interval.low, interval.high, interval.value
    if low is None or high is None or not value:
        return fmt.MISSING
    return f"{100 * (high - low) / 2 / value:.0f} %"


def _with_reach(interval: Interval, written: Any) -> str:
    reach = _reach(interval)
    text: str = written(interval.value)
    return text if reach == fmt.MISSING else f"{text} ± {reach}"


def _achieved(point: Point) -> str:
    if point.rate is not None and math.isinf(point.rate):
        return "at once"
    return _digits(point.achieved_per_second)


def _digits(value: float | None) -> str:
    return fmt.MISSING if value is None else fmt.digits(value)


# -- charts ----------------------------------------------------------------------


Dots = list[tuple[float, float, float | None, float | None]]
AT_ONCE = "all at once"


def _charts(found: SweepResult) -> list[Figure]:
    """Figures over the achieved rate, and energy against latency."""
    drawn: list[Figure] = []
    rows = _rows(found)
    for figure, title, unit in CHARTS:
        series = {name: _dots(points, figure) for name, points in rows.items()}
        _draw(drawn, series, title, "requests/s achieved", fmt.digits, _format(unit))
    goods: dict[str, Dots] = {
        name: [
            (x, y, None, None)
            for point in points
            if (x := point.load_per_second) and (y := point.good_per_second)
        ]
        for name, points in rows.items()
    }
    _draw(
        drawn, goods, "Good requests per second", "requests/s achieved", fmt.digits,
        fmt.digits,
    )  # fmt: skip
    front: dict[str, Dots] = {"on the Pareto front": [], "other points": []}
    for point in found.points:
        x, y = point.value("p50_e2el_seconds"), point.value("joules_per_request")
        if x and y:
            name = (
                "on the Pareto front" if point.name in found.front else "other points"
            )
            front[name].append((x, y, None, None))
    _draw(
        drawn, front, "Energy of a request against its latency",
        "end-to-end latency, p50", fmt.seconds, fmt.joules, has_lines=False,
    )  # fmt: skip
    return drawn


def _draw(
    drawn: list[Figure], series: dict[str, Dots], title: str, x: str,
    format_x: charts.Format, format_y: charts.Format, *, has_lines: bool = True,
) -> None:  # fmt: skip
    shown = {name: dots for name, dots in series.items() if dots}
    if sum(map(len, shown.values())) < 2:
        return
    svg = charts.points_and_lines(
        shown, title=title, x=x, y=title, format_x=format_x, format_y=format_y,
        has_lines=has_lines,
    )  # fmt: skip
    points = ((name, *dot) for name, dots in shown.items() for dot in dots)
    heads = ("series", "x", "y", "y_low", "y_high")
    stem = "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())
    drawn.append(Figure(stem, title, svg, {"": table_of(heads, points)}))


def _dots(points: list[Point], figure: str) -> Dots:
    found = []
    for point in points:
        x, interval = point.load_per_second, _interval(point, figure)
        if x and interval.value is not None and interval.value > 0:
            found.append((x, interval.value, interval.low, interval.high))
    return found


def _rows(found: SweepResult) -> dict[str, list[Point]]:
    """A line per setting of the other axes, and what was sent at once apart."""
    rows: dict[str, list[Point]] = {}
    for point in found.points:
        others = {k: v for k, v in point.axes.items() if k != "rate"}
        name = ", ".join(f"{k}={v}" for k, v in others.items())
        if "rate" not in found.axes:
            name = "points"
        elif point.rate is not None and math.isinf(point.rate):
            name = f"{name}, {AT_ONCE}".lstrip(", ")
        rows.setdefault(name or "by rate", []).append(point)
    return {
        name: sorted(points, key=lambda p: p.load_per_second or math.inf)
        for name, points in rows.items()
    }


def _format(unit: str) -> charts.Format:
    return fmt.joules if unit == "J" else fmt.seconds
