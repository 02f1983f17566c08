"""The engine's steps, seen in the token stamps.

All requests of a batch get their tokens at the end of the same step, so stamps
come in clusters; a step runs from the previous cluster to its own. Rule: every
read is put into exactly one step, whatever the order the reads arrived in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from proxy.meter.activity.request import TICK_SECONDS, TokenLog

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

STEP_GAP_SECONDS = 0.002
"""A longer pause between two stamps ends a step: a proxy passes on a batch's
reads within 0.1 ms of each other, steps of 8B-class models take 5 ms and more.
Faster steps run together, and then count as often as a request was read in them."""

LONGEST_SECONDS = 0.1
"""A cluster that lasts longer is no step: its streams follow no common one (many of
them, or several engines behind one address). It is cut at multiples of this, else it
would never end, and no window in it."""

GRID_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Steps:
    """Consecutive steps with the reads they ended in, ordered by time."""

    floor_seconds: FloatArray
    """Shape (steps,): end of the step before; a step starts no earlier."""
    end_seconds: FloatArray
    """Shape (steps,): last stamp of its cluster."""
    first_row: IntArray
    """Shape (steps + 1,): reads of step k are rows first_row[k]:first_row[k + 1]."""
    seconds: FloatArray
    """Shape (rows,), as are the columns below: stamp of the read."""
    keys: IntArray
    tokens: FloatArray
    before: FloatArray
    """Tokens the request had received before this read; 0 marks its first."""

    @property
    def step_of_row(self) -> IntArray:
        """Index of the step of every row."""
        return np.repeat(np.arange(len(self.end_seconds)), np.diff(self.first_row))


def no_steps() -> Steps:
    """Before the first token."""
    none = np.empty(0)
    numbers = np.empty(0, np.int64)
    return Steps(none, none, np.zeros(1, np.int64), none, numbers, none, none)


class StepBook:
    """Turns reads into steps and keeps those that are not settled yet."""

    def __init__(self) -> None:
        self._steps = no_steps()
        self._ends: list[float] | None = None
        self._floor_seconds = -np.inf

    @property
    def steps(self) -> Steps:
        """All steps that end after the last `forget`."""
        return self._steps

    @property
    def ends(self) -> list[float]:
        """When they end: a look-up in a list takes a fifth of one in an array."""
        if self._ends is None:
            self._ends = self._steps.end_seconds.tolist()
        return self._ends

    def absorb(self, log: TokenLog, until_seconds: float) -> bool:
        """Move reads stamped up to `until_seconds` from the log into steps.

        Whether there were any.
        """
        rows = _sorted_rows(log, until_seconds)
        if not len(rows[0]):
            return False
        old = self._steps
        overlapping = len(old.end_seconds) and (
            rows[0][0] <= old.end_seconds[-1] + STEP_GAP_SECONDS
        )
        if overlapping:  # late rows, or the last cluster goes on: cluster them anew
            first = np.searchsorted(old.end_seconds, rows[0][0] - 2 * STEP_GAP_SECONDS)
            kept, reopened = _cut(old, int(first))
            rows = _merge(reopened, rows)
        else:
            kept = old
        floor = kept.end_seconds[-1] if len(kept.end_seconds) else self._floor_seconds
        fresh = cluster(rows, floor_seconds=floor)
        self._steps, self._ends = _join(kept, fresh), None
        return True

    def snap(self, stamps: FloatArray, *, not_before: float) -> FloatArray:
        """Made-up stamps moved back onto steps seen shortly before them.

        Where none was seen they go onto a common grid, so that requests that ran
        side by side share steps there too; a grid's cell holds as many steps as one
        request has stamps in it. The last stamp is a real one and stays.
        """
        ends = self._steps.end_seconds
        cells = np.floor(stamps / GRID_SECONDS)
        rank = np.arange(len(stamps)) - np.searchsorted(cells, cells)
        moved = np.maximum(cells * GRID_SECONDS, not_before) + rank * TICK_SECONDS
        if len(ends):
            index = np.searchsorted(ends, stamps, side="right") - 1
            seen = ends[np.maximum(index, 0)]
            is_near = (index >= 0) & (seen >= not_before)
            is_near &= stamps - seen < 2 * GRID_SECONDS
            moved = np.where(is_near, seen, moved)
        moved[-1] = stamps[-1]
        return np.asarray(moved, dtype=np.float64)

    def forget(self, before_seconds: float) -> None:
        """Drop steps that end at or before an instant: they are settled."""
        steps = self._steps
        done = int(np.searchsorted(steps.end_seconds, before_seconds, side="right"))
        if done:
            self._floor_seconds = float(steps.end_seconds[done - 1])
            self._steps, self._ends = _drop(steps, done), None


Rows = tuple[FloatArray, IntArray, FloatArray, FloatArray]


def cluster(rows: Rows, *, floor_seconds: float) -> Steps:
    """Steps of reads sorted by stamp: a pause longer than the gap ends one.

    `floor_seconds` is the end of the step before; if that is within the gap, the
    first cluster goes on from one that was cut.
    """
    seconds, keys, tokens, before = rows
    is_new = np.diff(seconds) > STEP_GAP_SECONDS
    is_new |= _cuts(seconds, is_new, seconds[0] - floor_seconds <= STEP_GAP_SECONDS)
    first_row = np.concatenate(([0], np.flatnonzero(is_new) + 1, [len(seconds)]))
    end = seconds[first_row[1:] - 1]
    floor = np.concatenate(([floor_seconds], end[:-1]))
    return Steps(floor, end, first_row, seconds, keys, tokens, before)


def _cuts(seconds: FloatArray, is_new: BoolArray, goes_on: bool) -> BoolArray:
    """Where clusters that last too long are cut, shape (rows - 1,)."""
    cluster_of_row = np.concatenate(([0], np.cumsum(is_new)))
    first = np.flatnonzero(np.concatenate(([True], is_new)))
    last = np.append(first[1:], len(seconds)) - 1
    is_long = seconds[last] - seconds[first] > LONGEST_SECONDS
    is_long[0] |= goes_on
    is_next_cell = np.diff(np.floor(seconds / LONGEST_SECONDS)) > 0
    return np.asarray(is_next_cell & is_long[cluster_of_row[1:]])


def _sorted_rows(log: TokenLog, until_seconds: float) -> Rows:
    """Take the log's rows up to an instant, by stamp, then request, then count."""
    seconds, keys, tokens, before = np.ascontiguousarray(log.take(until_seconds).T)
    rows = seconds, keys.astype(np.int64), tokens, before
    return rows if _is_sorted(*rows[:2]) else _sorted(rows)


def _is_sorted(seconds: FloatArray, keys: IntArray) -> bool:
    """Whether rows are by stamp, then request, each request once at a stamp."""
    is_later = seconds[1:] > seconds[:-1]
    is_next = (seconds[1:] == seconds[:-1]) & (keys[1:] > keys[:-1])
    return bool((is_later | is_next).all())


def _sorted(rows: Rows) -> Rows:
    """By stamp, then request; what a request got at one stamp is one read."""
    seconds, keys, tokens, before = rows
    order = np.lexsort((before, keys, seconds))
    seconds, keys = seconds[order], keys[order]
    is_next = (seconds[1:] != seconds[:-1]) | (keys[1:] != keys[:-1])
    first = np.concatenate(([0], np.flatnonzero(is_next) + 1))
    tokens = np.add.reduceat(tokens[order], first)
    return seconds[first], keys[first], tokens, before[order][first]


def _merge(left: Rows, right: Rows) -> Rows:
    seconds = np.concatenate((left[0], right[0]))
    keys = np.concatenate((left[1], right[1]))
    tokens = np.concatenate((left[2], right[2]))
    before = np.concatenate((left[3], right[3]))
    return _sorted((seconds, keys, tokens, before))


def _cut(steps: Steps, at: int) -> tuple[Steps, Rows]:
    """The steps before number `at`, and the rows of the others."""
    row = int(steps.first_row[at])
    kept = Steps(
        steps.floor_seconds[:at],
        steps.end_seconds[:at],
        steps.first_row[: at + 1],
        steps.seconds[:row],
        steps.keys[:row],
        steps.tokens[:row],
        steps.before[:row],
    )
    rest = (
        steps.seconds[row:],
        steps.keys[row:],
        steps.tokens[row:],
        steps.before[row:],
    )
    return kept, rest


def _drop(steps: Steps, count: int) -> Steps:
    row = int(steps.first_row[count])
    return Steps(
        steps.floor_seconds[count:],
        steps.end_seconds[count:],
        steps.first_row[count:] - row,
        steps.seconds[row:],
        steps.keys[row:],
        steps.tokens[row:],
        steps.before[row:],
    )


def _join(left: Steps, right: Steps) -> Steps:
    rows = len(left.seconds)
    return Steps(
        np.concatenate((left.floor_seconds, right.floor_seconds)),
        np.concatenate((left.end_seconds, right.end_seconds)),
        np.concatenate((left.first_row, right.first_row[1:] + rows)),
        np.concatenate((left.seconds, right.seconds)),
        np.concatenate((left.keys, right.keys)),
        np.concatenate((left.tokens, right.tokens)),
        np.concatenate((left.before, right.before)),
    )
