"""One relay of several: sockets to clients and engines, and a link to the meter."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import uvloop

from proxy.metrics.samples import DELAY_EDGES
from proxy.process.logs import dropped_lines
from proxy.process.supervise import LoopErrors
from proxy.process.tally import Tally
from proxy.relay.config import RelayConfig, share_of
from proxy.relay.counters import RelayCounters, figures_of
from proxy.relay.link.messages import EngineFigures, Hello, Report
from proxy.relay.link.relay_end import MeterLink, RemoteMeter
from proxy.relay.server import RelayServer
from proxy.serve.app import (
    BEAT_SECONDS,
    SWITCH_SECONDS,
    allow_connections,
    hash_key_again,
    relay_config_of,
    tls_again,
)
from proxy.serve.config import ServeConfig, UpstreamConfig
from proxy.serve.fleet import Fleet
from proxy.serve.orders import Follower
from proxy.serve.parts import RelayPart
from proxy.serve.plan import Changes, Plan
from proxy.serve.stopping import Stopping
from proxy.serve.upstream import OpenUpstream, open_with_health, tls_of

log = logging.getLogger("servewatt.relay")

BEATS_PER_REPORT = 4
"""Counters go to the meter five times a second."""
GOODBYE_SECONDS = 2.0
"""For the meter's process to take the last that is said."""


def run_relay(
    config: ServeConfig, announce: Callable[[dict[str, Any]], None], part: RelayPart
) -> None:
    """Relay until SIGINT, SIGTERM or the end of standard input.

    Raises ConfigError for what can never work, ProxyError for a taken port.
    """
    relay_config = share_of(
        replace(relay_config_of(config), port=part.port), config.relays
    )
    sys.setswitchinterval(SWITCH_SECONDS)
    allow_connections(relay_config.max_connections, 0)

    async def serve() -> None:
        await _Relay(config, relay_config, part).serve(announce)

    uvloop.run(serve())


class _Relayed(OpenUpstream):
    """One upstream as this relay knows it."""

    def __init__(
        self,
        config: UpstreamConfig,
        relay_config: RelayConfig,
        link: MeterLink,
        *,
        is_alone: bool,
        brought_by: int,
    ) -> None:
        """Raises ConfigError for what can never work."""
        self.config = config
        self._tls = tls_of(config)
        self.meter = RemoteMeter(link)
        self.upstream, self.health = open_with_health(
            config,
            relay_config,
            self.meter,
            time.monotonic,
            tls=self._tls,
            is_alone=is_alone,
            provenance=self.meter.provenance,
            brought_by=brought_by,
        )
        self.meter.engine = self.upstream.id
        self.meter.counters = self.upstream.counters

    def begin(self, errors: LoopErrors) -> None:
        """Nothing to start: the meter's process has its sensors."""

    async def watch(self, errors: LoopErrors) -> None:
        """Its health."""
        await errors.keep("health watch", self.health.watch)

    async def end(self, errors: LoopErrors) -> None:
        """Nothing to settle: the meter's process has its records."""


class _Relay:
    """Everything that lives as long as this process."""

    def __init__(
        self,
        config: ServeConfig,
        relay_config: RelayConfig,
        part: RelayPart,
    ) -> None:
        self.config = config
        self.relay_config = relay_config
        self.part = part
        self.identity = relay_config.identity
        self.errors = LoopErrors()
        self.stopping = Stopping()
        self.lag_seconds = 0.0
        self.delays = Tally(DELAY_EDGES)
        self.counters = RelayCounters()
        self.link = MeterLink(
            part.path, self._hello, self._report, self._drain, time.monotonic
        )
        plan = part.use.plan
        self.fleet = Fleet(self._relayed(plan, plan.upstreams))
        self.follower = Follower(part.use, self._build, self._take, self.errors)
        self.relay = RelayServer(
            relay_config,
            self.fleet.upstreams,
            self.counters,
            time.monotonic,
            shares_port=True,
        )

    async def serve(self, announce: Callable[[dict[str, Any]], None]) -> None:
        """From the first connection to the last request's end."""
        loop = asyncio.get_running_loop()
        self.stopping.begin(until_eof=True)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        keep = self.errors.keep
        tasks = [
            asyncio.create_task(keep("link", self.link.keep)),
            asyncio.create_task(keep("beat", self._beat)),
        ]
        self.fleet.begin(self.errors)
        await self.follower.begin(self.part.orders)
        tasks.append(asyncio.create_task(self.follower.follow()))
        await self.relay.listen()
        gc.collect()
        gc.freeze()
        announce({})
        await self.stopping.asked.wait()
        config = self.config
        await self.stopping.drain(
            self.relay, config.drain_delay_seconds, config.drain_timeout_seconds
        )
        await self.relay.close()  # those left over end now, and have records too
        try:
            async with asyncio.timeout(GOODBYE_SECONDS):
                await self.link.say_goodbye()
        except TimeoutError:
            log.warning("the meter's process did not take the last of this relay")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.fleet.stop_watching()

    def _relayed(self, plan: Plan, configs: Sequence[UpstreamConfig]) -> list[_Relayed]:
        """Those upstreams of a plan, open. Raises ConfigError."""
        return [
            _Relayed(
                config,
                self.relay_config,
                self.link,
                is_alone=len(plan.upstreams) == 1,
                brought_by=plan.brought_by[config.name],
            )
            for config in configs
        ]

    async def _build(self, plan: Plan, changes: Changes) -> list[_Relayed]:
        return self._relayed(plan, changes.new)

    async def _take(self, changes: Changes, built: list[_Relayed]) -> None:
        await self.fleet.take(changes, built, self.errors)
        self.relay.take_upstreams(self.fleet.upstreams)
        self.fleet.let_go(self.errors)

    async def _beat(self) -> None:
        due, beats = time.monotonic(), 0
        while True:
            due += BEAT_SECONDS
            await asyncio.sleep(due - time.monotonic())
            now = time.monotonic()
            self.lag_seconds = max(0.0, now - due)
            self.delays.add(self.lag_seconds)
            due = max(due, now - BEAT_SECONDS)
            beats += 1
            if beats % BEATS_PER_REPORT == 0:
                self.link.report()

    def _hello(self) -> Hello:
        draining = tuple(
            each.upstream.id for each in self.fleet if each.upstream.is_draining
        )
        return Hello(self.part.number, self.part.starts, os.getpid(), draining)

    def _report(self) -> Report:
        return Report(
            figures_of(self.counters),
            {
                each.upstream.id: EngineFigures(
                    figures_of(each.upstream.counters), each.upstream.in_flight
                )
                for each in self.fleet
            },
            self.lag_seconds,
            (list(self.delays.counts), self.delays.total),
            dict(self.errors.total),
            dropped_lines(),
        )

    def _drain(self, engine: str, is_draining: bool) -> None:
        for each in self.fleet:
            if each.upstream.id == engine:
                each.upstream.drain(is_draining)

    def _reload(self) -> None:
        """SIGHUP: certificates and secrets are read again, as in one process."""
        with self.errors.caught("reload"):
            identity = self.identity
            done = [] if identity is None else [identity.reload()]
            for each in self.fleet.current:
                if each.config.tls:
                    done.append(tls_again(each.config.name, each.reload_tls))
            path = self.config.tenant_hash_key_file
            if path is not None:
                done.append(hash_key_again(self.relay, path)[1])
            if done:
                log.info("SIGHUP: %s", "; ".join(done))
