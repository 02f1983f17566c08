"""Counters of a run in progress: the replay adds, the live view reads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from loadgen.results.results import Result


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
    zero_seconds: float | None = None
    """The run's zero on the monotonic clock; None until the first send is due."""
    recent_ttft_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=200))
    recent_lag_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=200))
    errors: dict[str, int] = field(default_factory=dict)
    """Failures by message, the most common shown to the user."""
    watchers: list[Callable[[Result], None]] = field(default_factory=list)
    """Called with every finished record, those never sent too; must be quick."""
