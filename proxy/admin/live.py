"""What the live page shows, once a second, to everyone who looks at it.

One message is made for all: it costs the loop the same for one page as for sixteen,
and nothing while nobody looks.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from itertools import pairwise
from typing import Any

import msgspec

from proxy.admin.views import EngineSources, engine_books, engine_info, upstream_reply
from proxy.meter.ledger import Books
from proxy.meter.meter import Meter
from proxy.process.supervise import LoopErrors
from proxy.wire.api import LiveEngine, LiveReply, PowerRow, RunningRequest

BEAT_SECONDS = 1.0
ROW_SECONDS = 1.0
SHOWN_SECONDS = 180
"""Of power, for a page that begins."""
SHOWN_RUNNING = 50
SHOWN_RECENT = 30
MAX_PAGES = 16
"""Each holds a connection of the admin port, which has a few dozen."""
PAGE_SECONDS = 100.0
"""Then a stream ends and its page asks again: no reply of the admin port is endless."""


class PowerRows:
    """Watts by account of one engine, a row for each settled second."""

    def __init__(self, kept: int = SHOWN_SECONDS) -> None:
        self.rows: deque[PowerRow] = deque(maxlen=kept)
        self._until_seconds = -math.inf
        """A whole number of seconds of the meter's clock."""

    def advance(self, meter: Meter, unix_offset_seconds: float) -> list[PowerRow]:
        """The rows of what was settled since the last call; those before are kept."""
        settled = meter.books_at().settled_seconds
        oldest = meter.oldest_of(meter.headline)
        if not math.isfinite(settled) or oldest is None:
            return []
        last = math.floor(settled / ROW_SECONDS) * ROW_SECONDS
        first = max(
            self._until_seconds,
            last - (self.rows.maxlen or SHOWN_SECONDS) * ROW_SECONDS,
            math.ceil(oldest / ROW_SECONDS) * ROW_SECONDS,
        )
        count = max(0, round((last - first) / ROW_SECONDS))
        if not count:
            return []
        edges = [first + n * ROW_SECONDS for n in range(count + 1)]
        books = [meter.books_at(edge) for edge in edges]
        new = [
            _row(edge + unix_offset_seconds, before, after)
            for edge, (before, after) in zip(edges[1:], pairwise(books), strict=True)
        ]
        self.rows.extend(new)
        self._until_seconds = last
        return new


def _row(at_unix_seconds: float, before: Books, after: Books) -> PowerRow:
    if after.gap_seconds > before.gap_seconds:
        return PowerRow(at_unix_seconds=at_unix_seconds)

    def watts(name: str) -> float:
        return float(getattr(after, name) - getattr(before, name)) / ROW_SECONDS

    unattributed = [
        sum(books.unattributed_joules.values()) for books in (before, after)
    ]
    return PowerRow(
        at_unix_seconds=at_unix_seconds,
        prefill_watts=watts("prefill_joules"),
        decode_watts=watts("decode_joules"),
        idle_share_watts=watts("idle_share_joules"),
        idle_watts=watts("idle_joules"),
        unattributed_watts=(unattributed[1] - unattributed[0]) / ROW_SECONDS,
    )


def running_requests(
    engines: Sequence[EngineSources],
    now_seconds: float,
    unix_offset_seconds: float,
    shown: int = SHOWN_RUNNING,
) -> tuple[list[RunningRequest], dict[str, int]]:
    """The oldest requests that run, and how many do by engine."""
    opened = [
        (timeline.arrived_seconds, engine, event, timeline)
        for engine in engines
        for event, timeline in engine.boundaries.running()
    ]
    counts = {engine.name: 0 for engine in engines}
    for _, engine, *_ in opened:
        counts[engine.name] += 1
    opened.sort(key=lambda each: each[0])
    found = []
    for arrived, engine, event, timeline in opened[:shown]:
        so_far = engine.boundaries.estimate(event.key, now_seconds)
        found.append(
            RunningRequest(
                request_id=event.request_id,
                engine=engine.name,
                model=event.labels.model,
                kind=event.labels.kind,
                tenant=event.labels.tenant,
                arrived_unix_seconds=arrived + unix_offset_seconds,
                prompt_tokens=timeline.prompt_tokens,
                output_tokens=timeline.counted_tokens,
                energy_joules=so_far.energy.energy_joules,
            )
        )
    return found, counts


class LiveFeed:
    """The messages of `/live`: made while somebody listens, the same for all."""

    def __init__(
        self,
        make: Callable[[dict[str, PowerRows], bool], Awaitable[LiveReply]],
        errors: LoopErrors | None = None,
        beat_seconds: float = BEAT_SECONDS,
    ) -> None:
        """`make` builds the message: from the power that was kept, whole or new."""
        self._make = make
        self._errors = errors or LoopErrors()
        self._beat_seconds = beat_seconds
        self._power: dict[str, PowerRows] = {}
        self._message = b""
        self._next: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False
        self.pages = 0

    async def messages(self) -> AsyncGenerator[bytes, None]:
        """Events, the first at once; ends when the process does, or in time."""
        if self._is_closed:
            return
        self.pages += 1
        try:
            loop = asyncio.get_running_loop()
            end = loop.time() + PAGE_SECONDS
            if self._task is None:
                self._task = loop.create_task(self._beat())
            yield await self._event(is_whole=True)
            while loop.time() < end and not self._is_closed:
                if self._next is None:
                    self._next = loop.create_future()
                await asyncio.shield(self._next)
                yield self._message
        finally:
            self.pages -= 1
            if not self.pages and self._task is not None:
                self._task.cancel()
                self._task = None

    async def close(self, _: Any = None) -> None:
        """End every stream: a process that stops waits for nobody who looks on."""
        self._is_closed = True
        self._wake()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._beat_seconds)
            with self._errors.caught("live page"):
                self._message = await self._event(is_whole=False)
                self._wake()

    def _wake(self) -> None:
        waiting, self._next = self._next, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    async def _event(self, *, is_whole: bool) -> bytes:
        reply = await self._make(self._power, is_whole)
        # JSON has no line ends of its own
        kind = b"whole" if is_whole else b"more"
        return b"event: " + kind + b"\ndata: " + msgspec.json.encode(reply) + b"\n\n"


def live_engine(
    engine: EngineSources,
    power: dict[str, PowerRows],
    *,
    is_whole: bool,
    requests: int,
    unix_offset_seconds: float,
    sample_interval_seconds: float,
) -> LiveEngine:
    """One engine of a message; `is_whole` for the power that was kept too."""
    rows = power.setdefault(engine.name, PowerRows())
    # the next beat's "more" is what this one did not have: a whole one takes nothing
    new = [] if is_whole else rows.advance(engine.boundaries, unix_offset_seconds)
    books = engine_books(
        engine,
        None,
        unix_offset_seconds=unix_offset_seconds,
        sample_interval_seconds=sample_interval_seconds,
    )
    return LiveEngine(
        engine=engine.name,
        upstream=(
            None
            if engine.upstream is None
            else upstream_reply(engine.upstream, unix_offset_seconds)
        ),
        sensor=engine_info(engine).sensor,
        books=books.boundaries[engine.boundaries.headline],
        requests=requests,
        power=list(rows.rows) if is_whole else new,
    )
