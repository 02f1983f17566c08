"""What a killed proxy, a wrong clock and a shared store leave of the records."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import URL, select

from proxy.store.address import Retention, store_url
from proxy.store.database import RECORDS, Database
from proxy.store.stored_record import NOTE, StoredRecord
from proxy.store.writer import RecordWriter, TrustedClock
from tests.support.metered import metered
from tests.support.profiles import examples

RECORD = replace(metered()[1][0], engine="vllm")


def opened(path: Path, run: str, instance: str = "here") -> Database:
    url: URL = store_url(f"sqlite:///{path / 'records.sqlite'}")
    database = Database(url, "http://engine", run)
    database.open()
    database.instance = instance
    return database


def one(cursor: int, key: int, *, is_note: bool = False) -> StoredRecord:
    record = replace(RECORD, request_id=f"r{key}", key=key)
    return StoredRecord(cursor, 0.0, record, is_note)


def qualities(database: Database) -> list[tuple[str, str]]:
    with database.engine.connect() as connection:
        found = connection.execute(
            select(RECORDS.c.request_id, RECORDS.c.quality).order_by(RECORDS.c.sequence)
        )
        return [(row[0], row[1]) for row in found]


def test_a_note_is_replaced_by_its_record_in_the_same_batch_or_a_later_one(
    tmp_path: Path,
) -> None:
    database = opened(tmp_path, "a")
    writer = RecordWriter(database, Retention(None, None), is_open=True)
    writer.add([one(1, 1, is_note=True), one(2, 2, is_note=True), one(3, 1)])
    writer.turn()
    assert [name for name, quality in qualities(database) if quality == NOTE] == ["r2"]
    assert [row["request_id"] for row in database.page(0, 99, 99)] == ["r1"]
    writer.add([one(4, 2)])
    writer.turn()
    assert [name for name, _ in qualities(database)] == ["r1", "r2"]
    assert NOTE not in dict(qualities(database)).values()
    assert database.count() == 2
    database.close()


def test_what_a_killed_run_noted_is_a_record_of_the_next_one_without_energy(
    tmp_path: Path,
) -> None:
    killed, elsewhere = opened(tmp_path, "a"), opened(tmp_path, "b", "there")
    for database in (killed, elsewhere):
        writer = RecordWriter(database, Retention(None, None), is_open=True)
        writer.add([one(10, 7, is_note=True)])
        writer.turn()
    following = opened(tmp_path, "c")
    now = RECORD.finished_seconds
    assert following.adopt(500, now) == 1  # the other one lives
    assert [row["sequence"] for row in following.page(0, 999, 9)] == [501]
    assert following.page(0, 999, 9)[0]["quality"] == "unknown"
    assert following.adopt(600, now) == 0
    for database in (killed, elsewhere, following):
        database.close()


@examples(15)
@given(
    cursors=st.lists(st.integers(1, 6), min_size=1, max_size=40),
    limit=st.integers(1, 9),
)
def test_pages_of_a_shared_store_leave_nothing_out(
    cursors: list[int], limit: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number, cursor in enumerate(cursors):
            database = opened(Path(folder), f"run{number}")
            writer = RecordWriter(database, Retention(None, None), is_open=True)
            writer.add([one(cursor, number + 1)])
            writer.turn()
            database.close()
        database = opened(Path(folder), "reader")
        found, since = [], 0
        while page := database.page(since, 99, limit):
            found += [row["request_id"] for row in page]
            since = page[-1]["sequence"]
        database.close()
    assert sorted(found) == sorted(f"r{n + 1}" for n in range(len(cursors)))


def test_a_clock_deletes_nothing_before_it_was_sane_for_long() -> None:
    clock = TrustedClock(3600.0)
    assert not clock.is_sane(0.0, 1000.0)
    assert clock.is_sane(3600.0, 4600.0)
    assert not clock.is_sane(3601.0, 4601.0 + 40 * 86_400)
    assert not clock.is_sane(7200.0, 8200.0 + 40 * 86_400)
    assert not clock.is_sane(7201.0, 8201.0)  # right again, but since when
    assert clock.is_sane(7201.0 + 3600.0, 8201.0 + 3600.0)
