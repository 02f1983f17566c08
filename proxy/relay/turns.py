"""Work that clients can make large, done in steps between turns of the event loop.

All of it waits in one queue, whoever brought it, and each turn of the loop gives the
queue one stretch of time: however many clients bring however much, the chunks of
others wait for one stretch at most.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator

STRETCH_SECONDS = 0.001
"""Twenty requests that the relay answers itself; a step is far shorter."""
STRETCH_STEPS = 64
"""The bound where a clock does not help."""


LARGE_READ_BYTES = 128 * 1024
"""There is more where so much came from: uvloop reads 250 kB at once, and would go on
to 8 MB, 12 ms of the processor, before anybody else's turn."""
READS = 2
"""Large ones in a turn of the loop, of all connections together."""


class Turns:
    """Steps of many, one after the other in a circle."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._waiting: deque[Iterator[None]] = deque()
        self._is_scheduled = False

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, work: Iterator[None]) -> None:
        """Take steps of `work` from the next turn of the loop on, until it ends."""
        self._waiting.append(work)
        self._schedule()

    def _schedule(self) -> None:
        if self._waiting and not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._stretch)

    def _stretch(self) -> None:
        self._is_scheduled = False
        end_seconds = self._clock() + STRETCH_SECONDS
        try:
            for _ in range(STRETCH_STEPS):
                if not self._waiting:
                    break
                work = self._waiting.popleft()
                try:
                    next(work)
                except StopIteration:
                    continue
                self._waiting.append(work)
                if self._clock() >= end_seconds:
                    break
        finally:  # a defect in one's work must not end the others'
            self._schedule()


class LargeReads:
    """Connections that have just sent much; a few of them may go on in each turn."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[Callable[[], None]] = deque()

    def wait(self, go_on: Callable[[], None]) -> None:
        """Call this once it is that connection's turn to be read again."""
        if not self._waiting:
            self._loop.call_soon(self._turn)
        self._waiting.append(go_on)

    def _turn(self) -> None:
        now = [self._waiting.popleft() for _ in range(min(READS, len(self._waiting)))]
        if self._waiting:
            self._loop.call_soon(self._turn)
        for go_on in now:
            go_on()
