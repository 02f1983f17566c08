"""`loadtrace/1`: this project's own trace, JSON Lines, times in milliseconds.

A superset of Mooncake's fields. The header is the first line or a sidecar
`<file>.meta.json`; lines of a session follow each other in turn order. Unknown
fields are kept and warned of once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from loadgen.traces.readers.line import Line, in_order, json_lines, warn_once
from loadgen.traces.readers.mooncake import block_ids
from loadgen.traces.trace import Session, TraceInfo, Turn
from proxy.wire.facts import KINDS

VERSION = "loadtrace/1"
HISTORIES = ("total", "append")

FIELDS = frozenset({
    "id", "timestamp", "delay", "session_id", "turn", "parent_id", "messages",
    "prompt", "text_input", "input_length", "output_length", "hash_ids", "kind",
    "tenant", "slo", "history", "x",
})  # fmt: skip

_OWN_FIELDS = {"session_id", "turn", "messages", "text_input", "input_length"}


def recognises(row: dict[str, Any]) -> bool:
    """Whether the first object is a header or has fields only this format has."""
    return "loadtrace" in row or bool(_OWN_FIELDS & set(row))


@dataclass(frozen=True, slots=True)
class _Row:
    """A line that passed its own checks, before its session is known."""

    line: Line
    turn: Turn
    session_id: str | None
    number: int


def read(lines: Iterable[str], info: TraceInfo) -> Iterator[Session]:
    """Sessions of turns; sessions in order of time, turns of one together."""
    before = 0.0
    for rows in _by_session(_rows(lines, info)):
        first = rows[0]
        if first.turn.at_seconds is not None:
            before = in_order(first.line, "timestamp", before, first.turn.at_seconds)
        turns = tuple(row.turn for row in rows)
        yield Session(first.session_id or str(first.line.number), turns)


def take_header(header: Mapping[str, Any], info: TraceInfo, number: int | None) -> None:
    """Check a header and copy it into `info`; raises `TraceError`."""
    where = f"{info.path}.meta.json" if number is None else info.path
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
    info.header = dict(header)
    for reason, count in _object(line, "dropped").items():
        warn_once(info, f"{count} rows were dropped when the trace was made: {reason}")


def _rows(lines: Iterable[str], info: TraceInfo) -> Iterator[_Row]:
    is_first = True
    for line in json_lines(lines, info):
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
        else:
            if held:
                yield held
            held = [row]
    if held:
        yield held


def _check_order(before: _Row, row: _Row) -> None:
    at_seconds, earlier = row.turn.at_seconds, before.turn.at_seconds
    if at_seconds is not None and earlier is not None:
        in_order(row.line, "timestamp", earlier, at_seconds)


def _row(line: Line, info: TraceInfo) -> _Row:
    if line.has("session_id") != line.has("turn"):
        line.fail("turn", "session_id and turn together, or neither")
    unknown = line.values.keys() - FIELDS
    for name in sorted(unknown):
        warn_once(info, f"unknown field {name!r} is kept as it is")
    extra = _object(line, "x") if line.has("x") else {}
    extra.update((name, line.values[name]) for name in sorted(unknown))
    if line.has("parent_id"):
        extra["parent_id"] = line.text("parent_id")
    session_id = line.text("session_id") if line.has("session_id") else None
    number = line.whole("turn", least=1) if line.has("turn") else 1
    return _Row(line, _turn(line, info, extra), session_id, number)


def _turn(line: Line, info: TraceInfo, extra: dict[str, Any]) -> Turn:
    has = line.has
    messages = _messages(line) if has("messages") else None
    prompt = None if messages else _prompt(line)
    length = line.whole("input_length", least=1) if has("input_length") else None
    if length is None and messages is None and prompt is None:
        line.fail("input_length", "a positive integer, or messages, or a prompt")
    return Turn(
        kind=_one_of(line, "kind", KINDS) if has("kind") else info.kind,
        at_seconds=line.amount("timestamp") / 1000 if has("timestamp") else None,
        think_seconds=line.amount("delay") / 1000 if has("delay") else 0.0,
        input_tokens=length,
        output_tokens=(
            line.whole("output_length", least=1) if has("output_length") else None
        ),
        prompt=prompt,
        messages=messages,
        hash_ids=_hash_ids(line, info, length) if has("hash_ids") else (),
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
        line.fail("hash_ids", "a header with hash_block_size before it")
    if length is None:
        line.fail("input_length", "a positive integer beside hash_ids")
    return block_ids(line, length, info.hash_block_size)


def _messages(line: Line) -> tuple[Mapping[str, str], ...]:
    found = line.values["messages"]
    is_chat = isinstance(found, list) and len(found) > 0
    if not is_chat or not all(_is_message(message) for message in found):
        line.fail("messages", 'a list of {"role": text, "content": text} objects')
    return tuple(found)


def _is_message(message: object) -> bool:
    return (
        isinstance(message, dict)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str | list)
    )


def _object(line: Line, field: str) -> dict[str, Any]:
    """An optional JSON object."""
    value = line.values.get(field)
    if value is not None and not isinstance(value, dict):
        line.fail(field, "an object")
    return dict(value or {})


def _one_of(line: Line, field: str, names: tuple[str, ...]) -> str:
    value = line.values[field]
    if value not in names:
        line.fail(field, f"one of {', '.join(names)}")
    return str(value)
