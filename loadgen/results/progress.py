"""Counters of a run in progress: the replay adds, the live view reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from threading import Lock

from ddsketch import DDSketch

from loadgen.results.results import Result

RECENT = 200
_DISTINCT_ERRORS = 100
RELATIVE_ERROR = 0.005
"""As of the distributions of a summary beyond a million values."""


class RecentValues:
    """The newest values, `RECENT` to twice as many, for quantiles within 0.5 %.

    Sketches of this error merge, so that workers can send theirs. One thread adds
    (some 5 us) and any may read.
    """

    def __init__(self) -> None:
        self._older, self._newer = DDSketch(RELATIVE_ERROR), DDSketch(RELATIVE_ERROR)
        self._lock = Lock()

    def extend(self, values: Iterable[float]) -> None:
        """Several values, the newest last."""
        for value in values:
            self.add(value)

    def add(self, value: float) -> None:
        """The newest value."""
        with self._lock:
            if self._newer.count >= RECENT:
                self._older, self._newer = self._newer, DDSketch(RELATIVE_ERROR)
            self._newer.add(value)

    def quantile(self, fraction: float) -> float | None:
        """The value that this fraction of them is below; None without any."""
        found = DDSketch(RELATIVE_ERROR)
        with self._lock:
            found.merge(self._older)
            found.merge(self._newer)
        return found.get_quantile_value(fraction)


@dataclass(slots=True)
class Progress:
    """Counts so far; written by one event loop, read between its steps."""

    planned: int = 0
    sent: int = 0
    in_flight: int = 0
    ok: int = 0
    failed: int = 0
    dropped: int = 0
    tokens: int = 0
    """Token-bearing reads so far, replaced by usage counts as requests finish."""
    offered_per_second: float | None = None
    """The rate that was asked for, or else the plan's own mean; None when at once."""
    span_seconds: float | None = None
    """Time over which the plan starts requests; None when all at once."""
    zero_seconds: float | None = None
    """The run's zero on the monotonic clock; None until the first send is due."""
    first_sent_seconds: float | None = None
    """When the first request left, after the run's zero."""
    newest_sent_seconds: float | None = None
    """When the newest did."""
    ttft_seconds: RecentValues = field(default_factory=RecentValues)
    lag_seconds: RecentValues = field(default_factory=RecentValues)
    errors: dict[str, int] = field(default_factory=dict)
    """Failures by message, the most common shown to the user."""
    watchers: list[Callable[[Result], None]] = field(default_factory=list)
    """Called with every finished record, those never sent too; must be quick."""

    def note_send(self, at_seconds: float) -> None:
        """One more request leaves, so long after the run's zero."""
        self.sent += 1
        self.in_flight += 1
        if self.first_sent_seconds is None:
            self.first_sent_seconds = at_seconds
        self.newest_sent_seconds = at_seconds

    def note_end(self, result: Result) -> None:
        """One more record, of whatever outcome; the watchers hear of it."""
        if result.sent_seconds is not None:
            self.lag_seconds.add(result.sent_seconds - result.planned_seconds)
        if result.outcome == "ok":
            self.ok += 1
            first, sent = result.first_token_seconds, result.sent_seconds
            if first is not None and sent is not None:
                self.ttft_seconds.add(first - sent)
        else:
            self._note_failure(result)
        for watcher in self.watchers:
            watcher(result)

    def _note_failure(self, result: Result) -> None:
        if result.outcome == "dropped":
            self.dropped += 1
        else:
            self.failed += 1
        message = result.error or result.outcome
        if message not in self.errors and len(self.errors) >= _DISTINCT_ERRORS:
            message = "other failures"  # a server may put an id into each message
        self.errors[message] = self.errors.get(message, 0) + 1

    @property
    def achieved_per_second(self) -> float | None:
        """Requests after the first over the time they took; None below two."""
        first, newest = self.first_sent_seconds, self.newest_sent_seconds
        if self.sent < 2 or first is None or newest is None or newest <= first:
            return None
        return (self.sent - 1) / (newest - first)
