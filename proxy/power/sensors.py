"""Which sensor measures which boundary, and the threads that read them.

Rule: one source per boundary and one thread per source, so a sensor that hangs or
fails takes nothing from the others. What they read is handed on as events. How the
boards work beside their power is asked by a second thread, for the same reason.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from proxy.errors import ConfigError, SensorError
from proxy.power.argument import BOUNDARIES, stated_max_watts
from proxy.power.energy_source import EnergySource
from proxy.power.hardware_watch import HardwareWatch
from proxy.power.probe import MEASURES, gpus_for
from proxy.power.sampler import Sampler, SamplerStats, read_once
from proxy.power.sources import source_opener
from proxy.process.supervise import LoopErrors
from proxy.wire.events import HardwareObserved, PowerSampled

log = logging.getLogger("servewatt.proxy")


@dataclass(frozen=True, slots=True)
class Sensor:
    """One source as it was asked for, and what is inside its joules."""

    boundary: str
    source: str
    """Its name, without the address."""
    open: Callable[[], EnergySource]
    max_watts: float | None = None
    """What one of its devices draws at most, as stated."""


def plan_sensors(
    powers: Sequence[str], gpus: tuple[str, ...], *, shows_outside: bool = True
) -> list[Sensor]:
    """One sensor for each `--power`, in that order; none for `none` alone.

    With `shows_outside` each tells of the host's other GPUs as well, where it can.

    Raises ConfigError for what can never work: an unknown source, or two of one
    boundary.
    """
    if len(powers) > 1 and "none" in powers:
        raise ConfigError(
            "--power none stands for no sensor at all; leave it out beside "
            f"{', '.join(power for power in powers if power != 'none')}"
        )
    sensors: list[Sensor] = []
    for power in powers:
        sensor = _sensor(power, gpus_for(power, powers, gpus), shows_outside)
        for other in sensors:
            if other.boundary == sensor.boundary:
                raise ConfigError(
                    f"--power {other.source} and {sensor.source} both measure the "
                    f"boundary {sensor.boundary!r}: two figures of the same joules "
                    "are never mixed, nor added; name one of them"
                )
        sensors.append(sensor)
    return [sensor for sensor in sensors if sensor.source != "none"]


def try_sensors(sensors: Sequence[Sensor]) -> None:
    """Read each once. One that fails now may work later: that is only logged.

    Raises ConfigError for one that can never work.
    """
    for sensor in sensors:
        try:
            read_once(sensor.open)
        except SensorError as error:
            log.warning(
                "power source: %s; serving without energy of the %s for now",
                error, sensor.boundary,
            )  # fmt: skip


class Sensors:
    """The threads of all sensors of one upstream."""

    def __init__(self, sensors: Sequence[Sensor], interval_seconds: float) -> None:
        self.sources = {sensor.boundary: sensor.source for sensor in sensors}
        """Names of the sources, by boundary."""
        self._deliver: Callable[[PowerSampled | HardwareObserved], object] | None = None
        self._samplers = {
            sensor.boundary: Sampler(
                sensor.open,
                interval_seconds,
                self._hand_on,
                sensor.boundary,
                sensor.max_watts,
            )
            for sensor in sensors
        }
        self._watches = [
            HardwareWatch(boundary, _answering(sampler), self._hand_on)
            for boundary, sampler in self._samplers.items()
        ]

    def start(
        self,
        deliver: Callable[[PowerSampled | HardwareObserved], object],
        errors: LoopErrors | None = None,
    ) -> None:
        """Begin to read; `deliver` is called on the sensors' threads."""
        self._deliver = deliver
        for sampler in self._samplers.values():
            sampler.errors = errors or sampler.errors
            sampler.start()
        for watch in self._watches:
            watch.errors = errors or watch.errors
            watch.start()

    def stop(self) -> None:
        """End the threads; waits for reads in progress, not without bound."""
        for watch in self._watches:
            watch.stop()
        for sampler in self._samplers.values():
            sampler.stop()

    def check(self, now_seconds: float) -> None:
        """Whether each has answered lately; from the meters' thread."""
        for sampler in self._samplers.values():
            sampler.check(now_seconds)
        for watch in self._watches:
            watch.check(now_seconds)

    def stats_of(self, boundary: str) -> SamplerStats | None:
        """How the sensor of a boundary does; None where there is none."""
        sampler = self._samplers.get(boundary)
        return None if sampler is None else sampler.stats

    def _hand_on(self, event: PowerSampled | HardwareObserved) -> None:
        if self._deliver is not None:
            with suppress(RuntimeError):  # the event loop has just been closed
                self._deliver(event)


def _sensor(power: str, gpus: tuple[str, ...], shows_outside: bool) -> Sensor:
    name = power.partition("=")[0]
    opener = source_opener(power, gpus, shows_outside=shows_outside)
    boundary = MEASURES[name][0]
    if name == "none" or boundary not in BOUNDARIES:
        source = opener()  # its boundary was stated; to say so it reads nothing
        boundary = source.boundary
        source.close()
    return Sensor(boundary, name, opener, stated_max_watts(power))


def _answering(sampler: Sampler) -> Callable[[], EnergySource | None]:
    """The source that a sampler has open, while it answers."""
    return lambda: sampler.source if sampler.stats.is_up else None
