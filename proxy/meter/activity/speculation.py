"""Tokens that the engine drafted, and how many of them became output, over time.

Rule: they are counted from the first scrape on, by what the engine's own counters rose;
a counter that fell began anew. Any instant of the last day can be asked for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from itertools import islice
from typing import NamedTuple

from proxy.wire.facts import EngineGauges

HISTORY_SCRAPES = 86_400
"""A day of scrapes."""


class Speculation(NamedTuple):
    """Tokens since the first scrape."""

    drafted: float
    accepted: float


class SpeculationLog:
    """Totals after each scrape that changed them."""

    def __init__(self) -> None:
        self._at: deque[float] = deque(maxlen=HISTORY_SCRAPES)
        self._totals: deque[Speculation] = deque(maxlen=HISTORY_SCRAPES)
        self._last: Speculation | None = None

    def add(self, at_seconds: float, gauges: EngineGauges) -> None:
        """A scrape; one that tells nothing changes nothing."""
        if gauges.draft_tokens is None or gauges.accepted_tokens is None:
            return
        last, now = self._last, Speculation(gauges.draft_tokens, gauges.accepted_tokens)
        self._last = now
        before = self._totals[-1] if self._totals else Speculation(0.0, 0.0)
        if last is None:
            drafted = accepted = 0.0
        elif now.drafted < last.drafted or now.accepted < last.accepted:
            drafted, accepted = now
        else:
            drafted, accepted = now.drafted - last.drafted, now.accepted - last.accepted
        if last is None or drafted or accepted:
            total = Speculation(before.drafted + drafted, before.accepted + accepted)
            self._at.append(at_seconds)
            self._totals.append(total)

    def totals_at(self, at_seconds: float | None = None) -> Speculation | None:
        """Up to an instant (None: the newest scrape); None: not told by then."""
        if not self._totals:
            return None
        if at_seconds is None:
            return self._totals[-1]
        place = bisect_right(self._at, at_seconds) - 1
        if place < 0:
            is_whole = len(self._totals) < HISTORY_SCRAPES
            return Speculation(0.0, 0.0) if is_whole else None
        return next(islice(self._totals, place, None))
