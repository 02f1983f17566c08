"""Whether a process still turns its loop: it says so, and silence is counted in turns.

Rule: whoever listens counts only its own turns. Where the host or all processes were
stopped for a while (a laptop that slept, a container that was paused, a group at
Ctrl-Z) it had no turns either, so no clock can make all of them seem silent at once.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from contextlib import suppress

BEAT_SECONDS = 1.0
"""Between two beats, and between two turns of whoever counts them."""
BEAT = b"\n"
SILENT_TURNS = 60
"""Of a process that serves: longer than a host that swaps holds one up, and longer than
most clients wait."""
STARTING_TURNS = 600
"""Of one that starts: stores and sensors may take their time."""


class Silence:
    """How many turns a process has been silent for."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._turns = 0

    def heard(self) -> None:
        """It said something."""
        self._turns = 0

    def turn(self) -> bool:
        """One more without a word from it; whether that is too many, once."""
        self._turns += 1
        return self._turns == self.limit


async def beat(pipe: int) -> None:
    """Say that this loop turns, for as long as somebody may hear it."""
    os.set_blocking(pipe, False)
    while True:
        try:
            os.write(pipe, BEAT)
        except BlockingIOError:
            pass  # whoever listens was stopped
        except OSError:
            return  # it is gone; so is the lease
        await asyncio.sleep(BEAT_SECONDS)


def end_after_lease(seconds: float) -> None:
    """End this process so long after its standard input closes, if it still lives.

    A loop that hangs hears neither of the end of its lease nor of a signal.
    """

    def wait() -> None:
        with suppress(OSError):
            while os.read(0, 4096):
                pass
        time.sleep(seconds)
        os._exit(1)

    threading.Thread(target=wait, name="lease", daemon=True).start()
