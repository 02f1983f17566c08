"""Parts of a command that it names itself: pure, from the lines that it wrote.

A command that knows when it works appends a line of JSON for each part to the file of
`--phases`: `{"name": "epoch 3", "begin_seconds": B, "end_seconds": E}`, both on the
system's monotonic clock (`time.monotonic()` of Python, CLOCK_MONOTONIC of C), which
all processes of a machine share. Their energy is read off the same curve, with bounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec

MAX_PHASES = 100_000


class Phase(msgspec.Struct, frozen=True):
    """One part of a command, on the monotonic clock."""

    name: str
    begin_seconds: float
    end_seconds: float


def parse_phases(text: str) -> tuple[list[Phase], str | None]:
    """The phases that were written, and what was wrong with the first bad line."""
    found: list[Phase] = []
    wrong: str | None = None
    for number, reason_or_phase in _lines(text):
        if isinstance(reason_or_phase, Phase):
            if len(found) == MAX_PHASES:
                return found, f"over {MAX_PHASES:,} phases; the others are left out"
            found.append(reason_or_phase)
        else:
            wrong = wrong or f"line {number}: {reason_or_phase}; it is left out"
    return found, wrong


def _lines(text: str) -> Iterator[tuple[int, Phase | str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            phase = msgspec.json.decode(line, type=Phase)
        except (msgspec.DecodeError, RecursionError) as error:
            yield number, f"not a phase: {error}"
            continue
        ends = (phase.begin_seconds, phase.end_seconds)
        if not all(map(math.isfinite, ends)) or ends[0] >= ends[1]:
            yield number, f"{phase.name!r} does not end after its beginning"
        else:
            yield number, phase
