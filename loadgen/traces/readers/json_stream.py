"""JSON objects out of pieces of text: an array of any layout, or one after another.

Memory is that of the longest object, never of the file: a ShareGPT file is often
one array on one line. Objects are decoded where they end; an incomplete one waits
until the text has doubled, so no text is scanned more than a few times.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from loadgen.errors import TraceError
from loadgen.traces.readers.line import Line
from loadgen.traces.trace import TraceInfo

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
