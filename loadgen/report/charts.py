"""Charts as SVG text: no script, no library, coloured by the page's CSS classes.

A general library writes some 300 bytes per point or draws on a canvas, which is no
vector and prints badly; the scatter here takes 12 bytes, so that a page of 10,000
requests stays small, and dark mode needs no second drawing. Every chart is `WIDTH`
(the timeline `WIDE`) units wide and scales with its column. Its legend is a part of
it, so that it says what it shows wherever it is saved to.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from proxy.process.terminal import escaped

WIDTH, HEIGHT = 480, 284
WIDE = 1080
LEFT, RIGHT, TOP, BOTTOM = 58, 18, 28, 40
_POWER_HEIGHT, _GAP = 230, 34
"""Of the timeline: the power at its top, and the space below it."""
_LANE, _LANES_HEIGHT = 9.0, 300.0
"""Height of a lane, and the most that all of them take."""
_SWATCH, _LETTER, _LEGEND_LINE = 16, 6.4, 18
"""Of a legend: a colour, a letter of its text (12 px), and a line."""
_LONGEST_NAME = 44
_ZEROS = re.compile(r"(?<=\d)\.0+(?!\d)|(?<=\.\d)0+(?!\d)")
_DARK = 0.6
"""Shade from which a label on a cell is light."""
_FEWEST_TICKS = 3
_SERIES = 6
"""Lines that the page's colours tell apart."""
_LONGEST_LOG_LABELS = 3  # decades up to which 2 and 5 are labelled too

Format = Callable[[float], str]
"""Writes a figure with its unit."""

Legend = Sequence[tuple[str, str]]
"""The CSS class of a colour and what it stands for; `~` before it: a line."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Values to positions between two pixels, with labelled ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    is_log: bool = False

    def at(self, value: float) -> float:
        """Position of a value; values outside are drawn at the edge."""
        low, high = self.low, self.high
        value = min(max(value, low), high)
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        share = (value - low) / (high - low)
        return round(self.start + share * (self.end - self.start), 1)


def linear(high: float, start: float, end: float, low: float = 0.0) -> Axis:
    """An axis with three to six round ticks."""
    span = (high - low) or 1.0
    step = 10 ** math.floor(math.log10(span / 3))
    step *= next(m for m in (1, 2, 5, 10, 20) if span / (step * m) <= 5)
    first = math.ceil(low / step)
    count = math.floor((low + span) / step * (1 + 1e-9)) - first + 1
    ticks = tuple((first + index) * step for index in range(count))
    return Axis(low, low + span, start, end, ticks)


def logarithmic(low: float, high: float, start: float, end: float) -> Axis:
    """A logarithmic axis; both ends above 0, at least a factor of two apart."""
    high = max(high, low * 2)
    decades = math.log10(high / low)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))

    def labelled(steps: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(
            tick
            for exponent in range(first, last + 1)
            for tick in (step * 10.0**exponent for step in steps)
            if low * 0.999 <= tick <= high * 1.001
        )

    ticks = labelled((1, 2, 5) if decades <= _LONGEST_LOG_LABELS else (1,))
    if len(ticks) < _FEWEST_TICKS:
        ticks = labelled((1, 1.5, 2, 3, 4, 6, 8))
    return Axis(low, high, start, end, ticks, is_log=True)


def histogram(
    edges: Sequence[float], counts: Sequence[int], *, title: str, x: str, format: Format
) -> str:
    """Bars between edges on a logarithmic x axis."""
    across = logarithmic(edges[0], edges[-1], LEFT, WIDTH - RIGHT)
    up = linear(max([*counts, 1]), HEIGHT - BOTTOM, TOP)
    bars = []
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        left, right, top = across.at(low), across.at(high), up.at(count)
        tip = f"{format(low)} to {format(high)}: {count:,} requests"
        bars.append(
            f'<rect x="{left}" y="{top}" width="{max(right - left - 1, 0.5):.1f}" '
            f'height="{up.start - top:.1f}"><title>{escape(tip)}</title></rect>'
        )
    body = f'<g class="all">{"".join(bars)}</g>'
    return _chart(title, across, up, x, "requests", format, _count, body)


def scatter(
    series: Mapping[str, Sequence[tuple[float, float]]],
    css: Mapping[str, str],
    *,
    title: str,
    x: str,
    y: str,
    format_x: Format,
    format_y: Format,
) -> str:
    """Dots of named series on two logarithmic axes; values above 0.

    `css` has the class of each series.
    """
    points = [point for dots in series.values() for point in dots]
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    across = logarithmic(min(xs), max(xs), LEFT + 6, WIDTH - RIGHT - 6)
    up = logarithmic(min(ys), max(ys), HEIGHT - BOTTOM - 6, TOP + 6)
    groups = []
    for name, dots in series.items():
        path = "".join(f"M{across.at(a)} {up.at(b)}h0" for a, b in dots)
        groups.append(f'<path class="dot {css[name]}" d="{path}"/>')
    legend = [(css[name], name) for name in series]
    return _chart(title, across, up, x, y, format_x, format_y, "".join(groups), legend)


class Bar(NamedTuple):
    """One request in a lane; seconds."""

    lane: int
    start_seconds: float
    middle_seconds: float | None
    """Where its first part ends; None: it has one part, of the third kind."""
    end_seconds: float


def timeline(
    edges: Sequence[float],
    series: Mapping[str, Sequence[float]],
    bars: Sequence[Bar],
    *,
    run_seconds: float,
    window: tuple[float, float],
    title: str,
    legend: Legend,
    format: Format,
) -> str:
    """Watts stacked by account, constant between edges, above requests in lanes.

    `series` may be empty, as `bars` may; names of series are CSS classes, bars are
    drawn in `to-first`, `to-last` and `broken`. Lines mark the window's ends where
    it is not the whole run.
    """
    across = linear(run_seconds or 1.0, LEFT, WIDE - RIGHT)
    power_end = TOP + _POWER_HEIGHT if series else TOP - _GAP
    lanes = max((bar.lane for bar in bars), default=-1) + 1
    lane = min(_LANE, _LANES_HEIGHT / max(lanes, 1))
    lanes_start = power_end + _GAP
    bottom = lanes_start + lanes * lane if bars else power_end
    parts = []
    if series:
        totals = [sum(column) for column in zip(*series.values(), strict=True)]
        up = linear(max([*totals, 1e-9]), power_end, TOP)
        parts += [_rows_of(up, format, WIDE), *_areas(edges, series, across, up)]
        parts.append(_axis_title("power", TOP))
    if bars:
        parts.append(_axis_title("requests in flight, one lane each", lanes_start))
        parts += _lanes(bars, across, lanes_start, lane)
        parts.append(f'<path class="axis" d="M{LEFT} {bottom:.1f}H{WIDE - RIGHT}"/>')
    if series:
        parts.append(f'<path class="axis" d="M{LEFT} {power_end}H{WIDE - RIGHT}"/>')
    parts += [
        f'<path class="mark-line" d="M{across.at(at)} {TOP}V{bottom:.1f}"/>'
        for at, end in zip(window, (0.0, run_seconds), strict=True)
        if abs(at - end) > 0.001 * run_seconds
    ]
    parts.append(_columns_of(across, _span, bottom, "since the run's start", WIDE))
    return _svg(f"{title}, over time", WIDE, bottom + BOTTOM, "".join(parts), legend)


def cumulative(
    series: Mapping[str, tuple[str, Sequence[float], Sequence[float]]],
    *,
    title: str,
    x: str,
    y: str,
    format: Format,
) -> str:
    """Fractions of requests up to a value, on a logarithmic x axis.

    A series is its CSS class, values that rise, and the fraction below each.
    """
    values = [value for _, line, _ in series.values() for value in line if value > 0]
    across = logarithmic(min(values), max(values), LEFT, WIDTH - RIGHT)
    up = linear(1.0, HEIGHT - BOTTOM, TOP)
    lines = []
    for css, line, fractions in series.values():
        points = [
            f"{across.at(max(value, across.low))} {up.at(fraction)}"
            for value, fraction in zip(line, fractions, strict=True)
        ]
        lines.append(f'<path class="line {css}" d="M{"L".join(points)}"/>')
    legend = [(f"~{css}", name) for name, (css, _, _) in series.items()]
    return _chart(title, across, up, x, y, format, _percent, "".join(lines), legend)


def step_lines(
    edges: Sequence[float],
    series: Mapping[str, tuple[str, Sequence[float]]],
    *,
    title: str,
    y: str,
    format: Format,
) -> str:
    """Lines over time, constant between edges; a series is its CSS class and values."""
    across = linear(edges[-1], LEFT, WIDTH - RIGHT, edges[0])
    highest = max([1e-9, *(v for _, values in series.values() for v in values)])
    up = linear(highest, HEIGHT - BOTTOM, TOP)
    lines = [
        f'<path class="line {css}" d="M{"L".join(_steps(edges, values, across, up))}"/>'
        for css, values in series.values()
    ]
    legend = [(f"~{css}", name) for name, (css, _) in series.items()]
    return _chart(
        title, across, up, "since the run's start", y, _span, format, "".join(lines),
        legend,
    )  # fmt: skip


def points_and_lines(
    series: Mapping[str, Sequence[tuple[float, float, float | None, float | None]]],
    *,
    title: str,
    x: str,
    y: str,
    format_x: Format,
    format_y: Format,
    has_lines: bool = True,
) -> str:
    """Points with their intervals on logarithmic axes, joined in each series.

    A point is x, y and the ends of its interval, or None; all above 0.
    """
    points = [point for dots in series.values() for point in dots]
    xs = [point[0] for point in points]
    ys = [end for point in points for end in point[1:] if end is not None and end > 0]
    across = logarithmic(min(xs), max(xs), LEFT + 10, WIDTH - RIGHT - 10)
    up = logarithmic(min(ys), max(ys), HEIGHT - BOTTOM - 8, TOP + 8)
    parts, legend = [], []
    for index, (name, dots) in enumerate(series.items()):
        number = index % _SERIES + 1
        legend.append((f"s{number}", name))
        if has_lines and len(dots) > 1:
            line = "L".join(f"{across.at(a)} {up.at(b)}" for a, b, _, _ in dots)
            parts.append(f'<path class="line s{number}" d="M{line}"/>')
        for a, b, low, high in dots:
            if low is not None and high is not None and low > 0:
                parts.append(
                    f'<path class="line s{number}" '
                    f'd="M{across.at(a)} {up.at(low)}V{up.at(high)}"/>'
                )
            tip = f"{format_x(a)}: {format_y(b)}"
            parts.append(
                f'<circle class="mark s{number}" cx="{across.at(a)}" '
                f'cy="{up.at(b)}" r="4"><title>{escape(tip)}</title></circle>'
            )
    return _chart(
        title, across, up, x, y, format_x, format_y, "".join(parts),
        legend if len(legend) > 1 else (),
    )  # fmt: skip


def heatmap(
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Mapping[tuple[int, int], tuple[float, str]],
    *,
    title: str,
    x: str,
    y: str,
) -> str:
    """A grid of cells, darker for larger values; `cells` are value and label by place.

    Row 0 is at the bottom, as on an axis. Shades follow the square root of the
    value, so that a cell with a tenth of the largest is still seen.
    """
    wide = (WIDTH - RIGHT - LEFT) / len(columns)
    high = (HEIGHT - BOTTOM - TOP) / len(rows)
    largest = max([1e-12, *(value for value, _ in cells.values())])
    drawn = []
    for (row, column), (value, label) in cells.items():
        left, top = LEFT + column * wide, HEIGHT - BOTTOM - (row + 1) * high
        shade = math.sqrt(max(value, 0.0) / largest)
        tip = f"{y} up to {rows[row]}, {x} up to {columns[column]}: {label}"
        drawn.append(
            f'<rect class="all" fill-opacity="{0.12 + 0.88 * shade:.2f}" '
            f'x="{left + 0.5:.1f}" y="{top + 0.5:.1f}" width="{wide - 1:.1f}" '
            f'height="{high - 1:.1f}"><title>{escape(tip)}</title></rect>'
            f'<text class="{"over" if shade > _DARK else "cell"}" '
            f'x="{left + wide / 2:.1f}" y="{top + high / 2 + 4:.1f}" '
            f'text-anchor="middle">{escape(label)}</text>'
        )
    ticks = [
        f'<text x="{LEFT - 6}" y="{HEIGHT - BOTTOM - (row + 0.5) * high + 4:.1f}" '
        f'text-anchor="end">{escape(name)}</text>'
        for row, name in enumerate(rows)
    ] + [
        f'<text x="{LEFT + (column + 0.5) * wide:.1f}" y="{HEIGHT - BOTTOM + 17}" '
        f'text-anchor="middle">{escape(name)}</text>'
        for column, name in enumerate(columns)
    ]
    body = (
        f"{''.join(drawn)}{''.join(ticks)}"
        f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>'
        f"{_axis_title(y, TOP)}{_axis_title(x, HEIGHT + 2, WIDTH - RIGHT)}"
    )
    return _svg(f"{title}, {y} by {x}", WIDTH, HEIGHT, body, ())


# -- pieces --------------------------------------------------------------------


def _steps(
    edges: Sequence[float], values: Sequence[float], across: Axis, up: Axis
) -> list[str]:
    points = []
    for low, high, value in zip(edges, edges[1:], values, strict=False):
        level = up.at(value)
        points += [f"{across.at(low)} {level}", f"{across.at(high)} {level}"]
    return points


def _areas(
    edges: Sequence[float],
    series: Mapping[str, Sequence[float]],
    across: Axis,
    up: Axis,
) -> list[str]:
    below = [0.0] * (len(edges) - 1)
    areas = []
    for name, values in series.items():
        above = [low + value for low, value in zip(below, values, strict=True)]
        outline = _steps(edges, above, across, up)
        floor = _steps(edges, below, across, up)
        path = "L".join([*outline, *reversed(floor)])
        areas.append(
            f'<path class="area {name}" d="M{path}Z">'
            f"<title>{escape(name.replace('-', ' '))}</title></path>"
        )
        below = above
    return areas


def _lanes(
    bars: Sequence[Bar], across: Axis, top: float, lane_height: float
) -> list[str]:
    """Three paths: to the first token, to the last one, and what broke off."""
    paths: dict[str, list[str]] = {"to-first": [], "to-last": [], "broken": []}
    for bar in bars:
        height = round(top + (bar.lane + 0.5) * lane_height, 1)
        start, end = across.at(bar.start_seconds), across.at(bar.end_seconds)
        if bar.middle_seconds is None:
            paths["broken"].append(_stroke(start, height, end))
            continue
        middle = across.at(bar.middle_seconds)
        paths["to-first"].append(_stroke(start, height, middle))
        paths["to-last"].append(_stroke(middle, height, end))
    wide = f"{max(lane_height * 0.8, 0.4):.1f}"
    return [
        f'<path class="lane {css}" stroke-width="{wide}" d="{"".join(strokes)}"/>'
        for css, strokes in paths.items()
        if strokes
    ]


def _stroke(start: float, height: float, end: float) -> str:
    return f"M{start:g} {height:g}h{max(end - start, 0.4):.4g}"


def _chart(
    title: str,
    across: Axis,
    up: Axis,
    x: str,
    y: str,
    format_x: Format,
    format_y: Format,
    body: str,
    legend: Legend = (),
) -> str:
    parts = [
        _rows_of(up, format_y, WIDTH),
        _columns_of(across, format_x, HEIGHT - BOTTOM, x, WIDTH),
        body,
        f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>',
        _axis_title(y, TOP),
    ]
    return _svg(f"{title}, {y} over {x}", WIDTH, HEIGHT, "".join(parts), legend)


def _rows_of(up: Axis, format: Format, width: int) -> str:
    """Lines and labels of a y axis."""
    return "".join(
        f'<path class="grid" d="M{LEFT} {up.at(tick)}H{width - RIGHT}"/>'
        f'<text x="{LEFT - 6}" y="{up.at(tick) + 4:.1f}" text-anchor="end">'
        f"{escape(_plain(format(tick)))}</text>"
        for tick in up.ticks
    )


def _columns_of(
    across: Axis, format: Format, bottom: float, title: str, width: int
) -> str:
    """Labels of an x axis, and below them what it is of."""
    labels = "".join(
        f'<text x="{across.at(tick)}" y="{bottom + 17:.1f}" '
        f'text-anchor="middle">{escape(_plain(format(tick)))}</text>'
        for tick in across.ticks
    )
    return labels + _axis_title(title, bottom + BOTTOM + 2, width - RIGHT)


def _axis_title(text: str, below: float, right: float | None = None) -> str:
    """What an axis is of: at the left above `below`, or ending at `right`."""
    place = f'x="2" y="{below - 12:.1f}"'
    if right is not None:
        place = f'x="{right}" y="{below - 8:.1f}" text-anchor="end"'
    return f'<text class="name" {place}>{escape(text)}</text>'


def _svg(label: str, width: int, height: float, body: str, legend: Legend) -> str:
    """A drawing with its legend below it."""
    key, lines = _legend(legend, width, height)
    whole = height + lines * _LEGEND_LINE
    return (
        f'<svg viewBox="0 0 {width} {whole:.0f}" role="img" '
        f'aria-label="{escape(label)}">{body}{key}</svg>'
    )


def _legend(legend: Legend, width: int, top: float) -> tuple[str, int]:
    """Colours and names in lines of so many units, and the number of lines."""
    parts: list[str] = []
    left, line = float(LEFT), 0
    for css, name in legend:
        shown = escaped(name)
        if len(shown) > _LONGEST_NAME:
            shown = shown[: _LONGEST_NAME - 1] + "…"
        needed = _SWATCH + _LETTER * len(shown) + 18
        if left > LEFT and left + needed > width:
            left, line = float(LEFT), line + 1
        y = top + line * _LEGEND_LINE + 12
        if css.startswith("~"):
            parts.append(
                f'<path class="line {css[1:]}" d="M{left:.0f} {y - 4:.0f}h14"/>'
            )
        else:
            parts.append(
                f'<rect class="swatch {css}" x="{left:.0f}" y="{y - 9:.0f}" '
                'width="10" height="10" rx="2"/>'
            )
        parts.append(
            f'<text x="{left + _SWATCH + 2:.0f}" y="{y:.0f}">{escape(shown)}</text>'
        )
        left += needed
    return "".join(parts), line + 1 if legend else 0


def _plain(label: str) -> str:
    """Round figures need no decimals: `50.0 ms` is `50 ms` on an axis."""
    return _ZEROS.sub("", label)


def _count(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else ""


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %"


def _span(seconds: float) -> str:
    if seconds and seconds % 60 == 0:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:g} s"
