"""A copy of one request's reply for the meter: stamped, parsed later.

The relay appends `(stamp, bytes)` and goes on; `drain` parses on the beat and feeds
the meter one event per read. The meter may fail: `MeterGuard` is the one place where
that is caught and counted.
"""

from __future__ import annotations

import logging
from asyncio import Future
from collections.abc import Callable, Generator, Iterator
from itertools import count
from typing import Protocol

import msgspec

from proxy.engines.dialect import ReplyReader
from proxy.errors import SseError
from proxy.meter.estimate import EnergySoFar
from proxy.relay.counters import RelayCounters
from proxy.wire.events import Event, RequestClosed, TokensReceived
from proxy.wire.facts import Labels, Update
from proxy.wire.headers import (
    Headers,
    by_name,
    is_compressed,
    is_event_stream,
    media_type,
)
from proxy.wire.outline import outline
from proxy.wire.redaction import redacted
from proxy.wire.reply_end import ReplyEnd, why_no_reply
from proxy.wire.sse import SseDecoder, begins_stream

MAX_REPLY_BYTES = 16 * 1024 * 1024
"""An unstreamed JSON reply beyond this is passed on but not read for its usage."""
WHOLE_REPLY_BYTES = 1024 * 1024
"""Of a longer one only the outline is read, in steps: usage, and no text."""
STEP_BYTES = 16 * 1024
"""Parsed at once of a copy that is large: 150 events, a millisecond."""

log = logging.getLogger(__name__)


EnergyAnswer = EnergySoFar | Future[EnergySoFar | None] | None
"""Known at once, or promised within bounds by a meter in another process; None: the
meter failed, or is away."""


class RequestMeter(Protocol):
    """A meter as the relay needs it: in this process, or at the other end of a link."""

    def feed(self, event: Event) -> None:
        """Something was seen."""

    def estimate(self, key: int, at_seconds: float) -> EnergyAnswer:
        """Energy of a request so far; never a wait."""


class MeterGuard:
    """A meter that never raises. Fails open, and counts."""

    def __init__(
        self,
        meter: RequestMeter,
        counters: RelayCounters,
        keys: Iterator[int] | None = None,
    ) -> None:
        self._meter = meter
        self._counters = counters
        self._keys = count(1) if keys is None else keys

    def new_key(self) -> int:
        """The identity of the next request, rising, from 1."""
        return next(self._keys)

    def feed(self, event: Event) -> None:
        """Something was seen."""
        try:
            self._meter.feed(event)
        except Exception:  # the meter fails open
            self._failed()

    def estimate(self, key: int, at_seconds: float) -> EnergyAnswer:
        """Energy of a request so far; None where the meter fails."""
        try:
            return self._meter.estimate(key, at_seconds)
        except Exception:  # the meter fails open
            self._failed()
            return None

    def _failed(self) -> None:
        self._counters.meter_errors += 1
        if self._counters.meter_errors == 1:
            log.exception("the meter failed; requests go on, their energy is unknown")


class Tap:
    """One metered request's copy of its reply, and the facts in it so far."""

    __slots__ = (
        "_at_seconds",
        "_counters",
        "_decoder",
        "_end",
        "_guard",
        "_has_usage",
        "_headers",
        "_is_json",
        "_is_kind_open",
        "_is_one_sequence",
        "_json",
        "_json_bytes",
        "_on_usage_known",
        "_reader",
        "_request_headers",
        "_settled_labels",
        "_status",
        "_texts",
        "_token_at_seconds",
        "_wants_stream",
        "key",
        "reads",
        "unread_bytes",
    )

    def __init__(
        self,
        guard: MeterGuard,
        reader: ReplyReader,
        counters: RelayCounters,
        key: int,
        at_seconds: float,
        request_headers: Headers,
        settled_labels: Callable[[bool], Labels] | None = None,
        *,
        wants_stream: bool = False,
        on_usage_known: Callable[[bool | None], None] | None = None,
        is_one_sequence: bool = True,
        texts: list[str] | None = None,
    ) -> None:
        """`settled_labels` gives the final labels by whether the request succeeded.

        Only between tokens of one sequence the time is counted. `texts` gets the
        reply's text, if anybody wants it.
        """
        self._guard = guard
        self._reader = reader
        self._counters = counters
        self.key = key
        """The request's."""
        self._request_headers = request_headers
        self._settled_labels = settled_labels
        self._at_seconds = at_seconds
        self._status: int | None = None
        self._headers: Headers = []
        self._decoder: SseDecoder | None = None
        self._is_json = False
        self._json: list[bytes] = []
        self._json_bytes = 0
        self._is_kind_open = False
        """A stream was asked for, and the first bytes will tell whether it came."""
        self._wants_stream = wants_stream
        self._on_usage_known = on_usage_known
        self._is_one_sequence = is_one_sequence
        self._texts = texts
        self._token_at_seconds: float | None = None
        """Of the newest read that bore a token."""
        self._has_usage = False
        self._end = ReplyEnd(requires_end=reader.requires_end)
        self.reads: list[tuple[float, bytes, int, float | None]] = []
        """Reads not parsed yet, as `add` got them."""
        self.unread_bytes = 0
        """Bytes in them."""

    def begin(self, status: int, headers: Headers) -> None:
        """The reply's head came: how to read its body."""
        self._status = status
        self._headers = headers
        if is_compressed(headers):
            self._counters.unreadable_replies += 1
        elif is_event_stream(headers):
            self._decoder = SseDecoder()
            self._is_kind_open = True
        else:
            self._is_json = True
            self._is_kind_open = self._wants_stream

    @property
    def is_large(self) -> bool:
        """Whether what is left takes long enough to be parsed in turns."""
        whole = self._json_bytes if self._is_json else 0
        return self.unread_bytes > STEP_BYTES or whole > WHOLE_REPLY_BYTES

    def add(
        self,
        at_seconds: float,
        data: bytes,
        data_at: int = 0,
        passed_on_seconds: float | None = None,
    ) -> None:
        """Copy one read; it is parsed later.

        `data_at` is 0, or where the data begins in a chunk, as `ReplyParser.chunk_at`
        has it; `passed_on_seconds` is when the client was sent the read, if it was.
        """
        self.reads.append((at_seconds, data, data_at, passed_on_seconds))
        self.unread_bytes += len(data)

    def drain(self) -> None:
        """Parse what has come since; feed the meter one event per read."""
        reads, self.reads = self.reads, []
        self.unread_bytes = 0
        for at_seconds, data, data_at, passed_on_seconds in reads:
            if passed_on_seconds is not None:
                self._counters.reply_seconds.add(passed_on_seconds - at_seconds)
            self._read(at_seconds, data[data_at:-2] if data_at else data)

    def steps(self) -> Iterator[None]:
        """The same, and of large reads a part at a time, until there are none."""
        while self.reads:
            at_seconds, data, data_at, passed_on_seconds = self.reads[0]
            if passed_on_seconds is not None:
                self._counters.reply_seconds.add(passed_on_seconds - at_seconds)
            if self._decoder is None or len(data) <= STEP_BYTES:
                del self.reads[0]
            else:
                self.reads[0] = at_seconds, data[STEP_BYTES:], 0, None
                data = data[:STEP_BYTES]
            self.unread_bytes -= len(data)
            self._read(at_seconds, data[data_at:-2] if data_at else data)
            yield

    def close(self, at_seconds: float, outcome: str, error: str | None) -> None:
        """All of `closing` at once."""
        for _ in self.closing(at_seconds, outcome, error):
            pass

    def closing(
        self, at_seconds: float, outcome: str, error: str | None
    ) -> Iterator[None]:
        """No more will come: parse what is left, in steps. `outcome` is HTTP's.

        Whether the reply was an error is decided by its content: a 200 may hold
        one, and `[DONE]` does not mean success. A client that left once it had
        read the end, or the error, left nothing behind.
        """
        yield from self.steps()
        if outcome == "aborted" and self._end.is_decided:
            outcome, error = "ok", None
        if outcome == "ok":
            if self._is_json:
                yield from self._read_reply()
            error = self._failure()
            if error is not None:
                outcome, error = "error", redacted(error, self._request_headers)
        if self._on_usage_known is not None:
            is_whole = outcome == "ok" and self._decoder is not None
            self._on_usage_known(self._has_usage if is_whole else None)
        settled = self._settled_labels
        labels = None if settled is None else settled(outcome == "ok")
        self._guard.feed(
            RequestClosed(
                self.key,
                at_seconds,
                outcome,
                self._status,
                error,
                labels,
                was_computed=self._end.was_computed,
            )
        )
        self._counters.requests[outcome] += 1

    def energy(self, at_seconds: float) -> EnergyAnswer:
        """Energy of the request by what was read so far."""
        self.drain()
        return self._guard.estimate(self.key, at_seconds)

    def _read(self, at_seconds: float, data: bytes) -> None:
        """Parse one read, or a part of it."""
        self._counters.chunks += 1
        self._counters.reply_bytes += len(data)
        self._at_seconds = at_seconds
        if self._is_kind_open:
            self._find_kind(at_seconds, data)
        if self._decoder is not None:
            self._read_events(self._decoder, at_seconds, data)
        elif self._is_json:
            self._json_bytes += len(data)
            self._json.append(data)
            if self._json_bytes > MAX_REPLY_BYTES:
                self._json.clear()

    def _read_events(self, decoder: SseDecoder, at_seconds: float, data: bytes) -> None:
        try:
            events = decoder.feed(data)
        except SseError as error:
            log.warning("a reply is no longer metered: %s", error)
            self._counters.unreadable_replies += 1
            self._decoder = None
            return
        if len(events) == 1:  # the usual case, without a comprehension's frame
            updates: tuple[Update, ...] = (self._reader.read_event(events[0]),)
        elif events:
            updates = tuple(self._reader.read_event(event) for event in events)
        else:
            return
        self._counters.events += len(events)
        tokens = 0
        for update in updates:
            self._end.note(update)
            if update.usage is not None or update.is_usage_only:
                self._has_usage = True
            if update.carries_token:
                tokens += update.tokens or 1
        if self._texts is not None:
            self._texts += [update.text for update in updates if update.text]
        if tokens and self._is_one_sequence:
            since = self._token_at_seconds
            if since is not None and at_seconds > since:
                gap_seconds = (at_seconds - since) / tokens
                self._counters.token_seconds.add(gap_seconds, tokens)
            self._token_at_seconds = at_seconds
        self._guard.feed(TokensReceived(self.key, at_seconds, updates))

    def _read_reply(self) -> Generator[None]:
        if self._json_bytes > MAX_REPLY_BYTES:
            self._counters.unreadable_replies += 1
            return
        status = 0 if self._status is None else self._status
        headers, body = by_name(self._headers), b"".join(self._json)
        if len(body) > WHOLE_REPLY_BYTES and body[:64].lstrip()[:1] == b"{":
            self._json.clear()
            body = (yield from outline(body)).text
        update = self._reader.read_reply(status, headers, body)
        if self._wants_stream and update.error is None:
            error = why_no_reply(media_type(headers), body)
            update = msgspec.structs.replace(update, error=error)
        self._end.note(update)
        if self._texts is not None and update.text:
            self._texts.append(update.text)
        self._guard.feed(TokensReceived(self.key, self._at_seconds, (update,)))

    def _failure(self) -> str | None:
        """Why a reply that HTTP ended well is an error all the same, None if not."""
        if self._end.error is not None:
            return self._end.error
        if self._status is None or not 200 <= self._status < 300:
            return f"status {self._status}"
        return None if self._decoder is None else self._end.failure()

    def _find_kind(self, at_seconds: float, data: bytes) -> None:
        """Events or JSON, by what the body begins with and not by its type alone."""
        earlier = b"".join(self._json)
        begin = earlier + data
        if begin.lstrip()[:1] in (b"{", b"["):
            self._decoder, self._is_json = None, True
        elif self._is_json:
            is_stream = begins_stream(begin)
            if is_stream is None:
                return
            if is_stream:
                self._decoder, self._is_json = SseDecoder(), False
                self._json.clear()
                self._read_events(self._decoder, at_seconds, earlier)
        self._is_kind_open = not begin.strip()
