"""Wiring, start and stop: one event loop, a thread per sensor, two ports."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import uvloop
from aiohttp import web

from proxy import __version__
from proxy.admin.auth import AdminAccess, admin_access
from proxy.admin.routes import AdminSources, admin_app
from proxy.errors import ProxyError
from proxy.metrics.collector import Metrics
from proxy.metrics.recent import SHOWN_REQUESTS, render_recent
from proxy.metrics.samples import Snapshot
from proxy.process.host import raise_open_files, stop_with_parent
from proxy.relay.config import RelayConfig
from proxy.relay.counters import RelayCounters
from proxy.relay.routing.labels import check_tenant_header
from proxy.relay.server import RelayServer
from proxy.security.secrets import read_secret
from proxy.security.tls import Identity
from proxy.serve.config import ServeConfig, url_without_user
from proxy.serve.upstream import MeteredUpstream
from proxy.store.address import store_url
from proxy.store.archive import Archive

log = logging.getLogger("servewatt.proxy")

SWITCH_SECONDS = 0.0005
"""How long a chunk may wait for a thread that renders `/metrics` or writes records;
Python's own 5 ms is all that a scrape may add to the p99."""
BEAT_SECONDS = 0.05
"""How often windows are settled: ten beats per window."""
OTHER_FILES = 200
"""Open ones beside two for each connection: sensors, the store, logs, libraries."""
DRAIN_SECONDS = 10.0


def run(
    config: ServeConfig, announce: Callable[[dict[str, Any]], None], *, until_eof: bool
) -> None:
    """Serve until SIGINT, SIGTERM or, for a child, the end of standard input.

    Raises ConfigError for what can never work, ProxyError for a taken port.
    """
    access = admin_access(config.admin[0], config.admin_token_file)
    relay_config = relay_config_of(config)
    is_alone = len(config.upstreams) == 1
    upstreams = [
        MeteredUpstream(upstream, config.metering, is_alone=is_alone)
        for upstream in config.upstreams
    ]
    sys.setswitchinterval(SWITCH_SECONDS)
    allow_connections(relay_config.max_connections)
    uvloop.run(_App(config, upstreams, access, relay_config).serve(announce, until_eof))


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


class _App:
    """Everything that lives as long as the process."""

    def __init__(
        self,
        config: ServeConfig,
        upstreams: Sequence[MeteredUpstream],
        access: AdminAccess,
        relay_config: RelayConfig,
    ) -> None:
        self.config = config
        self.access = access
        self.relay_config = relay_config
        self.identity = relay_config.identity
        self.admin_identity = self.identity if config.tls.admin_tls else None
        self.upstreams = upstreams
        self.records = Archive(
            None if config.store is None else store_url(config.store),
            upstream=url_without_user(config.upstreams[0].url),
            upstreams={u.name: url_without_user(u.url) for u in config.upstreams},
            retention=config.retention,
        )
        self.metrics = Metrics()
        self.relay: RelayServer | None = None
        self.loop_lag_seconds = 0.0
        self.stopping = asyncio.Event()
        self.is_hurried = False
        """Asked twice to stop: no energy is waited for."""

    async def serve(
        self, announce: Callable[[dict[str, Any]], None], until_eof: bool
    ) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        if self.identity is not None:
            loop.add_signal_handler(signal.SIGHUP, self.identity.reload)
        if until_eof:
            stop_with_parent(loop, self.stopping)
        relay = self.relay = await self._listen()
        self.records.start()
        runner = await self._open_admin()
        for upstream in self.upstreams:
            upstream.start_sensors(loop)
        beat = asyncio.create_task(self._beat_until_stopped())
        watches = [asyncio.create_task(upstream.watch()) for upstream in self.upstreams]
        announce(
            {
                "url": _url(self.config.listen[0], relay.port, self.identity),
                "admin_url": _url(
                    self.config.admin[0], _port_of(runner), self.admin_identity
                ),
            }
        )
        await self.stopping.wait()
        await relay.drain(DRAIN_SECONDS)
        await relay.close()  # those left over end now, and have records too
        await self._settle_the_last()
        for task in (*watches, beat):
            task.cancel()
        with suppress(asyncio.CancelledError):
            await beat
        for upstream in self.upstreams:
            await asyncio.to_thread(upstream.sensors.stop)
        for upstream in self.upstreams:
            await upstream.save_calibration()
        await asyncio.to_thread(self.records.stop)
        await runner.cleanup()

    async def _listen(self) -> RelayServer:
        upstreams = [
            upstream.open_upstream(self.relay_config, time.monotonic)
            for upstream in self.upstreams
        ]
        counters = RelayCounters()
        relay = RelayServer(self.relay_config, upstreams, counters, time.monotonic)
        await relay.listen()
        return relay

    async def _open_admin(self) -> web.AppRunner:
        host, port = self.config.admin
        app = admin_app(self._admin_sources(), self.access)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            shown = self.admin_identity
            tls = None if shown is None else shown.context
            await web.TCPSite(runner, host, port, ssl_context=tls).start()
        except OSError as error:
            await runner.cleanup()
            raise ProxyError(
                f"cannot listen on {host}:{port}: {error.strerror or error}; "
                "give another --admin address, or port 0 for any free one"
            ) from None
        return runner

    def _admin_sources(self) -> AdminSources:
        return AdminSources(
            engines=[upstream.sources() for upstream in self.upstreams],
            records=self.records,
            version=__version__,
            config=self.config.shown(),
            freshen=lambda: self.metrics.show(self._snapshot()),
            render_metrics=self.metrics.render,
            render_recent=lambda: render_recent(self.records.last(SHOWN_REQUESTS)),
            sample_interval_seconds=self.config.metering.sample_interval_seconds,
        )

    def _stop(self) -> None:
        self.is_hurried = self.stopping.is_set()
        self.stopping.set()

    async def _settle_the_last(self) -> None:
        """Wait for the joules of what has just finished; whoever is left has none."""
        now = time.monotonic()
        deadline = now + max(upstream.meter.stop(now) for upstream in self.upstreams)
        # the beat settles and signals nobody
        while (left := sum(upstream.unsettled for upstream in self.upstreams)) > 0:
            if self.is_hurried or time.monotonic() >= deadline:
                log.warning("stopping before the energy of %d requests is known", left)
                break
            await asyncio.sleep(BEAT_SECONDS)
        self._settle(deadline)

    async def _beat_until_stopped(self) -> None:
        due = time.monotonic()
        while True:
            due += BEAT_SECONDS
            await asyncio.sleep(due - time.monotonic())
            now = time.monotonic()
            self.loop_lag_seconds = max(0.0, now - due)
            due = max(due, now - BEAT_SECONDS)
            self._settle(now)
            for upstream in self.upstreams:
                await upstream.keep_calibration()

    def _settle(self, now_seconds: float) -> None:
        """Close windows and publish records; a defect here never stops a request."""
        for upstream in self.upstreams:
            try:
                records = upstream.meter.settle(now_seconds)
                self.records.add(records)
                self.metrics.observe(records)
            except Exception:  # the outermost loop: a defect must not end the relay
                upstream.upstream.counters.meter_errors += 1
                log.exception("the meter failed; requests flow, energy may be lost")

    def _snapshot(self) -> Snapshot:
        assert self.relay is not None
        without = self.metrics.records_without_energy
        return Snapshot(
            engines=[
                upstream.snapshot(without[upstream.config.name])
                for upstream in self.upstreams
            ],
            relay=self.relay.counters,
            loop_lag_seconds=self.loop_lag_seconds,
            store=self.records.state(),
        )


def allow_connections(max_connections: int) -> None:
    """Raise the limit of open files, and warn where it is too low."""
    needed = 2 * max_connections + OTHER_FILES
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


def _port_of(runner: web.AppRunner) -> int:
    return int(runner.addresses[0][1])
