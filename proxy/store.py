"""The finished requests that can still be asked for: the newest, in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import islice

from proxy.ledger import RequestRecord

KEPT_RECORDS = 100_000
"""About 1 KB each: a day at one request a second within 100 MB."""


class RecentRecords:
    """The newest records in order of settlement; the oldest make room, counted."""

    def __init__(self, kept: int = KEPT_RECORDS) -> None:
        self._kept = kept
        self._by_sequence: OrderedDict[int, RequestRecord] = OrderedDict()
        self._sequence_of: dict[str, int] = {}
        self.evicted = 0

    def add(self, records: Iterable[RequestRecord]) -> None:
        """Keep these, dropping the oldest beyond the bound."""
        for record in records:
            self._by_sequence[record.sequence] = record
            self._sequence_of[record.request_id] = record.sequence
        while len(self._by_sequence) > self._kept:
            sequence, oldest = self._by_sequence.popitem(last=False)
            if self._sequence_of.get(oldest.request_id) == sequence:
                del self._sequence_of[oldest.request_id]
            self.evicted += 1

    def since(self, sequence: int, limit: int) -> Iterator[RequestRecord]:
        """Records settled after `sequence`, oldest first, at most `limit`."""
        if not self._by_sequence:
            return iter(())
        first = next(iter(self._by_sequence))
        # sequences are consecutive, so the ones before the cursor are a count
        skipped = max(0, sequence + 1 - first)
        return islice(self._by_sequence.values(), skipped, skipped + limit)

    def last(self, count: int) -> list[RequestRecord]:
        """The newest `count`, newest first."""
        return list(islice(reversed(self._by_sequence.values()), count))

    def by_id(self, request_id: str) -> RequestRecord | None:
        """The newest record of this id, if still kept."""
        sequence = self._sequence_of.get(request_id)
        return None if sequence is None else self._by_sequence[sequence]

    def __len__(self) -> int:
        return len(self._by_sequence)
