"""`/requests` gives each record once, in order, over restarts, outages and kills."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, make_url

from proxy.errors import StoreError
from proxy.store.address import sqlite_url
from proxy.store.archive import KEPT_BESIDE_STORE, Archive
from proxy.store.database import Database
from tests.support.databases import Postgres
from tests.support.paths import ROOT
from tests.support.stored_records import record

ENGINE = "http://engine"


def page(archive: Archive, since: int = 0, limit: int = 10_000) -> list[dict[str, Any]]:
    body = asyncio.run(archive.lines(since, limit))
    return [json.loads(line) for line in body.splitlines()]


def tokens(rows: list[dict[str, Any]]) -> list[int]:
    return [row["output_tokens"] for row in rows]


def one(archive: Archive, request_id: str) -> dict[str, Any] | None:
    line = asyncio.run(archive.line(request_id))
    return None if line is None else dict(json.loads(line))


def archive_with(url: URL | None, numbers: range) -> Archive:
    """Started, with these records settled one after the other."""
    archive = Archive(url, upstream=ENGINE)
    archive.start()
    for number in numbers:
        archive.add([record(number)])
    return archive


def test_a_cursor_goes_on_over_a_restart(url: URL) -> None:
    before = archive_with(url, range(1, 11))
    first = page(before, limit=4)
    shown = page(before)
    before.stop()
    after = archive_with(url, range(11, 16))
    rest = page(after, since=first[-1]["sequence"])
    assert tokens(first + rest) == list(range(1, 16))
    sequences = [row["sequence"] for row in first + rest]
    assert sequences == sorted(set(sequences))
    # the same record reads the same, then from memory and now from the database
    assert page(after, limit=10) == shown
    assert one(after, "r3") == shown[2]
    assert one(after, "r12") == rest[7]
    assert one(after, "nobody") is None
    # a page may end on either side of the restart
    assert tokens(page(after, limit=10)) == list(range(1, 11))
    assert tokens(page(after, limit=12)) == list(range(1, 13))
    after.stop()


def test_what_is_not_written_yet_is_shown_all_the_same(tmp_path: Path) -> None:
    url = make_url(sqlite_url(tmp_path / "records.sqlite"))
    archive = Archive(url, upstream=ENGINE)  # never started: writes nothing
    archive.add([record(1), record(2)])
    assert tokens(page(archive)) == [1, 2]
    state = archive.state()
    assert state is not None
    assert state.queue_records == 2
    assert one(archive, "r2") is not None
    archive.start()
    archive.stop()


def test_a_store_that_is_down_hides_the_past_and_not_this_run(tmp_path: Path) -> None:
    url = make_url(sqlite_url(tmp_path / "away" / "records.sqlite"))
    archive = Archive(url, upstream=ENGINE)
    archive.add([record(1), record(2)])
    with pytest.raises(StoreError, match=r"unable to open .*since=") as refusal:
        page(archive)
    with pytest.raises(StoreError):
        one(archive, "of an earlier run")
    since = int(str(refusal.value).partition("since=")[2])
    assert tokens(page(archive, since=since)) == [1, 2]
    assert one(archive, "r1") is not None


@pytest.mark.postgres
def test_a_server_that_goes_away_hides_the_past_only(postgres: Postgres) -> None:
    url = postgres.create_database()
    archive_with(url, range(1, 4)).stop()
    archive = Archive(url, upstream=ENGINE)
    archive.add([record(4)])
    newest = page(archive)[-1]["sequence"]
    postgres.stop()
    try:
        # the writer has not noticed yet: the question itself does
        with pytest.raises(StoreError, match="since="):
            page(archive)
        assert tokens(page(archive, since=newest - 1)) == [4]
    finally:
        postgres.start()
    assert tokens(page(archive)) == [1, 2, 3, 4]
    archive.start()
    archive.stop()


def test_without_a_store_the_newest_are_in_memory() -> None:
    archive = archive_with(None, range(1, 4))
    assert tokens(page(archive)) == [1, 2, 3]
    assert one(archive, "r4") is None
    assert archive.state() is None
    archive.stop()


def child(url: URL, upstream: str = ENGINE) -> subprocess.Popen[str]:
    shown = url.render_as_string(hide_password=False)
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.store_child", shown, upstream],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def killed_after(process: subprocess.Popen[str], records: int) -> int:
    """Kill it once so many are written; how many it knew to be."""
    assert process.stdout is not None
    acknowledged = 0
    for line in process.stdout:
        acknowledged = int(line.split()[1])
        if acknowledged >= records:
            break
    process.send_signal(signal.SIGKILL)
    rest, _ = process.communicate()
    whole = [line for line in rest.splitlines(keepends=True) if line.endswith("\n")]
    assert acknowledged >= records
    return int(whole[-1].split()[1]) if whole else acknowledged


def is_whole(url: URL) -> bool:
    """What the database itself says of its files."""
    if url.get_backend_name() != "sqlite":
        return True
    database = Database(url, ENGINE, "checker")
    with database.engine.connect() as connection:
        answer = connection.exec_driver_sql("PRAGMA integrity_check").scalar()
        mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
    database.close()
    return (answer, mode) == ("ok", "wal")


def test_a_kill_loses_the_last_batch_at_most_and_corrupts_nothing(url: URL) -> None:
    expected: list[int] = []
    for _ in range(3):  # what is left behind by one is taken up by the next
        acknowledged = killed_after(child(url), 300)
        assert is_whole(url)
        archive = Archive(url, upstream=ENGINE)
        rows = page(archive)
        found = tokens(rows)[len(expected) :]
        assert tokens(rows)[: len(expected)] == expected
        assert len(found) >= acknowledged
        assert found == list(range(1, len(found) + 1))  # a batch is whole or absent
        sequences = [row["sequence"] for row in rows]
        assert sequences == sorted(set(sequences))
        expected += found
        archive.start()
        archive.stop()


def test_proxies_on_one_database_do_not_disturb_each_other(url: URL) -> None:
    upstreams = ["http://one", "http://two", "http://three"]
    children = [child(url, upstream) for upstream in upstreams]
    acknowledged = [killed_after(process, 200) for process in children]
    assert is_whole(url)
    for upstream, at_least in zip(upstreams, acknowledged, strict=True):
        archive = Archive(url, upstream=upstream)
        found = tokens(page(archive))
        assert len(found) >= at_least
        assert found == list(range(1, len(found) + 1))
        archive.start()
        archive.stop()


def test_what_is_written_makes_room_in_memory(tmp_path: Path) -> None:
    url = make_url(sqlite_url(tmp_path / "records.sqlite"))
    archive = Archive(url, upstream=ENGINE)
    archive.add(record(number) for number in range(7_000))
    assert len(archive.last(10_000)) == 7_000  # none of them is written
    archive.start()
    archive.stop()
    archive.add([record(7_000)])
    assert len(archive.last(10_000)) <= KEPT_BESIDE_STORE + 1
    assert tokens(page(archive)) == list(range(7_001))
    assert one(archive, "r0") is not None
    archive.stop()  # reading has opened it again
