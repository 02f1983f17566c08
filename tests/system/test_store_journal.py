"""The file of requests that the database does not have yet, and who reads it."""

from __future__ import annotations

import asyncio
import itertools
import os
import stat
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import URL, make_url

from proxy.store import journal as journal_module
from proxy.store.archive import Archive
from proxy.store.database import Database
from proxy.store.journal import (
    Journal,
    LeftBehind,
    OpenRequest,
    journal_base,
    left_behind,
)
from proxy.store.stored_record import KILLED, StoredRecord, left_records, row_of
from proxy.wire.events import RequestOpened
from proxy.wire.facts import Labels, RequestFacts
from tests.support.metered import metered
from tests.support.profiles import examples
from tests.support.stored_records import record

ENGINE = "http://engine"
RUNS = itertools.count()


def opened(key: int, name: str | None = None, model: str = "m") -> RequestOpened:
    facts, labels = RequestFacts("chat"), Labels(model, "code", "blue")
    return RequestOpened(key, 5.0 + key, name or f"r{key}", facts, labels)


def ids(left: list[LeftBehind]) -> list[str]:
    return [arrival.request_id for each in left for arrival, _ in each.requests]


def killed(journal: Journal) -> None:
    """What is left of its process: a file that nobody holds."""
    assert journal._file is not None
    os.close(journal._file)
    journal._file = None


def test_a_request_is_in_the_file_until_the_database_has_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "records.sqlite", "run", "phase")
    for key in (1, 2, 3):
        journal.add("vllm", opened(key))
    journal.turn()
    journal.forget([("vllm", 2)])
    journal.turn()
    assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600
    killed(journal)
    with left_behind(tmp_path / "records.sqlite") as left:
        assert ids(left) == ["r1", "r3"]
        assert left[0].run == "run"
        assert left[0].policy == "phase"
        one, end = left[0].requests[0]
        assert end is None
        assert (one.model, one.kind, one.tenant) == ("m", "code", "blue")
    assert list(tmp_path.iterdir()) == []


def test_the_file_of_a_process_that_lives_is_left_alone(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "records.sqlite", "run", "phase")
    journal.add("vllm", opened(1))
    journal.turn()
    with left_behind(tmp_path / "records.sqlite") as left:
        assert left == []
    assert journal.path.exists()
    killed(journal)


def test_a_line_that_the_kill_cut_is_passed_over_and_so_is_what_is_no_line(
    tmp_path: Path,
) -> None:
    journal = Journal(tmp_path / "records.sqlite", "run", "phase")
    for key in (1, 2):
        journal.add("vllm", opened(key))
    journal.turn()
    killed(journal)
    whole = journal.path.read_bytes()
    for cut in range(len(whole)):
        journal.path.write_bytes(whole[:cut])
        with left_behind(tmp_path / "records.sqlite") as left:
            assert ids(left) in ([], ["r1"], ["r1", "r2"])
    journal.path.write_bytes(b'\xff\0\n[]\n{"type":"open"}\n' + whole)
    with left_behind(tmp_path / "records.sqlite") as left:
        assert ids(left) == ["r1", "r2"]


def test_a_folder_or_a_pipe_of_that_name_is_passed_over(tmp_path: Path) -> None:
    base = tmp_path / "records.sqlite"
    (tmp_path / f"{base.name}-requests-folder").mkdir()
    os.mkfifo(tmp_path / f"{base.name}-requests-pipe")
    journal = Journal(base, "run", "phase")
    journal.add("vllm", opened(1))
    journal.turn()
    killed(journal)
    with left_behind(base) as left:
        assert ids(left) == ["r1"]


@examples(40)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["open", "end", "stored", "turn"]), st.integers(1, 12)
        ),
        max_size=40,
    ),
    spent_bytes=st.integers(0, 400),
)
def test_however_often_it_is_written_anew_it_has_what_is_open(
    steps: list[tuple[str, int]], spent_bytes: int
) -> None:
    open_keys: dict[int, bool] = {}
    was = journal_module.SPENT_BYTES
    journal_module.SPENT_BYTES = spent_bytes
    try:
        with tempfile.TemporaryDirectory() as folder:
            base = Path(folder) / "records.sqlite"
            journal = Journal(base, "run", "phase")
            for step, key in steps:
                if step == "open" and key not in open_keys:
                    journal.add("vllm", opened(key))
                    open_keys[key] = False
                elif step == "end" and key in open_keys:
                    journal.end(replace(record(key), key=key))
                    open_keys[key] = True
                elif step == "stored" and key in open_keys:
                    journal.forget([("vllm", key)])
                    del open_keys[key]
                else:
                    journal.turn()
            journal.turn()
            if journal._file is not None:
                killed(journal)
            with left_behind(base) as left:
                assert ids(left) == [f"r{key}" for key in open_keys]
                ends = [end is not None for each in left for _, end in each.requests]
                assert ends == list(open_keys.values())
    finally:
        journal_module.SPENT_BYTES = was


def test_a_disk_that_fails_is_tried_again_and_then_has_all_that_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "away"
    journal = Journal(folder / "records.sqlite", "run", "phase")
    monkeypatch.setattr(journal_module, "RETRY_SECONDS", 0.0)
    journal.add("vllm", opened(1))
    journal.turn()  # there is no such folder
    folder.mkdir()
    journal.add("vllm", opened(2))
    journal.turn()
    killed(journal)
    with left_behind(folder / "records.sqlite") as left:
        assert ids(left) == ["r1", "r2"]


def test_a_name_that_is_no_text_is_written_all_the_same(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "records.sqlite", "run", "phase")
    journal.add("vllm", opened(1, model="a\ud800b"))
    journal.add("vllm", opened(2))
    journal.turn()
    killed(journal)
    with left_behind(tmp_path / "records.sqlite") as left:
        assert ids(left) == ["r1", "r2"]


def read(archive: Archive) -> list[dict[str, Any]]:
    lines = asyncio.run(archive.lines(0, 100)).splitlines()
    return [msgspec.json.decode(line) for line in lines]


def archive_of(url: URL, folder: Path) -> Archive:
    """An archive whose run is one of its own."""
    name = f"run-{next(RUNS)}"
    return Archive(url, upstream=ENGINE, run=name, journal_folder=folder)


def test_a_stop_leaves_no_file(url: URL, tmp_path: Path) -> None:
    archive = archive_of(url, tmp_path)
    archive.start("here")
    archive.arrive("vllm", opened(1))
    archive.add([replace(record(1), key=1)])
    archive.stop()
    base = journal_base(url, tmp_path)
    assert base is not None
    assert [p for p in base.parent.iterdir() if "-requests-" in p.name] == []


def test_what_a_killed_proxy_had_not_stored_is_a_record_once(
    url: URL, tmp_path: Path
) -> None:
    """Of three requests one has a note, which its journal was not told of."""
    base = journal_base(url, tmp_path)
    assert base is not None
    journal = Journal(base, "killed", "phase")
    journal.add("vllm", opened(1, "noted"))
    journal.add("vllm", opened(2, "answered"))
    journal.end(replace(record(7, "answered"), key=2))
    journal.add("vllm", opened(3, "running"))
    journal.turn()
    killed(journal)
    with left_behind(base) as left:
        arrivals = [one.arrived_unix_seconds for one, _ in left[0].requests]
        kept = journal.path.read_bytes()
    journal.path.write_bytes(kept)
    database = Database(url, ENGINE, "killed")
    database.open()
    database.instance = "elsewhere"
    note = replace(
        metered()[1][0], request_id="noted", engine="vllm", arrived_seconds=arrivals[0]
    )
    database.write([row_of(StoredRecord(10, 0.0, note, is_note=True))])
    database.close()
    for _ in range(2):  # a second start finds nothing more
        archive = archive_of(url, tmp_path)
        archive.start("here")
        rows = read(archive)
        assert [row["request_id"] for row in rows] == ["noted", "answered", "running"]
        assert [row["energy"]["energy_joules"] for row in rows[1:]] == [None] * 2
        assert [row["energy"]["quality"] for row in rows] == ["unknown"] * 3
        assert (rows[1]["outcome"], rows[1]["output_tokens"]) == ("ok", 7)
        assert rows[1]["error"] is None
        assert (rows[2]["outcome"], rows[2]["error"]) == ("aborted", KILLED)
        assert rows[2]["arrived_unix_seconds"] <= rows[2]["finished_unix_seconds"]
        archive.stop()


def test_the_end_of_a_request_that_outlived_its_process_is_told_later(
    url: URL, tmp_path: Path
) -> None:
    base = journal_base(url, tmp_path)
    assert base is not None
    journal = Journal(base, f"killed-{next(RUNS)}", "phase")
    journal.start("here", {"vllm": ENGINE})
    journal.add("vllm", opened(1, "outlived"))
    journal.add("vllm", opened(2, "cut"))
    journal.stop(is_all_stored=False)
    archive = archive_of(url, tmp_path)
    archive.start("here")

    async def tell() -> None:
        archive.tell_end("outlived", "error", 200, "late \ud800", time.monotonic())
        archive.tell_end("no such", "ok", 200, None, time.monotonic())
        archive.tell_end("cut", "ok", 200, None, 0.0)  # another, before it came

    asyncio.run(tell())
    rows = {row["request_id"]: row for row in read(archive)}
    shown = rows["outlived"]
    assert (shown["outcome"], shown["status"], shown["error"]) == (
        "error", 200, "late \ufffd",
    )  # fmt: skip
    assert shown["energy"]["energy_joules"] is None
    assert (rows["cut"]["outcome"], rows["cut"]["error"]) == ("aborted", KILLED)
    archive.stop()


def test_a_store_that_is_away_leaves_the_file_for_the_next_start(
    tmp_path: Path,
) -> None:
    away = make_url(f"sqlite:///{tmp_path}/nowhere/records.sqlite")
    base = tmp_path / "nowhere" / "records.sqlite"
    base.parent.mkdir()
    journal = Journal(base, "killed", "phase")
    journal.add("vllm", opened(1))
    journal.turn()
    killed(journal)
    base.mkdir()  # SQLite cannot open a folder
    archive = archive_of(away, tmp_path)
    archive.start("here")
    archive.stop()
    base.rmdir()
    archive = archive_of(away, tmp_path)
    archive.start("here")
    assert [row["request_id"] for row in read(archive)] == ["r1"]
    archive.stop()


@examples(30)
@given(st.lists(st.integers(1, 99), unique=True), st.integers(0, 2**40))
def test_open_requests_are_numbered_above_what_there_is(
    keys: list[int], above: int
) -> None:
    journal = Journal(Path("records.sqlite"), "run", "phase")
    for key in keys:
        journal.add("vllm", opened(key))
    left = LeftBehind(
        journal.path, "run", "", {}, "phase",
        [(m, None) for m in journal._queue if isinstance(m, OpenRequest)], 0.0,
    )  # fmt: skip
    stored = left_records(left, above)
    assert [each.cursor for each in stored] == [above + n + 1 for n in range(len(keys))]
    assert [each.record.key for each in stored] == keys
