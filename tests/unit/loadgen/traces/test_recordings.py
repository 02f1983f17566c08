"""Recordings of a proxy as traces: put in order, completed, and over several files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from loadgen.errors import TraceError
from loadgen.plan.load import Load
from loadgen.plan.plan import make_plan, read_plan
from loadgen.traces.readers.open import open_trace, sha256_of
from loadgen.traces.trace import Session, TraceInfo

Row = dict[str, Any]


def header(run: str = "a", zero_unix_ms: float = 1_800_000_000_000) -> Row:
    return {
        "loadtrace": "loadtrace/1", "name": "recording", "order": "end", "run": run,
        "zero_unix_ms": zero_unix_ms, "hash_block_size": 16, "time_unit": "ms",
    }  # fmt: skip


def row(key: int, at: float, session: str, turn: int = 1, **more: Any) -> Row:
    x = {"key": key, "outcome": "ok", "request_id": f"id-{key}"} | more.pop("x", {})
    lengths = {"input_length": 20, "output_length": 4}
    place = {"session_id": session, "turn": turn, "timestamp": at}
    return place | lengths | more | {"x": x}


def text(*rows: Row) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in rows)


def read(path: Path) -> tuple[TraceInfo, list[Session]]:
    info, sessions = open_trace(path)
    return info, list(sessions)


def test_lines_in_the_order_of_ends_are_put_in_that_of_arrivals(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(
        text(
            header(),
            row(2, 500.25, "b", hash_ids=[1, 2]),
            row(1, 100.125, "a"),
            row(4, 900, "b", 2, delay=300, history="append", x={"prompt_tokens": 44}),
            row(3, 600, "c"),
        )
    )
    _, sessions = read(path)
    assert [each.session_id for each in sessions] == ["a", "b", "c"]
    first, second = sessions[1].turns
    assert (first.at_seconds, first.hash_ids) == (0.400125, (1, 2))
    assert (second.history, second.think_seconds) == ("append", 0.3)
    assert second.at_seconds == 0.799875


def test_a_plan_has_the_recorded_arrivals_to_the_microsecond(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    ats = [100.001, 100.002, 12345.678, 9_876_543.21]
    rows = [row(n, at, f"s{n}") for n, at in enumerate(ats)]
    path.write_bytes(text(header(), *reversed(rows)))
    make_plan(path, Load(), tmp_path / "plan.jsonl")
    _, sessions = read_plan(tmp_path / "plan.jsonl")
    starts = [each.start_seconds for each in sessions]
    assert starts == [round((at - ats[0]) / 1000, 6) for at in ats]


def test_a_line_of_one_in_flight_is_replaced_by_that_of_its_end(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    is_open: Row = {"x": {"outcome": "open"}}
    path.write_bytes(
        text(
            header(),
            row(1, 0, "a", **is_open),
            row(2, 5, "b", **is_open),
            row(1, 0, "a", input_length=33),
        )
    )
    info, sessions = read(path)
    assert [each.turns[0].input_tokens for each in sessions] == [33, 20]
    assert any("1 requests were in flight" in each for each in info.warnings)


def test_what_was_refused_is_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    refused = row(1, 0, "a", x={"outcome": "refused"})
    path.write_bytes(
        text(header(), row(1, 0, "a", x={"outcome": "open"}), refused, row(2, 5, "b"))
    )
    info, sessions = read(path)
    assert [each.session_id for each in sessions] == ["b"]
    assert info.dropped == {"refused by the engine": 1}
    assert sessions[0].turns[0].at_seconds == 0


@pytest.mark.parametrize(("cached", "is_told"), [(48, False), (49, True)])
def test_more_in_the_cache_than_was_seen_is_told(
    tmp_path: Path, cached: int, is_told: bool
) -> None:
    path = tmp_path / "trace.jsonl"
    x = {"cached_tokens": cached, "shared_tokens": 32}
    path.write_bytes(text(header(), row(1, 0, "a", x=x)))
    info, _ = read(path)
    told = [each for each in info.warnings if "of 1 prompts" in each]
    assert bool(told) == is_told


def test_a_turn_whose_earlier_one_is_lost_has_its_whole_prompt(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    later = row(3, 9, "a", 3, history="append", delay=2, x={"prompt_tokens": 64})
    path.write_bytes(text(header(), later))
    _, (session,) = read(path)
    assert session.turns[0].input_tokens == 64
    assert session.turns[0].history == "total"


def pack(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


@pytest.mark.parametrize(
    ("suffix", "packed"), [("", bytes), (".zst", pack)], ids=["plain", "zstd"]
)
@pytest.mark.parametrize("named", ["folder", "pattern"])
def test_several_files_are_one_recording(
    tmp_path: Path, suffix: str, packed: Callable[[bytes], bytes], named: str
) -> None:
    later = header("b", 1_800_000_060_000.5)
    files = {
        "trace.jsonl": text(later, row(1, 10, "b")),
        "trace-20260101T000000-000.jsonl": text(header(), row(2, 30, "a")),
        "trace-20260101T000000-001.jsonl": text(header(), row(1, 20, "c")),
    }
    for name, data in files.items():
        (tmp_path / f"{name}{suffix}").write_bytes(packed(data))
    path = tmp_path if named == "folder" else tmp_path / "trace*"
    _, sessions = read(path)
    assert [(each.session_id, each.turns[0].at_seconds) for each in sessions] == [
        ("c", 0.0), ("a", 0.01), ("b", 59.9905),
    ]  # fmt: skip
    assert len(sha256_of(path)) == 64


def test_lines_that_a_kill_cut_short_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(text(header(), row(1, 0, "a"), row(2, 5, "b"))[:-30])
    info, sessions = read(path)
    assert [each.session_id for each in sessions] == ["a"]
    assert any("cut short" in each for each in info.warnings)


def test_a_frame_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl.zst"
    whole = pack(text(header(), row(1, 0, "a")))
    path.write_bytes(whole + pack(text(row(2, 5, "b")))[:-3])
    _, sessions = read(path)
    assert [each.session_id for each in sessions] == ["a"]


def test_broken_zstd_data_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl.zst"
    path.write_bytes(pack(text(header(), row(1, 0, "a"))) + b"nonsense")
    with pytest.raises(TraceError, match="zstd data is broken"):
        read(path)


def test_other_traces_are_not_read_together(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(text(header(), row(1, 0, "a")))
    (tmp_path / "b.jsonl").write_text('{"input_length": 1, "session_id": "x"}\n')
    with pytest.raises(TraceError, match=r"b\.jsonl: is not of a recording"):
        read(tmp_path)


def test_a_folder_of_any_name_is_read(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9 [1]")
    folder.mkdir()
    (folder / "trace.jsonl").write_bytes(text(header(), row(1, 0, "a")))
    _, sessions = read(folder)
    assert len(sessions) == 1
    assert len(read(folder / "trace.jsonl")[1]) == 1


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="folder without a file"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": {"key": "one"}}, "the request's key"),
        ({"session_id": None}, "session_id is None"),
        ({"timestamp": -1}, "timestamp is -1"),
        ({"hash_ids": [1]}, "2 ids"),
        ({"turn": 0}, "turn is 0"),
    ],
    ids=["key", "session", "timestamp", "hash_ids", "turn"],
)
def test_a_bad_field_is_named_with_its_place(
    tmp_path: Path, changes: Row, message: str
) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(text(header(), row(1, 0, "a") | changes))
    with pytest.raises(TraceError, match=message) as raised:
        read(path)
    assert "trace.jsonl, line 2" in str(raised.value)
