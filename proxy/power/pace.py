"""When to ask a remote sensor again: often around a change, seldom between two.

An exporter that updates ten times a second tells nothing new in four of five reads,
and each costs both hosts. A change is put midway between the last read with the old
figures and the first with the new ones, so what counts is that reads are close
together *there*: after a change the next is expected a period later, and until shortly
before it the sensor is left alone, though never for over `MAX_PAUSE_SECONDS`.
A sensor with no steady period (several boards, each at its own) is asked at full rate.

Pure: time enters by argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median

from proxy.wire.facts import Reading

MAX_PAUSE_SECONDS = 0.5
"""Power is integrated over at most 2 s, and a failure is noticed at the next read."""
MIN_CHANGES = 8
KEPT_CHANGES = 32


class ReadingPace:
    """The pauses between reads of one source."""

    def __init__(self, interval_seconds: float) -> None:
        """`interval_seconds` is the shortest pause, and the one until more is known."""
        self._interval_seconds = interval_seconds
        self._last_seconds: float | None = None
        self._figures: tuple[tuple[str, float | None, float | None], ...] = ()
        self._changed_seconds: float | None = None
        self._periods: deque[float] = deque(maxlen=KEPT_CHANGES)

    def pause_seconds(self, at_seconds: float, readings: Sequence[Reading]) -> float:
        """How long after this read the next one is due."""
        figures = tuple((r.device, r.joules, r.watts) for r in readings)
        last, self._last_seconds = self._last_seconds, at_seconds
        if figures != self._figures:
            self._figures = figures
            if last is not None:
                self._change((last + at_seconds) / 2)
        expected = self._expected_seconds()
        if expected is None:
            return self._interval_seconds
        left = expected - at_seconds
        return min(max(left, self._interval_seconds), MAX_PAUSE_SECONDS)

    def _change(self, at_seconds: float) -> None:
        if self._changed_seconds is not None:
            self._periods.append(at_seconds - self._changed_seconds)
        self._changed_seconds = at_seconds

    def _expected_seconds(self) -> float | None:
        """From when on the next change is looked for; None where it is not known."""
        if self._changed_seconds is None or len(self._periods) < MIN_CHANGES:
            return None
        # nine of ten changes come later than this after the one before
        early = sorted(self._periods)[len(self._periods) // 10]
        if early < median(self._periods) / 2:
            return None
        return self._changed_seconds + early - 1.5 * self._interval_seconds
