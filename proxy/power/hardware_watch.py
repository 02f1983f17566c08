"""A thread per sensor that asks once a second how its boards work.

It asks the source that the sampler has open, and never opens one: a board that was
lost comes back with the sampler. A call that hangs here takes no reading of power with
it; what fails or hangs is said once, as nothing observed, and is no failed reading.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from proxy.errors import SensorError
from proxy.power.energy_source import EnergySource, HardwareSource
from proxy.process.supervise import LoopErrors
from proxy.wire.events import HardwareObserved
from proxy.wire.facts import HardwareState

WATCH_SECONDS = 1.0
OVERDUE_SECONDS = 5.0
"""Boards that have not answered for so long are not known any more."""


class HardwareWatch:
    """Asks `source()` every second until stopped; None: there is none to ask now.

    `deliver` is called on the watch's thread, as the sampler's is on its own.
    """

    def __init__(
        self,
        boundary: str,
        source: Callable[[], EnergySource | None],
        deliver: Callable[[HardwareObserved], object],
        *,
        every_seconds: float = WATCH_SECONDS,
    ) -> None:
        self.boundary = boundary
        self.errors = LoopErrors()
        self._source = source
        self._deliver = deliver
        self._every_seconds = every_seconds
        self._is_known = False
        self._heard_seconds = math.inf
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hardware", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._heard_seconds = time.monotonic()
        self._thread.start()

    def stop(self, timeout_seconds: float = 1.0) -> None:
        """End the thread; one that hangs is left behind."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def check(self, now_seconds: float) -> None:
        """Notice a question that hangs; not from the watch's thread."""
        if now_seconds - self._heard_seconds > self._every_seconds + OVERDUE_SECONDS:
            self._say((), now_seconds)

    def _run(self) -> None:
        while not self._stop.wait(self._every_seconds):
            states: tuple[HardwareState, ...] = ()
            with self.errors.caught("hardware watch"):
                states = self._asked()
            self._heard_seconds = time.monotonic()
            self._say(states, self._heard_seconds)

    def _asked(self) -> tuple[HardwareState, ...]:
        source = self._source()
        if not isinstance(source, HardwareSource):
            return ()
        try:
            return tuple(source.hardware())
        except SensorError:
            return ()  # the sampler meets the same, says it and opens the source anew

    def _say(self, states: tuple[HardwareState, ...], at_seconds: float) -> None:
        """That nothing is known is said once, when it was known before."""
        if states or self._is_known:
            self._is_known = bool(states)
            self._deliver(HardwareObserved(self.boundary, at_seconds, states))
