"""Server-sent events: bytes in any chunking become the data of whole events.

Follows https://html.spec.whatwg.org/multipage/server-sent-events.html: lines end
in LF, CRLF or CR, the space after the colon is optional, several `data` lines
join with LF, an event without its blank line is not an event. Data stays bytes:
a character split between two reads is whole again before anyone decodes it.

An error that is told by the field `error` (llama.cpp) or by an event of that name
becomes data as well: `{"error": ...}`, which every dialect reads.
"""

from __future__ import annotations

import msgspec

from proxy.errors import SseError

MAX_EVENT_BYTES = 8 * 1024 * 1024
"""An engine's largest event (logprobs of a long prompt) stays well below this."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_CARRIAGE_RETURN, _LINE_FEED = b"\r\n"
"""As numbers: looked for as bytes, `in` costs 20 times as much, since CPython first
takes them for a number and makes an error of that."""
_FIELDS = (b"data:", b"event:", b"error:", b"id:", b"retry:", b":")


def begins_stream(body: bytes) -> bool | None:
    """Whether a body begins as a stream of events does, whatever its type is called.

    None while too few bytes are there to tell.
    """
    begin = body.removeprefix(_BYTE_ORDER_MARK).lstrip(b"\r\n")
    if begin.startswith(_FIELDS):
        return True
    is_open = any(field.startswith(begin) for field in _FIELDS)
    return None if is_open or body == _BYTE_ORDER_MARK[: len(body)] else False


class SseDecoder:
    """One stream's decoder; feed it every read, in order.

    `comments` counts comment lines (keep-alives), `has_partial` tells whether
    bytes of an unfinished event are waiting.
    """

    __slots__ = ("_after_carriage_return", "_limit", "_partial", "comments")

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._limit = max_event_bytes
        self._partial = bytearray()
        self._after_carriage_return = False
        self.comments = 0

    @property
    def has_partial(self) -> bool:
        """True while an event has begun and not ended."""
        return len(self._partial) > 0

    def feed(self, data: bytes) -> list[bytes]:
        """Data of every event that this read completes, in order.

        Raises SseError when one event outgrows the bound; the stream is lost.
        """
        size = len(data)
        if (
            # What engines send: one whole event of one line, no carriage return.
            data.find(b"\n", 6) == size - 2
            and data.startswith(b"data: ")
            and data.endswith(b"\n\n")
            and not (
                self._partial or self._after_carriage_return or _CARRIAGE_RETURN in data
            )
        ):
            return [data[6:-2]]
        if _CARRIAGE_RETURN in data or self._after_carriage_return:
            data = self._with_line_feeds(data)
        if self._partial:
            # A blank line may begin with the last byte of the previous read.
            searched = len(self._partial) - 1
            self._partial += data
            if self._partial.find(b"\n\n", searched) < 0:
                self._check_bound()
                return []
            data = bytes(self._partial)
            self._partial.clear()
        blocks = data.split(b"\n\n")
        tail = blocks.pop()
        if tail:
            self._partial += tail
            self._check_bound()
        events = []
        for block in blocks:
            if block.startswith(b"data: ") and _LINE_FEED not in block:
                events.append(block[6:])
            else:
                event = self._read_block(block)
                if event is not None:
                    events.append(event)
        return events

    def _with_line_feeds(self, data: bytes) -> bytes:
        """Every line end as LF; a CRLF split between two reads stays one."""
        if self._after_carriage_return and data.startswith(b"\n"):
            data = data[1:]
            self._after_carriage_return = False
        if data:
            self._after_carriage_return = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _read_block(self, block: bytes) -> bytes | None:
        """The data of one event, None if it has none; counts comments."""
        data: list[bytes] = []
        is_error = False
        for line in block.removeprefix(_BYTE_ORDER_MARK).split(b"\n"):
            if line.startswith(b":"):
                self.comments += 1
                continue
            name, _, value = line.partition(b":")
            if name == b"data":
                data.append(value.removeprefix(b" "))
            elif name == b"error":
                data.append(value.strip())
                is_error = True
            elif name == b"event" and value.strip() == b"error":
                is_error = True
        if is_error:
            return _error_data(b"\n".join(data))
        return b"\n".join(data) if data else None

    def _check_bound(self) -> None:
        if len(self._partial) > self._limit:
            size = len(self._partial)
            self._partial.clear()
            raise SseError(
                f"an event of {size} bytes has no end, limit {self._limit}; "
                "is this a text/event-stream"
            )


def _error_data(data: bytes) -> bytes:
    """An error as data that says that it is one."""
    try:
        error = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        error = data.decode(errors="replace")
    if isinstance(error, dict) and error.get("error"):
        return data
    return msgspec.json.encode({"error": error or "an error without a message"})
