"""Takes the one usage-only event out again that the relay itself asked for. Pure.

Every other byte passes unchanged and in order.
"""

from __future__ import annotations

import re

from proxy.engines.dialect import Dialect
from proxy.wire.event_search import EventSearch, data_of

_CANDIDATE = re.compile(rb'"choices":\s*\[\]')


class UsageFilter:
    """One stream's filter; `flush` after the last read."""

    __slots__ = ("_dialect", "_search")

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._search = EventSearch(b"[]", self._is_usage_only)

    def feed(self, data: bytes) -> bytes:
        """The bytes to pass on now, possibly none."""
        search = self._search
        if search.found is not None:
            return data
        out = search.feed(data)
        return out if search.found is None else out + search.found[1]

    def flush(self) -> bytes:
        """What is still held when the stream ends in the middle of an event."""
        return self._search.flush()

    def _is_usage_only(self, block: bytes) -> bool:
        if not _CANDIDATE.search(block):
            return False
        return self._dialect.read_event(data_of(block)).is_usage_only
