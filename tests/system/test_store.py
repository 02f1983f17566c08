"""The newest records can be asked for; the bound holds."""

from __future__ import annotations

from proxy.store.archive import RecentRecords
from tests.support.stored_records import stored


def test_a_cursor_gives_each_record_once_in_order() -> None:
    records = RecentRecords()
    records.add(stored(10 * n) for n in range(1, 8))
    first = [s.cursor for s in records.since(0, 4)]
    rest = [s.cursor for s in records.since(first[-1], 100)]
    assert first + rest == [10, 20, 30, 40, 50, 60, 70]
    assert [s.cursor for s in records.since(35, 2)] == [40, 50]
    assert records.since(70, 100) == []


def test_the_oldest_make_room_and_are_counted() -> None:
    records = RecentRecords(kept=10)
    for n in range(1, 101):
        records.add([stored(n)])
        kept = [s.cursor for s in records.since(0, 1000)]
        # the bound may be passed by a tenth, as trimming one by one is slow
        assert 10 <= len(kept) <= 12 or n == len(kept)
        assert kept[-1] == n
        assert records.horizon == kept[0] - 1
        assert records.evicted == records.horizon
    assert records.by_id("r1") is None
    assert [s.cursor for s in records.last(2)] == [100, 99]


def test_an_id_used_twice_gives_the_newer_and_survives_the_older() -> None:
    records = RecentRecords(kept=2)
    records.add([stored(1, "same"), stored(2, "other"), stored(3), stored(4, "same")])
    assert records.evicted == 2
    found = records.by_id("same")
    assert found is not None
    assert found.cursor == 4
    records.add([stored(5), stored(6), stored(7)])
    assert records.by_id("same") is None
