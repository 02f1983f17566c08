"""One request's way through: to the engine, its reply back, a copy to the tap.

The reply's bytes leave in the same turn of the loop in which they came; nothing
is parsed in between, but for a stream whose usage event the relay asked for
itself. Whoever leaves first, client or engine, the other side is closed at once.
"""

from __future__ import annotations

import asyncio
import logging

from proxy.relay.admission import bytes_for, enter
from proxy.relay.client.request import Request
from proxy.relay.client.response import Outgoing
from proxy.relay.completion import EnergyCompletion
from proxy.relay.core import Client, Core
from proxy.relay.replies import Answer, Refusal
from proxy.relay.routing.choosing import Candidate
from proxy.relay.tap import Tap
from proxy.relay.upstream.connection import ReplyHead, UpstreamConnection
from proxy.wire.headers import request_id_of

STALE_SECONDS = 1.0
"""A kept connection that the engine had closed says so within a round trip."""

MAX_UNPARSED_READS = 64
"""A reply that comes faster than the beat is parsed now, so copies stay few."""

log = logging.getLogger(__name__)


class Exchange:
    """One request in progress; ends exactly once, in `_finish`."""

    __slots__ = (
        "_candidate",
        "_candidates",
        "_client",
        "_completion",
        "_connecting",
        "_connection",
        "_core",
        "_is_over",
        "_is_paused",
        "_outgoing",
        "_request",
        "_request_bytes",
        "_request_id",
        "_sent_seconds",
        "_tap",
        "deadline_seconds",
        "is_head_request",
    )

    def __init__(self, core: Core, client: Client, request: Request) -> None:
        self._core = core
        self._client = client
        self._request = request
        self._request_id = request_id_of(request.headers)
        self._connection: UpstreamConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._tap: Tap | None = None
        self._completion: EnergyCompletion | None = None
        self._candidate: Candidate | None = None
        self._candidates: list[Candidate] = []
        self._request_bytes = b""
        self._is_over = False
        self._is_paused = False
        self._sent_seconds = 0.0
        self.deadline_seconds: float | None = None
        self.is_head_request = request.method == b"HEAD"
        self._outgoing = Outgoing(
            client.transport,
            self._request_id,
            is_http_10=request.is_http_10,
            is_head_request=self.is_head_request,
            keeps_alive=request.keeps_alive,
        )

    # the way up

    def start(self) -> None:
        """Find who takes the request, meter it if it is of that kind, send it on."""
        core = self._core
        core.exchanges.add(self)
        core.counters.in_flight += 1
        chosen = core.chooser.choose(self._request)
        if isinstance(chosen, Refusal):
            self._refuse(chosen)
        elif isinstance(chosen, Answer):
            core.counters.unmetered += 1
            self._outgoing.answer(chosen)
            self._finish("ok", None)
        else:
            self._candidates = chosen
            self._try_next()

    def _try_next(self) -> None:
        """Over a kept connection of the next upstream, or a new one."""
        if self._candidate is not None:
            self._candidate.upstream.in_flight -= 1
        self._candidate = candidate = self._candidates.pop(0)
        candidate.upstream.in_flight += 1
        if (
            not self._candidates
        ):  # no other can get it: it is this one's, reached or not
            self._enter(candidate)
        connection = candidate.upstream.pool.take_idle()
        if connection is None:
            self._connecting = self._core.loop.create_task(self._connect(candidate))
        else:
            self._send(candidate, connection)

    def _enter(self, candidate: Candidate) -> None:
        if not self._request_bytes:
            self._tap, self._completion = enter(
                self._core, candidate, self._request,
                self._request_id, self._outgoing, self._end,
            )  # fmt: skip
            self._request_bytes = bytes_for(candidate, self._request, self._request_id)

    async def _connect(self, candidate: Candidate) -> None:
        try:
            connection = await candidate.upstream.pool.connect()
        except (OSError, UnicodeError) as error:  # UnicodeError: a host name nobody has
            reason = getattr(error, "strerror", None) or str(error)
            candidate.upstream.mark_down(f"cannot be reached: {reason}")
            if not self._candidates:
                self._fail(502, "upstream_unreachable", f"cannot be reached: {reason}")
                return
            log.warning(
                "upstream %s cannot be reached: %s", candidate.upstream.name, reason
            )
            candidate.upstream.counters.rerouted += 1
            self._try_next()
        else:
            self._connecting = None
            candidate.upstream.mark_up()
            self._send(candidate, connection)

    def _send(self, candidate: Candidate, connection: UpstreamConnection) -> None:
        """From here on the request is this upstream's, whatever becomes of it."""
        self._candidates.clear()
        self._enter(candidate)
        self._connection = connection
        self._sent_seconds = self._core.clock()
        self._set_deadline(self._core.config.first_byte_timeout_seconds)
        connection.send(self, self._request_bytes)
        if self._is_paused:
            connection.transport.pause_reading()

    # the way down; called by the upstream connection

    def begin(self, head: ReplyHead) -> None:
        """The reply's head, kept for the first bytes."""
        self._request_bytes = b""
        self._outgoing.begin(head)
        if self._tap is not None:
            self._tap.begin(head.status, head.headers)
        if self._completion is not None:
            self._completion.begin(head)

    def deliver(self, at_seconds: float, data: bytes, is_last: bool) -> None:
        """One read of the reply: out with it, then the copy.

        A reply that tells its energy is copied first, and ends when that is told.
        """
        if self._completion is None:
            self._outgoing.write(data, is_last=is_last)
            self._copy(at_seconds, data)
            if is_last:
                self._finish("ok", None, at=at_seconds)
                return
        else:
            self._copy(at_seconds, data)
            if is_last:
                self._close_tap(at_seconds)
            self._completion.deliver(data, is_last)
        if self.deadline_seconds is not None and not self._is_over:
            timeout = None if is_last else self._core.config.read_timeout_seconds
            self._set_deadline(timeout)

    def _copy(self, at_seconds: float, data: bytes) -> None:
        tap = self._tap
        if data and tap is not None:
            if not tap.reads:
                self._core.unparsed.append(tap)
            tap.reads.append((at_seconds, data))
            if len(tap.reads) > MAX_UNPARSED_READS:
                tap.drain()

    def _close_tap(self, at_seconds: float) -> None:
        """The engine is done; its reply may wait for what the meter says now."""
        self._give_back()
        tap, self._tap = self._tap, None
        if tap is not None:
            tap.close(at_seconds, "ok", None)

    def _end(self) -> None:
        self._finish("ok", None)

    def upstream_lost(self, reason: str) -> None:
        """The engine left. Once, a kept connection may turn out to have been closed.

        Then nothing of the request was read: the engine closed an idle connection
        while the request was on its way (its keep-alive timeout). Sent again only
        if not one byte of a reply came and the loss followed the sending closely.
        """
        connection, self._connection = self._connection, None
        now, candidate = self._core.clock(), self._candidate
        is_stale = (
            connection is not None
            and connection.was_used
            and not connection.has_answered
            and now - self._sent_seconds < STALE_SECONDS
        )
        if is_stale and candidate is not None:
            candidate.upstream.counters.upstream_retries += 1
            self._connecting = self._core.loop.create_task(self._connect(candidate))
        else:
            self._fail(502, "upstream_closed", reason)

    # the client and the clock

    def client_gone(self) -> None:
        """Close the engine's connection at once: nobody reads, so no more joules."""
        if not self._is_over:
            log.info("request %s: the client left", self._request_id.decode())
            self._finish("aborted", "the client left", keeps_alive=False)

    def pause(self) -> None:
        """The client reads slowly: stop reading from the engine."""
        self._is_paused = True
        self._core.counters.pauses += 1
        self._outgoing.is_stuck(self._core.clock(), None)
        if self._connection is not None:
            self._connection.transport.pause_reading()

    def resume(self) -> None:
        """The client has caught up."""
        self._is_paused = False
        if self._connection is not None:
            self._connection.transport.resume_reading()

    def check_deadline(self, now_seconds: float) -> None:
        """Give up on an engine, or a client, that has stood still for too long."""
        if self._is_paused:
            limit = self._core.config.write_timeout_seconds
            if self._outgoing.is_stuck(now_seconds, limit):
                self._core.counters.timeouts["reading"] += 1
                self._client.transport.abort()
                self._finish("aborted", "the client stopped reading", keeps_alive=False)
        elif self.deadline_seconds is not None and now_seconds >= self.deadline_seconds:
            self._fail(504, "upstream_timeout", "did not answer in time")

    def stop(self) -> None:
        """The proxy is closing."""
        if not self._is_over:
            self._finish("aborted", "the proxy was stopped", keeps_alive=False)

    def _set_deadline(self, timeout_seconds: float | None) -> None:
        if timeout_seconds is None:
            self.deadline_seconds = None
        else:
            self.deadline_seconds = self._core.clock() + timeout_seconds

    # ends

    def _fail(self, status: int, code: str, reason: str) -> None:
        """A 502 or 504 if the client has seen nothing yet, else a cut reply."""
        assert self._candidate is not None
        message = f"upstream {self._candidate.upstream.address.url} {reason}"
        outcome = "timeout" if status == 504 else "upstream_error"
        log.warning("request %s: %s", self._request_id.decode(), message)
        if self._outgoing.has_left:
            self._finish(outcome, message, keeps_alive=False)
        else:
            self._outgoing.refuse(Refusal(status, code, message))
            self._finish(outcome, message)

    def _refuse(self, refusal: Refusal) -> None:
        self._core.counters.refusals[refusal.status, refusal.code] += 1
        self._outgoing.refuse(refusal)
        self._finish("refused", None)

    def _finish(
        self,
        outcome: str,
        error: str | None,
        *,
        keeps_alive: bool = True,
        at: float | None = None,
    ) -> None:
        if self._is_over:
            return
        self._is_over = True
        core = self._core
        if (
            self._candidate is not None and self._candidates
        ):  # it left before any was reached
            self._enter(self._candidate)
        if self._connecting is not None and outcome == "aborted":
            self._connecting.cancel()
        if self._completion is not None:
            self._completion.cancel()
        if outcome == "ok":
            self._give_back()
        elif self._connection is not None:
            self._connection.abort()
        self._connection = None
        core.exchanges.discard(self)
        # After the bytes: the loop writes before it runs what is scheduled here.
        at_seconds = core.clock() if at is None else at
        core.loop.call_soon(self._account, at_seconds, outcome, error)
        self._client.exchange_done(
            keeps_alive=keeps_alive and self._outgoing.keeps_alive
        )

    def _give_back(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and self._candidate is not None:
            if self._is_paused:
                connection.transport.resume_reading()
            self._candidate.upstream.pool.give_back(connection)

    def _account(self, at_seconds: float, outcome: str, error: str | None) -> None:
        try:
            if self._tap is not None:
                self._tap.close(at_seconds, outcome, error)
        finally:
            self._core.counters.in_flight -= 1
            if self._candidate is not None:
                self._candidate.upstream.in_flight -= 1
            self._core.on_exchange_over()
