"""A command between two moments of the same sensors; fails open."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from proxy.errors import ConfigError, ProxyError, SensorError
from proxy.measure.config import MeasureConfig
from proxy.measure.phases import parse_phases
from proxy.measure.process import SIGNALLED, check_command, metered_child
from proxy.measure.report import (
    CommandReport,
    PhaseReport,
    SourceReport,
    runtime_times_power,
)
from proxy.measure.watch import Watch
from proxy.power.argument import stated_max_watts
from proxy.power.energy_source import EnergySource, LimitedSource
from proxy.power.probe import MEASURES, gpus_for
from proxy.power.sampler import Sampler
from proxy.power.sources import source_opener
from proxy.process.files import os_reason
from proxy.wire.events import PowerSampled

FIRST_POINT_SECONDS = 0.5
"""Without a baseline, wait this long for a counter to tick: from there it counts."""
LAST_POINT_SECONDS = 3.0
"""And after the end for its next tick; a fast one takes a tenth of that."""


class _WatchedSource:
    """One source with its thread, and what it has shown."""

    def __init__(self, text: str, config: MeasureConfig, lock: threading.Condition):
        self.name = text.partition("=")[0]
        self.watch = Watch(has_baseline=config.baseline_seconds > 0)
        self.limit_watts: float | None = None
        self._lock = lock
        opener = source_opener(text, gpus_for(text, config.sources, config.gpus))
        self.sampler = Sampler(
            opener,
            config.sample_interval_seconds,
            self._deliver,
            max_watts=stated_max_watts(text),
        )
        self._try(opener)

    def _try(self, opener: Callable[[], EnergySource]) -> None:
        """Read it once: what can never work fails before the command runs."""
        try:
            source = opener()
            try:
                if not source.read():
                    raise SensorError(f"{source.name} shows no device")
                if isinstance(source, LimitedSource):
                    self.limit_watts = source.limit_watts()
            finally:
                source.close()
        except ConfigError:
            raise
        except ProxyError as error:
            self.watch.failed(str(error))
        except Exception as error:  # a host may surprise any library; we fail open
            self.watch.failed(f"{self.name} failed: {type(error).__name__}: {error}")

    def _deliver(self, event: PowerSampled) -> None:
        with self._lock:
            if event.gap_reason is None:
                self.watch.sampled(event.at_seconds, event.readings)
            else:
                self.watch.failed(event.gap_reason)
            self._lock.notify_all()

    def report(self, config: MeasureConfig, duration_seconds: float) -> SourceReport:
        """Report of everything that was read; the sampler has stopped."""
        stats = self.sampler.stats
        boundary = stats.boundary
        if boundary == "unknown":  # never read: what it would have measured
            boundary = MEASURES[self.name][0]
        total = self.watch.total()
        watts, origin = self._rated_watts(config, boundary)
        return SourceReport(
            source=self.name,
            boundary=boundary,
            is_simulated=stats.is_simulated,
            devices=self.watch.energies(),
            total=total,
            runtime=runtime_times_power(watts, origin, duration_seconds, total),
            samples=stats.samples,
            missed=stats.missed,
            errors=stats.errors,
            failure=self.watch.first_failure,
        )

    def _rated_watts(
        self, config: MeasureConfig, boundary: str
    ) -> tuple[float | None, str]:
        if boundary in config.tdp_watts:
            return config.tdp_watts[boundary], "--tdp"
        count = len(self.watch.group.devices)
        if boundary == "gpu" and "each" in config.tdp_watts and count:
            return config.tdp_watts["each"] * count, "--tdp"
        return self.limit_watts, "power limit"


def meter_command(config: MeasureConfig) -> CommandReport:
    """Run the command to its end and report its energy.

    A sensor that fails makes joules unknown, no more. Raises CommandError when
    the command cannot be started, ConfigError for options that can never work.
    """
    check_command(config.command[0])
    # The reason is in the report; a line between the command's own would be noise.
    logging.getLogger("servewatt.sampler").setLevel(logging.ERROR)
    lock = threading.Condition()
    sensors = [_WatchedSource(text, config, lock) for text in config.sources]
    for sensor in sensors:
        sensor.sampler.start()
    try:
        _wait_for_baseline(sensors, lock, config.baseline_seconds)
        with metered_child() as child:
            started_unix_seconds = time.time()
            moments: list[float] = []
            stamp = partial(_stamp, moments, sensors, lock)
            code = child.run(config.command, started=stamp, ended=stamp)
            _wait_for_last_points(sensors, lock, config.baseline_seconds)
    finally:
        for sensor in sensors:
            sensor.sampler.stop()
    start_seconds, end_seconds = moments
    duration_seconds = end_seconds - start_seconds
    phases, failure = _phases(config.phases_path, sensors, start_seconds)
    return CommandReport(
        command=config.command,
        name=config.run_name,
        labels=config.labels,
        started_unix_seconds=started_unix_seconds,
        duration_seconds=duration_seconds,
        exit_code=code if code >= 0 else SIGNALLED - code,
        signal=_signal_name(-code) if code < 0 else None,
        sample_interval_seconds=config.sample_interval_seconds,
        sources=tuple(sensor.report(config, duration_seconds) for sensor in sensors),
        phases=phases,
        phases_failure=failure,
    )


def _phases(
    path: Path | None, sensors: list[_WatchedSource], start_seconds: float
) -> tuple[tuple[PhaseReport, ...], str | None]:
    """The command's own phases with their energy; what is wrong with the file."""
    if path is None:
        return (), None
    try:
        text = path.read_bytes().decode(errors="replace")
    except OSError as error:
        return (), f"{path}: {os_reason(error)}"
    found, wrong = parse_phases(text)
    reports = tuple(
        PhaseReport(
            name=phase.name,
            begin_seconds=phase.begin_seconds - start_seconds,
            duration_seconds=phase.end_seconds - phase.begin_seconds,
            energies={
                sensor.name: sensor.watch.energy_between(
                    phase.begin_seconds, phase.end_seconds
                )
                for sensor in sensors
            },
        )
        for phase in found
    )
    return reports, None if wrong is None else f"{path}, {wrong}"


def _stamp(
    moments: list[float], sensors: list[_WatchedSource], lock: threading.Condition
) -> None:
    """The start at the first call, the end at the second; between two readings."""
    with lock:
        moments.append(time.monotonic())
        for sensor in sensors:
            watch = sensor.watch
            (watch.start if len(moments) == 1 else watch.end)(moments[-1])


def _wait_for_baseline(
    sensors: list[_WatchedSource], lock: threading.Condition, baseline_seconds: float
) -> None:
    """Until the baseline is measured and every device has a point to count from."""

    def are_ready() -> bool:
        return all(s.watch.is_failing or s.watch.is_ready for s in sensors)

    if all(sensor.watch.is_failing for sensor in sensors):
        return
    time.sleep(baseline_seconds)
    with lock:
        lock.wait_for(are_ready, FIRST_POINT_SECONDS)


def _wait_for_last_points(
    sensors: list[_WatchedSource], lock: threading.Condition, baseline_seconds: float
) -> None:
    """Until every counter has ticked once more; slow ones had to be asked for."""

    def are_settled() -> bool:
        return all(s.watch.is_failing or s.watch.is_settled for s in sensors)

    with lock:
        lock.wait_for(are_settled, max(LAST_POINT_SECONDS, baseline_seconds))


def _signal_name(number: int) -> str:
    """`SIGTERM`; real-time signals between the first and last have no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
