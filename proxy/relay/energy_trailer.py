"""A request's energy in its own reply: how it is written, and where. Pure.

A JSON reply gets it as last member of the object (of the first object, where the
reply is a list of them); a stream as an SSE comment, which clients ignore. What
cannot be read, or has an `energy` already, stays as it is.
"""

from __future__ import annotations

import msgspec

from proxy.engines.wire import UNREADABLE
from proxy.meter.estimate import EnergySoFar
from proxy.meter.ledger.accounts import RequestEnergy
from proxy.wire.event_search import data_of
from proxy.wire.headers import Headers, is_compressed, is_event_stream, value_of

REQUEST_HEADER = b"x-servewatt-energy"
"""`1` asks for the energy of this one request, `0` declines it."""

JOULES_PER_KWH = 3.6e6
END_MARK = b"[DONE]"
_SPACE = b" \t\r\n"
_DIGESTS = (b"content-md5", b"digest", b"content-digest", b"repr-digest")
"""Headers that would be wrong about a body that was added to."""


class EnergyNote(msgspec.Struct, frozen=True, kw_only=True):
    """The `energy` object, in the order in which it is written; null is unknown."""

    energy_joules: float | None
    energy_kwh: float | None
    prefill_joules: float | None
    decode_joules: float | None
    idle_share_joules: float | None
    policy: str | None
    boundary: str | None
    quality: str
    settled: bool
    """False: an estimate so far, the last interval is not measured yet."""
    simulated: bool
    request_id: str


class Provenance(msgspec.Struct, frozen=True):
    """Which joules these are: what is inside them, and whether anybody burnt them."""

    boundary: str | None = None
    is_simulated: bool = False


def note_of(
    so_far: EnergySoFar | None, provenance: Provenance, request_id: str
) -> bytes:
    """The `energy` object as JSON on one line; None is a meter that failed."""
    unknown = RequestEnergy(None, None, None, None, "", "unknown")
    energy = unknown if so_far is None else so_far.energy
    joules = energy.energy_joules
    return msgspec.json.encode(
        EnergyNote(
            energy_joules=joules,
            energy_kwh=None if joules is None else joules / JOULES_PER_KWH,
            prefill_joules=energy.prefill_joules,
            decode_joules=energy.decode_joules,
            idle_share_joules=energy.idle_share_joules,
            policy=energy.policy or None,
            boundary=provenance.boundary,
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
