"""SQLite and PostgreSQL give the same answers to the same statements."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from msgspec import to_builtins
from sqlalchemy import URL, make_url, select, text

from proxy.errors import ConfigError
from proxy.meter.ledger import RequestEnergy
from proxy.store.archive import Archive
from proxy.store.database import META, SCHEMA_VERSION, Database
from proxy.store.stored_record import StoredRecord, reply_from, row_of
from tests.support.stored_records import record, stored


def opened(url: URL, upstream: str = "http://engine", run: str = "run") -> Database:
    database = Database(url, upstream, run)
    database.open()
    return database


def sequences(database: Database, since: int = 0, until: int = 10**9) -> list[int]:
    return [row["sequence"] for row in database.page(since, until, 1000)]


def test_a_page_is_what_lies_between_two_cursors(url: URL) -> None:
    database = opened(url)
    database.write([row_of(stored(n)) for n in (5, 1, 9, 7, 3)])
    assert sequences(database) == [1, 3, 5, 7, 9]
    assert sequences(database, 3, 7) == [5, 7]
    assert [row["sequence"] for row in database.page(1, 9, 2)] == [3, 5]
    database.close()


def test_an_id_gives_its_newest_record(url: URL) -> None:
    database = opened(url)
    database.write([row_of(stored(1, "same")), row_of(stored(2, "same"))])
    found = database.find("same")
    assert found is not None
    assert found["sequence"] == 2
    assert database.find("nobody") is None
    database.close()


def test_what_is_written_twice_is_there_once(url: URL) -> None:
    database = opened(url)
    database.write([row_of(stored(n)) for n in (1, 2)])
    database.write([row_of(stored(n)) for n in (1, 2, 3)])
    assert sequences(database) == [1, 2, 3]
    database.close()


def test_proxies_share_a_database_and_see_their_own_upstream(url: URL) -> None:
    one, other = opened(url, "http://one"), opened(url, "http://other")
    one.write([row_of(stored(n)) for n in (1, 2)])
    other.write([row_of(stored(n)) for n in (2, 3, 4)])
    assert sequences(one) == [1, 2]
    assert sequences(other) == [2, 3, 4]
    assert one.find("r3") is None
    assert other.delete_before(100, 100) == 3
    assert one.count() == 2
    # after a restart the numbers go on
    following = Database(url, "http://one", "next")
    assert following.open() == 2
    for database in (one, other, following):
        database.close()


def test_the_upstreams_of_one_proxy_are_read_together(url: URL) -> None:
    addresses = {"a": "http://one", "b": "http://two"}
    both = Database(url, "http://one", "run", addresses)
    both.open()
    both.write([{**row_of(stored(n)), "engine": "ab"[n % 2]} for n in range(1, 5)])
    assert sequences(both) == [1, 2, 3, 4]
    two = opened(url, "http://two")
    assert sequences(two) == [1, 3]
    for database in (both, two):
        database.close()


def test_two_may_create_the_tables_at_the_same_time(url: URL) -> None:
    databases = [Database(url, "http://engine", str(run)) for run in range(4)]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(Database.open, databases)) == [0, 0, 0, 0]
    for database in databases:
        database.write([row_of(stored(1))])
    assert databases[0].count() == 4
    for database in databases:
        database.close()


def test_the_oldest_are_deleted_in_batches(url: URL) -> None:
    database = opened(url)
    database.write([row_of(stored(n)) for n in range(1, 11)])
    assert database.cursor_of_newest(3) == 8
    assert database.cursor_of_newest(11) is None
    assert database.delete_before(8, 5) == 5
    assert sequences(database) == [6, 7, 8, 9, 10]
    assert database.delete_before(8, 5) == 2
    assert database.delete_before(8, 5) == 0
    assert sequences(database) == [8, 9, 10]
    database.close()


@pytest.mark.parametrize(
    ("version", "way_out"),
    [(SCHEMA_VERSION + 1, "newer .*upgrade"), (0, "older .*--store")],
)
def test_a_schema_of_another_version_is_refused(
    url: URL, version: int, way_out: str
) -> None:
    database = opened(url)
    with database.engine.begin() as connection:
        connection.execute(META.update().values(value=version))
    database.close()
    with pytest.raises(ConfigError, match=way_out):
        Archive(url, upstream="http://engine")


@pytest.mark.parametrize(("version", "lacks"), [(1, 2), (2, 1)])
def test_an_older_store_gets_its_columns_and_keeps_its_records(
    url: URL, version: int, lacks: int
) -> None:
    old = opened(url)
    old.write([row_of(stored(1))])
    with old.engine.begin() as connection:
        for column in ("engine", "boundaries")[:lacks]:
            drop = f"ALTER TABLE servewatt_records DROP COLUMN {column}"
            connection.execute(text(drop))
        connection.execute(META.update().values(value=version))
    old.close()
    for _ in range(2):  # killed halfway: the column is there, the version is not
        database = opened(url)
        with database.engine.begin() as connection:
            assert connection.scalar(select(META.c.value)) == SCHEMA_VERSION
            connection.execute(META.update().values(value=version))
        database.close()
    database = opened(url)
    beside = RequestEnergy(1.0, 2.0, 3.0, 6.0, "phase", "estimated")
    energy = replace(record(2).energy, boundaries={"node": beside})
    database.write([row_of(StoredRecord(2, 1.7e9, replace(record(2), energy=energy)))])
    replies = [to_builtins(reply_from(row)) for row in database.page(0, 9, 9)]
    assert [reply["engine"] for reply in replies] == [None, "vllm"]
    first, second = (reply["energy"] for reply in replies)
    assert "boundaries" not in first
    assert second["boundaries"] == {
        "node": {
            "prefill_joules": 1.0, "decode_joules": 2.0, "idle_share_joules": 3.0,
            "energy_joules": 6.0, "quality": "estimated",
        }
    }  # fmt: skip
    database.close()


def test_a_file_that_is_no_database_is_left_alone(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("store") / "notes.txt"
    path.write_text("these are my notes, not a database; " * 50)
    before = path.read_bytes()
    archive = Archive(make_url(f"sqlite:///{path}"))
    state = archive.state()
    assert state is not None
    assert not state.is_up
    assert state.last_error == "file is not a database"
    assert path.read_bytes() == before


def test_a_store_is_its_owners_with_log_and_index(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("store") / "records.sqlite"
    former = os.umask(0o022)
    try:
        archive = Archive(make_url(f"sqlite:///{path}"))
    finally:
        os.umask(former)
    state = archive.state()
    assert state is not None
    assert state.is_up
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert modes[path.name] == 0o600
    assert set(modes.values()) == {0o600}
