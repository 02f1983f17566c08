"""What the figures of a run are drawn from, in one pass over its records.

Points and spans are samples of bounded number; where there are more requests, each
has the same chance to be drawn. Distributions and bins are of all requests.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

from loadgen.analysis.bins import Lengths
from loadgen.analysis.distribution import Distribution
from loadgen.analysis.tally import RunWindow
from loadgen.results.measures import MEASURES, is_ok
from loadgen.results.results import Result

MAX_POINTS = 2000
MAX_SPANS = 10_000
PER_DECADE = 20
LAST_TURN = 5
"""Turns from here on are drawn as one."""
_FEWEST_BARS, _MAX_BARS = 8, 40
_TIME_BINS = 60
LATENCIES = ("ttft", "ttft_sched", "e2el", "e2el_sched")

T = TypeVar("T")


class Point(NamedTuple):
    """One answered request whose joules are known."""

    kind: str
    turn: int
    """From 1; `LAST_TURN` and later ones are told by `turn_name`."""
    prompt_tokens: int
    output_tokens: int
    joules: float


class Span(NamedTuple):
    """The time of one sent request, seconds from the run's zero."""

    sent_seconds: float
    first_token_seconds: float | None
    finished_seconds: float
    kind: str
    turn: int
    outcome: str
    joules: float | None


class Reservoir(Generic[T]):
    """A sample of everything that passed, each with the same chance (algorithm R)."""

    def __init__(self, size: int) -> None:
        self.kept: list[T] = []
        self.seen = 0
        self._size = size
        self._random = random.Random(0)  # the same run always draws the same page

    def add(self, item: T) -> None:
        """Keep it, perhaps in place of another."""
        self.seen += 1
        if len(self.kept) < self._size:
            self.kept.append(item)
            return
        index = self._random.randrange(self.seen)
        if index < self._size:
            self.kept[index] = item


class LogHistogram:
    """Counts on a fixed logarithmic grid; only what was met takes memory."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, value: float | None) -> None:
        """One value above 0; others have no place on the grid."""
        if value is not None and value > 0:
            self._counts[math.floor(math.log10(value) * PER_DECADE)] += 1

    def bars(self) -> tuple[list[float], list[int]]:
        """Edges and counts; empty when empty.

        Bars are merged until there are about as many as the values can fill
        (2 * sqrt(n), 8 to 40): more would show chance as if it were shape.
        """
        if not self._counts:
            return [], []
        first, last = min(self._counts), max(self._counts)
        filled = round(2 * math.sqrt(self._counts.total()))
        bars = min(max(filled, _FEWEST_BARS), _MAX_BARS)
        merge = math.ceil((last - first + 1) / bars)
        starts = range(first, last + 1, merge)
        edges = [10 ** (start / PER_DECADE) for start in (*starts, starts[-1] + merge)]
        counts = [
            sum(self._counts[index] for index in range(start, start + merge))
            for start in starts
        ]
        return edges, counts


class Samples:
    """Points, spans, distributions and rates over time of the requests of one run.

    Spans and rates cover all of the run, everything else its window.
    """

    def __init__(self, window: RunWindow, run_seconds: float) -> None:
        self.window = window
        self.energy = LogHistogram()
        self.latencies = {name: Distribution() for name in LATENCIES}
        self.lengths = Lengths()
        self.points: Reservoir[Point] = Reservoir(MAX_POINTS)
        self.spans: Reservoir[Span] = Reservoir(MAX_SPANS)
        bins = max(1, min(_TIME_BINS, int(run_seconds)))
        width = (run_seconds or 1.0) / bins
        self.time_edges_seconds = [width * index for index in range(bins + 1)]
        self._due, self._done = [0] * bins, [0] * bins
        self._bin_seconds = width

    def add_all(self, results: Iterable[Result]) -> Samples:
        """Take every record into account; returns itself."""
        for result in results:
            self.add(result)
        return self

    def add(self, result: Result) -> None:
        """Take one record into account."""
        self._at(self._due, result.planned_seconds)
        if is_ok(result):
            self._at(self._done, result.finished_seconds)
        joules = MEASURES["energy"].of(result)
        if result.sent_seconds is not None:
            self.spans.add(
                Span(
                    result.sent_seconds, result.first_token_seconds,
                    result.finished_seconds, result.kind, result.turn + 1,
                    result.outcome, joules,
                )
            )  # fmt: skip
        if not self.window.holds(result):
            return
        self.lengths.add_result(result)
        self.energy.add(joules)
        for name, latency in self.latencies.items():
            latency.add(MEASURES[name].of(result))
        prompt, reply = result.prompt_tokens, result.output_tokens
        if joules and prompt and reply:
            self.points.add(Point(result.kind, result.turn + 1, prompt, reply, joules))

    def rates_per_second(self) -> tuple[list[float], list[float]]:
        """Planned starts and answers per second in each bin of time."""
        return self._per_second(self._due), self._per_second(self._done)

    def _per_second(self, counts: Sequence[int]) -> list[float]:
        return [count / self._bin_seconds for count in counts]

    def _at(self, counts: list[int], at_seconds: float) -> None:
        index = min(max(int(at_seconds / self._bin_seconds), 0), len(counts) - 1)
        counts[index] += 1


def turn_name(turn: int) -> str:
    """The turn's group in the figures, such as `turn 2` or `turn 5+`."""
    return f"turn {turn}" if turn < LAST_TURN else f"turn {LAST_TURN}+"


def lanes(spans: Sequence[Span]) -> list[int]:
    """A lane for each span, in their order, so that those of one lane never overlap.

    Spans in order of their start take the lowest lane that is free: as many lanes as
    requests were in flight at once.
    """
    found = [0] * len(spans)
    free: list[int] = []
    busy: list[tuple[float, int]] = []
    opened = 0
    for index in sorted(range(len(spans)), key=lambda i: spans[i].sent_seconds):
        span = spans[index]
        while busy and busy[0][0] <= span.sent_seconds:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if not free:
            heapq.heappush(free, opened)
            opened += 1
        found[index] = heapq.heappop(free)
        heapq.heappush(busy, (span.finished_seconds, found[index]))
    return found
