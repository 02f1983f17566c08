"""Loops that never end by themselves: an error in one turn is logged, counted, past.

Rule: whatever runs for as long as the process does, task or thread, does each of its
turns inside `LoopErrors.caught`. An error that comes in every turn is a line in the
log now and then, with how many there were, not one for each.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger("servewatt.loops")

LOGGED_SECONDS = 10.0
"""Between two lines about the same thing."""
MAX_THINGS = 1000
"""Kept apart; they may be named by whoever connects."""
PAUSE_SECONDS = 1.0
"""Before a loop that failed is begun again."""


class Seldom:
    """Says of each thing that happens whether to log it, and how often it was not."""

    def __init__(
        self,
        every_seconds: float = LOGGED_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._every_seconds = every_seconds
        self._clock = clock
        self._due: dict[str, float] = {}
        self._held: Counter[str] = Counter()

    def count(self, name: str) -> int | None:
        """Times it happened since it was last logged; None: not to be logged now."""
        now = self._clock()
        if len(self._due) >= MAX_THINGS and name not in self._due:
            self._due.clear()
            self._held.clear()
        self._held[name] += 1
        if now < self._due.get(name, now):
            return None
        self._due[name] = now + self._every_seconds
        return self._held.pop(name)


class LoopErrors:
    """Errors by loop; written by loops on any thread, read by the metrics."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.total: Counter[str] = Counter()
        self._seldom = Seldom(clock=clock)

    @contextmanager
    def caught(self, loop: str) -> Iterator[None]:
        """One turn of a loop: an error in it ends the turn and not the loop."""
        try:
            yield
        except Exception as error:  # the outermost loop: it must live on
            self.note(loop, error)

    def note(self, loop: str, error: Exception) -> None:
        """Count an error; logged with its traceback unless that was just done."""
        self.total[loop] += 1
        count = self._seldom.count(loop)
        if count is not None:
            log.error(
                "the %s failed (%d since the last such line), and goes on: %r",
                loop, count, error, exc_info=error,
            )  # fmt: skip

    async def keep(
        self,
        loop: str,
        run: Callable[[], Awaitable[None]],
        pause_seconds: float = PAUSE_SECONDS,
    ) -> None:
        """Run a loop for ever: one that fails, or ends, is begun again."""
        while True:
            with self.caught(loop):
                await run()
            await asyncio.sleep(pause_seconds)
