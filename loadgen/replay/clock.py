"""Time: the only place of the load generator that sleeps.

Every stamp of a run is read from one monotonic clock, as a plain float of
seconds. Wall time is asked once per run, to anchor the run's zero.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from dataclasses import dataclass
from typing import Protocol

import numpy as np

# Event-loop timers tick in whole milliseconds (epoll), so the last stretch is
# walked by yielding. Measured at 200 starts/s under uvloop: median lateness
# 0.26 ms with timers alone, 0.03 ms so, for 2 % of a core.
_WALK_SECONDS = 0.0005
_MARGIN_SECONDS = 0.0003


class Clock(Protocol):
    """Where time comes from; a fake one makes tests take no time."""

    def now(self) -> float:
        """Seconds on the monotonic clock that stamps everything."""

    def unix(self) -> float:
        """Wall-clock seconds, for anchoring a run's zero and nothing else."""

    async def sleep_until(self, at_seconds: float) -> None:
        """Return as soon after `at_seconds` as possible, never before."""

    async def sleep_about(self, until_seconds: float) -> None:
        """Return some milliseconds around `until_seconds`: for what may be early."""

    async def pause(self) -> None:
        """Let everyone else on the event loop have a turn."""


class SystemClock:
    """The machine's clocks.

    `loop.time()` is not used: uvloop rounds it to milliseconds and reads it
    once per turn of the loop.
    """

    def now(self) -> float:
        """Seconds of CLOCK_MONOTONIC."""
        return time.monotonic()

    def unix(self) -> float:
        """Seconds since 1970, of the wall clock."""
        return time.time()

    async def sleep_until(self, at_seconds: float) -> None:
        """Sleep through the long part, walk the last fraction of a millisecond."""
        if (left := at_seconds - time.monotonic()) > _WALK_SECONDS:
            await asyncio.sleep(left - _MARGIN_SECONDS)
        while time.monotonic() < at_seconds:  # noqa: ASYNC110  the event is time
            await asyncio.sleep(0)

    async def sleep_about(self, until_seconds: float) -> None:
        """One timer of the event loop and no walk; at once if that is past."""
        if (left := until_seconds - time.monotonic()) > 0:
            await asyncio.sleep(left)

    async def pause(self) -> None:
        """One turn of the event loop."""
        await asyncio.sleep(0)


@dataclass(frozen=True, slots=True)
class LoopLag:
    """Delay of the event loop's own periodic callback: a self-check."""

    samples: int
    p50_seconds: float | None
    p99_seconds: float | None
    max_seconds: float | None


class LoopMonitor:
    """Samples how late the event loop serves a callback that is due.

    A loop that is late stamps late, so its lag bounds the error of every
    latency of the run. 8 bytes per sample are kept.
    """

    def __init__(self, clock: Clock, period_seconds: float = 0.05) -> None:
        self._clock = clock
        self._period_seconds = period_seconds
        self._lags_seconds = array("d")

    async def watch(self) -> None:
        """Sample until cancelled."""
        due = self._clock.now() + self._period_seconds
        while True:
            await self._clock.sleep_until(due)
            now = self._clock.now()
            self._lags_seconds.append(now - due)
            # The next beat starts from now: a stall is one large sample, not
            # a burst of late ones.
            due = now + self._period_seconds

    def lag(self) -> LoopLag:
        """Delays so far; None where there were none."""
        lags = np.frombuffer(self._lags_seconds, dtype=np.float64)
        if not lags.size:
            return LoopLag(0, None, None, None)
        p50, p99 = np.percentile(lags, [50, 99])
        return LoopLag(lags.size, float(p50), float(p99), float(lags.max()))
