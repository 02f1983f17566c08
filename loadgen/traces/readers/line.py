"""Lines, rows and objects of a trace file, and the checks that every reader shares.

A check returns the field's value in the type asked for, or raises `TraceError` naming
file, line, field, value and what was expected.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import msgspec

from loadgen.errors import TraceError
from loadgen.traces.trace import TraceInfo

_json = msgspec.json.Decoder()


@dataclass(frozen=True, slots=True)
class Line:
    """The fields of one line; CSV cells are text, JSON values have their types."""

    path: str
    number: int
    values: Mapping[str, Any]

    def fail(self, field: str, expected: str) -> NoReturn:
        """Raise the one kind of error a bad field has."""
        value = repr(self.values.get(field))
        shown = value if len(value) <= 60 else value[:57] + "..."
        raise TraceError(
            self.path, self.number, f"{field} is {shown}, expected {expected}"
        )

    def has(self, field: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(field) is not None

    def whole(self, field: str, least: int = 0) -> int:
        """A required whole number, at least `least`."""
        number = _number(self.values.get(field))
        if number is None or number < least or number != int(number):
            self.fail(field, "a positive integer" if least else "an integer >= 0")
        return int(number)

    def amount(self, field: str) -> float:
        """A required number >= 0 (a time, mostly)."""
        number = _number(self.values.get(field))
        if number is None or number < 0:
            self.fail(field, "a number >= 0")
        return number

    def text(self, field: str) -> str:
        """A required text that is not empty."""
        value = self.values.get(field)
        if not isinstance(value, str) or not value.strip():
            self.fail(field, "a text that is not empty")
        return value


def _number(value: Any) -> int | float | None:
    """The number a cell or a JSON value holds; None where it holds none."""
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            try:
                value = float(value)
            except ValueError:
                return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if math.isfinite(value) else None


def json_lines(lines: Iterable[str], info: TraceInfo) -> Iterator[Line]:
    """The objects of a JSON Lines file; blank lines are skipped."""
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            value = _json.decode(text)
        except msgspec.DecodeError as error:
            raise TraceError(
                info.path, number, f"not valid JSON ({error}), expected one object"
            ) from None
        if not isinstance(value, dict):
            shown = text.strip()[:40]
            raise TraceError(info.path, number, f"{shown!r} is not a JSON object")
        yield Line(info.path, number, value)


def csv_lines(
    lines: Iterable[str], info: TraceInfo, needed: Sequence[str]
) -> Iterator[Line]:
    """The rows of a CSV file under its own column names, in any order."""
    table = csv.reader(lines)
    names = [name.strip().lstrip("\ufeff") for name in next(table, [])]
    missing = [name for name in needed if name not in names]
    if missing:
        raise TraceError(
            info.path,
            1,
            f"column {missing[0]!r} is missing; the file has: {', '.join(names)}",
        )
    for cells in table:
        if not cells:
            continue
        if len(cells) != len(names):
            raise TraceError(
                info.path,
                table.line_num,
                f"{len(cells)} columns, expected {len(names)} as in the first line",
            )
        yield Line(info.path, table.line_num, dict(zip(names, cells, strict=True)))


def dropped(info: TraceInfo, reason: str) -> None:
    """Count a row left out."""
    info.dropped[reason] = info.dropped.get(reason, 0) + 1


def warn_once(info: TraceInfo, warning: str) -> None:
    """Keep a warning for the user, the first time only."""
    if warning not in info.warnings:
        info.warnings.append(warning)


def in_order(line: Line, field: str, before: float, now: float) -> float:
    """`now`, unless the trace goes back in time."""
    if now < before:
        line.fail(field, "a time not before that of the line above")
    return now


LONGEST_OBJECT = 64 * 2**20
"""Characters; what has not ended by then is broken JSON, not a conversation."""

_BETWEEN = " \t\r\n,"
_decoder = json.JSONDecoder()


class _Text:
    """The text not yet decoded and the line it starts in."""

    __slots__ = ("depth", "is_array", "line_number", "rest", "scanned")

    def __init__(self) -> None:
        self.rest = ""
        self.line_number = 1
        self.scanned = 0
        self.is_array = False
        self.depth = 0

    def cut(self, length: int) -> None:
        self.line_number += self.rest.count("\n", 0, length)
        self.rest = self.rest[length:]

    def skip(self) -> None:
        """Leave out what stands between objects."""
        while True:
            self.cut(len(self.rest) - len(self.rest.lstrip(_BETWEEN)))
            if self.rest[:1] not in ("[", "]"):
                return
            self.is_array = True
            self.depth += 1 if self.rest[0] == "[" else -1
            self.cut(1)


def objects(pieces: Iterable[str], info: TraceInfo) -> Iterator[Line]:
    """Each object with the line it starts in; `TraceError` where the text is broken."""
    text = _Text()
    for piece in pieces:
        text.rest += piece
        if len(text.rest) >= 2 * text.scanned:
            yield from _decoded(text, info, at_end=False)
    yield from _decoded(text, info, at_end=True)
    if text.is_array and text.depth:
        raise TraceError(
            info.path, text.line_number, "the array is not closed: file cut short?"
        )


def _decoded(text: _Text, info: TraceInfo, *, at_end: bool) -> Iterator[Line]:
    """All objects that are complete in the text so far."""
    while True:
        text.skip()
        if not text.rest:
            break
        if text.rest[0] != "{":
            shown = text.rest[:40].splitlines()[0]
            raise TraceError(
                info.path, text.line_number, f"{shown!r} is not a JSON object"
            )
        try:
            value, end = _decoder.raw_decode(text.rest)
        except json.JSONDecodeError as error:
            if not at_end and len(text.rest) < LONGEST_OBJECT:
                break
            raise TraceError(
                info.path,
                text.line_number + error.lineno - 1,
                f"not valid JSON ({error.msg}), expected a conversation",
            ) from None
        yield Line(info.path, text.line_number, value)
        text.cut(end)
    text.scanned = len(text.rest)
