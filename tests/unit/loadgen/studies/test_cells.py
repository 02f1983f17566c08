"""Which runs a study is made of, and which of them its folder holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.errors import StudyError, UsageError
from loadgen.studies.cells import (
    CELLS,
    NOTE,
    PLAN,
    SUMMARY,
    Cell,
    CellNote,
    StudyPlan,
    arguments,
    cell,
    check_names,
    folder_name,
    note_of,
    plan_of,
    run_of,
    unfinished,
    write_note,
    write_plan,
)

ASKED = {"rate": [1, 2], "repeat": 2}


def finish(folder: Path, done: Cell) -> None:
    run = run_of(folder, done)
    run.mkdir(parents=True)
    (run / SUMMARY).write_text("{}")
    write_note(
        run, CellNote(hash=done.hash, cell=done, seconds=1, attempts=1, exit_code=0)
    )


def plan(*cells: Cell) -> StudyPlan:
    return StudyPlan(kind="sweep", asked=dict(ASKED), cells=list(cells))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"rate": 4.0, "seed": 1}, {"seed": 1, "rate": 4}),
        ({"rate": float("inf")}, {"rate": "inf"}),
        ({"max_concurrency": 8}, {"max-concurrency": 8}),
        ({"rate": 1, "top_p": None}, {"rate": 1}),
    ],
    ids=["order and float", "inf", "underscores", "not given"],
)
def test_the_same_run_has_the_same_hash(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    assert cell("a", "t.jsonl", one).hash == cell("b", "t.jsonl", other).hash


def test_another_value_trace_or_context_is_another_run() -> None:
    hashes = {
        cell("a", "t", {"rate": 1}).hash,
        cell("a", "t", {"rate": 2}).hash,
        cell("a", "u", {"rate": 1}).hash,
        cell("a", "t", {"rate": 1}, {"trace_sha256": "00"}).hash,
        cell("a", "t", {"rate": 1}, {"repeat": 2}).hash,
        cell("a", "t", {"ignore-eos": False}).hash,
    }
    assert len(hashes) == 6


def test_a_hash_is_the_same_in_every_process_and_version() -> None:
    found = cell("a", "t.jsonl", {"rate": "inf", "n": 2}, {"repeat": 1}).hash
    assert found == "ce09f0a4de238328"


def test_a_cell_survives_its_file() -> None:
    there = cell("a", "t", {"rate": float("inf"), "extra-body": {"top_k": 1.0}})
    back = msgspec.json.decode(msgspec.json.encode(there), type=Cell)
    assert back == there
    assert back.hash == there.hash


def test_options_become_a_command_line() -> None:
    asked = cell(
        "a", "t",
        {
            "rate": float("inf"), "ignore_eos": False, "goodput": ["ttft:200"],
            "extra_body": {"a": 1}, "dejitter": True, "temperature": -0.5,
        },
    )  # fmt: skip
    assert arguments(asked.options) == [
        "--rate=inf", "--no-ignore-eos", "--goodput=ttft:200",
        '--extra-body={"a": 1}', "--dejitter", "--temperature=-0.5",
    ]  # fmt: skip


@given(text=st.text(max_size=300))
def test_any_name_is_a_folders(text: str) -> None:
    name = folder_name(text)
    assert name
    assert "/" not in name
    assert not name.startswith((".", "-"))
    assert len(name.encode()) <= 96


@given(one=st.text(max_size=200), other=st.text(max_size=200))
def test_names_that_differ_make_folders_that_differ(one: str, other: str) -> None:
    assert (folder_name(one) == folder_name(other)) == (one == other)


def test_two_cells_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="two cells are named 'A'"):
        check_names([cell("a", "t", {"rate": 1}), cell("A", "t", {"rate": 2})])


def test_a_cell_is_finished_by_a_summary_for_the_same_hash(tmp_path: Path) -> None:
    one, two = cell("one", "t", {"rate": 1}), cell("two", "t", {"rate": 2})
    finish(tmp_path, one)
    assert unfinished(tmp_path, [one, two]) == [two]
    assert unfinished(tmp_path, [cell("one", "t", {"rate": 3})])  # other options now
    (run_of(tmp_path, one) / SUMMARY).unlink()
    assert unfinished(tmp_path, [one, two]) == [one, two]


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b'{"hash": 1}', b"\xff"])
def test_a_spoilt_note_is_a_cell_to_run_again(tmp_path: Path, note: bytes) -> None:
    one = cell("one", "t", {"rate": 1})
    finish(tmp_path, one)
    (tmp_path / CELLS / "one" / NOTE).write_bytes(note)
    assert note_of(tmp_path, one) is None


def test_a_folder_is_gone_on_with_by_the_same_options(tmp_path: Path) -> None:
    assert plan_of(tmp_path, "sweep", ASKED) is None
    there = plan(cell("one", "t", {"rate": 1}))
    write_plan(tmp_path, there)
    assert plan_of(tmp_path, "sweep", {"rate": [1.0, 2.0], "repeat": 2}) == there
    assert [path.name for path in tmp_path.iterdir()] == [PLAN]


@pytest.mark.parametrize(
    ("kind", "asked", "said"),
    [
        ("sweep", {"rate": [1, 4], "repeat": 2}, "with --rate 1,2, now it is --rate 1"),
        ("sweep", {"rate": [1, 2]}, "with --repeat 2, now it is no --repeat"),
        ("sweep", ASKED | {"top_p": 0.9}, "with no --top-p, now it is --top-p 0.9"),
        ("offline", ASKED, "is of `loadgen sweep`"),
    ],
    ids=["other value", "one less", "one more", "other command"],
)
def test_a_folder_planned_for_something_else_is_refused_in_one_line(
    tmp_path: Path, kind: str, asked: dict[str, Any], said: str
) -> None:
    write_plan(tmp_path, plan())
    with pytest.raises(StudyError) as caught:
        plan_of(tmp_path, kind, asked)
    assert said in str(caught.value)
    assert "another folder with --out" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\x00", b"[" * 100_000])
def test_what_is_no_plan_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / PLAN).write_bytes(content)
    with pytest.raises(StudyError, match=r"study\.json is not a study's plan"):
        plan_of(tmp_path, "sweep", ASKED)


def test_a_plan_is_json(tmp_path: Path) -> None:
    write_plan(tmp_path, plan(cell("one", "t", {"rate": float("inf")})))
    decoded = json.loads((tmp_path / PLAN).read_text(), parse_constant=pytest.fail)
    assert decoded["cells"][0]["options"] == {"rate": "inf"}
