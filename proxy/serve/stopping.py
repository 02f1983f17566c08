"""How a process of the proxy is asked to stop, and how its requests end then."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable
from typing import Protocol

from proxy.process.host import stop_with_parent
from proxy.relay.counters import RelayCounters

log = logging.getLogger("servewatt.proxy")


class Draining(Protocol):
    """A relay, or several in processes of their own."""

    @property
    def counters(self) -> RelayCounters:
        """Requests in flight among them."""

    async def drain(self, timeout_seconds: float) -> int:
        """Take no new connections, let requests finish; how many were left over."""


class Stopping:
    """Asked once to stop, or twice; or left by whoever started the process."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurry = asyncio.Event()
        """Asked twice to stop: nothing is waited for."""
        self.has_no_clients = False
        """Its only client has ended: nobody has to be told first."""

    def begin(self, *, until_eof: bool) -> None:
        """On SIGINT and SIGTERM; for a child, at the end of standard input too."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.ask)
        if until_eof:
            stop_with_parent(loop, self._parent_ended)

    def ask(self) -> None:
        """Stop; a second time: at once."""
        if self.asked.is_set():
            self.hurry.set()
        self.asked.set()

    async def unless_hurried(self, wait: Awaitable[object]) -> None:
        """Await this, or the second signal."""
        waits = [
            asyncio.ensure_future(wait),
            asyncio.ensure_future(self.hurry.wait()),
        ]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for future in waits:
            future.cancel()
        await asyncio.gather(*waits, return_exceptions=True)

    async def drain(
        self, relay: Draining, delay_seconds: float, timeout_seconds: float
    ) -> None:
        """Unready first, then closed to new connections, then out of time."""
        if not self.has_no_clients:
            await self.unless_hurried(asyncio.sleep(delay_seconds))
        in_flight = relay.counters.in_flight
        if in_flight:
            log.info(
                "stopping: %d requests have %g s to finish", in_flight, timeout_seconds
            )
        await self.unless_hurried(relay.drain(timeout_seconds))
        if relay.counters.in_flight:
            log.warning("cutting %d requests", relay.counters.in_flight)

    def _parent_ended(self) -> None:
        """Whoever started this process is done with it: nobody new is coming."""
        self.has_no_clients = True
        self.asked.set()
