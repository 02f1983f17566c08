"""Wiring, start and stop: one event loop, a thread per sensor, two ports."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import uvloop

from proxy import __version__
from proxy.admin.auth import AdminAccess, admin_access
from proxy.admin.routes import AdminSources, admin_app
from proxy.admin.server import AdminConnections, AdminServer, listen
from proxy.admin.views import ProcessRun
from proxy.errors import ConfigError, ProxyError
from proxy.metrics.collector import Metrics
from proxy.metrics.recent import SHOWN_REQUESTS, render_recent
from proxy.metrics.samples import DELAY_EDGES, ProcessStates, Snapshot
from proxy.process.host import raise_open_files
from proxy.process.logs import dropped_lines
from proxy.process.supervise import LoopErrors
from proxy.process.systemd import ALIVE, READY, STOPPING, supervisor
from proxy.process.tally import Tally
from proxy.recording.recorder import Recorder
from proxy.relay.config import RelayConfig
from proxy.relay.counters import RelayCounters
from proxy.relay.link.messages import Unseen
from proxy.relay.link.meter_end import RelayLinks
from proxy.relay.routing.labels import check_tenant_header
from proxy.relay.server import RelayServer
from proxy.relay.upstream.upstream import Upstream
from proxy.security.secrets import read_secret
from proxy.security.tls import Identity
from proxy.serve.config import ServeConfig, state_folder, url_without_user
from proxy.serve.fleet import Fleet
from proxy.serve.idle_memory import IdleMemory
from proxy.serve.orders import Follower
from proxy.serve.parts import MeterPart
from proxy.serve.plan import Changes, Plan, changes_of
from proxy.serve.stopping import Stopping
from proxy.serve.upstream import MeteredUpstream, build_metered
from proxy.store.address import store_url
from proxy.store.archive import Archive

log = logging.getLogger("servewatt.proxy")

SWITCH_SECONDS = 0.0001
"""How long a chunk may wait for a thread that renders `/metrics` or writes records;
Python's own 5 ms is all that a scrape may add to the p99. The median wake-up of the
loop meanwhile is 0.9 ms later with half a millisecond, with this 0.2 ms, and the page
takes no longer."""
BEAT_SECONDS = 0.05
"""How often windows are settled: ten beats per window."""
GOODBYE_SECONDS = 5.0
"""For relays in processes of their own, after their last request."""
OTHER_FILES = 136
"""Open ones beside two for each connection and the admin port's: sensors, the store,
logs, libraries."""


def run(
    config: ServeConfig,
    announce: Callable[[dict[str, Any]], None],
    *,
    until_eof: bool,
    read_again: Callable[[], ServeConfig] | None = None,
) -> None:
    """Serve until SIGINT, SIGTERM or, for a child, the end of standard input.

    On SIGHUP secrets and certificates are read again, and the configuration where
    `read_again` has one; it raises ConfigError for a file that cannot be used.

    Raises ConfigError for what can never work, ProxyError for a taken port.
    """
    if config.relays > 1:
        from proxy.serve.processes import run_processes  # the usual proxy is one

        run_processes(config, announce, until_eof=until_eof, read_again=read_again)
    else:
        run_process(config, announce, until_eof=until_eof, read_again=read_again)


def run_process(
    config: ServeConfig,
    announce: Callable[[dict[str, Any]], None],
    *,
    until_eof: bool,
    read_again: Callable[[], ServeConfig] | None = None,
    part: MeterPart | None = None,
) -> None:
    """The whole proxy in this process; as a `part`, all of it but the relays.

    Raises ConfigError for what can never work, ProxyError for a taken port.
    """
    access = admin_access(config.admin[0], config.admin_token_file)
    relay_config = relay_config_of(config)
    process = ProcessRun(uuid.uuid4().hex, time.monotonic())
    memory = None if part is None else IdleMemory(Path(f"{part.path}-idle.json"))
    first = build_metered(
        config.upstreams,
        config.metering,
        process,
        count=len(config.upstreams),
        brought_by={} if part is None else part.use.plan.brought_by,
        last_idle_watts={} if memory is None else memory.last,
    )
    sys.setswitchinterval(SWITCH_SECONDS)
    allow_connections(
        relay_config.max_connections if part is None else 0,
        config.admin_limits.admin_max_connections,
    )
    app = _App(config, Fleet(first), access, relay_config, process, read_again, part)
    app.memory = memory
    uvloop.run(app.serve(announce, until_eof))


def relay_config_of(config: ServeConfig) -> RelayConfig:
    """The relay's config; its secrets are read here and kept nowhere else.

    Raises ConfigError where a secret is missing, or would be shown.
    """
    hash_key: str | None = None
    if config.tenant_hash_key_file is not None:
        hash_key = read_secret("--tenant-hash-key-file", config.tenant_hash_key_file)
    check_tenant_header(config.relay.tenant_header, hash_key)
    return RelayConfig(
        upstream_url=config.upstreams[0].url,
        host=config.listen[0],
        port=config.listen[1],
        identity=config.tls.identity(),
        tenant_hash_key=hash_key,
        **asdict(config.relay),
        **asdict(config.limits),
    )


def hash_key_again(relay: RelayServer, path: str) -> tuple[str | None, str]:
    """Hash tenants by the key as its file is now; the key, and a line about it."""
    try:
        key = read_secret("--tenant-hash-key-file", path)
    except ConfigError as error:
        log.error("%s; going on with the key in use", error)
        return None, "the tenant hash key in use stays"
    relay.use_hash_key(key)
    return key, "tenant hash key read again"


def tls_again(name: str, reload_tls: Callable[[], None]) -> str:
    """Use an upstream's certificates as their files are now; a line about it."""
    try:
        reload_tls()
    except ConfigError as error:
        log.error("%s; going on with the files in use", error)
        return f"TLS files of upstream {name} in use stay"
    return f"TLS files of upstream {name} read again"


Built = tuple[ProcessRun, list[MeteredUpstream]]
"""New upstreams, and the run that begins with them."""


class _App:
    """Everything that lives as long as the process."""

    def __init__(
        self,
        config: ServeConfig,
        fleet: Fleet[MeteredUpstream],
        access: AdminAccess,
        relay_config: RelayConfig,
        process: ProcessRun,
        read_again: Callable[[], ServeConfig] | None = None,
        part: MeterPart | None = None,
    ) -> None:
        self.config = config
        self.part = part
        self.read_again = read_again
        self.access = access
        self.relay_config = relay_config
        self.identity = relay_config.identity
        self.admin_identity = self.identity if config.tls.admin_tls else None
        self.fleet = fleet
        self.process = process
        self.records = Archive(
            None if config.store is None else store_url(config.store),
            upstream=url_without_user(config.upstreams[0].url),
            upstreams=self._addresses(),
            boundaries=self._boundaries(),
            retention=config.retention,
            run=process.name,
            policy=config.metering.policy,
            journal_folder=state_folder(),
        )
        self.recorder: Recorder | None = None
        if config.recording.record is not None:
            self.recorder = Recorder(config.recording, config.relay.session_header)
        self.metrics = Metrics()
        self.relay: RelayServer | None = None
        self.memory: IdleMemory | None = None
        self.links: RelayLinks | None = None
        """In the place of a relay, where relays are processes of their own."""
        self.loop_lag_seconds = 0.0
        self.loop_delay_seconds = Tally(DELAY_EDGES)
        self.errors = LoopErrors()
        self.reloading: asyncio.Task[None] | None = None
        self.wants_reload = False
        self.host = socket.gethostname()
        self.instance = config.instance or ""
        """Its default is known once the relay listens."""
        self.reloads: Counter[str] = Counter()
        """Files of `--config` read again, by what became of them."""
        self.follower: Follower[Built] | None = None
        """Of who started this process, where it is one of several."""
        if part is not None:
            self.follower = Follower(part.use, self._build, self._take, self.errors)
        self.supervisor = supervisor()
        self.stopping = Stopping()

    async def serve(
        self, announce: Callable[[dict[str, Any]], None], until_eof: bool
    ) -> None:
        loop = asyncio.get_running_loop()
        self.stopping.begin(until_eof=until_eof)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        relay = await self._listen()
        host, _ = self.config.listen
        self.instance = self.instance or f"{self.host}/{host}:{relay.port}"
        self.records.start(self.instance, self.host)
        if self.recorder is not None:
            self.recorder.start()
        admin = await self._open_admin()
        self.fleet.begin(self.errors)
        beat = asyncio.create_task(self._beat_until_stopped())
        following: asyncio.Task[None] | None = None
        if self.part is not None and self.follower is not None:
            await self.follower.begin(self.part.orders)
            following = asyncio.create_task(self.follower.follow())
        # modules stay: without them a full collection is 30 ms shorter
        gc.collect()
        gc.freeze()
        announce(
            {
                "url": _url(self.config.listen[0], relay.port, self.identity),
                "admin_url": _url(
                    self.config.admin[0], admin.port, self.admin_identity
                ),
            }
        )
        self.supervisor.notify(READY)
        await self.stopping.asked.wait()
        self.supervisor.notify(STOPPING)
        timeout_seconds = self.config.drain_timeout_seconds
        if self.part is not None:
            timeout_seconds += self.config.drain_delay_seconds + GOODBYE_SECONDS
        await self.stopping.drain(
            relay, self.config.drain_delay_seconds, timeout_seconds
        )
        await relay.close()  # those left over end now, and have records too
        await self._settle_the_last()
        for change in (self.reloading, following):
            if change is not None:
                change.cancel()
        await self.fleet.stop_watching()
        beat.cancel()
        await asyncio.gather(beat, return_exceptions=True)
        if not self.stopping.hurry.is_set():  # a thread that hangs would be waited for
            for upstream in self.fleet:
                await asyncio.to_thread(upstream.sensors.stop)
        for upstream in self.fleet:
            with self.errors.caught("calibration"):
                await upstream.save_calibration()
        await asyncio.to_thread(self.records.stop)
        if self.recorder is not None:
            await asyncio.to_thread(self.recorder.stop)
        await admin.close()

    async def _listen(self) -> RelayServer | RelayLinks:
        upstreams = [
            upstream.open_upstream(
                self.relay_config, time.monotonic, self.records, self.recorder
            )
            for upstream in self.fleet.current
        ]
        if self.part is not None:
            links = self.links = RelayLinks(
                self.part.port,
                self.config.relays,
                lambda: [each.upstream for each in self.fleet],
                self.loop_delay_seconds,
                time.monotonic,
                self.errors,
                self._tell_end,
            )
            await links.listen(self.part.path)
            return links
        counters = RelayCounters()
        relay = self.relay = RelayServer(
            self.relay_config, upstreams, counters, time.monotonic
        )
        await relay.listen()
        return relay

    async def _open_admin(self) -> AdminServer:
        host, port = self.config.admin
        self.sources = self._admin_sources()
        app = admin_app(self.sources, self.access)
        try:
            shown = self.admin_identity
            tls = None if shown is None else shown.context
            connections = AdminConnections(self.config.admin_limits)
            return await listen(app, host, port, tls, connections)
        except OSError as error:
            raise ProxyError(
                f"cannot listen on {host}:{port}: {error.strerror or error}; "
                "give another --admin address, or port 0 for any free one"
            ) from None

    def _admin_sources(self) -> AdminSources:
        return AdminSources(
            engines=[upstream.sources() for upstream in self.fleet.current],
            records=self.records,
            version=__version__,
            config=self.config.shown(),
            freshen=lambda: self.metrics.show(self._snapshot()),
            render_metrics=self.metrics.render,
            render_recent=lambda: render_recent(self.records.last(SHOWN_REQUESTS)),
            sample_interval_seconds=self.config.metering.sample_interval_seconds,
            run=self.process,
            instance=self.instance,
            host=self.host,
            ended=self.metrics.ended,
            errors=self.errors,
            is_stopping=self.stopping.asked.is_set,
            relays_away=lambda: () if self.links is None else self.links.away,
            relays=self.config.relays,
        )

    def _reload(self) -> None:
        """SIGHUP: read again what may change while requests flow; one at a time."""
        self.wants_reload = True
        if self.reloading is None or self.reloading.done():
            self.reloading = asyncio.get_running_loop().create_task(
                self._reload_while_wanted()
            )

    async def _reload_while_wanted(self) -> None:
        while self.wants_reload and not self.stopping.asked.is_set():
            self.wants_reload = False
            with self.errors.caught("reload"):
                done = [self.access.reload()]
                if self.identity is not None:
                    done.append(self.identity.reload())
                done += self._reload_secrets()
                if self.read_again is not None:
                    done.append(await self._reload_config(self.read_again))
                log.info("SIGHUP: %s", "; ".join(done))

    def _reload_secrets(self) -> list[str]:
        """Certificates shown to upstreams, and the key of tenants' hashes."""
        done: list[str] = []
        for upstream in self.fleet.current:
            if upstream.config.tls:
                done.append(tls_again(upstream.config.name, upstream.reload_tls))
        path = self.config.tenant_hash_key_file
        if path is not None and self.relay is not None:
            key, text = hash_key_again(self.relay, path)
            self.relay_config = replace(
                self.relay_config,
                tenant_hash_key=key or self.relay_config.tenant_hash_key,
            )
            done.append(text)
        return done

    async def _reload_config(self, read_again: Callable[[], ServeConfig]) -> str:
        """Its upstreams are used, all or none; the rest is said to need a restart."""
        try:
            new = await asyncio.to_thread(read_again)
            changes = changes_of(self.fleet.configs, new.upstreams)
            built = await self._build(None, changes)
        except ProxyError as error:
            self.reloads["refused"] += 1
            log.error("%s; going on with the configuration in use", error)
            return "the configuration in use stays"
        said = changes.said(new, self.config)
        await self._take(changes, built)
        self.reloads["used"] += 1
        return said

    async def _build(self, plan: Plan | None, changes: Changes) -> Built:
        """What is new, open and in a run of its own. Raises ConfigError."""
        run = ProcessRun(uuid.uuid4().hex, time.monotonic())
        built = await asyncio.to_thread(
            build_metered,
            changes.new,
            self.config.metering,
            run,
            count=len(changes.names),
            brought_by={} if plan is None else plan.brought_by,
        )
        for upstream in built:
            upstream.open_upstream(
                self.relay_config, time.monotonic, self.records, self.recorder
            )
        return run, built

    async def _take(self, changes: Changes, built: Built) -> None:
        """Fleet, relay, store and admin API go over to the upstreams as changed."""
        run, new = built
        await self.fleet.take(changes, new, self.errors)
        self._use_upstreams(run if changes.text else None)
        self.fleet.let_go(self.errors, self._is_used)
        self.config = replace(self.config, upstreams=self.fleet.configs)
        self.sources.config = self.config.shown()

    def _is_used(self, upstream: Upstream) -> bool:
        """Whether an upstream has requests, or may get one of a relay elsewhere."""
        may_get = self.links is not None and self.links.uses(upstream)
        return may_get or upstream.in_flight > 0

    def _use_upstreams(self, run: ProcessRun | None) -> None:
        """Relay, store and admin API go on with the fleet as it is now."""
        current = self.fleet.current
        if self.relay is not None:
            self.relay.take_upstreams(self.fleet.upstreams)
        self.records.take_upstreams(self._addresses(), self._boundaries())
        self.sources.engines = [each.sources() for each in current]
        if run is not None:
            self.sources.run = run

    def _addresses(self) -> dict[str, str]:
        """Base URLs as the store has them, by engine."""
        return {
            config.name: url_without_user(config.url) for config in self.fleet.configs
        }

    def _boundaries(self) -> dict[str, str]:
        """What the joules of records are measured inside, by engine."""
        return {each.config.name: each.meter.headline for each in self.fleet.current}

    async def _settle_the_last(self) -> None:
        """Wait for the joules of what has just finished; whoever is left has none."""
        now = time.monotonic()
        deadline = now + max(upstream.meter.stop(now) for upstream in self.fleet)
        # the beat settles and signals nobody
        while (left := sum(upstream.unsettled for upstream in self.fleet)) > 0:
            if self.stopping.hurry.is_set() or time.monotonic() >= deadline:
                log.warning("stopping before the energy of %d requests is known", left)
                break
            await asyncio.sleep(BEAT_SECONDS)
        self._settle(deadline)

    async def _beat_until_stopped(self) -> None:
        due = alive_due = time.monotonic()
        watchdog_seconds = self.supervisor.watchdog_seconds
        while True:
            due += BEAT_SECONDS
            await asyncio.sleep(due - time.monotonic())
            now = time.monotonic()
            self.loop_lag_seconds = max(0.0, now - due)
            if self.links is None:
                self.loop_delay_seconds.add(self.loop_lag_seconds)
            else:
                self.links.tell_drains()
                lag_seconds = self.links.loop_lag_seconds
                self.loop_lag_seconds = max(self.loop_lag_seconds, lag_seconds)
            due = max(due, now - BEAT_SECONDS)
            self._settle(now)
            if self.memory is not None:
                with self.errors.caught("idle memory"):
                    meters = {up.config.name: up.meter for up in self.fleet.current}
                    self.memory.keep(meters, now)
            for upstream in list(self.fleet):
                upstream.sensors.check(now)
                with self.errors.caught("calibration"):
                    await upstream.keep_calibration()
            if watchdog_seconds is not None and now >= alive_due:
                self.supervisor.notify(ALIVE)
                alive_due = now + watchdog_seconds / 3

    def _settle(self, now_seconds: float) -> None:
        """Close windows and publish records; a defect here never stops a request."""
        for upstream in self.fleet:
            try:
                records = upstream.meter.settle(now_seconds, self.loop_lag_seconds)
            except Exception as error:  # the outermost loop: it must live on
                upstream.upstream.counters.meter_errors += 1
                self.errors.note("settlement", error)
                continue
            with self.errors.caught("records"):
                self.records.add(records)
                self.records.note(upstream.meter.notes(now_seconds))
            with self.errors.caught("histograms"):
                self.metrics.observe(records)

    def _tell_end(self, unseen: Unseen) -> None:
        """A request that a killed meter had in its journal has ended since."""
        self.records.tell_end(
            unseen.request_id,
            unseen.outcome,
            unseen.status,
            unseen.error,
            unseen.at_seconds,
        )

    def _snapshot(self) -> Snapshot:
        front, links, part = self.relay or self.links, self.links, self.part
        assert front is not None
        loop_errors, dropped = self.errors.total.copy(), dropped_lines()
        processes = None
        if links is not None and part is not None:
            loop_errors.update(links.loop_errors)
            dropped += links.dropped_log_lines
            processes = ProcessStates(
                up=links.up, relay_restarts=links.restarts, meter_restarts=part.restarts
            )
        follower = self.follower
        return Snapshot(
            engines=[
                upstream.snapshot(
                    self.metrics.records_without_energy(upstream.config.name),
                    self.metrics.bins,
                )
                for upstream in self.fleet.current
            ],
            relay=front.counters,
            instance=self.instance,
            host=self.host,
            loop_lag_seconds=self.loop_lag_seconds,
            loop_delay_seconds=self.loop_delay_seconds,
            store=self.records.state(),
            recording=None if self.recorder is None else self.recorder.state(),
            loop_errors=loop_errors,
            dropped_log_lines=dropped,
            processes=processes,
            admin_refused=self.access.counters.refused,
            admin_changes=self.access.counters.changes,
            reloads=self.reloads if follower is None else follower.use.reloads,
        )


def allow_connections(max_connections: int, admin_connections: int) -> None:
    """Raise the limit of open files, and warn where it is too low."""
    needed = 2 * max_connections + admin_connections + OTHER_FILES
    allowed = raise_open_files()
    if allowed is not None and allowed < needed:
        log.warning(
            "only %s open files are allowed, %s connections may need %s: raise the "
            "limit (ulimit -Hn, LimitNOFILE=) or lower --max-connections",
            allowed, max_connections, needed,
        )  # fmt: skip


def _url(host: str, port: int, identity: Identity | None) -> str:
    scheme = "http" if identity is None else "https"
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}:{port}"
