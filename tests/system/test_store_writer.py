"""Records reach the database, or wait, or are counted: they are never just gone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import URL, make_url

from proxy.store.address import Retention, sqlite_url
from proxy.store.database import Database
from proxy.store.writer import BATCH_SECONDS, RecordWriter, WriterBounds
from tests.support.databases import Postgres
from tests.support.stored_records import stored

FOREVER = Retention(None, None)
EAGER = WriterBounds(retain_seconds=0.0, sane_seconds=0.0)


def writer_to(
    url: URL,
    retention: Retention = FOREVER,
    bounds: WriterBounds = EAGER,
    unix_seconds: Callable[[], float] = lambda: 0.0,
) -> tuple[RecordWriter, Database]:
    database = Database(url, "http://engine", "run")
    writer = RecordWriter(database, retention, bounds=bounds, unix_seconds=unix_seconds)
    return writer, database


def rows_of(database: Database) -> list[int]:
    return [row["sequence"] for row in database.page(0, 10**18, 10**6)]


def test_all_that_was_added_is_written_in_order(url: URL) -> None:
    writer, database = writer_to(url, bounds=replace(EAGER, batch_records=7))
    for n in range(1, 101):
        writer.add([stored(n)])
    assert writer.state().queue_records == 100
    writer.turn()
    state = writer.state()
    assert (state.is_up, state.queue_records, state.written_total) == (True, 0, 100)
    assert rows_of(database) == list(range(1, 101))
    database.close()


def test_a_proxy_that_ends_writes_what_waits(url: URL) -> None:
    writer, database = writer_to(url)
    writer.start()
    for n in range(1, 3001):
        writer.add([stored(n)])
    writer.stop(seconds=60)
    assert writer.state().queue_records == 0
    assert database.count() == 3000
    database.close()


def test_while_the_database_is_away_records_wait(tmp_path: Path) -> None:
    folder = tmp_path / "not mounted yet"
    writer, database = writer_to(make_url(sqlite_url(folder / "records.sqlite")))
    waits = []
    for n in (1, 2, 3):
        writer.add([stored(n)])
        waits.append(writer.turn())
    state = writer.state()
    assert (state.is_up, state.queue_records, state.written_total) == (False, 3, 0)
    assert state.last_error == "unable to open database file"
    assert waits == [0.5, 1.0, 2.0]  # each time longer
    folder.mkdir()
    assert writer.turn() == BATCH_SECONDS
    assert writer.state().is_up
    assert writer.state().last_error is None
    assert rows_of(database) == [1, 2, 3]
    database.close()


def test_waiting_has_a_bound_and_what_is_dropped_is_counted(tmp_path: Path) -> None:
    folder = tmp_path / "not mounted yet"
    url = make_url(sqlite_url(folder / "records.sqlite"))
    writer, database = writer_to(url, bounds=replace(EAGER, queue_records=10))
    writer.add(stored(n) for n in range(1, 26))
    assert writer.state().queue_records == 10
    assert writer.state().dropped_total == 15
    folder.mkdir()
    writer.turn()
    assert rows_of(database) == list(range(16, 26))  # the newest: memory has them too
    assert writer.state().written_total == 10
    database.close()


@pytest.mark.postgres
def test_records_wait_for_a_server_that_is_restarted(postgres: Postgres) -> None:
    writer, database = writer_to(postgres.create_database())
    writer.add([stored(1)])
    writer.turn()
    postgres.stop()
    try:
        writer.add([stored(2)])
        writer.turn()
        assert not writer.state().is_up
        assert writer.state().queue_records == 1
        assert writer.state().last_error
    finally:
        postgres.start()
    writer.add([stored(3)])
    writer.turn()
    assert writer.state().is_up
    assert rows_of(database) == [1, 2, 3]
    database.close()


def test_a_full_disk_stops_only_the_store(tmp_path: Path) -> None:
    writer, database = writer_to(make_url(sqlite_url(tmp_path / "records.sqlite")))
    writer.turn()

    def allow(pages: int) -> None:  # SQLite then answers as on a full disk
        with database.engine.connect() as connection:
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    allow(1)  # that is, no more than there are
    writer.add(stored(n) for n in range(1, 2001))
    writer.turn()
    state = writer.state()
    assert not state.is_up
    assert state.last_error == "database or disk is full"
    assert state.queue_records + state.written_total == 2000
    assert state.dropped_total == 0
    allow(1_000_000)
    writer.turn()
    assert writer.state().queue_records == 0
    assert rows_of(database) == list(range(1, 2001))
    database.close()


def test_another_writer_on_the_file_is_waited_for(tmp_path: Path) -> None:
    url = make_url(sqlite_url(tmp_path / "records.sqlite"))
    writer, database = writer_to(url.set(query={"timeout": "0.01"}))
    writer.turn()
    other = Database(url, "http://other", "run")
    with other.engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        writer.add([stored(1)])
        writer.turn()
        assert writer.state().last_error == "database is locked"
        connection.rollback()
    writer.turn()
    assert rows_of(database) == [1]
    database.close()
    other.close()


def test_a_record_no_database_takes_does_not_block_the_others(url: URL) -> None:
    writer, database = writer_to(url)
    records = [stored(n) for n in range(1, 21)]
    lie = replace(records[12].record, prompt_tokens=2**70)  # an engine may say so
    records[12] = replace(records[12], record=lie)
    writer.add(records)
    writer.turn()
    state = writer.state()
    assert (state.is_up, state.queue_records) == (True, 0)
    assert (state.written_total, state.dropped_total) == (19, 1)
    assert rows_of(database) == [n for n in range(1, 21) if n != 13]
    database.close()


def test_records_beyond_the_wanted_number_are_deleted_in_batches(url: URL) -> None:
    pace = replace(EAGER, retain_records=30)
    writer, database = writer_to(url, Retention(None, rows=20), pace)
    writer.add(stored(n) for n in range(1, 101))
    left = []
    for _ in range(4):
        writer.turn()
        left.append(database.count())
    assert left == [70, 40, 20, 20]
    assert rows_of(database) == list(range(81, 101))
    assert writer.state().deleted_total == 80
    database.close()


def test_records_beyond_the_wanted_age_are_deleted(url: URL) -> None:
    second = 1_000_000
    writer, database = writer_to(
        url, Retention(age_seconds=10.0), unix_seconds=lambda: 100.0
    )
    writer.add(stored(n * second) for n in (80, 89, 90, 91, 99))
    writer.turn()
    assert rows_of(database) == [n * second for n in (90, 91, 99)]
    database.close()
