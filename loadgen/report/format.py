"""Figures as text: three digits and a unit, never a bare number."""

from __future__ import annotations

import math
from collections.abc import Sequence

MISSING = "–"
ROUGH = "~"
"""Before a percentile that rests on a handful of values."""

_JOULES = ((1e6, "MJ"), (1e3, "kJ"), (1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ"))
_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_WATTS = ((1e6, "MW"), (1e3, "kW"), (1.0, "W"), (1e-3, "mW"))
ENOUGH = {50: 1, 90: 100, 95: 200, 99: 1000}
"""Values that a percentile needs: ten beyond it."""


def digits(value: float) -> str:
    """Three significant digits without an exponent: 0.0123, 1.23, 12.3, 1,234."""
    size = abs(value)
    if size >= 99.95 or value == 0:
        return f"{value:,.0f}"
    # the bounds are where rounding would add a digit: 9.996 is 10.0
    bounds = ((9.995, 1), (0.9995, 2), (0.09995, 3))
    decimals = next((digits for bound, digits in bounds if size >= bound), 4)
    return f"{value:.{decimals}f}"


def joules(value: float | None) -> str:
    """Energy, such as `1.23 kJ` or `45.6 mJ`."""
    return _scaled(value, _JOULES)


def adding_up(whole: float | None, parts: Sequence[float]) -> tuple[str, list[str]]:
    """Joules of a whole and its parts in one unit, so that what is shown adds up.

    Three decimals of the whole's unit; what rounding would leave over goes to the
    parts nearest to the next digit. Parts that do not add up are shown as they are.
    """
    size, unit = next(
        (found for found in _JOULES if abs(whole or 0.0) >= found[0]), (1.0, "J")
    )
    steps = [part / size * 1000 for part in parts]
    rounded = [math.floor(step) for step in steps]
    total = round((whole if whole is not None else sum(parts)) / size * 1000)
    left = total - sum(rounded)
    if 0 <= left <= len(parts):
        nearest = sorted(range(len(steps)), key=lambda i: rounded[i] - steps[i])
        for index in nearest[:left]:
            rounded[index] += 1
    else:
        rounded = [round(step) for step in steps]
    written = [f"{step / 1000:,.3f} {unit}" for step in (total, *rounded)]
    return MISSING if whole is None else written[0], written[1:]


def seconds(value: float | None) -> str:
    """A duration, such as `45.6 ms` or `1.23 s`."""
    return _scaled(value, _SECONDS)


def duration(value: float | None) -> str:
    """A time as people say it: `45.0 s`, then `2 min 5 s`, `3 h 10 min`, `2 d 4 h`."""
    if value is None or value < 99.95:
        return seconds(value)
    whole = round(value)
    for size, unit, smaller, part in (
        (86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s"),
    ):  # fmt: skip
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size:,} {unit}" + (f" {rest} {part}" if rest else "")
    return seconds(value)


def shortened(text: str, longest: int) -> str:
    """The text, or its beginning with a mark that there was more."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def watts(value: float | None) -> str:
    """Power, such as `312 W`."""
    return _scaled(value, _WATTS)


def rate(value: float | None, unit: str) -> str:
    """A rate, such as `4.02 requests/s`."""
    return MISSING if value is None else f"{digits(value)} {unit}"


def percent(fraction: float | None) -> str:
    """A part of a whole, such as `12.3 %`."""
    return MISSING if fraction is None else f"{100 * fraction:.1f} %"


def count(value: float | None) -> str:
    """A number of things, such as `1,234`."""
    return MISSING if value is None else f"{value:,.0f}"


def quantity(value: float | None, unit: str) -> str:
    """A figure by the unit of its measure."""
    known = {"s": seconds, "J": joules}.get(unit)
    return rate(value, unit) if known is None else known(value)


def percentile(value: float, unit: str, percent: int, n: int) -> str:
    """Marked rough, or left out, when too few values stand behind it.

    A tail of fewer than ten values is rough; below one value in the tail the
    percentile would only be another name for the maximum.
    """
    if n < ENOUGH[percent] / 10:
        return MISSING
    text = quantity(value, unit)
    return text if n >= ENOUGH[percent] else f"{ROUGH}{text}"


def _scaled(value: float | None, scale: tuple[tuple[float, str], ...]) -> str:
    if value is None:
        return MISSING
    if value == 0:
        return f"0 {next(unit for size, unit in scale if size == 1)}"
    for size, unit in scale:
        # 0.9995: what rounds to 1,000 of a unit is 1 of the next
        if abs(value) >= size * 0.9995:
            return f"{digits(value / size)} {unit}"
    size, unit = scale[-1]
    return f"{digits(value / size)} {unit}"
