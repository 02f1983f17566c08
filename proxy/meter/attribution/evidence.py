"""Whether what a fit leaves is noise: by batch size, by mix, row to row, over time.

Rule: only errors of rows that were predicted before they were learnt from count, and a
finding needs both: more than chance, and more than matters. An error is relative to the
row's joules. What is kept is of fixed size.

- By batch size and by mix: the mean error of rows alike is not 0 by more than
  `BIAS` and two of its standard errors beyond it.
- From row to row: what two neighbours have in common (lag-1 covariance) is more than
  `BIAS` squared, and their correlation is more than chance.
- Over time: a two-sided CUSUM of the errors by their usual size, with a slack of half
  of it, passes `ALARM`: the joules of the same work have changed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple


class Doubt(NamedTuple):
    """Why constants are not trusted."""

    kind: str
    """One of `DOUBTS`, as metrics label it."""
    text: str
    """One line with the figures."""


DOUBTS = {
    "rows": "too few rows were seen",
    "misfit": "too much of the energy is left unexplained",
    "uncertain": "the constants are too uncertain",
    "biased": "rows alike are missed alike",
    "correlated": "rows that follow each other are missed alike",
    "changed": "the engine or the board has changed",
    "shared": "another process is on the board",
    "unresolved": "the sensor is too slow",
    "unknown_work": "work that is not known takes part of the time",
}

MIN_ROWS = 10.0
BIAS = 0.05
"""Of a row's joules: what the errors of rows alike may have in common."""

BATCHES = (2.0, 8.0, 32.0, 128.0)
"""Sequences per step: bounds of what counts as alike."""
MIXES = (0.2, 0.5, 0.8)
"""Part of the joules that prompts cost: bounds of what counts as alike."""

MAX_SCALED = 3.0
"""No row counts for more standard deviations: a single one alarms nobody."""
USUAL_ERROR = 0.03
"""Errors count as no smaller: a perfect fit would be alarmed by nothing."""
SLACK, ALARM = 0.5, 10.0
"""In standard deviations: by chance alone once in some 10,000 rows, five hours; twice
the usual size off is found after seven rows."""
MAX_ROWS = 300.0


@dataclass(frozen=True, slots=True)
class Group:
    """Errors of rows alike, fading."""

    rows: float = 0.0
    errors: float = 0.0
    squares: float = 0.0

    def with_row(self, error: float) -> Group:
        """One row more."""
        keep = min(1.0, (MAX_ROWS - 1) / self.rows) if self.rows else 1.0
        return Group(
            keep * self.rows + 1,
            keep * self.errors + error,
            keep * self.squares + error * error,
        )

    @property
    def mean(self) -> float:
        """Mean error; 0 without rows."""
        return self.errors / self.rows if self.rows else 0.0

    @property
    def is_biased(self) -> bool:
        """Whether the mean is off by more than matters, for sure."""
        if self.rows < MIN_ROWS:
            return False
        variance = max(self.squares / self.rows - self.mean**2, 0.0)
        return abs(self.mean) - 2 * math.sqrt(variance / (self.rows - 1)) > BIAS


@dataclass(frozen=True, slots=True)
class Evidence:
    """Errors of rows that were not yet learnt from."""

    everything: Group = Group()
    by_batch: tuple[Group, ...] = (Group(),) * (len(BATCHES) + 1)
    by_mix: tuple[Group, ...] = (Group(),) * (len(MIXES) + 1)
    last: float = 0.0
    neighbours: float = 0.0
    """Sum of products of neighbouring errors, fading as the rows."""
    above: float = 0.0
    below: float = 0.0
    """The two sides of the CUSUM, in standard deviations."""

    def with_row(self, error: float, *, batch: float, mix: float) -> Evidence:
        """One row more: its error by its joules, sequences per step, prompts' part."""
        rows = self.everything.rows
        keep = min(1.0, (MAX_ROWS - 1) / rows) if rows else 1.0
        usual = math.sqrt(self.everything.squares / rows) if rows else math.inf
        scaled = error / max(usual, USUAL_ERROR)
        scaled = min(max(scaled, -MAX_SCALED), MAX_SCALED)
        return replace(
            self,
            everything=self.everything.with_row(error),
            by_batch=_with(self.by_batch, _place(BATCHES, batch), error),
            by_mix=_with(self.by_mix, _place(MIXES, mix), error),
            last=error,
            neighbours=keep * self.neighbours + self.last * error,
            above=max(self.above + scaled - SLACK, 0.0),
            below=max(self.below - scaled - SLACK, 0.0),
        )

    @property
    def missed(self) -> float | None:
        """Root mean square of the errors; None before there are five."""
        whole = self.everything
        return math.sqrt(whole.squares / whole.rows) if whole.rows >= 5 else None

    @property
    def drift(self) -> str | None:
        """How the joules of the same work changed; None: not for sure."""
        if max(self.above, self.below) <= ALARM:
            return None
        return "rose" if self.above > self.below else "fell"

    @property
    def doubt(self) -> Doubt | None:
        """Why the errors are not noise; None where they may be."""
        for groups, bounds, noun in (
            (self.by_batch, BATCHES, "{} sequences per step"),
            (self.by_mix, MIXES, "{} of the joules spent on prompts"),
        ):
            for place, group in enumerate(groups):
                if group.is_biased:
                    return Doubt(
                        "biased",
                        f"rows with {noun.format(_range_of(bounds, place))} are missed "
                        f"by {group.mean:+.0%} on average, trusted up to {BIAS:.0%}",
                    )
        return self._correlated()

    def _correlated(self) -> Doubt | None:
        rows, squares = self.everything.rows, self.everything.squares
        if rows < 2 * MIN_ROWS or squares <= 0:
            return None
        common, correlation = self.neighbours / rows, self.neighbours / squares
        if common > BIAS**2 and correlation > 2 / math.sqrt(rows):
            return Doubt(
                "correlated",
                f"rows in a row are missed alike, by {math.sqrt(common):.0%} "
                f"(correlation {correlation:.1f}): something that is not seen goes on",
            )
        return None


def _place(bounds: tuple[float, ...], value: float) -> int:
    return sum(value >= bound for bound in bounds)


def _with(groups: tuple[Group, ...], place: int, error: float) -> tuple[Group, ...]:
    changed = groups[place].with_row(error)
    return (*groups[:place], changed, *groups[place + 1 :])


def _range_of(bounds: tuple[float, ...], place: int) -> str:
    if place == 0:
        return f"under {bounds[0]:g}"
    if place == len(bounds):
        return f"{bounds[-1]:g} or more"
    return f"{bounds[place - 1]:g} to {bounds[place]:g}"
