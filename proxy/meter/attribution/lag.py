"""How late, and over how long, a sensor shows what a board draws.

Rule: what the steps of the newest half minute cost by the cost model is held against
what the sensor showed, a tenth of a second at a time, as it would look late by some
time and averaged over another. The pair that explains it best is the sensor's, if it
does so far better than a prompt sensor would. What it is late by can then be undone: an
average over T at an instant *is* the energy of the T seconds before it, and a counter's
instant is only moved.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

SPAN_SECONDS = 0.09
"""Spans are not looked at finer than this: counters change every 20 to 100 ms."""
MAX_SPANS = 300
GIVE_UP_SPANS = 900
"""A sensor that was not found to be late by then is prompt."""
ENOUGH_SPANS = 60
ENOUGH_BUSY_SPANS = 30
EVERY_SPANS = 15
"""Looked at so often; what it takes is some milliseconds."""
MAX_REQUESTS = 512
"""With more at once nobody looks: it would cost as much as settlement itself."""

AVERAGED = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
DELAYS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)
PROMPT_SECONDS = 0.16
"""What shows power by so much late, on average, is prompt enough."""
POWER_LEFT, COUNTER_LEFT = 0.5, 0.7
"""Of the squares that a prompt sensor would leave. Averages over a second leave 0.002
to 0.1, a counter that is 0.4 s late 0.3 to 0.7; prompt ones at least 0.9."""


UNEXPLAINED, MIN_VARIATION = 0.3, 0.1
"""The steps have to explain all but so much of what the sensor showed, and that has to
vary by so much of its mean: of even power nobody can say when it was drawn."""


class SensorLag(NamedTuple):
    """What a sensor shows at an instant: the mean of some time, some time ago."""

    averaging_seconds: float
    """0: it is no mean."""
    delay_seconds: float

    @property
    def mean_seconds(self) -> float:
        """How late it shows power, on average."""
        return self.averaging_seconds / 2 + self.delay_seconds


class Span(NamedTuple):
    """A short stretch of time between two edges."""

    start_seconds: float
    end_seconds: float
    shown_joules: float
    prefill: float
    """What its steps cost by the model; any unit, and so for the next."""
    decode: float


class LagWatch:
    """The newest spans, and the lateness that they show."""

    def __init__(self) -> None:
        self.lateness: SensorLag | None = None
        """None where none was found."""
        self._spans: deque[Span] = deque(maxlen=MAX_SPANS)
        self._total = self._busy = self._since = 0

    @property
    def is_done(self) -> bool:
        """Whether no more spans are looked at."""
        return self.lateness is not None or self._total >= GIVE_UP_SPANS

    def add(self, span: Span, *, has_counter: bool) -> None:
        """One span more; one that does not follow the last begins anew."""
        spans = self._spans
        if spans and abs(spans[-1].end_seconds - span.start_seconds) > 1e-6:
            spans.clear()
            self._busy = self._since = 0
        spans.append(span)
        self._total += 1
        self._busy += span.prefill + span.decode > 0
        self._since += 1
        if (
            len(spans) >= ENOUGH_SPANS
            and self._busy >= ENOUGH_BUSY_SPANS
            and self._since >= EVERY_SPANS
        ):
            self._since = 0
            self.lateness = found_lateness(list(spans), has_counter=has_counter)


def found_lateness(spans: list[Span], *, has_counter: bool) -> SensorLag | None:
    """What explains the spans far better than a prompt sensor; None: nothing does."""
    left = _Left(spans, has_counter=has_counter)
    averaged = (0.0,) if has_counter else AVERAGED
    tried = {
        each: left.of(each) for each in map(SensorLag._make, product(averaged, DELAYS))
    }
    prompt = min(v for each, v in tried.items() if each.mean_seconds <= PROMPT_SECONDS)
    best = min(tried, key=lambda each: tried[each])
    for part in (0.15, 0.05):
        near = {each: left.of(each) for each in _around(best, part)}
        best = min(near, key=lambda each: near[each])
    most = COUNTER_LEFT if has_counter else POWER_LEFT
    least = left.of(best)
    is_explained = left.varies and least < UNEXPLAINED * left.whole
    is_late = best.mean_seconds > PROMPT_SECONDS and least < most * prompt
    return best if is_explained and is_late else None


def _around(lateness: SensorLag, part: float) -> Iterator[SensorLag]:
    """The same, and some a little longer and shorter."""
    averaged, delay = lateness
    for change, shift in product((0.0, -part, part), (0.0, -part, part)):
        moved = delay + shift * max(averaged / 2, delay)
        yield SensorLag(averaged * (1 + change), max(moved, 0.0))


class _Left:
    """Squares that are left of what was shown, by lateness."""

    def __init__(self, spans: list[Span], *, has_counter: bool) -> None:
        table = np.array(spans, np.float64)
        self._has_counter = has_counter
        self._edges = np.append(table[0, 0], table[:, 1])
        self._seconds = np.diff(self._edges)
        self._shown = table[:, 2]
        costs = np.vstack((np.zeros(2), np.cumsum(table[:, 3:5], axis=0)))
        middle = (costs[1:] + costs[:-1]) / 2 * self._seconds[:, np.newaxis]
        self._costs = costs.T
        self._integrals = np.vstack((np.zeros(2), np.cumsum(middle, axis=0))).T

        self._is_in = self._edges[:-1] >= self._edges[0] + AVERAGED[-1]
        watts = (self._shown / self._seconds)[self._is_in]
        seconds = self._seconds[self._is_in]
        self.whole = float((((watts - watts.mean()) * seconds) ** 2).sum())
        """The same, by even power alone."""
        self.varies = float(watts.std()) > MIN_VARIATION * float(watts.mean())

    def of(self, lateness: SensorLag) -> float:
        """By least squares of what the two kinds of work cost, and of idle."""
        averaged, delay = lateness
        edges = self._edges
        if self._has_counter:
            seen = [np.interp(edges - delay, edges, costs) for costs in self._costs]
        else:  # over a span, of a mean that moves
            seen = [
                (
                    np.interp(edges - delay, edges, integral)
                    - np.interp(edges - delay - averaged, edges, integral)
                )
                / averaged
                for integral in self._integrals
            ]
        rows = np.stack([*(np.diff(one) for one in seen), self._seconds], axis=1)
        # who was late by less than others knows more of the first spans: leave them out
        rows, shown = rows[self._is_in], self._shown[self._is_in]
        squares = rows.T @ rows
        tiny = 1e-9 * float(np.trace(squares)) * np.eye(len(squares))
        fitted = np.linalg.solve(squares + tiny, rows.T @ shown)
        return float(((shown - rows @ fitted) ** 2).sum())
