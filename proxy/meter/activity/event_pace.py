"""Whether events that are read together are steps of their own, or came out of one.

A proxy or an engine's server that is late passes on at once what several steps put
out; an engine that speculates may write several events after one step. Rule: where the
time since the stream's last read grows with the number of events, each is a step;
where it does not, the read is one.
"""

from __future__ import annotations

from math import log

EVIDENCE_READS = 8.0
"""Reads of several events before anything is concluded; one step each until then."""

MOST_READS = 2000.0
"""Sums are halved there: what was longer ago fades."""

LEAST_PART, MOST_PART = 0.25, 2.0
"""A gap by what its events usually take counts as no less, and no more: after a late
read comes the rest at once, and a step with a long prompt takes as many plain ones."""


class EventPace:
    """Reads of several events, of all streams of one engine: gaps beside events.

    Where each event is a step a gap by its events is the same for few and for many of
    them; where the read is one step it falls as their number rises. The slope of its
    logarithm over that of the number tells: 0 or -1.
    """

    __slots__ = ("_events", "_parts", "_products", "_reads", "_squares", "are_steps")

    def __init__(self) -> None:
        self._reads = self._events = self._parts = 0.0
        self._squares = self._products = 0.0
        self.are_steps = False

    def add(self, events: float, gap_seconds: float, usual_seconds: float) -> None:
        """A read of several events of each sequence, so long after the last one.

        `usual_seconds` is the stream's mean time for an event until then.
        """
        if usual_seconds <= 0:
            return
        part = gap_seconds / (events * usual_seconds)
        number, part = log(events), log(min(max(part, LEAST_PART), MOST_PART))
        self._reads += 1
        self._events += number
        self._parts += part
        self._squares += number * number
        self._products += number * part
        variance = self._squares - self._events**2 / self._reads
        covariance = self._products - self._events * self._parts / self._reads
        self.are_steps = self._reads >= EVIDENCE_READS and 2 * covariance > -variance
        if self._reads >= MOST_READS:
            self._fade()

    def _fade(self) -> None:
        self._reads /= 2
        self._events /= 2
        self._parts /= 2
        self._squares /= 2
        self._products /= 2
