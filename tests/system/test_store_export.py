"""`metering-proxy records export`: every record once, whole files, typed columns."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import URL, make_url

from proxy.commands.records import records
from proxy.errors import ConfigError, StoreError
from proxy.process.files import whole_file
from proxy.store.database import RECORDS, SCHEMA_VERSION, Database
from proxy.store.export import pages, write_json_lines
from proxy.store.stored_record import StoredRecord, row_of
from proxy.store.totals import conditions
from tests.support.stored_records import record, stored


def filled(url: URL, count: int = 25) -> str:
    for name in ("a", "b"):  # two proxies of one upstream, cursors alike
        database = Database(url, "http://engine", name, None, {"vllm": "gpu"})
        database.open()
        database.instance = name
        database.write([row_of(stored(n)) for n in range(1, count + 1)])
        database.close()
    return url.render_as_string(hide_password=False)


def called(store: str, *words: str) -> Result:
    words = ("export", "--store", store, *words)
    return CliRunner().invoke(records, words)


def test_every_record_is_on_one_page_however_long_pages_are(url: URL) -> None:
    filled(url)
    for size in (1, 7, 25, 50, 1000):
        found = list(pages(url, conditions(None, None), size))
        assert {len(page) for page in found[:-1]} <= {size}
        rows = [row for page in found for row in page]
        assert len(set(rows)) == len(rows) == 50


def test_parquet_has_the_types_units_and_values_of_the_table(
    url: URL, tmp_path: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "records.parquet"
    done = called(filled(url), "--parquet", str(path))
    assert done.exit_code == 0, done.output
    assert path.stat().st_mode & 0o777 == 0o600
    table = parquet.read_table(path)
    assert table.num_rows == 50
    assert table.column_names == [column.name for column in RECORDS.columns]
    schema = table.schema
    assert schema.metadata[b"servewatt_schema"] == str(SCHEMA_VERSION).encode()
    assert schema.field("energy_joules").metadata == {b"unit": b"J"}
    names = "sequence", "status", "energy_joules", "model", "is_output_lower_bound"
    assert {name: str(schema.field(name).type) for name in names} == {
        "sequence": "int64", "status": "int32", "energy_joules": "double",
        "model": "string", "is_output_lower_bound": "bool",
    }  # fmt: skip
    first: dict[str, Any] = table.slice(0, 1).to_pylist()[0]
    assert (first["energy_joules"], first["boundary"]) == (55.6, "gpu")
    assert first["error"] is None
    assert json.loads(first["policy_joules"]) == {"phase": 50.3, "equal": 47.11}


def test_json_lines_have_what_was_asked_for(url: URL, tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    done = called(filled(url), "--jsonl", str(path), "--instance", "b")
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["instance"] for line in lines] == ["b"] * 25
    assert lines[0]["policy_joules"]["phase"] == 50.3
    for words in (("--tenant", "nobody"), ("--since", "2100-01-01"), ("--until", "0")):
        assert called(filled(url), "--jsonl", str(path), *words).exit_code == 0
        assert path.read_bytes() == b""


def test_csv_has_every_record_and_no_formula(url: URL, tmp_path: Path) -> None:
    store = filled(url)
    database = Database(url, "http://engine", "c", None, {"vllm": "gpu"})
    database.open()
    hostile = replace(
        record(26, '=cmd|"/c calc"!A1'),
        tenant="@sum(1)", error='two\nlines, "quoted"',
    )  # fmt: skip
    database.write([row_of(StoredRecord(26, 1.7e9, hostile))])
    database.close()
    path = tmp_path / "records.csv"
    done = called(store, "--csv", str(path))
    assert done.exit_code == 0, done.output
    assert path.stat().st_mode & 0o777 == 0o600
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 51
    assert list(rows[0]) == [column.name for column in RECORDS.columns]
    (last,) = [row for row in rows if row["run"] == "c"]
    assert last["request_id"] == '\'=cmd|"/c calc"!A1'
    assert last["tenant"] == "'@sum(1)"
    assert last["error"] == 'two\nlines, "quoted"'
    assert (last["energy_joules"], last["inferred_cached_tokens"]) == ("55.6", "")
    assert json.loads(last["policy_joules"]) == {"phase": 50.3, "equal": 47.11}
    empty = called(store, "--csv", str(path), "--tenant", "nobody")
    assert empty.exit_code == 0, empty.output
    assert path.read_bytes().count(b"\n") == 1  # its head
    assert called(store, "--csv", str(path), "--jsonl", "x").exit_code == 2


def test_a_failure_midway_leaves_the_old_file(url: URL, tmp_path: Path) -> None:
    filled(url)

    def broken() -> Iterator[list[tuple[Any, ...]]]:
        yield from pages(url, conditions(None, None))
        raise StoreError("the server went away")

    path = tmp_path / "records.jsonl"
    path.write_text("old")
    with pytest.raises(StoreError), whole_file(path) as file:
        write_json_lines(file, broken())
    assert [p.name for p in tmp_path.iterdir() if "sqlite" not in p.name] == [path.name]
    assert path.read_text() == "old"


def test_without_pyarrow_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done = called("sqlite:///x", "--parquet", str(tmp_path / "x"))
    assert isinstance(done.exception, ConfigError)
    assert str(done.exception).endswith("pip install 'servewatt[parquet]'")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_store_is_refused_and_stays(tmp_path: Path) -> None:
    other = tmp_path / "notes.sqlite"
    other.write_text("my notes " * 200)
    done = called(f"sqlite:///{other}", "--jsonl", str(tmp_path / "out"))
    assert isinstance(done.exception, StoreError)
    assert other.read_text() == "my notes " * 200
    assert make_url(f"sqlite:///{other}").database == str(other)
    assert not (tmp_path / "out").exists()
