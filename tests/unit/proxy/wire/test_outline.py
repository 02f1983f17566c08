"""An outline says of a large body what a reader of all of it would say."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.engines import DIALECTS, read_request
from proxy.wire.outline import (
    END_BYTES,
    MAX_ELEMENTS,
    MAX_FIELDS,
    SHORT_BYTES,
    STEP_BYTES,
    Outline,
    edited,
    outline,
)

LONG = SHORT_BYTES + 1
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
objects = st.dictionaries(st.text(max_size=6), values, max_size=6)


def outlined(body: bytes | bytearray, step_bytes: int = STEP_BYTES) -> Outline:
    steps = outline(body, step_bytes=step_bytes)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: Outline = end.value
            return found


def told(body: bytes) -> Any:
    return json.loads(outlined(body).text)


def spelt(value: object, indent: int | None, ascii_only: bool) -> bytes:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    return text.encode("utf-8", "surrogatepass")


@given(objects, st.sampled_from([None, 1]), st.booleans(), st.integers(2, 50))
def test_short_fields_are_told_as_they_are_wherever_steps_end(
    value: dict[str, Any], indent: int | None, ascii_only: bool, step: int
) -> None:
    body = spelt(value, indent, ascii_only)
    found = outlined(b" " + body + b"\n", step)
    assert json.loads(found.text) == json.loads(body)
    for name, (start, end) in (found.places or {}).items():
        assert json.loads((b" " + body)[start:end]) == value[name]


@given(objects, objects, st.integers(2, 50))
def test_a_change_of_the_outline_is_the_same_change_of_the_body(
    value: dict[str, Any], change: dict[str, Any], step: int
) -> None:
    body = json.dumps(value).encode()
    found = outlined(body, step)
    changed = json.dumps({**json.loads(found.text), **change}).encode()
    edits = found.edits_for(changed)
    assert edits is not None
    after = b"".join(bytes(piece) for piece in edited(body, edits))
    assert json.loads(after) == {**value, **change}


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (LONG * "a", ""),
        (LONG * '\\"', ""),
        ({"a": LONG * "a"}, {}),
        (LONG * [1], [0]),
        ((LONG // 2) * [""], (LONG // 2) * [""]),
        ((LONG // 3) * [[1, [2]]], (LONG // 3) * [[]]),
        ((LONG // 3) * [{"a": ["b", {"c": "]"}]}], (LONG // 3) * [{}]),
        (2 * MAX_ELEMENTS * [""], MAX_ELEMENTS * [""]),
    ],
)
def test_long_fields_are_told_by_type_and_length(value: Any, kept: Any) -> None:
    body = json.dumps({"a": 1, "long": value, "b": {"c": [1]}}).encode()
    assert told(body) == {"a": 1, "long": kept, "b": {"c": [1]}}


def test_a_name_may_be_spelt_with_escapes() -> None:
    assert told(b'{"\\u0073tream": true}') == {"stream": True}
    assert outlined(b'{"\\u0073tream": true}').places == {"stream": (16, 20)}


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"[]", b'""', b"1", b"{", b'{"a"', b'{"a":', b'{"a":1', b'{"a":1,}',
        b"{,}", b"{1:2}", b'{"a" 1}', b'{"a":1}x', b'{"a":"', b'{"a":"\\', b'{"a":[}',
        b'{"a"}', b'{"a":}', b'{"a":1:2}', b"{}{}",
        b'{"' + LONG * b"a" + b'":1}', b'{"a":' + LONG * b"[",
        b"{" + b",".join(b'"%d":1' % n for n in range(MAX_FIELDS + 1)) + b"}",
    ],
)  # fmt: skip
def test_what_is_no_object_or_one_nobody_sends_is_told_as_none(body: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        msgspec.json.decode(outlined(body).text, type=dict)


@given(st.binary(max_size=60), st.integers(2, 20))
def test_no_bytes_break_it(body: bytes, step: int) -> None:
    outlined(b'{"a":' + body, step)
    outlined(body, step)


@pytest.mark.parametrize("engine", DIALECTS)
@pytest.mark.parametrize(
    "body",
    [
        {"model": "m", "messages": [{"role": "user", "content": LONG * "ä\n"}]},
        {"prompt": LONG * [7], "model": "m", "stream": True, "n": 3},
        {"prompt": 200 * [100 * "a"], "best_of": 2, "max_tokens": 5},
        {"prompt": 200 * [100 * [1]], "stream_options": {"include_usage": True}},
        {"inputs": LONG * "a", "parameters": {"details": True, "max_new_tokens": 9}},
    ],
)
def test_a_dialect_reads_the_same_of_an_outline(
    engine: str, body: dict[str, Any]
) -> None:
    whole = json.dumps(body).encode()
    text = outlined(whole).text
    assert len(text) < len(whole)
    for path in ("/v1/chat/completions", "/v1/completions", "/", "/generate"):
        read = DIALECTS[engine].read_request
        assert read("POST", path, text) == read("POST", path, whole)


def test_a_form_is_told_by_its_ends() -> None:
    fields = b'--x\r\ncontent-disposition: form-data; name="%b"\r\n\r\n%b\r\n'
    file = b'--x\r\ncontent-disposition: form-data; name="file"\r\n\r\n'
    body = (
        fields % (b"model", b"whisper") + file + 10 * END_BYTES * b"{" + b"\r\n"
        + fields % (b"stream", b"true") + b"--x--\r\n"
    )  # fmt: skip
    facts = read_request(
        DIALECTS["vllm"], "POST", "/v1/audio/transcriptions", outlined(body).text
    )
    assert facts is not None
    assert (facts.model, facts.is_stream) == ("whisper", True)


def test_a_step_is_short_whatever_is_in_it() -> None:
    sizes = {
        len(list(outline(b'{"a":' + mass * (20 * STEP_BYTES // len(mass)))))
        for mass in (b"a", b"[", b"[]", b'"",', b"\\", b'\\"', b"{}", b" ", b"1,")
    }
    assert max(sizes) <= 22
