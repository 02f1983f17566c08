"""The whole reply of one exchange that is made from a stream, or learnt from. Pure.

The first whole reply of a kind passes as the engine wrote it, and is kept as the
pattern; later ones are streams that nobody sees.
"""

from __future__ import annotations

from http import HTTPStatus

from proxy.engines.unstreamed import Kind, Pattern, WholeReply, pattern_of
from proxy.errors import SseError
from proxy.wire.headers import Headers, is_compressed, is_event_stream
from proxy.wire.http1 import ReplyHead

MAX_BYTES = 64 * 1024 * 1024
"""Of a reply that is held until its end."""
OF_STREAMS = frozenset([b"content-type", b"content-length", b"x-accel-buffering"])
"""Headers that a whole reply has otherwise, or not at all."""


class Assembly:
    """One reply; `pattern` is what it is made like, None for one to learn from."""

    def __init__(self, kind: Kind, pattern: Pattern | None) -> None:
        self.kind = kind
        self.is_made = False
        """It is put together here, from a stream."""
        self._making = None if pattern is None else WholeReply(pattern)
        self._head: ReplyHead | None = None
        self._pieces: list[bytes] = []
        self._bytes = 0

    def begin(self, head: ReplyHead) -> bool:
        """The engine's head; whether the reply is made here from now on."""
        is_ok = head.status == 200 and not is_compressed(head.headers)
        self._head = head if is_ok else None
        self.is_made = (
            self._making is not None and is_ok and is_event_stream(head.headers)
        )
        return self.is_made

    def learn(self, data: bytes) -> None:
        """One read of a reply that passes as it is."""
        self._bytes += len(data)
        if self._head is not None and self._making is None and self._fits:
            self._pieces.append(data)

    def pattern(self) -> Pattern | None:
        """What can be learnt from the reply, now that it is whole."""
        return pattern_of(b"".join(self._pieces)) if self._fits else None

    def feed(
        self, data: bytes, *, is_last: bool
    ) -> tuple[ReplyHead, bytes] | str | None:
        """One read of the stream: at its end the reply, or why there is none."""
        making, head = self._making, self._head
        self._bytes += len(data)
        if making is None or head is None or not self._fits:
            return f"sent a stream of more than {MAX_BYTES} bytes"
        try:
            making.feed(data)
        except (SseError, ValueError, RecursionError, AttributeError, TypeError):
            return "sent a stream that cannot be read"
        if not is_last:
            return None
        made = making.finish()
        if made is None:
            return "ended its stream before the end marker"
        status, body = made
        reason = head.reason if status == 200 else HTTPStatus(status).phrase.encode()
        return ReplyHead(status, reason, _headers(head, body), False, True), body

    @property
    def _fits(self) -> bool:
        return self._bytes <= MAX_BYTES


def _headers(head: ReplyHead, body: bytes) -> Headers:
    """The engine's headers, as those of JSON."""
    kept = [pair for pair in head.headers if pair[0].lower() not in OF_STREAMS]
    return [
        *kept,
        (b"content-length", b"%d" % len(body)),
        (b"content-type", b"application/json"),
    ]
