"""The upstreams of a running process: taken in and let go while requests flow.

Rule: what is new is built before any change, and asked for its models before any
request goes there; what is gone gets nothing new, finishes what it has, and ends once
its last record is out. An upstream whose settings changed is one that is gone and one
that is new: its books begin anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Generic, Protocol, TypeVar

from proxy.process.supervise import LoopErrors
from proxy.relay.upstream.upstream import Upstream
from proxy.serve.config import UpstreamConfig
from proxy.serve.health import HealthWatch
from proxy.serve.plan import Changes

LOOK_SECONDS = 0.2
"""Between two looks whether an upstream that is let go has finished."""


class Member(Protocol):
    """An upstream, and what a process has of it: a relay less than a meter."""

    config: UpstreamConfig
    upstream: Upstream
    health: HealthWatch

    def asks_models_from_now_on(self) -> bool:
        """It gets others beside it; whether it was alone until now."""

    def take_models(self, models: tuple[str, ...]) -> None:
        """Serve these from now on; none: those that it lists itself."""

    def begin(self, errors: LoopErrors) -> None:
        """It is in use from now on."""

    async def watch(self, errors: LoopErrors) -> None:
        """Ask it how it is, until cancelled."""

    async def end(self, errors: LoopErrors) -> None:
        """No request is left of it: settle what there is, and let go."""


M = TypeVar("M", bound=Member)


class Fleet(Generic[M]):
    """The upstreams that get requests, and those that finish their last ones."""

    def __init__(self, first: Sequence[M]) -> None:
        self.current: list[M] = list(first)
        """In the order of the configuration."""
        self.leaving: list[M] = []
        self._watches: dict[M, asyncio.Task[None]] = {}
        self._endings: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Iterator[M]:
        """All that have requests or records to come."""
        return chain(self.current, self.leaving)

    @property
    def configs(self) -> tuple[UpstreamConfig, ...]:
        """Of those that get requests."""
        return tuple(member.config for member in self.current)

    @property
    def addresses(self) -> Mapping[str, str]:
        """Base URLs of those that get requests, by name."""
        return {config.name: config.url for config in self.configs}

    @property
    def upstreams(self) -> list[Upstream]:
        """Those that get requests, as exchanges see them."""
        return [member.upstream for member in self.current]

    def begin(self, errors: LoopErrors) -> None:
        """Start sensors and watches of the first ones, whose relay is open."""
        for member in self.current:
            self._begin(member, errors)

    async def take(
        self, changes: Changes, built: Sequence[M], errors: LoopErrors
    ) -> None:
        """Make the changes, with those that were built for what is new in them."""
        stay = {config.name: config for config in changes.kept}
        staying = [each for each in self.current if each.config.name in stay]
        has_several = len(changes.names) > 1
        learning = [
            each for each in staying if has_several and each.asks_models_from_now_on()
        ]
        # whoever has several upstreams routes by their models
        await asyncio.gather(*(each.health.ask() for each in (*built, *learning)))
        for member in staying:
            member.take_models(stay[member.config.name].models)
        self.leaving += [each for each in self.current if each not in staying]
        by_name = {each.config.name: each for each in (*staying, *built)}
        self.current = [by_name[name] for name in changes.names]
        for member in built:
            self._begin(member, errors)

    def let_go(
        self,
        errors: LoopErrors,
        is_used: Callable[[Upstream], bool] = lambda upstream: upstream.in_flight > 0,
    ) -> None:
        """End those that left, each once nothing uses it."""
        for member in self.leaving:
            if member in self._watches:
                self._watches.pop(member).cancel()
                ending = asyncio.create_task(self._end(member, errors, is_used))
                self._endings.add(ending)
                ending.add_done_callback(self._endings.discard)

    async def stop_watching(self) -> None:
        """No more questions to engines, and nobody is waited for."""
        tasks = [*self._watches.values(), *self._endings]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, member: M, errors: LoopErrors) -> None:
        member.begin(errors)
        self._watches[member] = asyncio.create_task(member.watch(errors))

    async def _end(
        self, member: M, errors: LoopErrors, is_used: Callable[[Upstream], bool]
    ) -> None:
        while is_used(member.upstream):  # noqa: ASYNC110  counted by exchanges
            await asyncio.sleep(LOOK_SECONDS)
        await member.end(errors)
        self.leaving.remove(member)
