"""One client's connection: requests in, in order, one at a time to an exchange.

Knows HTTP framing and its limits. A request is read whole before it goes on: the
relay must see its body (model, stream) and may have to send it twice. What a read
brought is parsed one request at a time; the rest waits for further turns of the loop
and for the replies before it, and meanwhile nothing more is read.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Iterator
from typing import cast

import httptools

from proxy.relay.client.limits import MIN_COUNTED_BYTES, Clients
from proxy.relay.client.request import (
    LARGE_BODY_BYTES,
    ClientRequest,
    body_too_large,
    checked_target,
    head_too_large,
)
from proxy.relay.client.response import CONTINUE, Refusal, own_reply
from proxy.relay.exchange import Core, Exchange
from proxy.relay.turns import LARGE_READ_BYTES
from proxy.wire.headers import Headers, request_id_of, value_of

MAX_WAITING_REQUESTS = 8
"""Pipelined requests read ahead; beyond, the client's socket is left alone."""

MAX_AHEAD_BYTES = 64 * 1024
"""The same in bytes, a body that is not whole yet included."""

HEAD_BYTES = 2048
"""Memory of a waiting request beside its body, more or less."""

BLANK_LINE = b"\r\n\r\n"
STEP_BYTES = 16 * 1024
"""Parsed at a time while requests may end unseen: in heads and chunks."""
BODY_STEP_BYTES = 256 * 1024
"""Parsed at a time of a body with a length; it costs one copy."""

MAX_OVERHEAD_BYTES = 1024 * 1024
"""Framing allowed beside a body in chunks, with eight times the body."""

LINGER_SECONDS = 2.0
"""After a refusal: let the client read it before a reset could destroy it."""


class ClientConnection(asyncio.Protocol):
    """Reads requests, starts their exchanges, keeps or closes the connection."""

    def __init__(self, core: Core, clients: Clients) -> None:
        self._core = core
        self._clients = clients
        self._waiting: deque[ClientRequest | Refusal] = deque()
        self._exchange: Exchange | None = None
        self._rest = b""
        self._rest_from = 0
        self._is_discarding = False
        self._refused_id = b""
        self._paused_seconds: float | None = None
        self._is_in_queue = False
        self._is_between_reads = False
        self._is_starting = False
        self._is_behind = False
        self._is_closing = False
        self._has_asked = False
        self._request_deadline_seconds = math.inf
        self.transport: asyncio.Transport
        self.deadline_seconds: float | None = None
        self._new_parser()

    def _new_parser(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._is_in_head = False
        self._has_ended_one = False
        self._head_bytes = 0
        self._begin_request()

    def _begin_request(self) -> None:
        self._target = b""
        self._headers: Headers = []
        self._body: bytes | bytearray = b""
        self._body_bytes = 0
        self._length = 0
        self._body_wire_bytes = 0
        self._refusal: Refusal | None = None
        self._is_upgrade = False
        self._owes_continue = False

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A new client."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self.transport.set_write_buffer_limits(
            high=self._core.config.write_buffer_bytes
        )
        refusal = self._clients.enter(self, transport.get_extra_info("peername"))
        if refusal is None:
            self._set_deadline(self._core.config.header_timeout_seconds)
        elif self._clients.are_flooding:
            self._core.counters.refusals[refusal.status, refusal.code] += 1
            self.transport.abort()
        else:
            self._refuse(refusal)
            self._start_next()

    def data_received(self, data: bytes) -> None:
        """Parse the first request; the rest, if any, has to wait."""
        if len(data) >= LARGE_READ_BYTES and not self._is_between_reads:
            self._is_between_reads = True
            self.transport.pause_reading()
            self._core.large_reads.wait(self._read_on)
        if self._is_discarding:
            return
        if self._rest:  # read before the pause took effect
            data = self._rest[self._rest_from :] + data
        self._rest, self._rest_from = data, 0
        if not self._is_in_queue and not self._must_wait():
            self._parse_one()
            self._start_next()
        self._go_on_or_wait()
        if len(data) >= MIN_COUNTED_BYTES:
            self._clients.count(self)

    def _read_on(self) -> None:
        """Others had their turn since the last large read."""
        self._is_between_reads = False
        if self._paused_seconds is None and not self.transport.is_closing():
            self.transport.resume_reading()

    @property
    def held_bytes(self) -> int:
        """Memory of its requests and its unread replies, now."""
        held = len(self._rest) + self._body_bytes + self._head_bytes
        for item in self._waiting:
            if isinstance(item, ClientRequest):
                held += HEAD_BYTES + len(item.body)
        if self._exchange is not None:
            held += self._exchange.held_bytes
        return held + self.transport.get_write_buffer_size()

    def _must_wait(self) -> bool:
        """Whether what is unread waits for a reply that is not out yet."""
        if self._exchange is None:
            return self._is_behind
        waiting = self._waiting
        if not (waiting or self._target):
            return False
        ahead = self._body_bytes + sum(
            len(item.body) for item in waiting if isinstance(item, ClientRequest)
        )
        return len(waiting) >= MAX_WAITING_REQUESTS or ahead >= MAX_AHEAD_BYTES

    def _go_on_or_wait(self) -> None:
        """While something is left of a read, read no more, and let it have its turn."""
        if bool(self._rest) != (self._paused_seconds is not None):
            self._pause_or_resume()
        if self._rest and not self._is_in_queue and not self._must_wait():
            self._is_in_queue = True
            self._core.turns.add(self._parse_rest())

    def _pause_or_resume(self) -> None:
        if self.transport.is_closing():
            return
        now_seconds = self._core.clock()
        if self._paused_seconds is None:
            self._paused_seconds = now_seconds
            self.transport.pause_reading()
        else:  # the client had no chance to send: it is given that time
            self._request_deadline_seconds += now_seconds - self._paused_seconds
            self._paused_seconds = None
            if not self._is_between_reads:
                self.transport.resume_reading()

    def _parse_rest(self) -> Iterator[None]:
        """One request a turn, until all is parsed or has to wait for a reply."""
        while self._rest and not self._must_wait():
            self._parse_one()
            self._start_next()
            yield
        self._is_in_queue = False
        self._go_on_or_wait()

    def _parse_one(self) -> None:
        """Parse what is left of a read, up to the end of a request in it."""
        data, at, size = self._rest, self._rest_from, len(self._rest)
        self._has_ended_one = False
        parsed = 0
        while at < size and not (self._has_ended_one or self._is_discarding):
            end = self._end_of_step(data, at)
            self._parse(data if end - at == size else data[at:end])
            parsed, at = parsed + end - at, end
            if parsed >= BODY_STEP_BYTES:
                break
        if at >= size or self._is_discarding:
            self._rest, self._rest_from = b"", 0
        else:
            self._rest_from = at

    def _end_of_step(self, data: bytes, at: int) -> int:
        """A place up to which no second request can begin, or few can."""
        if self._target and not self._is_in_head and self._body_left:
            return min(len(data), at + min(self._body_left, BODY_STEP_BYTES))
        blank = data.find(BLANK_LINE, at, at + STEP_BYTES)
        return min(len(data), at + STEP_BYTES if blank < 0 else blank + 4)

    def _parse(self, data: bytes) -> None:
        self._feed(data)
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self._core.config.max_head_bytes:
                self._refuse(head_too_large(self._core.config))
        elif self._target and self._refusal is None:
            self._received_body(len(data))

    @property
    def _body_left(self) -> int:
        """Bytes that a body with a length still lacks; 0 for one in chunks."""
        return max(0, self._length - self._body_bytes)

    def _received_body(self, size: int) -> None:
        """Some of a body that goes on: bound its time, and what is not body in it."""
        config = self._core.config
        now_seconds = self._core.clock()
        self.deadline_seconds = min(
            now_seconds + config.body_timeout_seconds, self._request_deadline_seconds
        )
        self._body_wire_bytes += size
        if self._body_wire_bytes > MAX_OVERHEAD_BYTES + 8 * self._body_bytes:
            message = "the body's framing, or its trailer, is larger than the body"
            self._refuse(Refusal(431, "framing_too_large", message))
            return
        if size >= MIN_COUNTED_BYTES or self._body_bytes >= LARGE_BODY_BYTES:
            self._clients.count(self)
            refusal = self._clients.refusal_of_memory(self, 0)
            if refusal is not None:
                self._refuse(refusal)

    def eof_received(self) -> None:
        """The client left (or will send no more, which is taken for leaving)."""
        self._client_gone()

    def connection_lost(self, error: Exception | None) -> None:
        """The client is gone for good."""
        self._clients.leave(self)
        self._client_gone()

    def pause_writing(self) -> None:
        """The client reads slower than the engine writes."""
        self._is_behind = True
        self._clients.count(self)
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._is_behind = False
        if self._exchange is not None:
            self._exchange.resume()
        else:
            self._start_next()
            self._go_on_or_wait()

    # the exchange and the relay call these

    def _exchange_done(self, keeps_alive: bool) -> None:
        """The reply is out, or cut; go on with the next request."""
        self._exchange = None
        self._clients.recount(self)
        if self._is_closing or not keeps_alive:
            self._waiting.clear()
            self._rest = b""
            self.transport.close()
            # What is still unread has its own time: the request's is long over.
            self._set_deadline(self._core.config.write_timeout_seconds)
            return
        self._set_deadline(self._core.config.idle_timeout_seconds)
        self._start_next()
        self._go_on_or_wait()

    def finish_and_close(self) -> None:
        """Close after the reply in progress; at once where there is none."""
        self._is_closing = True
        if self._exchange is None:
            self._rest = b""
            self.transport.close()

    def check_deadline(self, now_seconds: float) -> None:
        """Close a connection that was silent for too long."""
        deadline = self.deadline_seconds
        if deadline is not None and now_seconds >= deadline and not self._exchange:
            self._core.counters.timeouts[self._awaited] += 1
            self.transport.abort()

    @property
    def _awaited(self) -> str:
        """The next thing expected of a client that is silent now."""
        if self._is_discarding or self._is_closing:
            return "closing"
        if self._target and not self._is_in_head:
            return "body"
        return "next_request" if self._has_asked and not self._is_in_head else "header"

    def _set_deadline(self, timeout_seconds: float | None) -> None:
        self.deadline_seconds = None
        if timeout_seconds is not None:
            self.deadline_seconds = self._core.clock() + timeout_seconds

    def _client_gone(self) -> None:
        self._is_discarding = True
        self._rest = b""
        self._waiting.clear()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_gone()

    def _start_next(self) -> None:
        """Start requests until one is in progress; local refusals end at once."""
        if self._is_starting or self.transport.is_closing():
            return
        self._is_starting = True
        while self._waiting and self._exchange is None and not self._is_behind:
            item = self._waiting.popleft()
            if isinstance(item, Refusal):
                self._send_refusal(item)
            else:
                self._exchange = exchange = Exchange(
                    self._core, item, self.transport, self._exchange_done
                )
                exchange.start()
        self._is_starting = False
        if self._owes_continue and self._exchange is None:
            self._owes_continue = False
            self.transport.write(CONTINUE)

    # refusals

    def _refuse(self, refusal: Refusal) -> None:
        """Answer in turn, then close: the rest of the stream means nothing."""
        self._is_discarding = True
        self._body, self._body_bytes = b"", 0
        self._refused_id = request_id_of(self._headers)
        self._waiting.append(refusal)

    def _send_refusal(self, refusal: Refusal) -> None:
        self._core.counters.refusals[refusal.status, refusal.code] += 1
        self.transport.write(own_reply(refusal, self._refused_id, closes=True))
        self._waiting.clear()
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._set_deadline(LINGER_SECONDS)
        else:
            self.transport.close()

    # parsing; httptools calls the on_ methods

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            if self._refusal is None:
                message = f"not HTTP: {error}"[:200]
                self._refusal = Refusal(400, "malformed_request", message)
        if self._refusal is not None and not self._is_discarding:
            self._refuse(self._refusal)

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """An offer to upgrade (h2c) is declined by serving the request as it is.

        The parser stops at such an offer, so it gets the head again without it.
        """
        if self._parser.get_method() == b"CONNECT":
            message = "CONNECT is not for this proxy"
            self._refuse(Refusal(405, "method_not_allowed", message))
            return
        version = self._parser.get_http_version().encode()
        first = b"%s %s HTTP/%s\r\n" % (
            self._parser.get_method(), self._target, version,
        )  # fmt: skip
        kept = [field for field in self._headers if field[0].lower() != b"upgrade"]
        head = first + b"".join(b"%s: %s\r\n" % field for field in kept) + b"\r\n"
        self._new_parser()
        self._feed(head + rest)

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._begin_request()
        self._is_in_head = True
        self._head_bytes = 0
        config = self._core.config
        self._set_deadline(config.header_timeout_seconds)
        self._request_deadline_seconds = (
            self._core.clock() + config.request_timeout_seconds
        )

    def on_url(self, target: bytes) -> None:
        """The request target (may come in pieces)."""
        self._target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; after the body they are trailers, which end here."""
        if self._is_in_head:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is whole: refuse it, or ask for the body."""
        self._is_in_head = False
        self._is_upgrade = self._parser.should_upgrade()
        version = self._parser.get_http_version()
        checked = checked_target(
            self._target, self._headers, version, self._core.config
        )
        if isinstance(checked, Refusal):
            self._refusal = checked
        else:
            self._target = checked
            self._length = int(value_of(self._headers, b"content-length") or b"0")
            if self._length >= MIN_COUNTED_BYTES:
                self._refusal = self._clients.refusal_of_memory(self, self._length)
        expects = (value_of(self._headers, b"expect") or b"").lower()
        is_http_10 = self._parser.get_http_version() == "1.0"  # knows no interim reply
        if expects == b"100-continue" and self._refusal is None and not is_http_10:
            self._owes_continue = True

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        self._owes_continue = False
        self._body_bytes += len(data)
        if self._body_bytes <= self._core.config.max_body_bytes:
            if not self._body:
                self._body = data
            elif isinstance(self._body, bytearray):
                self._body += data
            else:
                self._body = bytearray(self._body) + data
        elif self._refusal is None:
            self._refusal = body_too_large(self._core.config)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._owes_continue = False
        self._has_ended_one = self._has_asked = True
        self._head_bytes = 0
        if self._is_upgrade or self._is_discarding:
            return
        if self._refusal is not None:  # now: the next request may be in this read
            self._refuse(self._refusal)
            return
        self._waiting.append(
            ClientRequest(
                method=self._parser.get_method(),
                target=self._target,
                headers=self._headers,
                body=self._body
                if len(self._body) > LARGE_BODY_BYTES
                else bytes(self._body),
                is_http_10=self._parser.get_http_version() == "1.0",
                keeps_alive=self._parser.should_keep_alive(),
                arrived_seconds=self._core.clock(),
            )
        )
        self._begin_request()
