"""`loadtrace/1`: this project's own trace, JSON Lines, times in milliseconds.

A superset of Mooncake's fields. The header is the first line or a sidecar
`<file>.meta.json`; lines of a session follow each other in turn order. Unknown
fields are kept and warned of once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from loadgen.traces.readers.line import (
    MAX_SESSION_CHARACTERS,
    Line,
    in_order,
    json_rows,
    portable,
    too_long,
    warn_once,
    warn_unknown,
)
from loadgen.traces.readers.mooncake import block_ids
from loadgen.traces.readers.recording import MAX_TURNS, continued, gathered
from loadgen.traces.trace import Session, TraceInfo, Turn
from proxy.wire.facts import KINDS

VERSION = "loadtrace/1"
HISTORIES = ("total", "append")

FIELDS = frozenset({
    "id", "timestamp", "delay", "session_id", "turn", "parent_id", "messages",
    "prompt", "text_input", "input_length", "output_length", "hash_ids", "kind",
    "tenant", "slo", "history", "x",
})  # fmt: skip

_OWN_FIELDS = {"session_id", "turn", "text_input", "input_length"}
_BESIDE_MESSAGES = {"timestamp", "delay", "output_length", "history", "tenant", "slo"}


def recognises(row: dict[str, Any]) -> bool:
    """Whether the first object is a header or has fields only this format has."""
    fields = _OWN_FIELDS | _BESIDE_MESSAGES if "messages" in row else _OWN_FIELDS
    return "loadtrace" in row or bool(fields & set(row))


@dataclass(frozen=True, slots=True)
class _Row:
    """A line that passed its own checks, before its session is known."""

    line: Line
    turn: Turn
    session_id: str | None
    number: int


def read(pieces: Iterable[str], info: TraceInfo) -> Iterator[Session]:
    """Sessions of turns; sessions in order of time, turns of one together."""
    before = 0.0
    for rows in _by_session(_rows(pieces, info)):
        first = rows[0]
        if first.turn.at_seconds is not None:
            before = in_order(first.line, "timestamp", before, first.turn.at_seconds)
        turns = tuple(row.turn for row in rows)
        yield Session(first.session_id or str(first.line.number), turns)


def take_header(
    header: Mapping[str, Any],
    info: TraceInfo,
    number: int | None,
    path: str | None = None,
) -> None:
    """Check a header and copy it into `info`; raises `TraceError`.

    `path` is the file's, where there are several.
    """
    where = f"{info.path}.meta.json" if number is None else path or info.path
    line = Line(where, number or 1, header)
    if header.get("loadtrace") != VERSION:
        line.fail("loadtrace", repr(VERSION))
    if header.get("time_unit", "ms") != "ms":
        line.fail("time_unit", "'ms'")
    if line.has("hash_block_size"):
        info.hash_block_size = line.whole("hash_block_size", least=1)
    if line.has("kind"):
        info.kind = _one_of(line, "kind", KINDS)
    if line.has("name"):
        info.name = line.text("name")
    info.synthetic = bool(header.get("synthetic"))
    info.header = portable(dict(header))
    for reason, count in line.object("dropped").items():
        warn_once(info, f"{count} rows were dropped when the trace was made: {reason}")


def recorded_sessions(lines: Iterable[Line], info: TraceInfo) -> Iterator[Session]:
    """Sessions of a recording, whose lines stand in the order of their ends.

    `lines` are those of one file or of several, each with its header.
    """

    def checked(line: Line) -> None:
        take_header(line.values, info, line.number, line.path)

    for session_id, group in gathered(lines, info, checked):
        turns = tuple(
            continued(_row(line, info).turn, line, index, before, at_seconds)
            for index, (line, before, at_seconds) in enumerate(group)
        )
        info.kept += len(turns)
        yield Session(session_id, turns)


def _rows(pieces: Iterable[str], info: TraceInfo) -> Iterator[_Row]:
    is_first = True
    for line in json_rows(pieces, info):
        if is_first and "loadtrace" in line.values:
            take_header(line.values, info, line.number)
        elif "loadtrace" in line.values:
            line.fail("loadtrace", "the header on the first line only")
        else:
            info.kept += 1
            yield _row(line, info)
        is_first = False


def _by_session(rows: Iterable[_Row]) -> Iterator[list[_Row]]:
    """Lines that follow each other under one session id, turns counted from 1."""
    held: list[_Row] = []
    size = 0
    for row in rows:
        is_next = bool(held) and row.session_id == held[-1].session_id is not None
        expected = held[-1].number + 1 if is_next else 1
        if row.number != expected:
            row.line.fail(
                "turn", f"{expected}: lines of a session together, in turn order"
            )
        if is_next:
            _check_order(held[-1], row)
            held.append(row)
            size += row.line.size
            if len(held) > MAX_TURNS:
                row.line.fail("turn", f"at most {MAX_TURNS:,} turns of a session")
            if size > MAX_SESSION_CHARACTERS:
                row.line.refuse(too_long("session"))
        else:
            if held:
                yield held
            held, size = [row], row.line.size
    if held:
        yield held


def _check_order(before: _Row, row: _Row) -> None:
    at_seconds, earlier = row.turn.at_seconds, before.turn.at_seconds
    if at_seconds is not None and earlier is not None:
        in_order(row.line, "timestamp", earlier, at_seconds)


def _row(line: Line, info: TraceInfo) -> _Row:
    if line.has("session_id") != line.has("turn"):
        line.fail("turn", "session_id and turn together, or neither")
    unknown = line.others(FIELDS)
    warn_unknown(info, unknown)
    extra = line.object("x") | unknown
    if line.has("parent_id"):
        extra["parent_id"] = line.text("parent_id")
    session_id = line.text("session_id") if line.has("session_id") else None
    number = line.whole("turn", least=1) if line.has("turn") else 1
    return _Row(line, _turn(line, info, extra), session_id, number)


def _turn(line: Line, info: TraceInfo, extra: dict[str, Any]) -> Turn:
    has = line.has
    messages = line.messages("messages", info) if has("messages") else None
    prompt = None if messages else _prompt(line)
    length = line.whole("input_length", least=1) if has("input_length") else None
    if length is None and messages is None and prompt is None:
        line.fail("input_length", "a positive integer, or messages, or a prompt")
    return Turn(
        kind=_one_of(line, "kind", KINDS) if has("kind") else info.kind,
        at_seconds=line.seconds("timestamp", 1000) if has("timestamp") else None,
        think_seconds=line.seconds("delay", 1000) if has("delay") else 0.0,
        input_tokens=length,
        output_tokens=(
            line.whole("output_length", least=1) if has("output_length") else None
        ),
        prompt=prompt,
        messages=messages,
        hash_ids=_hash_ids(line, info, length) if line.values.get("hash_ids") else (),
        history=_one_of(line, "history", HISTORIES) if has("history") else "total",
        request_id=line.text("id") if has("id") else None,
        tenant=line.text("tenant") if has("tenant") else None,
        slo=line.text("slo") if has("slo") else None,
        extra=extra,
    )


def _prompt(line: Line) -> str | None:
    for field in ("prompt", "text_input"):
        if line.has(field):
            return line.text(field)
    return None


def _hash_ids(line: Line, info: TraceInfo, length: int | None) -> tuple[int, ...]:
    if info.hash_block_size is None:
        line.fail(
            "hash_ids",
            "a header with hash_block_size before it (Mooncake: --format mooncake)",
        )
    if length is None:
        line.fail("input_length", "a positive integer beside hash_ids")
    return block_ids(line, length, info.hash_block_size)


def _one_of(line: Line, field: str, names: tuple[str, ...]) -> str:
    value = line.values[field]
    if value not in names:
        line.fail(field, f"one of {', '.join(names)}")
    return str(value)
