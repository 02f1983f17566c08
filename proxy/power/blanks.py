"""Numbers that stand for "no figure": one table for all drivers, asked before units.

A driver that does not know writes a number all the same. In joules or watts it would
be one more absurd figure, or worse: 32 ones in millijoules are a plausible counter.
"""

from __future__ import annotations

import math

DCGM = frozenset(
    float(blank + kind)
    for blank in (0x7FFFFFF0, 0x7FFFFFFFFFFFFFF0, 1 << 47)
    for kind in range(4)
)
"""Blank, not found, not supported, not permitted: as 32 and 64 bits and as a double
(dcgm_structs.h)."""

NVML = frozenset({float(2**32 - 1), float(2**64 - 1)})
"""All ones, in the width of the field (NVML_VALUE_NOT_AVAILABLE is -1)."""

AMD = NVML | {float(2**16 - 1)}
"""Fields that a board does not fill are all ones, in 16, 32 or 64 bits."""

ANY = DCGM | NVML
"""Blanks of a page that repeats the numbers of an unknown driver."""


def figure(value: object, blanks: frozenset[float] = ANY) -> float | None:
    """The number that a sensor gave, in its own unit; None where it gave none.

    Text such as "N/A" and blanks are none. A number that cannot be (NaN, below zero,
    too large for a double: infinite) is handed on: the gate counts it.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return math.inf
    return None if number in blanks else number
