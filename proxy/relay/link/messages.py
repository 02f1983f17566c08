"""What a relay says of its requests to a meter in another process, and its answers.

The events of `proxy.wire.events` that concern requests, as few bytes: a request is
called by the relay's own key, its engine is named once, and no text of a reply is in
them. Both processes are of one host, whose monotonic clock gives all instants. Messages
keep their order; a frame is a list of them behind its length.

Pure: bytes in, messages out, however the bytes were cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import msgspec

from proxy.errors import LinkError
from proxy.meter.estimate import EnergySoFar
from proxy.relay.counters import CounterFigures
from proxy.relay.energy_trailer import Provenance
from proxy.wire.events import RequestClosed, RequestOpened, TokensReceived
from proxy.wire.facts import Labels, RequestFacts, Update

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""Longer than any batch of events; a length beyond it is no length."""
LENGTH_BYTES = 4


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Who speaks: the first message of a relay's connection."""

    relay: int
    """Its number, from 1."""
    starts: int
    """Processes that had this number before it, itself included."""
    pid: int
    draining: tuple[str, ...] = ()
    """Upstreams that it gives nothing new, by their ids."""


class Opened(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """`RequestOpened`, at one engine."""

    engine: str
    """Id of its upstream; so in all other messages."""
    key: int
    at_seconds: float
    request_id: str
    facts: RequestFacts
    labels: Labels

    def event(self, key: int) -> RequestOpened:
        """The event under the meter's own key."""
        return RequestOpened(
            key, self.at_seconds, self.request_id, self.facts, self.labels
        )


class Received(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """`TokensReceived`, without texts."""

    key: int
    at_seconds: float
    updates: tuple[Update, ...]

    def event(self, key: int) -> TokensReceived:
        """The event under the meter's own key."""
        return TokensReceived(key, self.at_seconds, self.updates)


class Closed(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """`RequestClosed`."""

    key: int
    at_seconds: float
    outcome: str
    status: int | None
    error: str | None
    labels: Labels | None
    was_computed: bool
    is_partly_unseen: bool

    def event(self, key: int) -> RequestClosed:
        """The event under the meter's own key."""
        return RequestClosed(
            key,
            self.at_seconds,
            self.outcome,
            self.status,
            self.error,
            self.labels,
            self.was_computed,
            self.is_partly_unseen,
        )


class Ask(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """A question for the energy of a request so far; answered by `Answer`."""

    key: int
    at_seconds: float


class EngineFigures(msgspec.Struct, frozen=True, array_like=True):
    """What a relay counts of one engine, since it started."""

    counters: CounterFigures
    in_flight: int


class Report(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """What a relay counts, several times a second: since it started, and now."""

    counters: CounterFigures
    engines: dict[str, EngineFigures]
    """Of all that have requests of this relay, or may get one."""
    loop_lag_seconds: float
    loop_delays: tuple[list[int], float]
    """Counts by bucket and the sum of how late its beats were, since it started."""
    loop_errors: dict[str, int]
    dropped_log_lines: int


class Goodbye(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """The last message of a relay that stops: all its requests were closed."""


class Unseen(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """The end of a request that a meter before this one knew, or none."""

    engine: str
    request_id: str
    at_seconds: float
    outcome: str
    status: int | None
    error: str | None


class Answer(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """The energy of a request so far; None: the meter failed, or does not know it."""

    key: int
    so_far: EnergySoFar | None
    provenance: Provenance


class Drain(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """An upstream gets nothing new from now on, or again."""

    engine: str
    is_draining: bool


class Taken(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The ends of these requests were fed to their meters, by the relay's keys."""

    keys: list[int]


RelayMessage = Hello | Opened | Received | Closed | Ask | Report | Goodbye | Unseen
"""From a relay to its meter."""
MeterMessage = Answer | Drain | Taken
"""From the meter to a relay."""

M = TypeVar("M")
_encoder = msgspec.msgpack.Encoder()


def frame_of(messages: Sequence[RelayMessage | MeterMessage]) -> bytes:
    """Messages as they go over the socket."""
    content = _encoder.encode(messages)
    return len(content).to_bytes(LENGTH_BYTES, "big") + content


class FrameDecoder(Generic[M]):
    """Bytes of one direction in, messages out, in order."""

    def __init__(self, kind: type[M]) -> None:
        """`kind` is the union of the messages of this direction."""
        self._decode = msgspec.msgpack.Decoder(list[kind]).decode  # type: ignore[valid-type]  # a type at run time
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[M]:
        """The messages whose last byte has come. Raises LinkError for other bytes."""
        self._rest += data
        found: list[M] = []
        at = 0
        while len(self._rest) >= at + LENGTH_BYTES:
            begin = at + LENGTH_BYTES
            length = int.from_bytes(self._rest[at:begin], "big")
            if length > MAX_FRAME_BYTES:
                raise LinkError(f"a frame of {length} bytes is no message of a relay")
            if len(self._rest) < begin + length:
                break
            try:
                found += self._decode(self._rest[begin : begin + length])
            except msgspec.MsgspecError as error:
                raise LinkError(f"a frame cannot be read: {error}") from None
            at = begin + length
        del self._rest[:at]
        return found
