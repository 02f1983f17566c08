"""Takes the one usage-only event out again that the relay itself asked for. Pure.

Every other byte passes unchanged and in order. Whole events pass at once; only
the tail of an unfinished event waits for its end, since no client can use it
before, and the relay cannot tell yet whether it is the one.
"""

from __future__ import annotations

import re

from proxy.engines.dialect import Engine

MAX_HELD_BYTES = 64 * 1024
"""A usage event has some hundred bytes; what is longer is not it."""

_END_OF_EVENT = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
_CANDIDATE = re.compile(rb'"choices":\s*\[\]')


class UsageFilter:
    """One stream's filter; `flush` after the last read."""

    __slots__ = ("_engine", "_held", "_is_done", "_is_long")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._held = b""
        self._is_long = False
        self._is_done = False

    def feed(self, data: bytes) -> bytes:
        """The bytes to pass on now, possibly none."""
        if self._is_done:
            return data
        if self._held:
            data = self._held + data
            self._held = b""
        if data.endswith(b"\n\n") and (
            b"[]" not in data or not _CANDIDATE.search(data)
        ):
            self._is_long = False
            return data
        return self._whole_events(data)

    def flush(self) -> bytes:
        """What is still held when the stream ends in the middle of an event."""
        held, self._held = self._held, b""
        return held

    def _whole_events(self, data: bytes) -> bytes:
        start = 0
        for end in (match.end() for match in _END_OF_EVENT.finditer(data)):
            if not self._is_long and self._is_usage_only(data[start:end]):
                self._is_done = True
                return data[:start] + data[end:]
            self._is_long = False
            start = end
        if self._is_long or len(data) - start > MAX_HELD_BYTES:
            self._is_long = True
            start = len(data.rstrip(b"\r\n"))  # its blank line may come in halves
        self._held = data[start:]
        return data[:start]

    def _is_usage_only(self, block: bytes) -> bool:
        if not _CANDIDATE.search(block):
            return False
        lines = re.split(rb"\r\n|\n|\r", block)
        texts = [line[5:].strip() for line in lines if line.startswith(b"data:")]
        return self._engine.read_event(b"\n".join(texts)).is_usage_only
