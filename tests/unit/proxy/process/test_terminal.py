"""Text for a terminal: nothing in it moves a cursor, and nothing fails for it."""

from __future__ import annotations

import errno
import io
import json
import unicodedata
from typing import cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.process.terminal import Output, escaped, escaped_json, escaped_lines

HOSTILE = "\x1b]0;title\x07\x1b[2J\x9b31m\u202egnp\u2066\u2028\ud800\r\b\x7f"
texts = st.text(st.characters())
HARMFUL = {"Cc", "Cf", "Cs", "Zl", "Zp"}


@given(texts)
@example(HOSTILE)
def test_escaped_text_is_one_line_without_control_characters(text: str) -> None:
    shown = escaped(text)
    assert not {unicodedata.category(c) for c in shown} & HARMFUL
    shown.encode()
    assert escaped(shown) == shown


def test_text_that_harms_nobody_stays() -> None:
    assert (
        escaped("Grüße, 世界 é 42 % [bold] \\x1b") == "Grüße, 世界 é 42 % [bold] \\x1b"
    )
    assert escaped("a\x1b[2Jb\u202e") == "a\\x1b[2Jb\\u202e"


@given(texts)
@example(HOSTILE)
def test_lines_keep_their_ends_and_nothing_else(text: str) -> None:
    shown = escaped_lines(text)
    assert shown.count("\n") == text.count("\n")
    assert all(line.isprintable() for line in shown.split("\n"))


@given(
    st.recursive(texts, lambda inner: st.lists(inner) | st.dictionaries(texts, inner))
)
@example([HOSTILE, "\U000e0001", "😀"])
def test_escaped_json_has_the_same_values(value: object) -> None:
    written = json.dumps(value, ensure_ascii=False, indent=2)
    for only_ascii in (False, True):
        shown = escaped_json(written, only_ascii=only_ascii)
        assert json.loads(shown) == json.loads(json.dumps(value))
        assert all(line.isprintable() for line in shown.split("\n"))
        assert shown.isascii() or not only_ascii


class Full(io.StringIO):
    """A device without room."""

    writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_stream_that_fails_is_asked_once_and_remembered() -> None:
    full = Full()
    output = Output(full)
    assert output.write("one") == 3
    assert output.write("two") == 3
    output.flush()
    assert full.writes == 1
    assert output.error is not None
    assert output.error.errno == errno.ENOSPC


def test_nothing_writes_past_a_guarded_stream() -> None:
    output = Output(cast(io.StringIO, io.TextIOWrapper(io.BytesIO(), "ascii")))
    assert output.encoding == "ascii"
    with pytest.raises(AttributeError):
        _ = output.buffer
