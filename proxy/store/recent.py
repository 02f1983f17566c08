"""The newest settled requests, in memory: all that is not in a database yet."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from proxy.store.stored_record import StoredRecord

KEPT_RECORDS = 100_000
"""About 1.3 KB each: a day at one request a second within 130 MB."""
KEPT_BESIDE_STORE = 5_000
"""Of those that a database has too: enough for whoever reads along."""


class RecentRecords:
    """The newest records in order of settlement; the oldest make room, counted."""

    def __init__(self, kept: int = KEPT_RECORDS) -> None:
        self.kept = kept
        """How many stay; may change at any time."""
        self._records: list[StoredRecord] = []
        self._by_id: dict[str, StoredRecord] = {}
        self.evicted = 0
        self.horizon = 0
        """Every record of this run above this sequence is here."""

    def add(self, records: Iterable[StoredRecord]) -> None:
        """Keep these, dropping the oldest beyond the bound."""
        for stored in records:
            self._records.append(stored)
            self._by_id[stored.record.request_id] = stored
        # trimmed now and then, not one by one
        if len(self._records) > self.kept + self.kept // 10 + 1:
            self._evict(len(self._records) - self.kept)

    def since(self, sequence: int, limit: int) -> list[StoredRecord]:
        """Records settled after `sequence`, oldest first, at most `limit`."""
        first = bisect_right(self._records, sequence, key=lambda f: f.sequence)
        return self._records[first : first + limit]

    def last(self, count: int) -> list[StoredRecord]:
        """The newest `count`, newest first."""
        return self._records[: -count - 1 : -1]

    def by_id(self, request_id: str) -> StoredRecord | None:
        """The newest record of this id, if still kept."""
        return self._by_id.get(request_id)

    def __len__(self) -> int:
        return len(self._records)

    def _evict(self, count: int) -> None:
        for oldest in self._records[:count]:
            request_id = oldest.record.request_id
            if self._by_id[request_id] is oldest:
                del self._by_id[request_id]
        self.horizon = self._records[count - 1].sequence
        self.evicted += count
        del self._records[:count]
