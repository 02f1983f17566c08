"""A request's energy in its own reply: how it is written, where, and when.

A JSON reply gets it as last member of the object (of the first object, where the
reply is a list of them); a stream as an SSE comment, which clients ignore. What
cannot be read, or has an `energy` already, stays as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from proxy.engines.wire import UNREADABLE
from proxy.meter.estimate import EnergySoFar
from proxy.meter.ledger import unknown_energy
from proxy.relay.client.response import Outgoing, with_length
from proxy.relay.event_search import EventSearch, data_of
from proxy.relay.tap import MAX_REPLY_BYTES, Tap
from proxy.wire.headers import Headers, is_compressed, is_event_stream, value_of
from proxy.wire.http1 import ReplyHead

REQUEST_HEADER = b"x-servewatt-energy"
"""`1` asks for the energy of this one request, `0` declines it."""

LOOK_SECONDS = 0.02
"""Interval at which a waiting reply asks whether it is settled; the meter's beat is
no faster."""
JOULES_PER_KWH = 3.6e6
END_MARK = b"[DONE]"
_SPACE = b" \t\r\n"
_DIGESTS = (b"content-md5", b"digest", b"content-digest", b"repr-digest")
"""Headers that would be wrong about a body that was added to."""


class EnergyNote(msgspec.Struct, frozen=True, kw_only=True):
    """The `energy` object, in the order in which it is written; null is unknown."""

    energy_joules: float | None
    low_joules: float | None
    high_joules: float | None
    energy_kwh: float | None
    prefill_joules: float | None
    decode_joules: float | None
    idle_share_joules: float | None
    policy: str | None
    boundary: str | None
    timing: str
    grade: str
    quality: str
    """Deprecated: `timing`, with `exact` for `timed`."""
    settled: bool
    """False: an estimate so far, the last interval is not measured yet."""
    simulated: bool
    request_id: str


class Provenance(msgspec.Struct, frozen=True):
    """The boundary of these joules, and whether they are simulated."""

    boundary: str | None = None
    is_simulated: bool = False


def note_of(
    so_far: EnergySoFar | None, provenance: Provenance, request_id: str
) -> bytes:
    """The `energy` object as JSON on one line; None is a meter that failed."""
    energy = unknown_energy("") if so_far is None else so_far.energy
    joules = energy.energy_joules
    return msgspec.json.encode(
        EnergyNote(
            energy_joules=joules,
            low_joules=energy.low_joules,
            high_joules=energy.high_joules,
            energy_kwh=None if joules is None else joules / JOULES_PER_KWH,
            prefill_joules=energy.prefill_joules,
            decode_joules=energy.decode_joules,
            idle_share_joules=energy.idle_share_joules,
            policy=energy.policy or None,
            boundary=provenance.boundary,
            timing=energy.timing,
            grade=energy.grade,
            quality=energy.quality,
            settled=so_far is not None and so_far.is_settled,
            simulated=provenance.is_simulated,
            request_id=request_id,
        )
    )


def wants_energy(headers: Headers, by_default: bool) -> bool:
    """Whether a request asks for its energy; any other value asks for nothing."""
    value = value_of(headers, REQUEST_HEADER)
    return {b"1": True, b"0": False}.get((value or b"").strip(), by_default)


def can_hold_energy(status: int, headers: Headers) -> bool:
    """Whether a reply is a stream or a JSON document that may be added to."""
    if status != 200 or is_compressed(headers):
        return False
    if any(value_of(headers, name) is not None for name in _DIGESTS):
        return False
    content_type = (value_of(headers, b"content-type") or b"").lower()
    return is_event_stream(headers) or content_type.strip().startswith(
        b"application/json"
    )


def is_end(block: bytes) -> bool:
    """Whether an event is the `[DONE]` with which some dialects end a stream."""
    return data_of(block) == END_MARK


def comment_of(note: bytes) -> bytes:
    """The note as a block of its own: some clients split streams at blank lines."""
    return b": energy %b\n\n" % note


def with_energy(body: bytes, note: bytes) -> bytes:
    """The document with `energy` in it; every other byte is kept."""
    try:
        end = _end_of_object(body)
    except UNREADABLE:
        return body
    if end is None:
        return body
    before = body[: end - 1].rstrip(_SPACE)
    comma = b"" if before.endswith(b"{") else b","
    return b'%b%b"energy":%b%b' % (before, comma, note, body[len(before) :])


def _end_of_object(body: bytes) -> int | None:
    """Where the object ends that gets the member; None where there is none."""
    document = body
    start = 0
    if body.lstrip(_SPACE).startswith(b"["):
        items = msgspec.json.decode(body, type=list[msgspec.Raw])
        if not items:
            return None
        document = bytes(items[0])
        start = body.index(b"[") + 1
        start = body.index(document, start)
    if "energy" in msgspec.json.decode(document, type=dict[str, msgspec.Raw]):
        return None
    return start + len(document.rstrip(_SPACE))


class EnergyCompletion:
    """Stands between the engine's reads and `Outgoing` for one reply.

    A stream is held from its `[DONE]` on, where it has one, else at the end of the
    body; a JSON reply is held whole. By default the energy is written at once, as far
    as it is known; `energy_wait_seconds` waits, at most so long, for its settlement.
    `on_over` is called once, when the last byte is out.
    """

    __slots__ = (
        "_answer",
        "_clock",
        "_deadline_seconds",
        "_head",
        "_held",
        "_is_done",
        "_is_whole",
        "_loop",
        "_on_over",
        "_outgoing",
        "_provenance",
        "_request_id",
        "_search",
        "_tap",
        "_timer",
        "_wait_seconds",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        wait_seconds: float,
        provenance: Callable[[], Provenance],
        tap: Tap,
        outgoing: Outgoing,
        request_id: bytes,
        on_over: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._wait_seconds = wait_seconds
        self._provenance = provenance
        self._tap = tap
        self._outgoing = outgoing
        self._request_id = request_id
        self._on_over = on_over
        self._head: ReplyHead | None = None
        self._search: EventSearch | None = None
        self._held = bytearray()
        self._is_done = True
        self._is_whole = False
        self._deadline_seconds: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._answer: asyncio.Future[EnergySoFar | None] | None = None
        """That of a meter in another process, awaited."""

    def begin(self, head: ReplyHead) -> None:
        """The reply's head: a stream, a document, or nothing to add to."""
        self._is_done = not can_hold_energy(head.status, head.headers)
        if is_event_stream(head.headers):
            self._search = EventSearch(END_MARK, is_end)
        else:
            self._head = head

    def deliver(self, data: bytes, is_last: bool) -> None:
        """One read of the reply; the tap has it already. Calls `on_over` once."""
        self._is_whole = is_last
        if self._is_done:
            self._pass_on(data)
        elif self._search is None:
            self._hold_document(data)
        else:
            self._hold_completion(self._search, data)

    def cancel(self) -> None:
        """The exchange is over: wait no more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._answer is not None:
            self._answer.cancel()

    def _pass_on(self, data: bytes) -> None:
        self._outgoing.write(data, is_last=self._is_whole)
        if self._is_whole:
            self._on_over()

    def _hold_document(self, data: bytes) -> None:
        self._held += data
        if len(self._held) > MAX_REPLY_BYTES:
            self._is_done = True
            self._pass_on(bytes(self._held))
        elif self._is_whole:
            self._write_or_wait()

    def _hold_completion(self, search: EventSearch, data: bytes) -> None:
        if search.found is None:
            before = search.feed(data)
            if before:
                self._outgoing.write(before, is_last=False)
            self._held += b"".join(search.found or ())
        else:
            self._held += data
        is_asking = self._timer is not None or self._answer is not None
        if not is_asking and (search.found is not None or self._is_whole):
            self._write_or_wait()

    def _write_or_wait(self) -> None:
        """Write the energy now, or look again if it may be settled in time."""
        now_seconds = self._clock()
        if self._deadline_seconds is None:
            self._deadline_seconds = now_seconds + self._wait_seconds
        answer = self._tap.energy(now_seconds)
        if isinstance(answer, asyncio.Future):
            self._answer = answer
            answer.add_done_callback(self._take)
        else:
            self._write(answer, now_seconds)

    def _take(self, answer: asyncio.Future[EnergySoFar | None]) -> None:
        """What a meter in another process answered."""
        if not answer.cancelled():
            self._answer = None
            self._write(answer.result(), self._clock())

    def _write(self, so_far: EnergySoFar | None, now_seconds: float) -> None:
        assert self._deadline_seconds is not None
        left_seconds = self._deadline_seconds - now_seconds
        if left_seconds > 0 and so_far is not None and not so_far.is_settled:
            self._timer = self._loop.call_later(
                min(left_seconds, LOOK_SECONDS), self._write_or_wait
            )
            return
        self._timer = None
        self._is_done = True
        note = note_of(so_far, self._provenance(), self._request_id.decode("ascii"))
        if self._search is None:
            self._end_document(note)
        else:
            self._end_stream(self._search, note)

    def _end_document(self, note: bytes) -> None:
        body = bytes(self._held)
        with_note = with_energy(body, note)
        if self._head is not None and with_note is not body:
            headers = with_length(self._head.headers, len(with_note))
            self._outgoing.begin(msgspec.structs.replace(self._head, headers=headers))
        self._pass_on(with_note)

    def _end_stream(self, search: EventSearch, note: bytes) -> None:
        """The comment goes before `[DONE]`, or at the end unless within an event."""
        if search.found is None and is_end(search.held):
            self._held += search.flush()
        elif search.found is None and not search.is_between_events:
            self._pass_on(search.flush())
            return
        self._pass_on(comment_of(note) + self._held)
