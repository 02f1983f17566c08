"""One thread per power source, reading on a fixed grid and handing events on.

The event loop never calls a sensor. A read is stamped at the middle of the call; a
sensor that knows better when it measured is believed, within order. A source that
fails to open or to read is tried again, ever more slowly, and each failure is handed
on as a gap; grid slots that a slow read overran are counted as missed, never caught
up on. Every reading passes the gate (`proxy.power.gate`): there is no way around it.
A remote sensor is asked at the pace of its updates (`proxy.power.pace`).
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from proxy.errors import ProxyError, SensorError
from proxy.power.energy_source import (
    BoundedSource,
    EnergySource,
    FollowedSource,
    RemoteSource,
)
from proxy.power.gate import MAX_BEHIND_SECONDS, MAX_WATTS, ReadingGate, Rejected
from proxy.power.pace import ReadingPace
from proxy.process.supervise import LoopErrors
from proxy.wire.events import PowerSampled
from proxy.wire.facts import Reading

log = logging.getLogger("servewatt.sampler")

OVERDUE_SECONDS = 10.0
"""A source that answered neither well nor badly for so long, and an interval, hangs."""
MAX_READ_SECONDS = 3.0
"""A longer read of a sensor that has no clock of its own is a gap."""
GONE_SECONDS = 30.0
"""As long as a meter waits for a device, see `proxy.meter.curve.LEAVE_SECONDS`."""
SAY_SECONDS = 60.0
MAX_SAID = 256

RETRY_SECONDS = (0.1, 0.5, 1.0, 5.0)
"""Pauses after the first, second, ... failure in a row; the last one repeats."""


@dataclass(slots=True)
class SamplerStats:
    """Counts since start; written by the thread, read by anyone."""

    samples: int = 0
    missed: int = 0
    errors: int = 0
    last_error: str | None = None
    is_up: bool = False
    is_simulated: bool = False
    boundary: str = "unknown"
    clock_offset_seconds: float | None = None
    """Remote minus local clock, for sensors that have one."""
    heard_seconds: float = math.inf
    """Monotonic instant of the last answer, good or bad; infinite before the start."""
    read_seconds: float = 0.0
    """Time spent inside the source, in total."""
    rejected: Mapping[str, int] = field(default_factory=dict)
    """Figures that were not believed, by reason; replaced, never changed."""


class Sampler:
    """Reads `open_source()` every `interval_seconds` until stopped.

    `deliver` is called on the sampler's thread; the app wraps it so that events
    arrive on the event loop. `boundary` is what they name; None: the source's own.
    """

    def __init__(
        self,
        open_source: Callable[[], EnergySource],
        interval_seconds: float,
        deliver: Callable[[PowerSampled], None],
        boundary: str | None = None,
        max_watts: float | None = None,
    ) -> None:
        """`max_watts` is what a device may draw; None: as the boundary's devices do."""
        self.interval_seconds = interval_seconds
        self.stats = SamplerStats()
        if boundary is not None:
            self.stats.boundary = boundary
        self.errors = LoopErrors()
        """Defects; what a source cannot do is counted in `stats`."""
        self.source: EnergySource | None = None
        """The one that is open and answers, for other questions than its energy."""
        self._boundary = boundary
        self._open_source = open_source
        self._deliver = deliver
        self._newest_seconds = -math.inf
        self._max_watts = max_watts
        self._gate: ReadingGate | None = None
        self._said_seconds: dict[tuple[str, str], float] = {}
        self._shown_seconds: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self.stats.heard_seconds = time.monotonic()
        self._thread.start()

    def check(self, now_seconds: float) -> None:
        """Notice a source that hangs: down until it answers; not from its thread."""
        stats = self.stats
        silent_seconds = now_seconds - stats.heard_seconds
        if stats.is_up and silent_seconds > self.interval_seconds + OVERDUE_SECONDS:
            stats.is_up = False
            stats.errors += 1
            stats.last_error = f"no answer for {silent_seconds:.0f} s"
            log.error("power source: %s; energy is unknown", stats.last_error)
            reason = stats.last_error
            self._deliver(PowerSampled(stats.boundary, now_seconds, gap_reason=reason))

    def stop(self, timeout_seconds: float = 5.0) -> None:
        """End the thread and close the source; waits for a read in progress."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            source: EnergySource | None = None
            before = self.stats.samples
            try:
                source = self.source = self._open_source()
                self._read_on_grid(source)
            except ProxyError as error:
                failures = 0 if self.stats.samples > before else failures
                self._failed(str(error))
            except Exception as error:  # the thread's outermost loop: it must live on
                failures = 0 if self.stats.samples > before else failures
                self.errors.note("sampler", error)
                self._failed(f"{type(error).__name__}: {error}")
            finally:
                self.source = None
                with self.errors.caught("sampler"):
                    if source is not None:
                        source.close()
            pause = RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)]
            failures += 1
            self._stop.wait(pause)

    def _read_on_grid(self, source: EnergySource) -> None:
        """Read until stopped; returns or raises SensorError."""
        due = time.monotonic()
        pace = ReadingPace(self.interval_seconds)
        while not self._stop.is_set():
            begin = time.monotonic()
            found = source.read()
            end = time.monotonic()
            check_instant(source.name, found, end - begin)
            stats = self.stats
            stats.samples += 1
            stats.read_seconds += end - begin
            stats.heard_seconds = end
            readings, fault = self._believed(source, found, end)
            stats.is_simulated = source.is_simulated
            stats.boundary = self._boundary or source.boundary
            if isinstance(source, RemoteSource):
                stats.clock_offset_seconds = source.clock_offset_seconds
            at_seconds = self._instant(readings, begin, end)
            if fault is None:
                stats.is_up = True
                self._deliver(PowerSampled(stats.boundary, at_seconds, tuple(readings)))
            else:
                self._failed(fault)
            due += (
                pace.pause_seconds((begin + end) / 2, readings)
                if isinstance(source, FollowedSource)
                else self.interval_seconds
            )
            overrun = int((end - due) / self.interval_seconds) if end > due else 0
            stats.missed += overrun
            due += overrun * self.interval_seconds
            self._stop.wait(max(0.0, due - time.monotonic()))

    def _instant(self, readings: Sequence[Reading], begin: float, end: float) -> float:
        """When the readings were taken; never earlier than the ones before.

        A remote clock that is set, or better known, must not turn time back.
        """
        own = [r.at_seconds for r in readings if r.at_seconds is not None]
        at = min(max(own), end) if own else (begin + end) / 2
        self._newest_seconds = max(at, self._newest_seconds)
        return self._newest_seconds

    def _believed(
        self, source: EnergySource, readings: Sequence[Reading], now_seconds: float
    ) -> tuple[Sequence[Reading], str | None]:
        """What the gate lets pass; and why nothing did, if so: a failed read."""
        if self._gate is None:
            stated = self._max_watts
            self._gate = ReadingGate(stated or MAX_WATTS[source.boundary])
        passed, rejected = self._gate.checked(
            now_seconds,
            readings,
            # what the user states goes before what the board says
            source.max_watts()
            if self._max_watts is None and isinstance(source, BoundedSource)
            else None,
            max_behind_seconds=MAX_BEHIND_SECONDS
            if isinstance(source, RemoteSource)
            else math.inf,
        )
        self._note_devices(source, passed, now_seconds)
        if not rejected:
            return passed, None
        self.stats.rejected = {**self._gate.rejected_total}
        own = [reading for reading in passed if not reading.is_outside]
        if any(r.joules is not None or r.watts is not None for r in own):
            self._say(source, rejected, now_seconds)
            return passed, None
        why = ", ".join(
            sorted({f"{r.device} {r.figure}: {r.reason}" for r in rejected})
        )
        return passed, f"{source.name}: no reading is believed ({why})"

    def _note_devices(
        self, source: EnergySource, readings: Sequence[Reading], now_seconds: float
    ) -> None:
        """Say which devices came, and which are gone."""
        shown = self._shown_seconds
        is_first = not shown
        for reading in readings:
            name = reading.device
            is_new = not is_first and name not in shown
            if is_new and self._is_news((name, "came"), now_seconds):
                log.warning("power source: %s: %s came", source.name, name)
            shown[name] = now_seconds
        if len(shown) > len(readings):
            for name in [
                n for n, at in shown.items() if now_seconds - at > GONE_SECONDS
            ]:
                del shown[name]
                if self._is_news((name, "gone"), now_seconds):
                    log.warning(
                        "power source: %s: %s is gone for %g s: metered without it",
                        source.name, name, GONE_SECONDS,
                    )  # fmt: skip

    def _say(
        self, source: EnergySource, rejected: Sequence[Rejected], now_seconds: float
    ) -> None:
        """Each kind of fault once a minute at most."""
        for fault in rejected:
            if self._is_news((fault.device, fault.reason), now_seconds):
                log.warning("power source: %s: not believed: %s", source.name, fault)

    def _is_news(self, what: tuple[str, str], now_seconds: float) -> bool:
        """Whether it was not said in the last minute."""
        if now_seconds < self._said_seconds.get(what, -math.inf) + SAY_SECONDS:
            return False
        if len(self._said_seconds) >= MAX_SAID:
            self._said_seconds.clear()
        self._said_seconds[what] = now_seconds
        return True

    def _failed(self, reason: str) -> None:
        is_change = self.stats.is_up or self.stats.last_error != reason
        if is_change and self._is_news(("", reason), time.monotonic()):
            log.warning("power source: %s; energy is unknown until it answers", reason)
        self.stats.errors += 1
        self.stats.heard_seconds = time.monotonic()
        self.stats.last_error = reason
        self.stats.is_up = False
        boundary, at_seconds = self.stats.boundary, time.monotonic()
        self._deliver(PowerSampled(boundary, at_seconds, gap_reason=reason))


def check_instant(
    source: str, readings: Sequence[Reading], took_seconds: float
) -> None:
    """Raises SensorError for a read that hung: nobody knows when it was measured."""
    if took_seconds > MAX_READ_SECONDS and any(r.at_seconds is None for r in readings):
        raise SensorError(f"{source}: one read took {took_seconds:.0f} s")


def read_once(open_source: Callable[[], EnergySource]) -> Sequence[Reading]:
    """Open, read and close: does this source work here? Raises ProxyError."""
    source = open_source()
    try:
        readings = source.read()
    finally:
        source.close()
    if not readings:
        raise SensorError(f"{source.name} shows no device")
    return readings
