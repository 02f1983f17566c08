"""The response half of HTTP/1.1: bytes in, one head and pieces of body out. Pure.

httptools (llhttp) takes off the framing; the rules around it are here, once for the
relay and for the client that loads it: interim replies are skipped, trailers and
whatever follows the reply are dropped, and a reply without a length ends with its
connection. Between two chunks a read that is one whole chunk need not be parsed: it is
compared with what such a chunk looks like, byte for byte.
"""

from __future__ import annotations

import httptools
import msgspec

from proxy.wire.headers import Headers

MAX_HEAD_BYTES = 256 * 1024

_LINE_FEED = b"\n"[0]


def chunk_of(data: bytes) -> bytes:
    """The one chunk that has this data, which is not empty."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _size_lines(read_bytes: int) -> tuple[bytes, ...]:
    """How a read of this length begins if it is one whole chunk; hyper writes capitals.

    None of no chunk's length. Other spellings, and extensions, are left to the parser.
    """
    for digits in range(1, 5):
        size = read_bytes - digits - 4
        line = b"%x\r\n" % max(size, 0)
        if size > 0 and len(line) == digits + 2:
            return (line,) if line == line.upper() else (line, line.upper())
    return ()


_SIZE_LINES = tuple(map(_size_lines, range(4096)))
"""By length of the read; an event of a token has some hundred bytes."""
_MAX_READ_BYTES = len(_SIZE_LINES) - 1


class ReplyHead(msgspec.Struct, frozen=True):
    """A reply up to its blank line."""

    status: int
    reason: bytes
    headers: Headers
    is_chunked: bool
    has_length: bool

    @property
    def ends_with_connection(self) -> bool:
        """Whether nothing but the end of the connection can end the body."""
        return not (self.is_chunked or self.has_length)


class ReplyParser:
    """One connection's parser: `begin` for each reply, then `feed` it every read."""

    __slots__ = (
        "_extra_from",
        "_head_bytes",
        "_headers",
        "_is_between_chunks",
        "_is_head_request",
        "_parser",
        "_pieces",
        "_reason",
        "head",
        "is_complete",
        "keeps_alive",
        "on_body",
    )

    def __init__(self) -> None:
        self.begin([])

    def begin(self, pieces: list[bytes], *, is_head_request: bool = False) -> None:
        """Expect a reply, whose body goes to `pieces`; to HEAD it has none."""
        self._is_head_request = is_head_request
        self._headers: Headers = []
        self._reason = b""
        self._head_bytes = 0
        self._extra_from: int | None = None
        self._is_between_chunks = False
        """The next byte is the first of a chunk; told only after a whole read."""
        self._pieces = pieces
        # Called by the parser for each piece: the list's own method, no frame.
        self.on_body = pieces.append
        self.head: ReplyHead | None = None
        """The head of the reply itself, once it is complete."""
        self.is_complete = False
        self.keeps_alive = False
        """Whether another reply may follow this one; once it is complete."""
        self._parser = httptools.HttpResponseParser(self)

    @property
    def has_begun(self) -> bool:
        """Whether even one byte of it came."""
        return self.head is not None or self._head_bytes > 0

    def chunk_at(self, data: bytes) -> int:
        """Where the data begins in a read that is one whole chunk and nothing else.

        The last two bytes are not data. 0 for any other read: `feed` that. The parser
        need not see whole chunks: it is between two of them afterwards, as before.
        """
        if not self._is_between_chunks or len(data) > _MAX_READ_BYTES:
            return 0
        lines = _SIZE_LINES[len(data)]
        if data.startswith(lines) and data.endswith(b"\r\n"):
            return len(lines[0])
        return 0

    def feed(self, data: bytes) -> str | None:
        """Take one read; the reason, as text, why the reply cannot be used.

        Bytes beyond the end of the reply are dropped and no failure, but
        `keeps_alive` is false. A complete reply is fed no more.
        """
        failure: str | None = None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            failure = "a switch of protocols"
        except httptools.HttpParserError as error:
            failure = f"not HTTP: {error}"
        if self._is_between_chunks and (failure or data[-1] != _LINE_FEED):
            self._is_between_chunks = False  # a size has begun, of which nobody told
        if self.head is None:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                failure = f"a head of more than {MAX_HEAD_BYTES} bytes"
        if not self.is_complete:
            return failure
        if failure is not None:
            self.keeps_alive = False
        if self._extra_from is not None:
            del self._pieces[self._extra_from :]
        return None

    def end(self) -> bool:
        """The connection ended: whether the reply is whole by that."""
        if self.head is not None and self.head.ends_with_connection:
            self.is_complete = True
            self.keeps_alive = False
        return self.is_complete

    # httptools calls these

    def on_message_begin(self) -> None:
        """A second reply, which is dropped."""
        if self.is_complete and self._extra_from is None:
            self.keeps_alive = False
            self._extra_from = len(self._pieces)

    def on_status(self, reason: bytes) -> None:
        """The reason phrase (may come in pieces)."""
        if self.head is None:
            self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; after the body they are trailers, which end here."""
        if self.head is None:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """A head, unless it is an interim one (100, 103), which ends here."""
        if self.is_complete:
            return
        status = self._parser.get_status_code()
        if status < 200:
            self._headers, self._reason = [], b""
            return
        codings, has_length = b"", False
        for name, value in self._headers:
            name = name.lower()
            if name == b"transfer-encoding":
                codings = codings + b"," + value if codings else value
            elif name == b"content-length":
                has_length = True
        codings = codings.strip().lower()
        if codings not in (b"", b"identity", b"chunked"):
            raise ValueError("a transfer coding that nobody asked for")
        self.head = ReplyHead(
            status, self._reason, self._headers, codings == b"chunked", has_length
        )
        self._is_between_chunks = self.head.is_chunked
        if self._is_head_request:
            # The parser waits for a body that never comes: the end is here, and the
            # connection cannot be used again.
            self.is_complete = True
            self._is_between_chunks = False
            self._extra_from = len(self._pieces)

    def on_chunk_header(self) -> None:
        """The size of a chunk is known."""
        self._is_between_chunks = False

    def on_chunk_complete(self) -> None:
        """A chunk ended."""
        self._is_between_chunks = True

    def on_message_complete(self) -> None:
        """The reply is whole (not an interim one)."""
        self._is_between_chunks = False
        if self.head is not None and not self.is_complete:
            self.is_complete = True
            self.keeps_alive = self._parser.should_keep_alive()
