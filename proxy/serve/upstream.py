"""Everything that exists once for each upstream: meter, sensors, gauges, constants.

Rule: an upstream has GPUs of its own and so a ledger of its own; nothing of one
is shared with another one.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from types import MappingProxyType

from proxy.admin.views import EngineSources, ProcessRun
from proxy.engines import DIALECTS
from proxy.errors import ConfigError
from proxy.meter.config import MeterConfig
from proxy.meter.meter import Meter
from proxy.metrics.histograms import LengthBins
from proxy.metrics.samples import EngineSnapshot, Measured
from proxy.power.accuracy import accuracy_of
from proxy.power.engine_load import GaugeStats, gauges_url, watch_gauges
from proxy.power.hardware import HardwareLog
from proxy.power.sensors import Sensors, plan_sensors, try_sensors
from proxy.process.supervise import LoopErrors
from proxy.recording.recorder import Recorder
from proxy.relay.config import RelayConfig
from proxy.relay.energy_trailer import Provenance
from proxy.relay.tap import RequestMeter
from proxy.relay.upstream.upstream import Record, Upstream, open_upstream
from proxy.serve.config import MeterOptions, UpstreamConfig
from proxy.serve.health import HealthWatch
from proxy.store.archive import Archive
from proxy.store.fits import CalibrationFile
from proxy.wire.events import HardwareObserved, PowerSampled, RequestOpened

log = logging.getLogger("servewatt.proxy")

SETTLE_LOOK_SECONDS = 0.2
"""Between two looks whether an upstream that is let go has its last record."""
KEYS = count(1)
"""Of the requests of all upstreams: one that is let go may have the name of its
successor, and a record finds its note by both."""


def tls_of(config: UpstreamConfig) -> ssl.SSLContext:
    """How it proves who it is. Raises ConfigError for what can never work."""
    context = config.tls.context()
    if config.tls and not config.url.startswith("https:"):
        raise ConfigError(
            f"--upstream {config.url} is plain HTTP and has no use for "
            "--upstream-ca or --upstream-cert; give an https URL"
        )
    return context


def open_with_health(
    config: UpstreamConfig,
    relay_config: RelayConfig,
    meter: RequestMeter,
    clock: Callable[[], float],
    *,
    tls: ssl.SSLContext,
    is_alone: bool,
    provenance: Callable[[], Provenance],
    on_opened: Callable[[RequestOpened], None] = lambda _: None,
    on_closed: Callable[[int, float], None] = lambda _, __: None,
    record: Record | None = None,
    brought_by: int = 0,
) -> tuple[Upstream, HealthWatch]:
    """A relay's way to an upstream, and who asks it how it is."""
    upstream = open_upstream(
        config.name,
        replace(relay_config, upstream_url=config.url, upstream_tls=config.tls),
        meter,
        DIALECTS[config.engine],
        clock,
        provenance=provenance,
        on_opened=on_opened,
        on_closed=on_closed,
        record=record,
        keys=KEYS,
    )
    upstream.brought_by = brought_by
    upstream.role = config.role
    upstream.models = config.models or None
    health = HealthWatch(
        upstream,
        tls=tls,
        asks_models=not is_alone,
        has_fixed_models=bool(config.models),
        path=config.health_path,
    )
    return upstream, health


class OpenUpstream:
    """A relay's way to one upstream, and what of its settings changes in place."""

    config: UpstreamConfig
    upstream: Upstream
    health: HealthWatch
    _tls: ssl.SSLContext

    def reload_tls(self) -> None:
        """Use authorities, certificate and key as their files are now.

        Raises ConfigError for unusable ones, and goes on with those in use.
        """
        if self.config.tls:
            self._tls = self.config.tls.context()
            self.upstream.pool.use_tls(self._tls)
            self.health.use_tls(self._tls)

    def asks_models_from_now_on(self) -> bool:
        """It gets others beside it; whether it was alone until now."""
        was_alone = not self.health.asks_models
        self.health.asks_models = True
        return was_alone

    def take_models(self, models: tuple[str, ...]) -> None:
        """Serve these from now on; none: those that it lists itself."""
        if models == self.config.models:
            return
        self.config = replace(self.config, models=models)
        self.upstream.models = models or None
        self.health.has_fixed_models = bool(models)


class MeteredUpstream(OpenUpstream):
    """One upstream and all that is metered of it."""

    def __init__(
        self,
        config: UpstreamConfig,
        metering: MeterOptions,
        *,
        is_alone: bool = True,
        run: ProcessRun | None = None,
        last_idle_watts: Mapping[str, float] | None = None,
        brought_by: int = 0,
    ) -> None:
        """Reads each sensor once. Raises ConfigError for what can never work.

        `run` is what its books belong to, `last_idle_watts` what a process that ended
        had measured of its boundaries, `brought_by` the number of its plan.
        Beside others it is blind for GPUs that are not its own: they may be theirs.
        """
        self._tls = tls_of(config)
        planned = plan_sensors(config.power, config.gpus, shows_outside=is_alone)
        try_sensors(planned)
        self.config = config
        self.is_alone = is_alone
        self.brought_by = brought_by
        self.calibration = CalibrationFile(config.calibration, config.name)
        self.sensors = Sensors(planned, metering.sample_interval_seconds)
        boundaries = tuple(sensor.boundary for sensor in planned) or ("none",)
        meter_config = MeterConfig(
            boundaries=boundaries,
            sensor_fraction=self._sensor_fraction,
            policy=metering.policy,
            window_seconds=metering.window_seconds,
            has_sensor=bool(planned),
            engine=config.name,
            idle_watts=config.idle_watts,
            last_idle_watts=last_idle_watts or {},
            calibrations=self.calibration.by_model,
            stale_models=self.calibration.stale_models,
        )
        self.meter = Meter(meter_config)
        self.gauges = GaugeStats()
        self.hardware = HardwareLog()
        self.run = run or ProcessRun()

    def open_upstream(
        self,
        config: RelayConfig,
        clock: Callable[[], float],
        records: Archive,
        recorder: Recorder | None = None,
    ) -> Upstream:
        """The relay's way to it, whose limits are the relay's; once.

        `records` learn of each request before the engine does, and when it ended; so
        does `recorder`, where the traffic is recorded.
        """
        self.upstream, self.health = open_with_health(
            self.config,
            config,
            self.meter,
            clock,
            tls=self._tls,
            is_alone=self.is_alone,
            provenance=self._provenance,
            on_opened=partial(records.arrive, self.config.name),
            on_closed=partial(self._end, records, recorder),
            record=None if recorder is None else recorder.opened,
            brought_by=self.brought_by,
        )
        return self.upstream

    def _end(
        self, records: Archive, recorder: Recorder | None, key: int, at_seconds: float
    ) -> None:
        note = None
        try:
            note = self.meter.note_of(key)
            records.end(note)
        except Exception:  # the meter fails open
            self.upstream.counters.meter_errors += 1
        if recorder is not None:
            recorder.ended(key, at_seconds, note)

    async def watch(self, errors: LoopErrors) -> None:
        """Its gauges and its health, for as long as the proxy lives."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(errors.keep("gauges watch", self.watch_engine))
            tasks.create_task(errors.keep("health watch", self.health.watch))

    async def watch_engine(self) -> None:
        """Scrape the engine's gauges for as long as the proxy lives."""
        config = self.config
        where = self.upstream.address.url
        url = gauges_url(config.engine_metrics, config.engine, where)
        if url is None:
            await asyncio.Event().wait()  # there is nothing to watch
        else:
            await watch_gauges(url, self.meter.feed, self.gauges, tls=lambda: self._tls)

    @property
    def unsettled(self) -> int:
        """How many records of it are still to come."""
        return self.meter.state().unsettled_requests

    def begin(self, errors: LoopErrors) -> None:
        """Read sensors on threads of their own, and feed the meter on the loop's."""
        loop = asyncio.get_running_loop()
        self.sensors.start(
            lambda event: loop.call_soon_threadsafe(self._take, event), errors
        )

    async def end(self, errors: LoopErrors) -> None:
        """Its requests have ended: wait for their joules, which others settle."""
        now = time.monotonic()
        deadline = now + self.meter.stop(now)
        while self.unsettled and time.monotonic() < deadline:  # noqa: ASYNC110  the beat settles and signals nobody
            await asyncio.sleep(SETTLE_LOOK_SECONDS)
        await asyncio.to_thread(self.sensors.stop)
        with errors.caught("calibration"):
            await self.save_calibration()
        log.info("upstream %s is gone, its last request recorded", self.config.name)

    def _take(self, event: PowerSampled | HardwareObserved) -> None:
        """Feed the meter, and keep what a run will ask of its boards."""
        if isinstance(event, HardwareObserved):
            self.hardware.add(event)
        self.meter.feed(event)

    def measured(self) -> tuple[Measured, ...]:
        """Every boundary now, the headline first; on the meter's thread only."""
        meter, sensors = self.meter, self.sensors
        return tuple(
            Measured(
                name,
                sensors.sources.get(name, "none"),
                meter.state_of(name),
                sensors.stats_of(name),
                meter.outside_state(name),
                self.config.bare_idle_watts if name == meter.headline else None,
                meter.deadlines_of(name).give_up_seconds,
            )
            for name in meter.names
        )

    def sources(self) -> EngineSources:
        """Where the admin API looks for it."""
        return EngineSources(
            self.config.name,
            self.meter,
            self.measured,
            self.health.answer,
            self.upstream,
            self.hardware,
            self.run,
        )

    async def keep_calibration(self) -> None:
        """Write the constants if that is due."""
        if self.calibration.is_due(time.monotonic()):
            await self.save_calibration()

    async def save_calibration(self) -> None:
        """Write the constants now."""
        learnt = self.meter.state().calibration
        await asyncio.to_thread(self.calibration.save, learnt)

    def snapshot(self, records_without_energy: int, bins: LengthBins) -> EngineSnapshot:
        """What the metrics show of it."""
        upstream, name = self.upstream, self.config.name
        return EngineSnapshot(
            engine=self.config.name,
            measured=self.measured(),
            relay=upstream.counters,
            in_flight=upstream.in_flight,
            is_up=upstream.is_up,
            is_draining=upstream.is_draining,
            records_without_energy=records_without_energy,
            ratios=self.meter.ratios(),
            unjoined_records=dict(self.meter.unjoined_total),
            legs=dict(self.meter.legs_total),
            leg_joules=dict(self.meter.leg_joules),
            gauges=self.gauges,
            is_health_asked=not self.health.is_overdue,
            boards=tuple(self.hardware.now()),
            slowdown_seconds=dict(self.hardware.slowdown_seconds),
            limit_changes=dict(self.hardware.limit_changes),
            at_seconds=time.monotonic(),
            bin_requests=bins.requests_of(name),
            bin_joules=bins.joules_of(name),
        )

    def _sensor_fraction(self, boundary: str) -> float:
        """What a boundary's readings may be off by; 0 where nobody states it."""
        stats = self.sensors.stats_of(boundary)
        source = self.sensors.sources.get(boundary, "none")
        is_simulated = bool(stats and stats.is_simulated)
        return accuracy_of(source, is_simulated=is_simulated) or 0.0

    def _provenance(self) -> Provenance:
        """Origin of the joules in replies."""
        stats = self.sensors.stats_of(self.meter.headline)
        if stats is None:
            return Provenance()
        return Provenance(stats.boundary, stats.is_simulated)


def build_metered(
    configs: Sequence[UpstreamConfig],
    metering: MeterOptions,
    run: ProcessRun,
    *,
    count: int,
    brought_by: Mapping[str, int] = MappingProxyType({}),
    last_idle_watts: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
) -> list[MeteredUpstream]:
    """Upstreams of a fleet of `count`; may wait for sensors.

    `brought_by` and `last_idle_watts` are by name. Raises ConfigError for what can
    never work.
    """
    return [
        MeteredUpstream(
            config,
            metering,
            is_alone=count == 1,
            run=run,
            last_idle_watts=last_idle_watts.get(config.name),
            brought_by=brought_by.get(config.name, 0),
        )
        for config in configs
    ]
