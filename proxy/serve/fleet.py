"""The upstreams of a running proxy: taken in and let go while requests flow.

Rule: a file that is read again is used whole or not at all. What is new is built and
asked for its models before any request goes there; what is gone gets nothing new,
finishes what it has, and ends once its last record is out. An upstream whose settings
changed is one that is gone and one that is new: its books begin anew.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from types import MappingProxyType

from proxy.admin.views import ProcessRun
from proxy.process.supervise import LoopErrors
from proxy.recording.recorder import Recorder
from proxy.relay.config import RelayConfig
from proxy.serve.config import MeterOptions, UpstreamConfig
from proxy.serve.upstream import MeteredUpstream
from proxy.store.archive import Archive

log = logging.getLogger("servewatt.proxy")

LOOK_SECONDS = 0.2
"""Between two looks whether an upstream that is let go has finished."""


@dataclass(frozen=True, slots=True)
class Changes:
    """The difference between two lists of upstreams, by name."""

    kept: tuple[UpstreamConfig, ...]
    """They stay, some with other models."""
    new: tuple[UpstreamConfig, ...]
    """They have to be built, some in place of one of that name."""
    gone: tuple[str, ...]
    """Of that name nothing stays."""
    names: tuple[str, ...]
    """All names afterwards, in order."""

    @property
    def text(self) -> str:
        """One line; empty where nothing changes but models."""
        names = {config.name for config in self.new}
        changed = sorted(names & set(self.gone))
        parts = {
            "new": sorted(names - set(self.gone)),
            "changed": changed,
            "gone": sorted(set(self.gone) - names),
        }
        return "; ".join(
            f"{what}: {', '.join(which)}" for what, which in parts.items() if which
        )


def changes_of(
    before: Sequence[UpstreamConfig], after: Sequence[UpstreamConfig]
) -> Changes:
    """What stays, what is new and what is gone.

    A single upstream whose sensor shows the host's other GPUs as idle is built anew
    beside others: those GPUs may be theirs.
    """
    was_alone, is_alone = len(before) == 1, len(after) == 1
    known = {config.name: config for config in before}
    kept: list[UpstreamConfig] = []
    new: list[UpstreamConfig] = []
    for config in after:
        old = known.get(config.name)
        may_stay = old is not None and replace(old, models=config.models) == config
        shows_others = was_alone and not is_alone and config.gpus != ()
        (kept if may_stay and not shows_others else new).append(config)
    stay = {config.name for config in kept}
    gone = tuple(config.name for config in before if config.name not in stay)
    names = tuple(config.name for config in after)
    return Changes(tuple(kept), tuple(new), gone, names)


class Fleet:
    """The upstreams that get requests, and those that finish their last ones."""

    def __init__(
        self,
        configs: Sequence[UpstreamConfig],
        metering: MeterOptions,
        run: ProcessRun,
        last_idle_watts: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        """Reads each sensor once. Raises ConfigError for what can never work.

        `last_idle_watts` are those that a process that ended had measured, by engine
        and boundary.
        """
        self._metering = metering
        self.current: list[MeteredUpstream] = _build(
            configs, metering, run, len(configs), last_idle_watts or {}
        )
        """In the order of the configuration."""
        self.leaving: list[MeteredUpstream] = []
        self._watches: dict[MeteredUpstream, asyncio.Task[None]] = {}
        self._endings: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Iterator[MeteredUpstream]:
        """All that have records to come."""
        return chain(self.current, self.leaving)

    @property
    def configs(self) -> tuple[UpstreamConfig, ...]:
        """Of those that get requests."""
        return tuple(upstream.config for upstream in self.current)

    @property
    def addresses(self) -> Mapping[str, str]:
        """Base URLs of those that get requests, by name."""
        return {config.name: config.url for config in self.configs}

    def begin(self, errors: LoopErrors) -> None:
        """Start sensors and watches of the first ones, whose relay is open."""
        for upstream in self.current:
            self._begin(upstream, errors)

    async def change(
        self,
        changes: Changes,
        relay_config: RelayConfig,
        run: ProcessRun,
        errors: LoopErrors,
        records: Archive,
        recorder: Recorder | None = None,
    ) -> None:
        """Build what is new, in this run, and make the changes.

        Raises ConfigError, and then makes none of them.
        """
        count = len(changes.names)
        built = await asyncio.to_thread(_build, changes.new, self._metering, run, count)
        for upstream in built:
            upstream.open_upstream(relay_config, time.monotonic, records, recorder)
        stay = {config.name: config for config in changes.kept}
        staying = [up for up in self.current if up.config.name in stay]
        learning = [up for up in staying if count > 1 and up.asks_models_from_now_on()]
        # whoever has several upstreams routes by their models
        await asyncio.gather(*(up.health.ask() for up in (*built, *learning)))
        for upstream in staying:
            upstream.take_models(stay[upstream.config.name].models)
        self.leaving += [up for up in self.current if up not in staying]
        by_name = {up.config.name: up for up in (*staying, *built)}
        self.current = [by_name[name] for name in changes.names]
        for upstream in built:
            self._begin(upstream, errors)

    def let_go(self, errors: LoopErrors) -> None:
        """End those that left, each once its last record is out."""
        for upstream in self.leaving:
            if upstream in self._watches:
                self._watches.pop(upstream).cancel()
                ending = asyncio.create_task(self._end(upstream, errors))
                self._endings.add(ending)
                ending.add_done_callback(self._endings.discard)

    async def stop_watching(self) -> None:
        """No more questions to engines, and nobody is waited for."""
        tasks = [*self._watches.values(), *self._endings]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, upstream: MeteredUpstream, errors: LoopErrors) -> None:
        upstream.start_sensors(asyncio.get_running_loop(), errors)
        self._watches[upstream] = asyncio.create_task(upstream.watch(errors))

    async def _end(self, upstream: MeteredUpstream, errors: LoopErrors) -> None:
        while upstream.upstream.in_flight:  # noqa: ASYNC110  counted by exchanges
            await asyncio.sleep(LOOK_SECONDS)
        now = time.monotonic()
        deadline = now + upstream.meter.stop(now)
        while (  # noqa: ASYNC110  the beat settles and signals nobody
            upstream.unsettled and time.monotonic() < deadline
        ):
            await asyncio.sleep(LOOK_SECONDS)
        await asyncio.to_thread(upstream.sensors.stop)
        with errors.caught("calibration"):
            await upstream.save_calibration()
        self.leaving.remove(upstream)
        log.info("upstream %s is gone, its last request recorded", upstream.config.name)


def _build(
    configs: Sequence[UpstreamConfig],
    metering: MeterOptions,
    run: ProcessRun,
    count: int,
    last_idle_watts: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
) -> list[MeteredUpstream]:
    """Upstreams of a fleet of `count`; may wait for sensors."""
    return [
        MeteredUpstream(
            config,
            metering,
            is_alone=count == 1,
            run=run,
            last_idle_watts=last_idle_watts.get(config.name),
        )
        for config in configs
    ]
