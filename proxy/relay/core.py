"""What all exchanges of one relay share, and what each of them is about."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from proxy.relay.config import RelayConfig
from proxy.relay.counters import RelayCounters
from proxy.relay.routing.choosing import Chooser
from proxy.relay.routing.labels import LabelReader
from proxy.relay.tap import Tap
from proxy.relay.upstream.upstream import Upstream


class InProgress(Protocol):
    """A request in progress, as the relay as a whole sees it."""

    def check_deadline(self, now_seconds: float) -> None:
        """Give up if its time is over."""

    def stop(self) -> None:
        """End it now: the proxy is closing."""


class Client(Protocol):
    """The downstream connection, as its exchange sees it."""

    transport: asyncio.Transport

    def exchange_done(self, *, keeps_alive: bool) -> None:
        """The reply is out (or cut); the next request may start."""


@dataclass(slots=True)
class Core:
    """What all exchanges of one relay share."""

    config: RelayConfig
    upstreams: tuple[Upstream, ...]
    chooser: Chooser
    labels: LabelReader
    counters: RelayCounters
    clock: Callable[[], float]
    loop: asyncio.AbstractEventLoop
    unparsed: deque[Tap]
    """Taps with reads that the next beat parses."""
    exchanges: set[InProgress]
    on_exchange_over: Callable[[], None]
