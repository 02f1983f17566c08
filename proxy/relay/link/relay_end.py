"""The relay's end of the link: events go out in batches, and never make a stream wait.

Rule: what the meter's process does not take in time waits within bounds. Beyond them
reads are left out, and the energy of their requests is unknown. Requests that were
under way when that process ended are its successor's only as time in which somebody
else computes: nothing is counted twice, and they are counted as unseen.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import cast

import msgspec

from proxy.errors import LinkError
from proxy.meter.estimate import EnergySoFar
from proxy.process.supervise import Seldom
from proxy.relay.counters import RelayCounters
from proxy.relay.energy_trailer import Provenance
from proxy.relay.link.messages import (
    Ask,
    Closed,
    Drain,
    FrameDecoder,
    Goodbye,
    Hello,
    MeterMessage,
    Opened,
    Received,
    RelayMessage,
    Report,
    Taken,
    Unseen,
    frame_of,
)
from proxy.wire.events import Event, RequestClosed, RequestOpened, TokensReceived
from proxy.wire.facts import UNMETERED, Labels, RequestFacts, Update

log = logging.getLogger("servewatt.relay")

MAX_WAITING = 50_000
"""Messages that wait for the meter's process, 0.5 KB each: some seconds of a busy
relay, and the time in which that process is started again."""
BATCH = 2000
"""Messages in a frame."""
BUFFER_BYTES = 1024 * 1024
"""Written and not taken by the meter's process; beyond it messages wait here."""
ANSWER_SECONDS = 0.25
"""For the meter's answer, while a reply is held for it."""
RETRY_SECONDS = 0.1
"""Between two attempts to reach the meter's process."""

_UNREAD = RequestFacts(UNMETERED)


class _Request:
    """One that is under way."""

    __slots__ = (
        "counters",
        "end",
        "engine",
        "is_cut",
        "is_metered",
        "is_sent",
        "is_unseen",
        "request_id",
    )

    def __init__(
        self, engine: str, request_id: str, counters: RelayCounters, is_metered: bool
    ) -> None:
        self.engine = engine
        self.request_id = request_id
        self.counters = counters
        self.is_metered = is_metered
        self.is_sent = False
        """The process at the other end knows it, or is about to."""
        self.is_cut = False
        """Some of its reads were left out."""
        self.is_unseen = False
        """No process knows all of it: it has no record but what a journal says."""
        self.end: RequestClosed | None = None


class RemoteMeter:
    """The meter of one engine, in another process; a `RequestMeter`."""

    def __init__(self, link: MeterLink) -> None:
        self._link = link
        self.engine = ""
        """What its upstream is called there, once that is open."""
        self.counters = RelayCounters()
        """Those of its upstream here, likewise."""
        self._provenance = Provenance()

    def feed(self, event: Event) -> None:
        """Something was seen of a request; it goes out with this turn of the loop."""
        if isinstance(event, TokensReceived):
            self._link.receive(event)
        elif isinstance(event, RequestOpened):
            self._link.open(self.engine, self.counters, event)
        elif isinstance(event, RequestClosed):
            self._link.close_request(event)
        else:
            raise TypeError(f"a relay does not say {type(event).__name__}")

    def estimate(
        self, key: int, at_seconds: float
    ) -> asyncio.Future[EnergySoFar | None] | None:
        """The answer that is to come, within bounds; None where there is nobody."""
        return self._link.ask(self, key, at_seconds)

    def provenance(self) -> Provenance:
        """The boundary of its joules, by its last answer."""
        return self._provenance

    def take(self, provenance: Provenance) -> None:
        """What its answer says of its joules."""
        self._provenance = provenance


class MeterLink(asyncio.Protocol):
    """All that one relay says to the meter's process, over one connection at a time."""

    def __init__(
        self,
        path: str,
        hello: Callable[[], Hello],
        report: Callable[[], Report],
        on_drain: Callable[[str, bool], None],
        clock: Callable[[], float],
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self._path = path
        self._hello = hello
        self._report = report
        self._on_drain = on_drain
        self._clock = clock
        self._max_waiting = max_waiting
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._decoder: FrameDecoder[MeterMessage]
        self._waiting: list[RelayMessage] = []
        self._requests: dict[int, _Request] = {}
        self._ended: dict[int, _Request] = {}
        """Those whose end is not known there, as far as is known here."""
        self._answers: dict[int, tuple[RemoteMeter, asyncio.Future[EnergySoFar | None]]]
        self._answers = {}
        self._is_due = False
        self._is_paused = False
        self._lost: asyncio.Event = asyncio.Event()
        self._seldom = Seldom()

    @property
    def is_up(self) -> bool:
        """Whether there is a process that takes what is said."""
        return self._transport is not None

    async def keep(self) -> None:
        """Reach the meter's process, again and again, while the relay lives."""
        while True:
            try:
                await self._loop.create_unix_connection(lambda: self, self._path)
            except OSError as error:
                if self._seldom.count("connect") is not None:
                    log.warning(
                        "the meter's process cannot be reached (%s): requests go on, "
                        "their energy is unknown", error.strerror or error,
                    )  # fmt: skip
                await asyncio.sleep(RETRY_SECONDS)
            else:
                await self._lost.wait()

    async def say_goodbye(self) -> None:
        """Every request has ended: send what waits, and close. For a bounded time."""
        if self._transport is not None:
            self._waiting += [self._report(), Goodbye()]
            self._flush()
            self._transport.close()
            await self._lost.wait()

    def report(self) -> None:
        """Send the counters, where somebody takes them."""
        if self._transport is not None and not self._is_paused:
            self._put(self._report())

    # what is said

    def open(self, engine: str, counters: RelayCounters, event: RequestOpened) -> None:
        """A request was forwarded."""
        is_metered = event.facts.route != UNMETERED
        request = _Request(engine, event.request_id, counters, is_metered)
        self._requests[event.key] = request
        if len(self._waiting) >= self._max_waiting:
            request.is_unseen = True
            return
        request.is_sent = True
        self._put(
            Opened(
                engine,
                event.key,
                event.at_seconds,
                event.request_id,
                event.facts,
                event.labels,
            )
        )

    def receive(self, event: TokensReceived) -> None:
        """A read of its reply."""
        request = self._requests.get(event.key)
        if request is None or request.is_unseen:
            return
        if len(self._waiting) >= self._max_waiting:
            request.is_cut = True
            request.counters.unseen_reads += 1
            return
        self._put(
            Received(event.key, event.at_seconds, tuple(map(_mute, event.updates)))
        )

    def close_request(self, event: RequestClosed) -> None:
        """It ended. One that is known there is always told of: they are few."""
        request = self._requests.pop(event.key, None)
        if request is None:
            return
        request.end = event
        if request.is_unseen:
            self._tell_unseen(request)
        if not request.is_sent:
            return
        self._ended[event.key] = request
        self._put(
            Closed(
                event.key,
                event.at_seconds,
                event.outcome,
                event.status,
                event.error,
                event.labels,
                event.was_computed,
                event.is_partly_unseen or request.is_cut,
            )
        )

    def ask(
        self, meter: RemoteMeter, key: int, at_seconds: float
    ) -> asyncio.Future[EnergySoFar | None] | None:
        """Ask for the energy of a request; None where no answer can come."""
        request = self._requests.get(key)
        is_unknown = request is not None and (request.is_unseen or request.is_cut)
        if self._transport is None or is_unknown or key in self._answers:
            return None
        answer: asyncio.Future[EnergySoFar | None] = self._loop.create_future()
        self._answers[key] = (meter, answer)
        self._put(Ask(key, at_seconds))
        self._loop.call_later(ANSWER_SECONDS, self._give_up, key, answer)
        return answer

    def _give_up(self, key: int, answer: asyncio.Future[EnergySoFar | None]) -> None:
        if self._answers.get(key, (None, None))[1] is answer:
            del self._answers[key]
        if not answer.done():
            answer.set_result(None)

    # how it goes out

    def _put(self, message: RelayMessage) -> None:
        self._waiting.append(message)
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """One write for all that was said in this turn of the loop."""
        self._is_due = False
        while self._waiting and self._transport is not None and not self._is_paused:
            batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
            self._transport.write(frame_of(batch))

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """There is a meter: it learns who speaks, and who is under way already."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=BUFFER_BYTES)
        self._decoder = FrameDecoder(cast(type[MeterMessage], MeterMessage))
        self._is_paused = False
        self._lost.clear()
        now = self._clock()
        first: list[RelayMessage] = [self._hello()]
        for key, request in self._requests.items():
            if request.is_unseen and not request.is_sent:
                request.is_sent = True
                first.append(Opened(request.engine, key, now, "", _UNREAD, Labels()))
        self._waiting[:0] = [*first, self._report()]
        self._flush()

    def data_received(self, data: bytes) -> None:
        """The meter's answers."""
        try:
            messages = self._decoder.feed(data)
        except LinkError as error:
            log.error("the meter's process says what nobody understands: %s", error)
            if self._transport is not None:
                self._transport.abort()
            return
        for message in messages:
            if isinstance(message, Drain):
                self._on_drain(message.engine, message.is_draining)
                continue
            if isinstance(message, Taken):
                for key in message.keys:
                    self._ended.pop(key, None)
                continue
            meter, answer = self._answers.pop(message.key, (None, None))
            if meter is not None and answer is not None and not answer.done():
                meter.take(message.provenance)
                answer.set_result(message.so_far)

    def pause_writing(self) -> None:
        """The meter's process is behind."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """It has caught up."""
        self._is_paused = False
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        """It has ended; its successor gets what is not sent of requests it can know."""
        self._transport = None
        opened = {each.key for each in self._waiting if isinstance(each, Opened)}
        for key, request in self._requests.items():
            if key not in opened:
                request.is_sent, request.is_unseen = False, True
        self._waiting = [
            each
            for each in self._waiting
            if isinstance(each, Unseen)
            or (isinstance(each, Opened | Received | Closed) and each.key in opened)
        ]
        for key in self._ended.keys() - opened:
            request = self._ended.pop(key)
            if not request.is_unseen:
                self._tell_unseen(request)
        answers, self._answers = self._answers, {}
        for _, answer in answers.values():
            if not answer.done():
                answer.set_result(None)
        self._lost.set()

    def _tell_unseen(self, request: _Request) -> None:
        """Count one whose end no meter saw, and let a journal's record of it know."""
        end = request.end
        if not request.is_metered or end is None:
            return
        request.counters.unseen_requests += 1
        if len(self._waiting) < self._max_waiting:
            self._put(
                Unseen(
                    request.engine,
                    request.request_id,
                    end.at_seconds,
                    end.outcome,
                    end.status,
                    end.error,
                )
            )


def _mute(update: Update) -> Update:
    """What it says without its text, which the meter has no use for."""
    return msgspec.structs.replace(update, text="") if update.text else update
