"""Pictures of the dashboards, drawn from their own panels' data.

    python -m benchmarks.dashboard_pictures docs/pictures

A Prometheus watches three proxies before simulated engines, runs go through them (those
of tests/support/watched_runs.py), every query of every panel is asked, and each of the
dashboards becomes one SVG with its panels at their places. Grafana is not needed, and
the pictures are not Grafana's: the same figures and layout, in plain drawing. Two
minutes on 2 vCPUs.
"""

from __future__ import annotations

import math
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

import httpx

from grafana.boards import BOARDS
from grafana.boards.panel import Board, Json, Panel, board_json
from grafana.boards.query import RECENT, SHOWN
from tests.support.watched_runs import watched

CELL, ROW, PAD = 50, 30, 10
"""Pixels of a column and a row of Grafana's grid, and around a panel's content."""
COLOURS = ("#3274d9", "#e0752d", "#299c46", "#a352cc", "#c4162a", "#0f9f9f", "#8f7c00")
NAMED = {
    "blue": "#3274d9", "purple": "#a352cc", "light-orange": "#f2a65a",
    "text": "#8e8e8e", "red": "#c4162a", "green": "#299c46", "orange": "#e0752d",
}  # fmt: skip
UNITS = {
    "joule": "J", "watt": "W", "s": "s", "reqps": "/s", "ops": "/s", "kwatth": "kWh",
    "massg": "g", "hertz": "Hz", "celsius": "°C",
}  # fmt: skip
PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "µ"))
STEP_SECONDS = 1
Points = list[tuple[float, float]]


def amount(value: float, unit: str) -> str:
    """Three digits and a unit, as a person reads it."""
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    sign = UNITS.get(unit, "")
    if value == 0 or unit in {"short", "none", "celsius", "kwatth"}:
        return (
            f"{value:.3g} {sign}".rstrip() if value < 1000 else f"{value:,.0f} {sign}"
        )
    factor, prefix = next(
        (pair for pair in PREFIXES if abs(value) >= pair[0]), PREFIXES[-1]
    )
    return f"{value / factor:.3g} {prefix}{sign}".rstrip()


def text(x: float, y: float, content: str, size: int = 12, **style: str) -> str:
    """A line of text; what it says is data and never markup."""
    look = "".join(f' {name.replace("_", "-")}="{style[name]}"' for name in style)
    place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}"{look}'
    return f"<text {place}>{escape(content)}</text>"


def bar(x: float, y: float, width: float, colour: str) -> str:
    """A bar, or a legend's mark."""
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="9"'
    return f'<rect {place} fill="{colour}"/>'


def named(legend: str, labels: Mapping[str, str]) -> str:
    """A legend with its labels filled in."""
    filled = re.sub(r"{{(\w+)}}", lambda m: labels.get(m[1], ""), legend)
    return filled or ", ".join(labels.values())


class Answers:
    """What Prometheus says to a panel, over one stretch of time."""

    def __init__(self, client: httpx.Client, start: float, end: float) -> None:
        self._client = client
        self.start, self.end = start, end

    def _ask(self, kind: str, query: str, **form: Any) -> list[Json]:
        for name in ("instance", "engine", "model", "tenant"):
            query = query.replace(f"${name}", ".*")
        query = query.replace("$boundary", "gpu").replace(RECENT, "8s")
        query = query.replace(SHOWN, f"{round(1000 * (self.end - self.start))}ms")
        reply = self._client.post(f"/api/v1/{kind}", data={"query": query, **form})
        found: list[Json] = reply.json()["data"]["result"]
        return found

    def figures(self, query: str) -> list[tuple[dict[str, str], float]]:
        """At the end, those that are numbers."""
        found = self._ask("query", query, time=self.end)
        pairs = [(each["metric"], float(each["value"][1])) for each in found]
        return [pair for pair in pairs if math.isfinite(pair[1])]

    def lines(self, panel: Panel) -> list[tuple[str, Points]]:
        """Every series of a panel over the time."""
        form = {"start": self.start, "end": self.end, "step": STEP_SECONDS}
        return [
            (named(legend, each["metric"]), points)
            for legend, query in panel.queries.items()
            for each in self._ask("query_range", query, **form)
            if (points := [(float(t), float(v)) for t, v in each["values"]
                           if math.isfinite(float(v))])
        ]  # fmt: skip


def drawn(board: Board, answers: Answers) -> str:
    """The dashboard as an SVG."""
    document = board_json(board, BOARDS)
    panels = iter(list(board.panels))
    parts: list[str] = []
    bottom = 0
    for placed in document["panels"]:
        place = placed["gridPos"]
        x, y = place["x"] * CELL, place["y"] * ROW + 40
        width, height = place["w"] * CELL, place["h"] * ROW
        bottom = max(bottom, y + height)
        if placed["type"] == "row":
            parts.append(text(x + 4, y + 20, placed["title"], 14, font_weight="600"))
            continue
        parts.append(
            f'<svg x="{x + 3}" y="{y + 3}" width="{width - 6}" height="{height - 6}">'
            f'<rect width="100%" height="100%" rx="3" fill="#fff" stroke="#d5d9dd"/>'
            + text(PAD, 19, placed["title"], 12, font_weight="600")
            + "".join(_content(next(panels), answers, width - 6, height - 6))
            + "</svg>"
        )
    size = f"{24 * CELL} {bottom + 10}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" '
        f'width="{24 * CELL}" font-family="sans-serif" fill="#1f2328">'
        f"<title>{escape(board.title)}, SIMULATED</title>"
        f'<rect width="100%" height="100%" fill="#f4f5f5"/>'
        + text(8, 26, f"{board.title}, from simulated engines", 17, font_weight="600")
        + "".join(parts)
        + "</svg>\n"
    )


def _content(panel: Panel, answers: Answers, width: int, height: int) -> Iterator[str]:
    if panel.kind == "table":
        yield from _table(panel, answers, width, height)
    elif panel.kind in {"stat", "bargauge"}:
        found = [
            (named(legend, labels), value)
            for legend, query in panel.queries.items()
            for labels, value in answers.figures(query)
        ]
        if not found:
            yield _empty(panel, width, height)
        elif panel.kind == "stat":
            yield _stat(panel, found[0][1], width, height)
        else:
            yield from _bars(panel, found, width)
    else:
        lines = answers.lines(panel)
        if panel.kind == "heatmap":
            lines = _apart(lines)
        if lines:
            yield from _plot(panel, lines, answers, width, height)
        else:
            yield _empty(panel, width, height)


def _empty(panel: Panel, width: int, height: int) -> str:
    return text(
        width / 2,
        height / 2 + 14,
        panel.empty,
        13,
        text_anchor="middle",
        fill="#8e8e8e",
    )


def _stat(panel: Panel, value: float, width: int, height: int) -> str:
    shown, colour = panel.states.get(int(value), (amount(value, panel.unit), "text"))
    fill = "#1f2328" if colour == "text" else NAMED[colour]
    return text(width / 2, height / 2 + 22, shown, 24, text_anchor="middle", fill=fill)


def _bars(panel: Panel, found: list[tuple[str, float]], width: int) -> Iterator[str]:
    most = max((value for _, value in found), default=0) or 1
    for index, (name, value) in enumerate(sorted(found)):
        y = 34 + index * 34
        yield text(PAD, y + 10, f"{name}: {amount(value, panel.unit)}")
        long = (width - 2 * PAD) * value / most
        yield bar(PAD, y + 15, long, COLOURS[0])


def _table(panel: Panel, answers: Answers, width: int, height: int) -> Iterator[str]:
    rows: dict[tuple[str, ...], dict[str, float]] = {}
    for title, query in panel.queries.items():
        for labels, value in answers.figures(query):
            key = tuple(labels.get(label, "") for label in panel.labels)
            rows.setdefault(key, {})[title] = value
    if not rows:
        yield _empty(panel, width, height)
        return
    titles = [*panel.labels.values(), *panel.queries]
    cells = [titles] + [
        [*key, *(amount(row[t], panel.units.get(t, panel.unit)) if t in row else "–"
                 for t in panel.queries)]
        for key, row in sorted(
            rows.items(), key=lambda pair: -pair[1].get(panel.sort_by, 0)
        )
    ]  # fmt: skip
    column = (width - 2 * PAD) / len(titles)
    for line, row in enumerate(cells[: (height - 30) // 20]):
        weight = "600" if line == 0 else "400"
        for index, cell in enumerate(row):
            fits = int(column / 6.2)
            short = cell if len(cell) <= fits else cell[: fits - 1] + "…"
            y = 42 + 20 * line
            yield text(PAD + index * column, y, short, 11, font_weight=weight)


def _apart(lines: list[tuple[str, Points]]) -> list[tuple[str, Points]]:
    """Cumulative buckets as what each one has; those without anything left out."""
    rising = sorted(lines, key=lambda line: float(line[0].replace("+Inf", "inf")))
    below: dict[float, float] = {}
    found = []
    for name, points in rising:
        own = [(at, value - below.get(at, 0.0)) for at, value in points]
        below.update(points)
        if any(value > 1e-9 for _, value in own):
            found.append((f"up to {name} J", own))
    return found


def _plot(
    panel: Panel,
    lines: list[tuple[str, Points]],
    answers: Answers,
    width: int,
    height: int,
) -> Iterator[str]:
    if panel.stacked or panel.kind == "heatmap":
        lines = _stacked(lines)
    most = panel.maximum or max(v for _, points in lines for _, v in points) or 1.0
    left, right, top, low = 62, width - PAD, 32, height - 52
    unit = "reqps" if panel.kind == "heatmap" else panel.unit

    def place(at: float, value: float) -> str:
        x = left + (right - left) * (at - answers.start) / (answers.end - answers.start)
        return f"{x:.1f},{low - (low - top) * min(max(value / most, 0.0), 1.0):.1f}"

    for part in (0.0, 0.5, 1.0):
        y = low - (low - top) * part
        yield f'<path d="M{left},{y:.1f}H{right}" stroke="#e4e7e7"/>'
        yield text(left - 6, y + 4, amount(most * part, unit), 10, text_anchor="end")
    seconds = answers.end - answers.start
    yield text(left, low + 14, "0 s", 10)
    yield text(right, low + 14, f"{seconds:.0f} s", 10, text_anchor="end")
    x = float(PAD)
    for index, (name, points) in reversed(list(enumerate(lines))):
        colour = NAMED.get(panel.colours.get(name, ""), COLOURS[index % len(COLOURS)])
        for run in _runs(points):
            path = "L".join(place(*point) for point in run)
            if panel.stacked or panel.kind == "heatmap":
                first, last = place(run[0][0], 0), place(run[-1][0], 0)
                yield f'<path d="M{first}L{path}L{last}Z" fill="{colour}"/>'
            else:
                yield (
                    f'<path d="M{path}" fill="none" stroke="{colour}" '
                    'stroke-width="1.5" stroke-linecap="round"/>'
                )
    for index, (name, _) in enumerate(lines):
        colour = NAMED.get(panel.colours.get(name, ""), COLOURS[index % len(COLOURS)])
        if x + 6.5 * len(name) + 18 > width:
            yield text(x, height - 12, "…", 11)
            break
        yield bar(x, height - 20, 9, colour)
        yield text(x + 13, height - 12, name, 11)
        x += 6.5 * len(name) + 24


def _stacked(lines: list[tuple[str, Points]]) -> list[tuple[str, Points]]:
    """Each on top of those before it; where one is missing the next takes its place."""
    below: dict[float, float] = {}
    found = []
    for name, points in lines:
        for at, value in points:
            below[at] = below.get(at, 0.0) + value
        found.append((name, [(at, below[at]) for at, _ in points]))
    return found


def _runs(points: Points) -> Iterator[Points]:
    """Stretches without a hole: what is not known is not drawn."""
    run: Points = []
    for point in points:
        if run and point[0] - run[-1][0] > 1.5 * STEP_SECONDS:
            yield run
            run = []
        run.append(point)
    yield run


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work, watched(Path(work)) as seen:
        answers = Answers(seen.client, seen.alone.start, seen.together.end)
        for board in BOARDS:
            path = folder / f"{board.uid}.svg"
            path.write_text(drawn(board, answers))
            print(f"wrote {path}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/pictures"))
