"""A reply read after its last byte: tokens with their stamps.

Pure: the reads of a `Response` go in, a `Reply` comes out. Events are not
tokens: one read may carry several events, one event several tokens, and an
event may carry none (the role, the finish, the usage). Counts come from the
engine's usage; stamps come from reads that bore a token.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field

from proxy.engines.dialect import Dialect
from proxy.wire.facts import Update
from proxy.wire.headers import media_type
from proxy.wire.reply_end import ReplyEnd, why_no_reply
from proxy.wire.sse import SseDecoder, begins_stream
from proxy.wire.token_count import TokenCount

NO_TOKENS = "the reply has no tokens"
"""A whole reply, but one that cannot be measured."""
SNIFFED_BYTES = 64
"""What a body begins with; more than a byte order mark, blank lines and a field."""
PIECES_PER_STEP = 16
"""About 0.1 ms of parsing between two looks at the sockets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A reply, or the part of it that arrived; stamps as they were fed."""

    chunk_stamps: list[float] = field(default_factory=list)
    """Stamp of every read that bore tokens."""
    chunk_tokens: list[int] = field(default_factory=list)
    """Tokens of those reads; they sum to `output_tokens` where it is known."""
    first_visible_stamp: float | None = None
    """First read with visible text, not reasoning."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    """As the engine counted them; None where it did not."""
    text: str = ""
    error: str | None = None
    """Why this is not a whole, useful reply."""
    request_id: str | None = None
    """As the engine was told it, where the reply says so."""


_NAMED = re.compile(
    rb'\A\s*(?:data:\s*)?\{\s*"id"\s*:\s*"(?:chatcmpl|cmpl)-([!#-\[\]-~]{1,200})"'
)
"""vLLM's replies begin with their id, made of the `X-Request-Id` that came."""


def request_id_in(body: bytes) -> str | None:
    """The id by which an engine knows a request, from the beginning of its reply."""
    match = _NAMED.match(body)
    return None if match is None else match[1].decode("ascii")


class StreamReader:
    """Reads one stream; feed it every read in order, then `finish`."""

    def __init__(self, dialect: Dialect, sequences: int = 1) -> None:
        self._dialect = dialect
        self._count = TokenCount(sequences=sequences)
        # All of it is in memory already: nothing to bound.
        self._decoder = SseDecoder(max_event_bytes=sys.maxsize)
        self._stamps: list[float] = []
        self._weights: list[int] = []
        self._text: list[str] = []
        self._first_visible_stamp: float | None = None
        self._finish_stamp: float | None = None
        self._end = ReplyEnd(requires_end=dialect.requires_end)
        self.request_id: str | None = None
        """For the reply."""

    def feed(self, stamp: float, data: bytes) -> None:
        """Take in one read."""
        for event in self._decoder.feed(data):
            self._take(stamp, self._dialect.read_event(event))

    def take_whole(self, stamp: float, update: Update) -> None:
        """One whole reply that came in the place of a stream, at its last byte."""
        self._take(stamp, update)

    def finish(self) -> Reply:
        """The reply, once nothing more will come."""
        stamps, weights = self._stamps, self._weights
        self._count.finish()
        total = self._count.output_tokens
        if total and not weights and self._finish_stamp is not None:
            # All its tokens were hidden; they were there when it finished.
            stamps, weights = [self._finish_stamp], [1]
        tokens = weights if total is None else spread(total, weights)
        bearing = [i for i, count in enumerate(tokens) if count]
        return Reply(
            chunk_stamps=[stamps[i] for i in bearing],
            chunk_tokens=[tokens[i] for i in bearing],
            first_visible_stamp=self._first_visible_stamp,
            prompt_tokens=self._count.prompt_tokens,
            cached_tokens=self._count.cached_tokens,
            output_tokens=total,
            text="".join(self._text),
            error=self._end.failure() or (None if bearing else NO_TOKENS),
            request_id=self.request_id,
        )

    def _take(self, stamp: float, update: Update) -> None:
        self._end.note(update)
        if update.finish_reason is not None:
            self._finish_stamp = stamp
        if update.is_visible and self._first_visible_stamp is None:
            self._first_visible_stamp = stamp
        if update.text:
            self._text.append(update.text)
        tokens = self._count.count(update)
        if not tokens:
            return
        if self._stamps and self._stamps[-1] == stamp:
            self._weights[-1] += tokens
        else:
            self._stamps.append(stamp)
            self._weights.append(tokens)


def read_in_steps(
    dialect: Dialect,
    status: int | None,
    headers: Mapping[str, str],
    stamps: Sequence[float],
    pieces: Sequence[bytes],
    sequences: int = 1,
) -> Generator[None, None, Reply]:
    """Read what arrived, yielding now and then so that others can go on.

    `stamps` and `pieces` go together; `status` is None when there was no reply.
    """
    if status is None:
        return Reply()
    kind, body = media_type(headers), b"".join(pieces)
    error = why_no_stream(dialect, status, headers, body)
    if error is not None:
        return Reply(error=error)
    reader = StreamReader(dialect, sequences)
    reader.request_id = request_id_in(body)
    if not is_stream(kind, body):
        reader.take_whole(stamps[-1], dialect.read_reply(status, headers, body))
        return reader.finish()
    for number, (stamp, piece) in enumerate(zip(stamps, pieces, strict=True), 1):
        reader.feed(stamp, piece)
        if number % PIECES_PER_STEP == 0:
            yield
    return reader.finish()


def why_no_stream(
    dialect: Dialect, status: int, headers: Mapping[str, str], body: bytes
) -> str | None:
    """Why there is no reply, streamed or whole; None if there is one."""
    kind = media_type(headers)
    if status == 200 and is_stream(kind, body):
        return None
    error = dialect.read_reply(status, headers, body).error
    if status == 200:
        return error or why_no_reply(kind, body)
    if 300 <= status < 400:
        where = headers.get("location", "nowhere")
        return f"HTTP {status}: redirects to {where}, which is not followed"
    return f"HTTP {status}: {error}" if error else f"HTTP {status}"


def is_stream(kind: str, body: bytes) -> bool:
    """Whether a body is a stream of events: as its type says, or as it begins."""
    is_json = body[:SNIFFED_BYTES].lstrip()[:1] in (b"{", b"[")
    return not is_json and (kind == "text/event-stream" or begins_stream(body) is True)


def spread(total: int, weights: list[int]) -> list[int]:
    """`total` tokens over reads in proportion to `weights`, as whole numbers.

    The running sum is rounded up, so the first read always has a token where
    there is one, and the parts sum to `total` exactly.
    """
    whole = sum(weights)
    if whole in (0, total):
        return weights
    parts = []
    seen = given = 0
    for weight in weights:
        seen += weight
        upto = -(-total * seen // whole)
        parts.append(upto - given)
        given = upto
    return parts
