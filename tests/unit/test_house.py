"""The figures of `benchmarks/house.py` on made-up packages, counted by hand."""

from __future__ import annotations

import importlib
import sqlite3
from pathlib import Path

import pytest

from benchmarks.house import (
    FIGURES,
    Entry,
    Load,
    Stopped,
    Watch,
    by_figure,
    count_lines,
    definition,
    imported_once,
    imports,
    loose_files,
    microseconds_per_event,
    modules_of,
    shared_class_names,
    source_files,
    stored_joules,
)

HOUSE = {
    "upper/__init__.py": "",
    "upper/__main__.py": "from upper.cli import main\n",
    "upper/cli.py": "import upper.attic\nfrom upper import errors\n",
    "upper/errors.py": "class Trouble(Exception): ...\n",
    "upper/attic.py": "from . import errors\n\n\nclass Box: ...\n",
    "upper/room/__init__.py": "from .table import Table\n",
    "upper/room/table.py": "from ..errors import Trouble\n\n\nclass Table: ...\n",
    "lower/__init__.py": "",
    "lower/cellar.py": (
        "import json\n\n\n"
        "class Box:\n    class Table: ...\n\n\n"
        "def fetch():\n    from upper.room import table\n"
    ),
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    for name, text in HOUSE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return source_files(tmp_path, ("upper", "lower"))


def test_every_source_file_is_a_module(files: dict[str, Path]) -> None:
    assert list(files) == [
        "upper", "upper.__main__", "upper.attic", "upper.cli", "upper.errors",
        "upper.room", "upper.room.table", "lower", "lower.cellar",
    ]  # fmt: skip
    assert count_lines(files) == sum(text.count("\n") for text in HOUSE.values())


def test_imports_are_of_modules_however_they_are_written(
    files: dict[str, Path],
) -> None:
    named = imports(files)
    assert named["upper.cli"] == {"upper.attic", "upper.errors"}
    assert named["upper.attic"] == {"upper.errors"}
    assert named["upper.room"] == {"upper.room.table"}
    assert named["upper.room.table"] == {"upper.errors"}
    assert named["lower.cellar"] == {"upper.room.table"}


def test_a_file_that_one_other_imports_is_told_from_those_that_more_do(
    files: dict[str, Path],
) -> None:
    assert imported_once(files) == ["upper.attic", "upper.cli"]


def test_doors_and_errors_are_not_loose(files: dict[str, Path]) -> None:
    assert loose_files(files["upper"].parent) == ["attic.py"]
    assert loose_files(files["lower"].parent) == ["cellar.py"]


def test_a_name_is_shared_by_classes_at_the_top_of_two_modules(
    files: dict[str, Path],
) -> None:
    assert shared_class_names(files) == {"Box": ["upper.attic", "lower.cellar"]}


WATCHED = {
    "watched_house/__init__.py": "",
    "watched_house/door.py": (
        "from watched_house import data, quiet, room\n\n\n"
        "def enter():\n    return room.work(data.Thing(1))\n"
    ),
    "watched_house/room.py": "def work(thing):\n    return thing\n",
    "watched_house/quiet.py": "def never():\n    return 1\n",
    "watched_house/data.py": (
        "from dataclasses import dataclass\n\n\n"
        "@dataclass\nclass Thing:\n    size: int\n"
    ),
}


def test_entered_is_what_runs_and_was_written_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in WATCHED.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    watch = Watch(["watched_house"])
    watch.is_on = True
    watch.start()
    try:
        door = importlib.import_module("watched_house.door")
        imported = modules_of(watch.take())
        watch.marks[door.enter.__code__] = "enters"
        door.enter()
    finally:
        watch.stop()
    entries = watch.take()
    assert imported == []
    assert modules_of(entries) == ["watched_house.door", "watched_house.room"]
    assert {entry.below for entry in entries} == {frozenset({"enters"})}
    door.enter()
    assert watch.take() == set()


def entry(
    module: str, bottom: str, *below: str, is_ours: bool = True, is_main: bool = True
) -> Entry:
    return Entry(module, bottom, is_ours, is_main, frozenset(below))


def test_what_runs_for_a_client_is_told_from_what_always_runs() -> None:
    entries = {
        entry("relay", "on_data"),
        entry("meter", "on_data"),
        entry("app", "beat"),
        entry("settle", "beat", "settles"),
        entry("curve", "deliver", "reads"),
        entry("sampler", "run", is_main=False),
        entry("admin", "aiohttp", is_ours=False),
    }
    assert by_figure(entries, idle={"beat", "deliver", "run"}) == {
        "relay": ["meter", "relay"],
        "settled": ["meter", "relay", "settle"],
        "joules": ["curve", "sampler", "settle"],
    }


@pytest.mark.parametrize("count", [1, 3])
def test_a_few_seconds_of_the_meter_have_a_cost(count: int) -> None:
    load = Load(seconds=2.0, streams=4, output_tokens=20)
    assert 0 < microseconds_per_event(("gpu", "host", "node")[:count], load) < 1e4


def test_a_record_is_found_in_whichever_table_holds_it(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "store") as database:
        database.execute("create table notes (request_id text)")
        database.execute("create table kept (request_id text, energy_joules real)")
        database.execute("insert into kept values ('a', 1.5), ('b', null)")
    database.close()
    assert stored_joules(tmp_path / "store", "a") == [1.5]
    assert stored_joules(tmp_path / "store", "b") == [None]
    assert stored_joules(tmp_path / "store", "c") == []


def test_a_record_without_joules_is_lost_as_one_without_a_row_is() -> None:
    kept, empty, gone = (
        Stopped(1.0, has_row, has_joules, was_ready=True, stop_seconds=2.0).outcome
        for has_row, has_joules in ((True, True), (True, False), (False, False))
    )
    assert kept == "0 of 1 lost, stopped in 2.0 s"
    assert empty.startswith("1 of 1 lost (its row kept without joules)")
    assert gone.startswith("1 of 1 lost (no row)")


def test_every_figure_is_defined_to_its_last_line() -> None:
    for figure in FIGURES:
        assert definition(figure).startswith(f"`{figure}`:")
    assert definition("request").endswith("from the sensor to a request's joules.")
