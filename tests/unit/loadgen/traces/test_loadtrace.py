"""The `loadtrace/1` schema: what it carries, and how it refuses what it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loadgen.errors import TraceError
from tests.support.trace_files import SAMPLES, read_all

HEADER = {"loadtrace": "loadtrace/1"}


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_field_reaches_the_turn() -> None:
    info, sessions = read_all(SAMPLES / "loadtrace.jsonl")
    first, second = sessions[0].turns
    assert (info.name, info.hash_block_size, info.synthetic) == ("example", 16, True)
    assert sessions[0].session_id == "s1"
    assert (first.request_id, first.tenant, first.hash_ids) == (
        "r1",
        "north",
        (0, 1, 2),
    )
    assert (first.input_tokens, first.output_tokens) == (33, 5)
    assert first.extra == {"model": "m"}
    assert (second.at_seconds, second.think_seconds) == (1.5005, 0.25)
    assert (second.history, first.history) == ("append", "total")
    code = sessions[1].turns[0]
    assert (code.prompt, code.kind, code.slo) == ("def f():", "code", "fast")
    assert first.kind == "conversation"  # from the header
    assert sessions[2].turns[0].messages == ({"role": "user", "content": "hi"},)
    assert sessions[3].turns[0].prompt == "hello"


def test_an_unknown_field_is_kept_and_warned_of_once(tmp_path: Path) -> None:
    row = {"input_length": 4, "colour": "blue"}
    info, sessions = read_all(written(tmp_path / "t.jsonl", row, row, row))
    assert info.warnings == ["unknown field 'colour' is kept as it is"]
    assert [s.turns[0].extra for s in sessions] == [{"colour": "blue"}] * 3


def test_the_header_may_stand_beside_the_file(tmp_path: Path) -> None:
    path = written(
        tmp_path / "t.jsonl",
        {"timestamp": 0, "input_length": 17, "output_length": 1, "hash_ids": [4, 5]},
    )
    sidecar = tmp_path / "t.jsonl.meta.json"
    sidecar.write_text(json.dumps(HEADER | {"hash_block_size": 16, "name": "mine"}))
    info, sessions = read_all(path)
    assert (info.name, info.format) == ("mine", "loadtrace")
    assert sessions[0].turns[0].hash_ids == (4, 5)
    sidecar.write_text("{")
    with pytest.raises(
        TraceError, match=r"t\.jsonl\.meta\.json: cannot be read as JSON"
    ):
        read_all(path)
    sidecar.write_text('{"loadtrace": "loadtrace/9"}')
    with pytest.raises(TraceError, match="loadtrace is 'loadtrace/9', expected"):
        read_all(path)


def test_sessions_are_built_from_lines_that_follow_each_other(tmp_path: Path) -> None:
    a1, a2 = ({"session_id": "a", "turn": k, "input_length": 3} for k in (1, 2))
    b1 = {"session_id": "b", "turn": 1, "input_length": 3}
    _, sessions = read_all(written(tmp_path / "t.jsonl", a1, a2, b1))
    assert [(s.session_id, len(s.turns)) for s in sessions] == [("a", 2), ("b", 1)]
    with pytest.raises(TraceError, match="line 3: turn is 2, expected 1: lines of a"):
        read_all(written(tmp_path / "t.jsonl", a1, b1, a2))
    with pytest.raises(TraceError, match="line 1: turn is 2, expected 1"):
        read_all(written(tmp_path / "t.jsonl", a2, a1))


LENGTH: dict[str, Any] = {"input_length": 5}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "input_length is None, expected a positive integer, or messages, or"),
    ({"input_length": 0}, "input_length is 0, expected a positive integer"),
    ({"input_length": 1.5}, "input_length is 1.5, expected a positive integer"),
    ({"input_length": True}, "input_length is True, expected a positive integer"),
    (LENGTH | {"output_length": -1}, "output_length is -1, expected a positive int"),
    (LENGTH | {"timestamp": -3}, "timestamp is -3, expected a number >= 0"),
    (LENGTH | {"timestamp": "noon"}, "timestamp is 'noon', expected a number >= 0"),
    (LENGTH | {"delay": []}, "delay is [], expected a number >= 0"),
    (LENGTH | {"kind": "chat"}, "kind is 'chat', expected one of conversation, code"),
    (LENGTH | {"history": "all"}, "history is 'all', expected one of total, append"),
    (LENGTH | {"tenant": 7}, "tenant is 7, expected a text"),
    (LENGTH | {"session_id": "a"}, "turn is None, expected session_id and turn toge"),
    (LENGTH | {"session_id": "a", "turn": 0}, "turn is 0, expected a positive integ"),
    (LENGTH | {"hash_ids": [1]}, "hash_ids is [1], expected a header with hash_block"),
    (LENGTH | {"prompt": ["a"]}, "prompt is ['a'], expected a text"),
    (LENGTH | {"messages": "hi"}, "messages is 'hi', expected a list"),
    (LENGTH | {"messages": [{"role": "user"}]}, "messages is [{'role': 'user'}], exp"),
    (LENGTH | {"x": 5}, "x is 5, expected an object"),
    (HEADER, "loadtrace is 'loadtrace/1', expected the header on the first line only"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "message"), REFUSED)
def test_a_field_that_breaks_the_schema_is_named(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    path = written(tmp_path / "t.jsonl", HEADER, LENGTH, row)
    with pytest.raises(TraceError) as caught:
        read_all(path)
    assert f"{path}, line 3: {message}" in str(caught.value)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"loadtrace": 1}, "line 1: loadtrace is 1, expected 'loadtrace/1'"),
        (HEADER | {"hash_block_size": "x"}, "line 1: hash_block_size is 'x'"),
        (HEADER | {"time_unit": "s"}, "line 1: time_unit is 's', expected 'ms'"),
        (HEADER | {"kind": "k"}, "line 1: kind is 'k', expected one of"),
        (HEADER | {"dropped": 3}, "line 1: dropped is 3, expected an object"),
    ],
)
def test_a_header_that_breaks_the_schema_is_named(
    tmp_path: Path, header: dict[str, Any], message: str
) -> None:
    with pytest.raises(TraceError) as caught:
        read_all(written(tmp_path / "t.jsonl", header, LENGTH))
    assert message in str(caught.value)


def test_time_goes_forward_between_sessions_and_inside_them(tmp_path: Path) -> None:
    late, early = LENGTH | {"timestamp": 9}, LENGTH | {"timestamp": 8}
    with pytest.raises(TraceError, match="line 2: timestamp is 8, expected a time not"):
        read_all(written(tmp_path / "t.jsonl", late, early))
    read_all(written(tmp_path / "t.jsonl", late, late))  # ties are legal
    turns = [
        {"session_id": "a", "turn": 1} | late,
        {"session_id": "a", "turn": 2} | early,
    ]
    with pytest.raises(TraceError, match="line 2: timestamp is 8, expected a time not"):
        read_all(written(tmp_path / "t.jsonl", *turns))


def test_a_later_turn_may_come_after_the_next_session_began(tmp_path: Path) -> None:
    rows = [
        {"session_id": "a", "turn": 1, "timestamp": 0} | LENGTH,
        {"session_id": "a", "turn": 2, "timestamp": 900} | LENGTH,
        {"session_id": "b", "turn": 1, "timestamp": 100} | LENGTH,
    ]
    _, sessions = read_all(written(tmp_path / "t.jsonl", *rows))
    assert [s.turns[0].at_seconds for s in sessions] == [0.0, 0.1]
