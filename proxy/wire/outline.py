"""The outline of a large JSON object: its small fields as they are, large ones emptied.

Decoding a body of 31 MB at once would hold up every other client's chunks, and as
Python objects it would take twenty times its size. An outline is made in steps of at
most `STEP_BYTES`, costs no object per value, and any reader of the body can read it
instead. What it keeps of a long field is its type, and of a long list how many
strings, lists or objects are in it. A body that is no object, such as a form with a
file in it, is told by its two ends. Only the object's own structure is checked: a
body that is broken deeper down has an outline all the same. Pure.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

STEP_BYTES = 32_000
"""A quarter of a millisecond, whatever it holds; depths of a step fit int16."""
END_BYTES = 64 * 1024
"""Bytes of either end of a form: fields stand before or behind its file."""
SHORT_BYTES = 16 * 1024
"""A field up to this size is kept: a stop list, a tool choice, a grammar."""
MAX_FIELDS = 1024
"""No API has a hundred."""
MAX_KEPT_BYTES = 128 * 1024
MAX_NAME_BYTES = 256
MAX_ELEMENTS = 16_384
"""Counted in a list; no engine takes so many prompts in one request."""

Buffer = bytes | bytearray
Bytes = NDArray[np.uint8]
Flags = NDArray[np.bool_]

_SPACE = b" \t\r\n"
_OPENS, _CLOSES, _QUOTE, _COMMA, _COLON = 1, 255, 2, 3, 4
"""Kinds of bytes, any other is 0; brackets are what they add to the depth."""
_KINDS = bytearray(256)
for _bytes, _kind in (
    (b"[{", _OPENS), (b"]}", _CLOSES), (b'"', _QUOTE), (b",", _COMMA), (b":", _COLON),
):  # fmt: skip
    for _byte in _bytes:
        _KINDS[_byte] = _kind


@dataclass(frozen=True, slots=True)
class Edit:
    """Bytes `start` to `end` of a body, and what stands there instead."""

    start: int
    end: int
    replacement: bytes


@dataclass(frozen=True, slots=True)
class Outline:
    """A large object, told briefly; `text` is JSON, empty for what is no object."""

    text: bytes = b""
    size: int = 0
    """Bytes of the object itself."""
    places: dict[str, tuple[int, int]] | None = None
    """Start and end of every kept field's value."""

    def edits_for(self, changed: bytes) -> list[Edit] | None:
        """Edits that make of the body what `changed` is of the outline, in order.

        Fields may be replaced or added. None where a field would change of which
        the outline does not hold all.
        """
        places = self.places or {}
        before = msgspec.json.decode(self.text, type=dict[str, msgspec.Raw])
        after = msgspec.json.decode(changed, type=dict[str, msgspec.Raw])
        edits, added = list[Edit](), b""
        for name, value in after.items():
            if name not in before:
                added += b"," + msgspec.json.encode(name) + b":" + bytes(value)
            elif bytes(before[name]) != bytes(value):
                if name not in places:
                    return None
                edits.append(Edit(*places[name], bytes(value)))
        if added:
            end = self.size - 1  # the closing brace
            edits.append(Edit(end, end, added if before else added[1:]))
        return sorted(edits, key=lambda edit: edit.start)


def edited(body: Buffer, edits: Sequence[Edit]) -> list[Buffer | memoryview]:
    """The body after `edits`, in pieces: nothing large is copied."""
    view, at = memoryview(body), 0
    pieces: list[Buffer | memoryview] = []
    for edit in edits:
        pieces += [view[at : edit.start], edit.replacement]
        at = edit.end
    return [*pieces, view[at:]]


class NotReadableError(ValueError):
    """The bytes are no JSON object, or one that nobody sends."""


def outline(
    body: Buffer, *, step_bytes: int = STEP_BYTES
) -> Generator[None, None, Outline]:
    """The outline of `body`, made in steps; an empty one where there can be none."""
    if bytes(body[:END_BYTES]).lstrip(_SPACE)[:1] != b"{":
        return Outline(
            bytes(body[:END_BYTES] + body[max(END_BYTES, len(body) - END_BYTES) :])
        )
    fields = _Fields(body)
    scanner = _Scanner(body, fields, step_bytes)
    try:
        while not scanner.is_whole:
            scanner.step()
            yield
        if bytes(body[scanner.end : scanner.end + STEP_BYTES]).strip(_SPACE):
            raise NotReadableError
    except NotReadableError:
        return Outline()
    return Outline(b"{%b}" % b",".join(fields.kept), scanner.end, fields.places)


class _Scanner:
    """Finds the object's own commas and colons, a step at a time."""

    def __init__(self, body: Buffer, fields: _Fields, step_bytes: int) -> None:
        self._body = body
        self._step_bytes = step_bytes
        self._fields = fields
        self._at = 0
        self._depth = 0
        self._is_in_string = False
        self.is_whole = False
        self.end = 0
        """Position behind the closing brace, once it is there."""

    def step(self) -> None:
        """Scan the next bytes. Raises NotReadableError."""
        at, piece = self._at, self._without_escapes()
        if not piece:
            raise NotReadableError
        if self._is_in_string and b'"' not in piece:
            self._at += len(piece)
            return
        kinds: Bytes = np.frombuffer(piece.translate(_KINDS), np.uint8)
        opened: Flags | None = None
        if self._is_in_string or b'"' in piece:
            quotes = kinds == _QUOTE
            in_string = np.logical_xor.accumulate(quotes)  # up to its closing quote
            if self._is_in_string:
                in_string = ~in_string
            self._is_in_string = bool(in_string[-1])
            opened = quotes & in_string
            kinds = kinds * ~in_string
        opens, closes = kinds == _OPENS, kinds == _CLOSES
        changes = opens.view(np.int8) - closes.view(np.int8)
        depths = np.add.accumulate(changes, dtype=np.int16)
        own_depth = 1 - self._depth  # as `depths` has it
        self._depth += int(depths[-1])
        end = len(piece)
        if depths.min() < own_depth:
            left = np.flatnonzero((depths < own_depth) & closes)
            if len(left):
                end = int(left[0]) + 1
                self.is_whole, self.end = True, at + end
        is_mark = (kinds >= _COMMA) & ~closes | opens
        own = np.flatnonzero(is_mark & (depths == own_depth))
        begins = opens & (depths == own_depth + 2)
        if opened is not None:
            begins |= opened & (depths == own_depth + 1)
        elements = np.flatnonzero(begins)
        self._fields.take(at, own[own < end], kinds, elements[elements < end])
        if self.is_whole:
            self._fields.end_at(self.end - 1)
        self._at += len(piece)

    def _without_escapes(self) -> bytes:
        """The next bytes; others stand for escaped quotes and backslashes."""
        piece = bytes(self._body[self._at : self._at + self._step_bytes])
        if b"\\" not in piece:
            return piece
        plain = piece.replace(rb"\\", b"__").replace(rb"\"", b"__")
        return plain[:-1] if plain.endswith(b"\\") else plain  # the other half comes


class _Fields:
    """Names and values between the object's own commas and colons."""

    def __init__(self, body: Buffer) -> None:
        self._body = body
        self._start: int | None = None
        """Position behind the last brace, comma or colon; None before the object."""
        self._name: bytes | None = None
        self._elements = 0
        self._is_after_comma = False
        self.kept: list[bytes] = []
        self.places: dict[str, tuple[int, int]] = {}
        self._kept_bytes = 0

    def take(
        self, at: int, own: NDArray[np.intp], kinds: Bytes, elements: NDArray[np.intp]
    ) -> None:
        """What a step found: `own` marks, and where elements of lists begin."""
        if len(own) > 2 * (MAX_FIELDS - len(self.kept)) + 1:
            raise NotReadableError
        counted = 0
        before = np.searchsorted(elements, own)
        for mark, upto in zip(own.tolist(), before.tolist(), strict=True):
            self._elements += upto - counted
            counted = upto
            match int(kinds[mark]):
                case 1:  # _OPENS
                    if self._start is not None:
                        raise NotReadableError  # a second object
                case 4:  # _COLON
                    self._name_ends(at + mark)
                case _:
                    self._value_ends(at + mark)
                    self._is_after_comma = True
            self._start = at + mark + 1
        self._elements += len(elements) - counted

    def end_at(self, end: int) -> None:
        """The closing brace."""
        if self._name is not None or self._is_after_comma:
            self._value_ends(end)
        elif self._start is None or self._between(end):
            raise NotReadableError

    def _between(self, end: int) -> bytes:
        """What stands since the last mark, if it is short."""
        start = self._start or 0
        if end - start > SHORT_BYTES:
            return b"long"
        return bytes(self._body[start:end]).strip(_SPACE)

    def _name_ends(self, end: int) -> None:
        name = self._between(end)
        is_short = 2 <= len(name) <= MAX_NAME_BYTES
        if self._name is not None or not is_short or name[:1] != b'"':
            raise NotReadableError
        self._name = name
        self._elements = 0

    def _value_ends(self, end: int) -> None:
        name, start = self._name, self._start
        if name is None or start is None or len(self.kept) >= MAX_FIELDS:
            raise NotReadableError
        decoded = _decoded(name)
        start, end = self._trimmed(start, end)
        if end - start <= min(SHORT_BYTES, MAX_KEPT_BYTES - self._kept_bytes):
            value = bytes(self._body[start:end])
            if not value:
                raise NotReadableError
            self._kept_bytes += len(value)
            self.places[decoded] = start, end
        else:
            value = self._emptied(start)
            self.places.pop(decoded, None)
        self.kept.append(name + b":" + value)
        self._name = None
        self._is_after_comma = False

    def _trimmed(self, start: int, end: int) -> tuple[int, int]:
        """The value without the spaces around it, if those are few."""
        first = bytes(self._body[start : min(end, start + SHORT_BYTES)])
        start += len(first) - len(first.lstrip(_SPACE))
        last = bytes(self._body[max(start, end - SHORT_BYTES) : end])
        return start, end - len(last) + len(last.rstrip(_SPACE))

    def _emptied(self, start: int) -> bytes:
        """A short value of the same type; a list keeps its length but for scalars."""
        first = bytes(self._body[start : start + 1])
        if first == b'"':
            return b'""'
        if first == b"{":
            return b"{}"
        if first != b"[":
            return b"null"
        inside = bytes(self._body[start + 1 : start + 1 + SHORT_BYTES]).lstrip(_SPACE)
        empty = {b'"': b'""', b"[": b"[]", b"{": b"{}"}.get(inside[:1])
        if empty is None:
            return b"[0]"
        return b"[" + b",".join([empty] * min(self._elements, MAX_ELEMENTS)) + b"]"


def _decoded(name: bytes) -> str:
    try:
        return msgspec.json.decode(name, type=str)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise NotReadableError from None
