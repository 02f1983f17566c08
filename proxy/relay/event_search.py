"""Finds one event in a stream while everything before it passes on. Pure.

Whole events pass at once; only the tail of an unfinished one waits for its end,
since no client can use it before, and it may be the one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from proxy.engines.dialect import Dialect

MAX_HELD_BYTES = 64 * 1024
"""The events looked for have some hundred bytes; a longer one is not it."""

_END_OF_EVENT = re.compile(rb"(?:\r\n|\n|\r(?=[^\n])){2}")
"""A carriage return that ends a read may be half of a CRLF: it waits for the next."""
_LINE_END = re.compile(rb"\r\n|\n|\r")


def data_of(block: bytes) -> bytes:
    """The data of one event as it stands in the stream, as `SseDecoder` gives it."""
    lines = _LINE_END.split(block)
    return b"\n".join(line[5:].strip() for line in lines if line.startswith(b"data:"))


class EventSearch:
    """One search in one stream; `feed` every read, in order, until `found`.

    `mark` is in every event looked for: reads without it pass unseen. `is_it`
    decides; its argument is one whole event with its blank line.
    """

    __slots__ = ("_is_it", "_is_long", "_mark", "found", "held")

    def __init__(self, mark: bytes, is_it: Callable[[bytes], bool]) -> None:
        self._mark = mark
        self._is_it = is_it
        self._is_long = False
        self.held = b""
        """The beginning of an event that is not whole yet."""
        self.found: tuple[bytes, bytes] | None = None
        """The event, and what came after it in the same read."""

    @property
    def is_over(self) -> bool:
        """Whether the event was found."""
        return self.found is not None

    @property
    def is_between_events(self) -> bool:
        """Whether all that came so far ended with a blank line."""
        return not (self.held or self._is_long)

    def passes(self, chunk: bytes) -> bool:
        """Whether a chunk of the stream, still framed, passes whole, and is not fed.

        It ends with an event and begins with one, and none of them is looked for.
        """
        if self.found is not None:
            return True
        return (
            chunk.endswith(b"\n\n\r\n")
            and self.is_between_events
            and chunk.find(self._mark) < 0
        )

    def feed(self, data: bytes) -> bytes:
        """The bytes to pass on now, possibly none."""
        if self.held:
            data = self.held + data
            self.held = b""
        if data.endswith(b"\n\n") and data.find(self._mark) < 0:  # `in` is slower
            self._is_long = False
            return data
        return self._whole_events(data)

    def flush(self) -> bytes:
        """The bytes still held when the stream ends in the middle of an event."""
        held, self.held = self.held, b""
        return held

    def _whole_events(self, data: bytes) -> bytes:
        start = 0
        for end in _ends_of_events(data):
            if not self._is_long and self._is_it(data[start:end]):
                self.found = data[start:end], data[end:]
                return data[:start]
            self._is_long = False
            start = end
        if self._is_long or len(data) - start > MAX_HELD_BYTES:
            self._is_long = True
            start = len(data.rstrip(b"\r\n"))  # its blank line may come in halves
        self.held = data[start:]
        return data[:start]


def _ends_of_events(data: bytes) -> Iterator[int]:
    """Positions behind blank lines."""
    if b"\r" in data:
        yield from (match.end() for match in _END_OF_EVENT.finditer(data))
        return
    end = 0  # ten times as fast, for a read may be large and have one event or none
    while (at := data.find(b"\n\n", end)) >= 0:
        end = at + 2
        yield end


class UsageFilter:
    """Takes the one usage-only event out again that the relay itself asked for.

    Every other byte passes unchanged and in order; `flush` after the last read.
    `takes_out` says, when that event is there, whether the engine would have sent it
    anyway. Usage beside the text is such a sign (vLLM's, where usage is forced) and is
    reported to `on_running_usage`: no relay asks for it.
    """

    __slots__ = ("_dialect", "_on_running_usage", "_search", "_takes_out", "passes")

    def __init__(
        self,
        dialect: Dialect,
        takes_out: Callable[[], bool] = lambda: True,
        on_running_usage: Callable[[], None] = lambda: None,
    ) -> None:
        self._dialect = dialect
        self._takes_out = takes_out
        self._on_running_usage = on_running_usage
        self._search = search = EventSearch(b'_tokens"', self._is_usage_only)
        self.passes = search.passes

    def feed(self, data: bytes) -> bytes:
        """The bytes to pass on now, possibly none."""
        search = self._search
        if search.is_over:
            return data
        out = search.feed(data)
        found = search.found
        return out if found is None else out + found[1]

    def flush(self) -> bytes:
        """The bytes still held when the stream ends in the middle of an event."""
        return self._search.flush()

    def _is_usage_only(self, block: bytes) -> bool:
        if b'"usage"' not in block:
            return False
        update = self._dialect.read_event(data_of(block))
        if update.carries_token and update.finish_reason is None:
            if update.usage is not None and update.usage.output_tokens:
                self._on_running_usage()
            return False
        return update.is_usage_only and self._takes_out()
