"""One request in progress: sent to the engine, its reply back, a copy to the tap.

The reply's bytes leave in the same turn of the loop in which they came; nothing
is parsed in between, but for a stream whose usage event the relay asked for
itself. Whoever leaves first, client or engine, the other side is closed at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial

import msgspec

from proxy.engines import reader_of
from proxy.relay.assembly import Assembly
from proxy.relay.client.request import ClientRequest
from proxy.relay.client.response import Answer, Outgoing, Refusal
from proxy.relay.config import RelayConfig
from proxy.relay.counters import RelayCounters
from proxy.relay.energy_trailer import EnergyCompletion, wants_energy
from proxy.relay.event_search import UsageFilter
from proxy.relay.routing.labels import LabelReader
from proxy.relay.routing.routing import Admission, Candidate, Chooser
from proxy.relay.tap import Tap
from proxy.relay.turns import LARGE_READ_BYTES, LargeReads, Turns
from proxy.relay.upstream.connection import Receiver, UpstreamConnection
from proxy.relay.upstream.upstream import Upstream, UsageAsking
from proxy.wire.events import RequestClosed, RequestOpened
from proxy.wire.facts import UNMETERED, RequestFacts
from proxy.wire.headers import staying_here
from proxy.wire.http1 import ReplyHead
from proxy.wire.outline import Buffer, outline


class State(Enum):
    """Where an exchange is."""

    ARRIVED = auto()
    """No upstream has been chosen yet."""
    TRYING = auto()
    """Connecting to a candidate; if it cannot be reached, another one gets it."""
    CONNECTING = auto()
    """Connecting to the one upstream left; the request is metered there."""
    AWAITING = auto()
    """Sent, and metered there; no head of a reply yet."""
    REPLYING = auto()
    """The head came; the body goes on to the client."""
    COMPLETING = auto()
    """The engine is done; the end of the reply waits for the request's energy."""
    ENDED = auto()
    """The client has all it will get, and the next request may start."""


TRANSITIONS: dict[State, frozenset[State]] = {
    State.ARRIVED: frozenset(
        [State.TRYING, State.CONNECTING, State.AWAITING, State.ENDED]
    ),
    State.TRYING: frozenset(
        [State.TRYING, State.CONNECTING, State.AWAITING, State.ENDED]
    ),
    State.CONNECTING: frozenset([State.AWAITING, State.ENDED]),
    # back: a kept connection turned out to be closed, or usage was refused
    State.AWAITING: frozenset([State.CONNECTING, State.REPLYING, State.ENDED]),
    State.REPLYING: frozenset([State.COMPLETING, State.ENDED]),
    State.COMPLETING: frozenset([State.ENDED]),
    State.ENDED: frozenset(),
}
"""Where an exchange may go from each state; `Exchange._enter` lets nothing else."""

REPEATABLE = frozenset([b"GET", b"HEAD", b"OPTIONS"])
STALE_SECONDS = 1.0
"""A kept connection that the engine had closed is lost within a round trip."""

REDIRECTS = frozenset([301, 302, 303, 307, 308])
REFUSES_FIELDS = frozenset([400, 422])
"""How a server refuses a body that has a field it does not know."""
MAX_REFUSAL_BYTES = 256 * 1024
"""A refusal may echo the request; a longer one passes as it is."""

MAX_UNPARSED_READS = 64
"""A reply that comes faster than the beat is parsed now, so copies stay few."""

UNREAD = RequestFacts(UNMETERED)

LET_GO = Admission(None, b"")
"""Stands where the request was, once its reply has begun."""

log = logging.getLogger(__name__)
access = logging.getLogger("servewatt.access")


@dataclass(slots=True)
class Core:
    """State that all exchanges of one relay share."""

    config: RelayConfig
    upstreams: tuple[Upstream, ...]
    chooser: Chooser
    labels: LabelReader
    counters: RelayCounters
    clock: Callable[[], float]
    loop: asyncio.AbstractEventLoop
    unparsed: deque[Tap]
    """Taps with reads that the next beat parses."""
    turns: Turns
    """Work that clients can make large."""
    large_reads: LargeReads
    """Clients that send much, read in turns."""
    exchanges: set[Exchange]
    on_exchange_over: Callable[[], None]


class Exchange(Receiver):
    """One request in progress; ends exactly once, in `_finish`."""

    __slots__ = (
        "_assembly",
        "_candidate",
        "_completion",
        "_connecting",
        "_connection",
        "_core",
        "_is_parsing",
        "_is_paused",
        "_on_done",
        "_others",
        "_outgoing",
        "_passes_chunks",
        "_refusal",
        "_refusal_body",
        "_request",
        "_request_bytes",
        "_sent_seconds",
        "_tap",
        "_transport",
        "_unmetered_key",
        "_was_refused_usage",
        "deadline_seconds",
        "state",
    )

    _candidate: Candidate
    """Whose turn it is, or whose it is; from the end of ARRIVED on."""
    _connecting: asyncio.Task[None]
    """The attempt to connect; in TRYING and CONNECTING."""

    def __init__(
        self,
        core: Core,
        request: ClientRequest,
        transport: asyncio.Transport,
        on_done: Callable[[bool], None],
    ) -> None:
        """`on_done` is called once, with whether the connection may be kept."""
        self.state = State.ARRIVED
        self._core = core
        self._transport = transport
        self._on_done = on_done
        self._request = request
        self._others: list[Candidate] = []
        self._connection: UpstreamConnection | None = None
        self._tap: Tap | None = None
        self._completion: EnergyCompletion | None = None
        self._refusal: ReplyHead | None = None
        """Kept with its body while it may be about what the relay added."""
        self._refusal_body = b""
        self._assembly: Assembly | None = None
        """The client's whole reply, made from a stream or learnt from."""
        self._was_refused_usage = False
        """The engine did not take what the relay had added; sent again without."""
        self._unmetered_key: int | None = None
        self._request_bytes: tuple[Buffer | memoryview, ...] = ()
        self._passes_chunks = False
        """Nothing is to be done with the reply but to send it on, and copy it."""
        self._is_paused = False
        """The client is behind."""
        self._is_parsing = False
        """The copy for the meter is behind."""
        self._sent_seconds = 0.0
        self.deadline_seconds: float | None = None
        self.is_head_request = request.method == b"HEAD"
        self._outgoing = Outgoing(
            transport,
            request.request_id,
            is_http_10=request.is_http_10,
            is_head_request=self.is_head_request,
            keeps_alive=request.keeps_alive,
        )

    def _enter(self, state: State) -> None:
        """Change the state; the one place where that happens."""
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"an exchange cannot go from {self.state} to {state}")
        self.state = state

    # the way up

    def start(self) -> None:
        """Find who takes the request, meter it if it is of that kind, send it on."""
        core = self._core
        core.exchanges.add(self)
        core.counters.in_flight += 1
        if self._request.is_large:
            core.turns.add(self._outline_and_choose())
        else:
            self._choose()

    def _outline_and_choose(self) -> Iterator[None]:
        """Read a large body in turns of the loop, then go on as with any other."""
        steps = outline(self._request.body)
        while True:
            if self.state is not State.ARRIVED:
                return  # the client left meanwhile
            try:
                next(steps)
            except StopIteration as end:
                self._request.outline = end.value
                break
            yield
        self._choose()

    def _choose(self) -> None:
        core = self._core
        chosen = core.chooser.choose(self._request)
        if isinstance(chosen, Refusal):
            core.counters.refusals[chosen.status, chosen.code] += 1
            self._outgoing.answer(chosen)
            self._finish("refused", None)
        elif isinstance(chosen, Answer):
            core.counters.unmetered += 1
            self._outgoing.answer(chosen)
            self._finish("ok", None)
        else:
            self._others = chosen
            self._try_next()

    def _try_next(self) -> None:
        """Over a kept connection of the next upstream, or a new one."""
        if self.state is State.TRYING:
            self._candidate.upstream.in_flight -= 1
        self._candidate = candidate = self._others.pop(0)
        candidate.upstream.in_flight += 1
        connection = candidate.upstream.pool.take_idle()
        if connection is not None:
            self._admit()
            self._send(connection)
        else:
            if self._others:
                self._enter(State.TRYING)
            else:  # no other can get it: it is this one's, reached or not
                self._admit()
                self._enter(State.CONNECTING)
            self._connecting = self._core.loop.create_task(self._connect())

    def _admit(self) -> None:
        """From here on the request is this upstream's, whatever becomes of it.

        Its record is opened there, with the instant of its arrival here; once, and
        never at an upstream that could not be reached while another one could.
        """
        core, request = self._core, self._request
        upstream = self._candidate.upstream
        is_witness = self._fit_usage()
        self._fit_stream()
        admission = self._candidate.admission
        self._request_bytes = self._candidate.bytes_for(request)
        if admission.has_usage_added:
            self._outgoing.drop_usage(
                UsageFilter(
                    upstream.dialect,
                    upstream.takes_usage_out,
                    upstream.learn_it_forces_usage,
                )
            )
        if admission.facts is None:
            upstream.counters.unmetered += 1
            if not admission.is_work:
                return
        key, at_seconds = upstream.guard.new_key(), request.arrived_seconds
        request_id, facts = request.request_id.decode("ascii"), admission.facts
        if facts is None:
            self._unmetered_key = key
            upstream.guard.feed(RequestOpened(key, at_seconds, request_id, UNREAD))
            return
        facts = upstream.with_context(facts)
        labels = core.labels.read(facts, request.headers, upstream.models or ())
        opened = RequestOpened(key, at_seconds, request_id, facts, labels)
        upstream.guard.feed(opened)
        upstream.on_opened(opened)
        texts = None
        if upstream.record is not None:
            texts = upstream.record(opened, request.headers, request.body)
        self._tap = tap = Tap(
            upstream.guard,
            reader_of(upstream.dialect, facts.route),
            upstream.counters,
            key,
            at_seconds,
            request.headers,
            partial(core.labels.settled, labels, facts.model)
            if labels.is_provisional
            else None,
            wants_stream=facts.is_stream,
            on_usage_known=upstream.learn_from_witness if is_witness else None,
            is_one_sequence=facts.sequences == 1,
            texts=texts,
        )
        if wants_energy(request.headers, core.config.energy_in_response):
            self._completion = EnergyCompletion(
                core.loop,
                core.clock,
                core.config.energy_wait_seconds,
                upstream.provenance,
                tap,
                self._outgoing,
                request.request_id,
                self._end,
            )

    def _fit_usage(self) -> bool:
        """Ask for usage or not, as this upstream is; whether it is learnt from this."""
        upstream = self._candidate.upstream
        if not self._candidate.admission.has_usage_added:
            return False
        asking = upstream.usage_asking
        is_witness = asking is UsageAsking.LEARNING and not upstream.has_witness
        if is_witness or asking in (UsageAsking.FORCED, UsageAsking.NEVER):
            self._candidate = self._candidate.without_usage(self._request)
        upstream.has_witness = upstream.has_witness or is_witness
        return is_witness

    def _fit_stream(self) -> None:
        """Ask for a stream in the place of a whole reply, once the engine has shown
        what its own whole replies of this kind are like."""
        streamed = self._candidate.admission.streamed
        if streamed is None:
            return
        upstream = self._candidate.upstream
        pattern = upstream.whole_replies.get(streamed.kind)
        self._assembly = Assembly(streamed.kind, pattern)
        if pattern is not None:
            self._candidate = self._candidate.as_stream(streamed)

    async def _connect(self) -> None:
        upstream = self._candidate.upstream
        try:
            connection = await upstream.pool.connect()
        except (OSError, UnicodeError) as error:  # UnicodeError: no valid host name
            reason = getattr(error, "strerror", None) or str(error)
            upstream.mark_down(f"cannot be reached: {reason}")
            if self.state is State.CONNECTING:
                self._fail(502, "upstream_unreachable", f"cannot be reached: {reason}")
                return
            log.warning("upstream %s cannot be reached: %s", upstream.name, reason)
            upstream.counters.rerouted += 1
            self._try_next()
        else:
            upstream.mark_up()
            if self.state is State.TRYING:
                self._admit()
            self._send(connection)

    def _send(self, connection: UpstreamConnection) -> None:
        self._enter(State.AWAITING)
        self._others.clear()
        self._connection = connection
        is_first = not self._sent_seconds  # else an engine's own time is in it
        self._sent_seconds = self._core.clock()
        self._set_deadline(self._core.config.first_byte_timeout_seconds)
        connection.send(self, self._request_bytes)
        if is_first and self._tap is not None:
            counters = self._candidate.upstream.counters
            counters.request_seconds.add(
                self._core.clock() - self._request.arrived_seconds
            )
        if self._is_paused or self._is_parsing:
            connection.transport.pause_reading()

    # the way down; called by the upstream connection

    def begin(self, head: ReplyHead) -> None:
        """The reply's head, kept for the first bytes."""
        may_be_ours = self._candidate.admission.has_usage_added
        if may_be_ours and head.status in REFUSES_FIELDS:
            self._refusal = head
        else:
            self._begin(head)

    def _begin(self, head: ReplyHead) -> None:
        self._enter(State.REPLYING)
        if self._was_refused_usage and head.status < 400:  # so that was why
            self._candidate.upstream.refuse_stream_options()
        self._let_go_of_the_body()
        self._passes_chunks = self._assembly is None and self._completion is None
        self._set_deadline(self._core.config.read_timeout_seconds)
        if head.status in REDIRECTS:
            at = self._candidate.upstream.address
            headers = staying_here(head.headers, at.authority, at.prefix)
            head = msgspec.structs.replace(head, headers=headers)
        if self._tap is not None:
            self._tap.begin(head.status, head.headers)
        if self._assembly is None or not self._assembly.begin(head):
            self._begin_reply(head)

    def _begin_reply(self, head: ReplyHead) -> None:
        """The head that the client gets."""
        self._outgoing.begin(head)
        if self._completion is not None:
            self._completion.begin(head)

    def _let_go_of_the_body(self) -> None:
        """It is never needed again, and may be large."""
        self._request_bytes = ()
        self._request.body = b""
        self._candidate = Candidate(self._candidate.upstream, LET_GO)

    @property
    def held_bytes(self) -> int:
        """Body bytes of a request that the engine has not begun to answer."""
        return len(self._request.body)

    def deliver(self, at_seconds: float, data: bytes, is_last: bool) -> None:
        """One read of the reply: sent on, then copied.

        A reply with its energy in it is copied first, and ends when that is written.
        """
        if self._refusal is not None:
            self._refusal_body += data
            if not is_last and len(self._refusal_body) <= MAX_REFUSAL_BYTES:
                return
            head, data = self._refusal, self._refusal_body
            self._refusal, self._refusal_body = None, b""
            if is_last and b"stream_options" in data:
                self._send_as_written()
                return
            self._begin(head)
        if self._assembly is not None and not self._goes_on(at_seconds, data, is_last):
            return
        if self._completion is None:
            self._outgoing.write(data, is_last=is_last)
            self._copy(at_seconds, data, 0, self._core.clock())
            if is_last:
                self._finish("ok", None, at=at_seconds)
                return
        else:
            self._copy(at_seconds, data)
            if is_last:
                self._complete(at_seconds)
            self._completion.deliver(data, is_last)
            if is_last:
                return
        if self.deadline_seconds is not None:
            self._set_deadline(self._core.config.read_timeout_seconds)

    def deliver_chunk(self, at_seconds: float, chunk: bytes, data_at: int) -> None:
        """The same, where the read is a whole chunk: it may go on as it came."""
        if self._passes_chunks and self._outgoing.pass_chunk(chunk):
            self._copy(at_seconds, chunk, data_at, self._core.clock())
            if self.deadline_seconds is not None:
                self._set_deadline(self._core.config.read_timeout_seconds)
        else:
            self.deliver(at_seconds, chunk[data_at:-2], False)

    def _goes_on(self, at_seconds: float, data: bytes, is_last: bool) -> bool:
        """Whether a read passes as it is; else it is a part of a whole reply."""
        assembly = self._assembly
        if assembly is None or not assembly.is_made:
            if assembly is not None:
                assembly.learn(data)
                if is_last and (pattern := assembly.pattern()) is not None:
                    upstream = self._candidate.upstream
                    upstream.whole_replies.setdefault(assembly.kind, pattern)
            return True
        self._copy(at_seconds, data)
        made = assembly.feed(data, is_last=is_last)
        if isinstance(made, str):
            self._fail(502, "upstream_closed", made)
        elif made is not None:
            head, body = made
            self._begin_reply(head)
            if self._completion is None:
                self._outgoing.write(body, is_last=True)
                self._finish("ok", None, at=at_seconds)
            else:
                self._complete(at_seconds)
                self._completion.deliver(body, True)
        elif self.deadline_seconds is not None:
            self._set_deadline(self._core.config.read_timeout_seconds)
        return False

    def _send_as_written(self) -> None:
        """The engine refuses what was added, as it seems: the same without."""
        self._give_back()
        self._was_refused_usage = True
        self._candidate = self._candidate.without_usage(self._request)
        self._request_bytes = self._candidate.bytes_for(self._request)
        self._outgoing.drop_usage(None)
        self._reconnect()

    def _reconnect(self) -> None:
        """Send the request once more, over a fresh connection."""
        self._enter(State.CONNECTING)
        self.deadline_seconds = None
        self._candidate.upstream.counters.upstream_retries += 1
        self._connecting = self._core.loop.create_task(self._connect())

    def _copy(
        self,
        at_seconds: float,
        data: bytes,
        data_at: int = 0,
        passed_on_seconds: float | None = None,
    ) -> None:
        """For the meter, what `Tap.add` takes."""
        tap = self._tap
        if data and tap is not None:
            if not tap.reads:
                self._core.unparsed.append(tap)
            tap.add(at_seconds, data, data_at, passed_on_seconds)
            if tap.unread_bytes > LARGE_READ_BYTES:
                self._parse_in_turns(tap)
            elif len(tap.reads) > MAX_UNPARSED_READS:
                tap.drain()

    def _parse_in_turns(self, tap: Tap) -> None:
        """The engine is faster than its reply can be parsed: no more until that is."""
        if not self._is_parsing:
            self._is_parsing = True
            if self._connection is not None and not self._is_paused:
                self._connection.transport.pause_reading()
            self._core.turns.add(self._parsed(tap))

    def _parsed(self, tap: Tap) -> Iterator[None]:
        yield from tap.steps()
        self._is_parsing = False
        if self._connection is not None and not self._is_paused:
            self._connection.transport.resume_reading()

    def _complete(self, at_seconds: float) -> None:
        """The engine is done; its reply may wait for the meter."""
        self._enter(State.COMPLETING)
        self.deadline_seconds = None
        self._give_back()
        tap, self._tap = self._tap, None
        if tap is not None:
            tap.close(at_seconds, "ok", None)
            self._candidate.upstream.on_closed(tap.key, at_seconds)

    def _end(self) -> None:
        self._finish("ok", None)

    def upstream_lost(self, reason: str) -> None:
        """The engine left. Once, a kept connection may turn out to have been closed.

        Its keep-alive ended while the request was on its way: then it is sent again,
        if nothing of it can have been read. What may have been read is sent again only
        where that changes nothing (GET): a POST twice is work twice.
        """
        connection, self._connection = self._connection, None
        is_stale = (
            connection is not None
            and connection.was_used
            and not connection.has_answered
            and self._core.clock() - self._sent_seconds < STALE_SECONDS
            and (connection.was_unread or self._request.method in REPEATABLE)
        )
        if is_stale:
            self._reconnect()
        else:
            self._fail(502, "upstream_closed", reason)

    # the client and the clock

    def client_gone(self) -> None:
        """Close the engine's connection at once, so that it stops generating."""
        if self.state is not State.ENDED:
            log.info("request %s: the client left", self._request.request_id.decode())
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
        if self._connection is not None and not self._is_parsing:
            self._connection.transport.resume_reading()

    def check_deadline(self, now_seconds: float) -> None:
        """Give up on an engine, or a client, that has stood still for too long."""
        if self._is_paused:
            limit = self._core.config.write_timeout_seconds
            if self._outgoing.is_stuck(now_seconds, limit):
                self._core.counters.timeouts["reading"] += 1
                self._transport.abort()
                self._finish("aborted", "the client stopped reading", keeps_alive=False)
        elif self.deadline_seconds is not None and now_seconds >= self.deadline_seconds:
            self._fail(504, "upstream_timeout", "did not answer in time")

    def stop(self) -> None:
        """The proxy is closing."""
        if self.state is not State.ENDED:
            self._finish("aborted", "the proxy was stopped", keeps_alive=False)

    def _set_deadline(self, timeout_seconds: float | None) -> None:
        if timeout_seconds is None:
            self.deadline_seconds = None
        else:
            self.deadline_seconds = self._core.clock() + timeout_seconds

    # ends

    def _fail(self, status: int, code: str, reason: str) -> None:
        """A 502 or 504 if the client has seen nothing yet, else a cut reply."""
        message = f"upstream {self._candidate.upstream.address.url} {reason}"
        outcome = "timeout" if status == 504 else "upstream_error"
        log.warning("request %s: %s", self._request.request_id.decode(), message)
        if self._outgoing.has_left:
            self._finish(outcome, message, keeps_alive=False)
        else:
            self._outgoing.answer(Refusal(status, code, message))
            self._finish(outcome, message)

    def _finish(
        self,
        outcome: str,
        error: str | None,
        *,
        keeps_alive: bool = True,
        at: float | None = None,
    ) -> None:
        core, was = self._core, self.state
        self._enter(State.ENDED)
        if was is State.TRYING:  # it left before any was reached
            self._admit()
        if outcome == "aborted" and was in (State.TRYING, State.CONNECTING):
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
        upstream = None if was is State.ARRIVED else self._candidate.upstream
        core.loop.call_soon(self._account, upstream, at_seconds, outcome, error)
        if core.config.access_log:
            self._log_access(upstream, at_seconds, outcome)
        self._on_done(keeps_alive and self._outgoing.keeps_alive)

    def _log_access(
        self, upstream: Upstream | None, at_seconds: float, outcome: str
    ) -> None:
        """One line; the query may hold a key, so it is left out."""
        request = self._request
        peer = self._transport.get_extra_info("peername") or ("-",)
        access.info(
            "%s %s %s %s %s %.3f s %s",
            peer[0],
            request.method.decode("latin-1"),
            request.target.partition(b"?")[0].decode("latin-1"),
            self._outgoing.status or "-",
            outcome,
            at_seconds - request.arrived_seconds,
            request.request_id.decode("latin-1")
            if upstream is None
            else f"{request.request_id.decode('latin-1')} {upstream.name}",
        )

    def _give_back(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            if self._is_paused or self._is_parsing:
                connection.transport.resume_reading()
            self._candidate.upstream.pool.give_back(connection)

    def _account(
        self,
        upstream: Upstream | None,
        at_seconds: float,
        outcome: str,
        error: str | None,
    ) -> None:
        tap = self._tap
        if tap is not None and tap.is_large:
            self._core.turns.add(
                self._account_in_steps(tap, upstream, at_seconds, outcome, error)
            )
            return
        for _ in self._account_in_steps(tap, upstream, at_seconds, outcome, error):
            pass

    def _account_in_steps(
        self,
        tap: Tap | None,
        upstream: Upstream | None,
        at_seconds: float,
        outcome: str,
        error: str | None,
    ) -> Iterator[None]:
        try:
            if tap is not None:
                yield from tap.closing(at_seconds, outcome, error)
                if upstream is not None:
                    upstream.on_closed(tap.key, at_seconds)
            elif upstream is not None and self._unmetered_key is not None:
                closed = RequestClosed(self._unmetered_key, at_seconds, outcome)
                upstream.guard.feed(closed)
        finally:
            self._core.counters.in_flight -= 1
            if upstream is not None:
                upstream.in_flight -= 1
            self._core.on_exchange_over()
