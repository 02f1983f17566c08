"""Points and counts for the charts, in one pass over the records and bounded memory."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence

from loadgen.analysis.tally import RunWindow
from loadgen.results.measures import MEASURES
from loadgen.results.results import Result

MAX_POINTS = 2000
PER_DECADE = 20
_FEWEST_BARS, _MAX_BARS = 8, 40
_TIME_BINS = 60
HISTOGRAMS = ("energy", "ttft", "e2el")


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
    """Points, histograms and rates over time of the requests of one window."""

    def __init__(self, window: RunWindow, run_seconds: float) -> None:
        self.window = window
        self.histograms = {name: LogHistogram() for name in HISTOGRAMS}
        self._points: list[tuple[str, float, float]] = []
        self._seen = 0
        self._random = random.Random(0)  # the same run always draws the same page
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
        """Take one record into account; rates cover the whole run."""
        self._at(self._due, result.planned_seconds)
        if result.outcome == "ok":
            self._at(self._done, result.finished_seconds)
        if not self.window.holds(result):
            return
        for name, histogram in self.histograms.items():
            histogram.add(MEASURES[name].of(result))
        joules = MEASURES["energy"].of(result)
        if joules and result.output_tokens:
            self._keep((result.kind, float(result.output_tokens), joules))

    def points(self) -> dict[str, list[tuple[float, float]]]:
        """Output tokens and joules by kind, at most 2,000 in all."""
        found: dict[str, list[tuple[float, float]]] = {}
        for kind, tokens, joules in sorted(self._points):
            found.setdefault(kind, []).append((tokens, joules))
        return found

    def rates_per_second(self) -> tuple[list[float], list[float]]:
        """Planned starts and answers per second in each bin of time."""
        return self._per_second(self._due), self._per_second(self._done)

    def _per_second(self, counts: Sequence[int]) -> list[float]:
        return [count / self._bin_seconds for count in counts]

    def _at(self, counts: list[int], at_seconds: float) -> None:
        index = min(max(int(at_seconds / self._bin_seconds), 0), len(counts) - 1)
        counts[index] += 1

    def _keep(self, point: tuple[str, float, float]) -> None:
        """Algorithm R: every request has the same chance to be drawn."""
        self._seen += 1
        if len(self._points) < MAX_POINTS:
            self._points.append(point)
            return
        index = self._random.randrange(self._seen)
        if index < MAX_POINTS:
            self._points[index] = point
