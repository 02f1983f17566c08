"""The newest records can be asked for; the bound holds."""

from __future__ import annotations

from proxy.ledger import RequestEnergy, RequestRecord
from proxy.store import RecentRecords


def record(sequence: int, request_id: str | None = None) -> RequestRecord:
    return RequestRecord(
        sequence=sequence, request_id=request_id or f"r{sequence}", route="chat",
        model="m", kind="code", tenant="none", outcome="ok", error=None, status=200,
        arrived_seconds=0.0, scheduled_seconds=None, first_token_seconds=None,
        last_token_seconds=None, finished_seconds=1.0, prompt_tokens=1,
        cached_tokens=0, output_tokens=1,
        energy=RequestEnergy(None, None, None, None, "phase", "unknown"),
    )  # fmt: skip


def test_a_cursor_gives_each_record_once_in_order() -> None:
    records = RecentRecords()
    records.add(record(n) for n in range(1, 8))
    first = [r.sequence for r in records.since(0, 4)]
    rest = [r.sequence for r in records.since(first[-1], 100)]
    assert first + rest == [1, 2, 3, 4, 5, 6, 7]
    assert list(records.since(7, 100)) == []


def test_the_oldest_make_room_and_are_counted() -> None:
    records = RecentRecords(kept=3)
    records.add(record(n) for n in range(1, 6))
    assert [r.sequence for r in records.since(0, 100)] == [3, 4, 5]
    assert records.evicted == 2
    assert records.by_id("r1") is None
    assert [r.sequence for r in records.last(2)] == [5, 4]


def test_an_id_used_twice_gives_the_newer_and_survives_the_older() -> None:
    records = RecentRecords(kept=2)
    records.add([record(1, "same"), record(2, "same"), record(3, "other")])
    found = records.by_id("same")
    assert found is not None
    assert found.sequence == 2
