"""Rows of a trace file, and the checks that every reader shares.

A check returns the field's value in the type asked for, or raises `TraceError` naming
file, line, field, value and what was expected. What a reader keeps without a check
(`Line.portable`) can be written, planned and sent: no lone surrogate, no number that
JSON lacks, no integer beyond 64 bits.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, NoReturn

import msgspec

from loadgen.errors import TraceError
from loadgen.traces.readers.text import Piece, first_line, json_texts, lines_of
from loadgen.traces.trace import TraceInfo

MAX_TOKENS = 2**24
"""Tokens of a prompt or a reply, and the bound of every count."""
MAX_SECONDS = 1e10
"""Instant or pause, 317 years: milliseconds since 1970 fit, no smaller unit."""
MAX_SESSION_CHARACTERS = 256 * 2**20
"""Size of the lines of one session, which is held until it ends."""
MAX_WARNINGS = 20

_MAX_SHOWN = 60
_MAX_INTEGER = 2**64
_SURROGATE = re.compile("[\ud800-\udfff]")
_json = msgspec.json.Decoder()
_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = _MAX_SHOWN


@dataclass(frozen=True, slots=True)
class Line:
    """The fields of one row; CSV cells are text, JSON values have their types."""

    path: str
    number: int
    values: Mapping[str, Any]
    element: int | None = None
    """Place in a JSON array, from 1."""
    size: int = 0
    """Characters it was read from."""

    def fail(self, field: str, expected: str) -> NoReturn:
        """Raise the one kind of error a bad field has."""
        value = _short.repr(self.values.get(field))
        shown = value if len(value) <= _MAX_SHOWN else value[: _MAX_SHOWN - 3] + "..."
        self.refuse(f"{field} is {shown}, expected {expected}")

    def refuse(self, reason: str) -> NoReturn:
        """Raise an error of the row as a whole."""
        raise TraceError(self.path, self.number, reason, self.element)

    def has(self, field: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(field) is not None

    def whole(self, field: str, least: int = 0) -> int:
        """A required whole number from `least` to `MAX_TOKENS`."""
        number = _number(self.values.get(field))
        expected = "a positive integer" if least else "an integer >= 0"
        if number is None or number < least or number != int(number):
            self.fail(field, expected)
        if number > MAX_TOKENS:
            self.fail(field, f"{expected}, at most {MAX_TOKENS:,}")
        return int(number)

    def seconds(self, field: str, units: int = 1) -> float:
        """A required instant or pause in seconds; `units` of the field are one."""
        number = _number(self.values.get(field))
        if number is None or number < 0:
            self.fail(field, "a number >= 0")
        if number > MAX_SECONDS * units:
            unit = {1: "seconds", 1000: "milliseconds"}[units]
            self.fail(field, f"{unit} up to {MAX_SECONDS * units:g}")
        return number / units

    def text(self, field: str) -> str:
        """A required text that is not empty."""
        value = self.values.get(field)
        if not isinstance(value, str) or not value.strip():
            self.fail(field, "a text that is not empty")
        return value

    def object(self, field: str) -> dict[str, Any]:
        """An optional JSON object, as it may be kept."""
        value = self.values.get(field)
        if value is not None and not isinstance(value, dict):
            self.fail(field, "an object")
        return dict(portable(value or {}))

    def others(self, known: Set[str]) -> dict[str, Any]:
        """Fields that are not known, as they may be kept."""
        names = self.values.keys() - known
        return {name: portable(self.values[name]) for name in sorted(names)}

    def messages(self, field: str, info: TraceInfo) -> tuple[dict[str, Any], ...]:
        """A chat of the OpenAI layout: roles, and contents as text, parts or null.

        Fields beside them (`tool_calls`, `name`) are kept. A null content stays beside
        tool calls and is an empty text elsewhere, which servers take.
        """
        found = self.values.get(field)
        if not isinstance(found, list) or not found:
            self.fail(field, _CHAT)
        messages = []
        for message in found:
            if not isinstance(message, dict) or not message.get("role"):
                self.fail(field, _CHAT)
            content = message.get("content")
            calls = message.get("tool_calls") or message.get("function_call")
            if not isinstance(message["role"], str) or not _is_content(content):
                self.fail(field, _CHAT)
            if "content" not in message and not calls:
                self.fail(field, _CHAT)
            kept = dict(portable(message))
            if content is None and not calls:
                warn_once(info, "messages without content are sent with an empty text")
                kept["content"] = ""
            messages.append(kept)
        return tuple(messages)


_CHAT = 'a list of {"role": text, "content": text, parts or null}'


def _is_content(content: Any) -> bool:
    if isinstance(content, list):
        return all(isinstance(part, dict | str) for part in content)
    return content is None or isinstance(content, str)


def text_of(content: Any) -> str:
    """The text of a message's content: itself, its text parts, or nothing."""
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for part in content if isinstance(content, list) else []:
        text = part.get("text") if isinstance(part, dict) else part
        if isinstance(text, str):
            texts.append(text)
    return "\n".join(texts)


def portable(value: Any) -> Any:
    """A JSON value as every encoder takes it, at any depth.

    A lone surrogate becomes U+FFFD, an integer beyond 64 bits its digits as text, a
    number that is not finite null.
    """
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {portable(name): portable(item) for name, item in value.items()}
    if isinstance(value, list):
        return [portable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int) and not -_MAX_INTEGER / 2 <= value < _MAX_INTEGER:
        return str(value)
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
    return value if isinstance(value, int) or math.isfinite(value) else None


def json_rows(pieces: Iterable[str], info: TraceInfo) -> Iterator[Line]:
    """The rows of a JSON file: lines, or the elements of an array (or of several).

    A row that is no object becomes one: a text is a prompt, a list of texts the turns
    of a conversation, a list of messages (also an array that is one) a chat.
    """
    held: list[Any] = []
    first: Piece | None = None
    size = 0
    for piece in json_texts(pieces, info.path):
        value = _decoded(piece, info.path)
        is_in_chat = piece.array is not None and _is_message(value)
        if first is not None and not (is_in_chat and piece.array == first.array):
            yield Line(info.path, first.line_number, {"messages": held}, None, size)
            held, first, size = [], None, 0
        if is_in_chat:
            first = first or piece
            held.append(value)
            size += len(piece.text)
            if size > MAX_SESSION_CHARACTERS:
                raise TraceError(info.path, first.line_number, too_long("chat"))
            continue
        row = row_of(value)
        if row is None:
            raise TraceError(
                info.path,
                piece.line_number,
                f"{piece.text.strip()[:40]!r} is not a JSON object",
                piece.element,
            )
        yield Line(
            info.path, piece.line_number, row, piece.element, len(piece.text)
        )  # fmt: skip
    if first is not None:
        yield Line(info.path, first.line_number, {"messages": held}, None, size)


def row_of(value: Any) -> dict[str, Any] | None:
    """A JSON value as a row; None for one that is no request in any format."""
    if isinstance(value, dict):
        return value
    if isinstance(value, str):
        return {"prompt": value}
    if isinstance(value, list):
        if all(isinstance(item, dict) for item in value):
            return {"messages": value}
        if all(isinstance(item, str) for item in value):
            return {"turns": value}
    return None


def decoded(text: str) -> Any:
    """A JSON text's value, forgiving: ValueError where there is none.

    What the strict decoder refuses is tried again: numbers that JSON lacks become
    floats, integers of many digits text, lone surrogates U+FFFD.
    """
    try:
        return _json.decode(text)
    except msgspec.DecodeError:
        return _clean(
            json.loads(text, strict=False, parse_constant=float, parse_int=_integer)
        )


def too_long(what: str) -> str:
    """The reason why a session or chat of many lines is refused."""
    return f"the {what} is longer than {MAX_SESSION_CHARACTERS:,} characters in all"


def _decoded(piece: Piece, path: str) -> Any:
    try:
        return decoded(piece.text)
    except json.JSONDecodeError as error:
        raise TraceError(
            path,
            piece.line_number + error.lineno - 1,
            f"not valid JSON ({error.msg}), expected one object",
            piece.element,
        ) from None


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= 20 else digits


def _clean(value: Any) -> Any:
    """The value without lone surrogates; numbers stay for the checks."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_clean(name): _clean(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return value


def _is_message(value: Any) -> bool:
    """Whether an element of an array is a message, and the array a chat."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("role"), str)
        and not value.keys() & {"messages", "conversations", "prompt"}
    )


def csv_lines(
    pieces: Iterable[str], info: TraceInfo, needed: Sequence[str]
) -> Iterator[Line]:
    """The rows of a CSV file under its own column names, in any order."""
    last = ""

    def lines() -> Iterator[str]:
        nonlocal last
        for last in lines_of(pieces, info.path):
            yield last + "\n"

    table = csv.reader(lines())
    names: list[str] = []
    while True:
        try:
            cells = next(table, None)
        except csv.Error as error:
            raise TraceError(
                info.path, table.line_num, _csv_reason(error, last, names)
            ) from None
        if cells is None:
            break
        if not names:
            names = column_names(cells)
            _check_columns(names, needed, info)
        elif cells:
            if len(cells) != len(names):
                raise TraceError(
                    info.path,
                    table.line_num,
                    f"{len(cells)} columns, expected {len(names)} as in the first line",
                )
            yield Line(info.path, table.line_num, dict(zip(names, cells, strict=True)))
    if not names:
        _check_columns(names, needed, info)


def head_columns(head: str) -> frozenset[str]:
    """The column names in the first line of a table's head, quoted or not."""
    first = first_line(head.lstrip("\ufeff \t\r\n"))
    try:
        return frozenset(column_names(next(csv.reader([first]), [])))
    except csv.Error:
        return frozenset()


def column_names(cells: Sequence[str]) -> list[str]:
    """Names as the file means them: no byte order mark, no spaces around."""
    return [cell.strip().lstrip("\ufeff").strip() for cell in cells]


def _check_columns(names: list[str], needed: Sequence[str], info: TraceInfo) -> None:
    missing = [name for name in needed if name not in names]
    if missing:
        there = ", ".join(name[:_MAX_SHOWN] for name in names[:20])
        raise TraceError(
            info.path,
            1,
            f"column {missing[0]!r} is missing; the file has: {there}",
        )


def _csv_reason(error: csv.Error, text: str, names: list[str]) -> str:
    """The row's fault and, where a cell is too long, its column."""
    limit = csv.field_size_limit()
    cells = enumerate(text.split(","))
    place = next((k for k, cell in cells if len(cell) > limit), None)
    if place is None or place >= len(names):
        return f"not a row of CSV ({error}): a quote that is not closed?"
    return f"{names[place]} is longer than {limit:,} characters, expected one value"


def dropped(info: TraceInfo, reason: str) -> None:
    """Count a row left out."""
    info.dropped[reason] = info.dropped.get(reason, 0) + 1


def warn_once(info: TraceInfo, warning: str) -> None:
    """Keep a warning for the user, the first time only, and only the first few."""
    if warning in info.warnings:
        return
    if len(info.warnings) < MAX_WARNINGS:
        info.warnings.append(warning[:500])
    elif len(info.warnings) == MAX_WARNINGS:
        info.warnings.append("there are more warnings, which are left out")


def warn_unknown(info: TraceInfo, names: Iterable[str]) -> None:
    """Warn of fields that the format does not have."""
    for name in itertools.islice(names, MAX_WARNINGS + 1):
        warn_once(info, f"unknown field {name!r} is kept as it is")


def in_order(line: Line, field: str, before: float, now: float) -> float:
    """`now`, unless the trace goes back in time or spans centuries."""
    if now < before:
        line.fail(field, "a time not before that of the line above")
    if now > MAX_SECONDS:
        line.fail(field, f"a time at most {MAX_SECONDS:g} s after the first")
    return now
