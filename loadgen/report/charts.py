"""Charts as SVG text: no script, no library, coloured by the page's CSS variables.

A general library writes some 300 bytes per point; the scatter here takes 12, so
that a page with 2,000 points stays small, and dark mode needs no second drawing.
Every chart is `WIDTH` units wide and scales with its column.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 480, 270
LEFT, RIGHT, TOP, BOTTOM = 58, 18, 14, 40
_ZEROS = re.compile(r"(?<=\d)\.0+(?!\d)|(?<=\.\d)0+(?!\d)")
_DARK = 0.6
"""Shade from which a label on a cell is light."""
_FEWEST_TICKS = 3
_SERIES = 6
"""Lines that the page's colours tell apart."""
_LONGEST_LOG_LABELS = 3  # decades up to which 2 and 5 are labelled too

Format = Callable[[float], str]
"""Writes a figure with its unit."""


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
    body = f'<g class="c1">{"".join(bars)}</g>'
    return _chart(title, across, up, x, "requests", format, _count, body)


def scatter(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    x: str,
    y: str,
    format_x: Format,
    format_y: Format,
) -> str:
    """Dots of named series on two logarithmic axes; values above 0."""
    points = [point for dots in series.values() for point in dots]
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    across = logarithmic(min(xs), max(xs), LEFT + 6, WIDTH - RIGHT - 6)
    up = logarithmic(min(ys), max(ys), HEIGHT - BOTTOM - 6, TOP + 6)
    groups = []
    for index, dots in enumerate(series.values()):
        path = "".join(f"M{across.at(a)} {up.at(b)}h0" for a, b in dots)
        groups.append(f'<path class="dot s{index + 1}" d="{path}"/>')
    return _chart(title, across, up, x, y, format_x, format_y, "".join(groups))


def stacked_steps(
    edges: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    title: str,
    y: str,
    format: Format,
) -> str:
    """Areas on top of each other, constant between edges; values from 0 up."""
    totals = [sum(column) for column in zip(*series.values(), strict=True)]
    across = linear(edges[-1], LEFT, WIDTH - RIGHT, edges[0])
    up = linear(max([*totals, 1e-9]), HEIGHT - BOTTOM, TOP)
    below = [0.0] * len(totals)
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
    return _chart(title, across, up, "since start", y, _span, format, "".join(areas))


def step_lines(
    edges: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    title: str,
    y: str,
    format: Format,
) -> str:
    """Lines over time, constant between edges."""
    across = linear(edges[-1], LEFT, WIDTH - RIGHT, edges[0])
    highest = max([1e-9, *(value for values in series.values() for value in values)])
    up = linear(highest, HEIGHT - BOTTOM, TOP)
    lines = [
        f'<path class="line l{index + 1}" d="M'
        f'{"L".join(_steps(edges, values, across, up))}"/>'
        for index, values in enumerate(series.values())
    ]
    return _chart(title, across, up, "since start", y, _span, format, "".join(lines))


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
    parts = []
    for index, dots in enumerate(series.values()):
        number = index % _SERIES + 1
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
    return _chart(title, across, up, x, y, format_x, format_y, "".join(parts))


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
            f'<rect class="c1" fill-opacity="{0.12 + 0.88 * shade:.2f}" '
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
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}, {escape(y)} by {escape(x)}">'
        f"{''.join(drawn)}{''.join(ticks)}"
        f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>'
        f'<text class="name" x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" '
        f'text-anchor="end">{escape(x)}</text></svg>'
    )


# -- pieces --------------------------------------------------------------------


def _steps(
    edges: Sequence[float], values: Sequence[float], across: Axis, up: Axis
) -> list[str]:
    points = []
    for low, high, value in zip(edges, edges[1:], values, strict=False):
        level = up.at(value)
        points += [f"{across.at(low)} {level}", f"{across.at(high)} {level}"]
    return points


def _chart(
    title: str,
    across: Axis,
    up: Axis,
    x: str,
    y: str,
    format_x: Format,
    format_y: Format,
    body: str,
) -> str:
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}, {escape(y)} over {escape(x)}">'
    ]
    for tick in up.ticks:
        height = up.at(tick)
        parts.append(
            f'<path class="grid" d="M{LEFT} {height}H{WIDTH - RIGHT}"/>'
            f'<text x="{LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">'
            f"{escape(_plain(format_y(tick)))}</text>"
        )
    for tick in across.ticks:
        parts.append(
            f'<text x="{across.at(tick)}" y="{HEIGHT - BOTTOM + 17}" '
            f'text-anchor="middle">{escape(_plain(format_x(tick)))}</text>'
        )
    parts.append(body)
    parts.append(
        f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>'
        f'<text class="name" x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" '
        f'text-anchor="end">{escape(x)}</text></svg>'
    )
    return "".join(parts)


def _plain(label: str) -> str:
    """Round figures need no decimals: `50.0 ms` is `50 ms` on an axis."""
    return _ZEROS.sub("", label)


def _count(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else ""


def _span(seconds: float) -> str:
    if seconds and seconds % 60 == 0:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:g} s"
