"""SQLite and PostgreSQL give the same answers to the same statements."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import to_builtins
from sqlalchemy import URL, create_engine, inspect, make_url, select, text

from proxy.errors import ConfigError
from proxy.meter.ledger import RequestEnergy
from proxy.store.archive import Archive
from proxy.store.database import ADDED, META, RECORDS, SCHEMA_VERSION, Database
from proxy.store.stored_record import StoredRecord, reply_from, reply_of, row_of
from tests.support.databases import Postgres
from tests.support.paths import ROOT
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


def test_a_record_keeps_its_bounds_beside_one_that_has_none(url: URL) -> None:
    energy = replace(record(2).energy, low_joules=50.0, high_joules=60.0, grade="fair",
                     grade_reasons=("wide",))  # fmt: skip
    bounded = StoredRecord(2, 1.7e9, replace(record(2), energy=energy))
    for first, second in ((stored(1), bounded), (bounded, stored(1))):
        database = opened(url, f"http://engine-{first.cursor}")
        database.write([row_of(first), row_of(second)])
        found = database.find("r2")
        assert found is not None
        assert reply_from(found) == reply_of(bounded)
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


FIRST_SCHEMA = (
    """CREATE TABLE servewatt_meta (
    name TEXT NOT NULL PRIMARY KEY, value INTEGER NOT NULL)""",
    """CREATE TABLE servewatt_records (
    upstream TEXT NOT NULL, sequence BIGINT NOT NULL, run TEXT NOT NULL,
    request_id TEXT NOT NULL, route TEXT NOT NULL, model TEXT NOT NULL,
    kind TEXT NOT NULL, tenant TEXT NOT NULL, outcome TEXT NOT NULL, error TEXT,
    status INTEGER, arrived_unix_seconds DOUBLE PRECISION NOT NULL,
    scheduled_unix_seconds DOUBLE PRECISION, first_token_unix_seconds DOUBLE PRECISION,
    last_token_unix_seconds DOUBLE PRECISION,
    finished_unix_seconds DOUBLE PRECISION NOT NULL, prompt_tokens BIGINT,
    cached_tokens BIGINT, output_tokens BIGINT, prefill_joules DOUBLE PRECISION,
    decode_joules DOUBLE PRECISION, idle_share_joules DOUBLE PRECISION,
    energy_joules DOUBLE PRECISION, policy TEXT NOT NULL, quality TEXT NOT NULL,
    policy_joules TEXT NOT NULL, PRIMARY KEY (upstream, sequence, run))""",
    """CREATE INDEX servewatt_records_request_id
    ON servewatt_records (request_id)""",
    """CREATE INDEX servewatt_records_finished
    ON servewatt_records (finished_unix_seconds)""",
    "INSERT INTO servewatt_meta VALUES ('schema', 1)",
    """INSERT INTO servewatt_records VALUES (
    'http://engine', 1, 'old', 'r1', 'chat', 'm', 'code', 'none', 'ok', NULL, 200,
    1.25, 1.5, 2.0, 3.0, 3.125, 1000, 16, 7, 20.1, 30.2, 5.3, 55.6, 'phase', 'exact',
    '{"phase": 50.3}')""",
)
"""The tables as version 1 made them, with one record."""
LATER_COLUMNS = {2: "boundaries", 3: "engine", 4: "instance"}
"""What each later version added to them, all of it text."""


def made_by_version(url: URL, version: int, *, halfway: bool) -> None:
    """A store of that version; `halfway`: its upgrade was killed between columns."""
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in FIRST_SCHEMA:
            connection.exec_driver_sql(statement)
        for column in list(LATER_COLUMNS.values())[: version - 1 + halfway]:
            added = f"ALTER TABLE servewatt_records ADD COLUMN {column} TEXT"
            connection.execute(text(added))
        connection.execute(META.update().values(value=version))
    engine.dispose()


def columns_of(database: Database) -> dict[str, str]:
    found = inspect(database.engine).get_columns("servewatt_records")
    return {column["name"]: str(column["type"]) for column in found}


@pytest.mark.parametrize("halfway", [False, True], ids=["whole", "killed halfway"])
@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_a_store_of_any_earlier_version_gets_its_columns_and_keeps_its_records(
    url: URL, version: int, halfway: bool
) -> None:
    made_by_version(url, version, halfway=halfway)
    for _ in range(2):  # what is done twice is done once
        database = opened(url)
        with database.engine.begin() as connection:
            assert connection.scalar(select(META.c.value)) == SCHEMA_VERSION
        assert set(columns_of(database)) == {column.name for column in RECORDS.columns}
        database.close()
    database = opened(url)
    beside = RequestEnergy(1.0, 2.0, 3.0, 6.0, "phase", "estimated")
    energy = replace(record(2).energy, boundaries={"node": beside})
    cut = replace(record(2), energy=energy, is_output_lower_bound=True)
    database.write([row_of(StoredRecord(2, 1.7e9, cut))])
    first, second = (reply_from(row) for row in database.page(0, 9, 9))
    assert (first.request_id, first.output_tokens) == ("r1", 7)
    assert first.energy.energy_joules == 55.6
    assert (first.engine, first.is_output_lower_bound) == (None, None)
    assert to_builtins(second) == to_builtins(reply_of(StoredRecord(2, 1.7e9, cut)))
    assert "boundaries" not in to_builtins(first.energy)
    database.close()


def test_added_columns_are_those_of_a_new_store(url: URL) -> None:
    added = {column.name for columns in ADDED.values() for column in columns}
    new = opened(url)
    wanted = {name: kind for name, kind in columns_of(new).items() if name in added}
    with new.engine.begin() as connection:
        for table in ("servewatt_records", "servewatt_meta"):
            connection.execute(text(f"DROP TABLE {table}"))
    new.close()
    made_by_version(url, 1, halfway=False)
    old = opened(url)
    found = columns_of(old)
    assert {name: found[name] for name in added} == wanted
    old.close()


def test_several_may_upgrade_one_store_at_the_same_time(url: URL) -> None:
    made_by_version(url, 1, halfway=False)
    databases = [Database(url, "http://engine", str(run)) for run in range(4)]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(Database.open, databases)) == [1, 1, 1, 1]
    for database in databases:
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
    archive.start()
    archive.stop()


def test_a_row_says_which_proxy_made_it_where_and_inside_what(url: URL) -> None:
    database = Database(url, "http://engine", "run", None, {"vllm": "gpu"})
    database.open()
    database.instance, database.host = "proxy-a", "node7"
    database.write([row_of(stored(1))])
    (row,) = database.page(0, 9, 9)
    names = ("instance", "host", "boundary")
    assert [row[name] for name in names] == ["proxy-a", "node7", "gpu"]
    database.close()


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_a_store_goes_back_to_an_earlier_version_and_comes_again(
    url: URL, version: int
) -> None:
    made_by_version(url, version, halfway=False)
    database = opened(url)
    database.write([row_of(stored(2))])
    with database.engine.begin() as connection:
        connection.execute(META.update().values(value=version))
        # as that version writes: columns that are not its own it does not name
        later = {column.name for n in ADDED if n > version for column in ADDED[n]}
        own = ", ".join(c.name for c in RECORDS.columns if c.name not in later)
        shown = own.replace("sequence", "3")
        copied = f"INSERT INTO servewatt_records ({own}) SELECT {shown}"
        connection.execute(text(f"{copied} FROM servewatt_records WHERE sequence = 2"))
    database.close()
    again = opened(url)
    with again.engine.connect() as connection:
        assert connection.scalar(select(META.c.value)) == SCHEMA_VERSION
    assert sequences(again) == [1, 2, 3]
    assert to_builtins(reply_from(again.page(1, 2, 9)[0])) == to_builtins(
        reply_of(stored(2))
    )
    again.close()


def shown(*beginnings: str) -> str:
    """The commands of the page about records that begin so, as one script."""
    page = (ROOT / "docs" / "records.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith(beginnings)]
    assert len(lines) >= len(beginnings)
    return "\n".join(["set -e", "umask 077", *lines])


def done(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", script], cwd=folder, capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="needs sqlite3")
def test_a_backup_of_a_file_in_use_is_restored_with_every_record(
    tmp_path: Path,
) -> None:
    url = make_url(f"sqlite:///{tmp_path}/records.sqlite")
    live = opened(url)
    live.write([row_of(stored(n)) for n in range(1, 9)])
    is_over = threading.Event()

    def write() -> None:
        for number in range(9, 3000):
            if is_over.is_set():
                break
            live.write([row_of(stored(number))])

    backup = shown("sqlite3 'file:", "sqlite3 backup")
    with ThreadPoolExecutor() as pool:
        writing = pool.submit(write)
        try:
            made = done(backup, tmp_path)
        finally:
            is_over.set()
        writing.result()
    assert made.returncode == 0, made.stderr
    is_whole, count = made.stdout.split()
    assert is_whole == "ok"
    assert 8 <= int(count) <= len(sequences(live))
    assert (tmp_path / "backup.sqlite").stat().st_mode & 0o777 == 0o600
    kept = live.page(0, int(count), 10**6)
    live.close()

    # an older copy stays, and one of nothing is not made
    assert done(backup, tmp_path).returncode != 0
    assert done(backup, Path(tempfile.mkdtemp(dir=tmp_path))).returncode != 0

    restored = done(shown("rm -f records.sqlite-wal", "cp backup.sqlite"), tmp_path)
    assert restored.returncode == 0, restored.stderr
    again = opened(url)
    assert again.page(0, 10**6, 10**6) == kept
    again.write([row_of(stored(int(count) + 1))])
    assert len(sequences(again)) == int(count) + 1
    again.close()


@pytest.mark.postgres
def test_a_dump_of_a_database_is_restored_with_every_record(
    postgres: Postgres, tmp_path: Path
) -> None:
    url, other = postgres.create_database(), postgres.create_database()
    live = opened(url)
    live.write([row_of(stored(n)) for n in range(1, 9)])
    dump, restore = shown("pg_dump"), shown("pg_restore")
    kept = live.page(0, 99, 99)
    for script, target in (dump, url), (restore, other), (restore, url):
        if script is restore and target is url:
            live.write([row_of(stored(9))])  # gone with the restore
        name = target.set(drivername="postgresql").render_as_string()
        made = done(script.replace("DATABASE", f"'{name}'"), tmp_path)
        assert made.returncode == 0, made.stderr
    restored = opened(other)
    assert restored.page(0, 99, 99) == kept
    assert live.page(0, 99, 99) == kept
    live.write([row_of(stored(9))])  # who is connected goes on
    assert sequences(live) == list(range(1, 10))
    live.close()
    restored.close()
