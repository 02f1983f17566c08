"""Text of a trace cut into lines, or into the elements of a JSON array, within bounds.

A trace may be hostile, or broken in its first bytes: a gigabyte without a line end, or
brackets in brackets. So one line or element has at most `MAX_CHARACTERS`, `MAX_VALUES`
and `MAX_DEPTH`, whatever the file's compression, and is refused where it passes them:
reading takes less than 500 MiB, a usual trace a few.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from loadgen.errors import TraceError

MAX_CHARACTERS = 32 * 2**20
"""Characters of a line or element: eight million tokens of text, twice the longest
context a conversation has by now."""

MAX_VALUES = 2**20
"""Values of a line or element: blocks of sixteen million tokens. A value takes
three bytes of a file and up to 72 once it is decoded."""

MAX_DEPTH = 100
"""Brackets in brackets; decoders and encoders end at about a thousand."""

_BETWEEN = re.compile(r"[ \t\r\n,]*")
_LINE_END = re.compile(r"[\r\n]")
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_TOKEN = re.compile(_STRING.pattern + r'|["\[\]{}]', re.DOTALL)
_WORD = re.compile(r'[^ \t\r\n,"\[\]{}]+')


class TextError(ValueError):
    """A line or element that passes a bound; says which."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One JSON text and its place."""

    text: str
    line_number: int
    """Line of its first character."""
    element: int | None = None
    """Place in the array, from 1; None where the text is a line of its own."""
    array: int | None = None
    """Which array of the file it stands in."""


def lines_of(pieces: Iterable[str], path: str) -> Iterator[str]:
    """Lines without their ends, which are LF, CRLF or CR; pieces are cut anywhere."""
    held: list[str] = []
    size, number = 0, 1
    is_after_cr = False
    for piece in pieces:
        if is_after_cr and piece[:1] == "\n":
            piece = piece[1:]
            is_after_cr = False
        if not piece:
            continue
        if "\r" in piece:
            is_after_cr = piece[-1] == "\r"
            piece = piece.replace("\r\n", "\n").replace("\r", "\n")
        else:
            is_after_cr = False
        first, *others = piece.split("\n")
        held.append(first)
        size += len(first)
        for other in others:
            _check_size(size, path, number)
            yield "".join(held)
            number += 1
            held, size = [other], len(other)
        _check_size(size, path, number)
    if size:
        yield "".join(held)


def json_texts(pieces: Iterable[str], path: str) -> Iterator[Piece]:
    """JSON texts of a file: lines, the elements of an array, or objects of any layout.

    An array is cut as it is read, so a file that is one long line needs no more memory
    than its longest element. Blank lines are left out.
    """
    pieces = iter(pieces)
    head = ""
    for piece in pieces:
        head += piece
        start = head.lstrip(" \t\r\n")
        if start[:1] == "[" or "\n" in start or "\r" in start:
            break
        if len(head) > MAX_CHARACTERS:
            break
    whole = itertools.chain([head], pieces)
    if _is_of_any_layout(head.lstrip(" \t\r\n")):
        yield from _elements(whole, path)
        return
    for number, line in enumerate(lines_of(whole, path), 1):
        if line.strip():
            try:
                check(line)
            except TextError as error:
                raise TraceError(path, number, str(error)) from None
            yield Piece(line, number)


def first_line(text: str) -> str:
    """The text up to its first line end, of either kind."""
    end = _LINE_END.search(text)
    return text if end is None else text[: end.start()]


def check(text: str) -> None:
    """Raise `TextError` for a text of too many values or brackets in brackets."""
    if text.count("[") + text.count("{") > MAX_DEPTH:
        end_of(text, 0)
    has_many = len(text) > MAX_VALUES and text.count(",") > MAX_VALUES
    if has_many and _STRING.sub("", text).count(",") > MAX_VALUES:
        raise TextError(_TOO_MANY)


def end_of(text: str, start: int, *, is_whole: bool = True) -> int | None:
    """Where the JSON value that starts at `start` ends; None if the text ends before.

    With `is_whole` nothing follows the text: a number or word at its end is complete.
    Brackets are counted, not matched: what stands between them is the decoder's.
    """
    if text[start] not in '"[{':
        word = _WORD.match(text, start)
        end = start + 1 if word is None else word.end()
        return end if is_whole or end < len(text) else None
    depth = marks = 0
    for token in _TOKEN.finditer(text, start):
        mark = token[0]
        if mark in _OPENING:
            depth, marks = depth + 1, marks + 1
            if depth > MAX_DEPTH:
                raise TextError(f"more than {MAX_DEPTH} brackets in brackets")
            if marks > MAX_VALUES:
                raise TextError(_TOO_MANY)
        elif mark in _CLOSING:
            depth -= 1
        elif mark == '"':
            return None  # a text that is not complete
        if depth <= 0:
            return token.end()
    return None


_OPENING, _CLOSING = frozenset("[{"), frozenset("]}")
_TOO_MANY = f"more than {MAX_VALUES:,} values, expected one request"


def _is_of_any_layout(start: str) -> bool:
    """Whether this is an array, or an object that goes on after its first line."""
    if start[:1] == "[":
        return True
    first = first_line(start)
    try:
        return first[:1] == "{" and end_of(first, 0) is None and len(first) < len(start)
    except TextError:
        return False


def _elements(pieces: Iterable[str], path: str) -> Iterator[Piece]:
    """Each value of the file, of an array or not, with the line it starts in."""
    text, at, line_number = "", 0, 1
    element, array, is_array = 0, 0, False
    held: list[str] = []
    held_size = 0
    for piece in itertools.chain(pieces, [None]):
        if piece is not None:
            held.append(piece)
            held_size += len(piece)
            left = len(text) - at
            # a value that is not complete is looked at again once it has doubled
            if held_size < left and left + held_size <= MAX_CHARACTERS:
                continue
        text, at = text[at:] + "".join(held), 0
        held, held_size = [], 0
        while True:
            between = _BETWEEN.match(text, at)
            start = at if between is None else between.end()
            line_number += _line_ends(text, at, start)
            at = start
            if at == len(text):
                break
            if text[at] == "[" and not is_array:
                array, element, is_array = array + 1, 0, True
                at += 1
                continue
            if text[at] == "]" and is_array:
                is_array = False
                at += 1
                continue
            if text[at] in "]}":
                raise TraceError(
                    path, line_number, f"{text[at]!r} closes what was not opened"
                )
            place = element + 1 if is_array else None
            try:
                end = end_of(text, at, is_whole=piece is None)
                if end is not None and end - at > MAX_VALUES:
                    check(text[at:end])
            except TextError as error:
                raise TraceError(path, line_number, str(error), place) from None
            _check_size((end or len(text)) - at, path, line_number, place)
            if end is None:
                if piece is not None:
                    break
                raise TraceError(
                    path, line_number, "not valid JSON (it ends before it is closed)",
                    place,
                )  # fmt: skip
            yield Piece(text[at:end], line_number, place, array if is_array else None)
            element += is_array
            line_number += _line_ends(text, at, end)
            at = end
    if is_array:
        raise TraceError(path, line_number, "the array is not closed: file cut short?")


def _line_ends(text: str, start: int, end: int) -> int:
    """Line ends of either kind: a file has one kind, and CRLF is one end."""
    return text.count("\n", start, end) or text.count("\r", start, end)


def _check_size(size: int, path: str, number: int, element: int | None = None) -> None:
    if size > MAX_CHARACTERS:
        what = "line" if element is None else "element"
        raise TraceError(
            path, number,
            f"the {what} is longer than {MAX_CHARACTERS:,} characters, expected one "
            "request",
            element,
        )  # fmt: skip
