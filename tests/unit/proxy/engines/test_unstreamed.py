"""Whole replies made from streams: keys of a pattern, values of the stream."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.engines.unstreamed import WholeReply, as_stream, pattern_of
from tests.support.captures import reply_head_and_body, stream_body
from tests.support.scripted import DONE, sse


def made(pattern: Any, *events: Any, end: bytes = DONE) -> tuple[int, Any] | None:
    reply = WholeReply(pattern)
    reply.feed(sse(*events) + end)
    found = reply.finish()
    return None if found is None else (found[0], json.loads(found[1]))


def whole(message: dict[str, Any], **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "details": {"cached": 0, "other": None}}
    return {"id": "w", "object": "chat.completion", "choices": [choice], "usage": usage}


def delta(**fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": fields, "finish_reason": None}
    return {"id": "s", "object": "chat.completion.chunk", "choices": [choice]}


def call(arguments: str, name: str | None = None, index: int = 0) -> dict[str, Any]:
    part: dict[str, Any] = {"index": index, "function": {"arguments": arguments}}
    if name is not None:
        part |= {"id": f"id-{name}", "type": "function"}
        part["function"] = {"name": name, "arguments": arguments}
    return delta(tool_calls=[part])


PLAIN = {"role": "assistant", "content": "a", "function_call": None, "reasoning": None}
CALLED = {
    "role": "assistant", "content": None, "function_call": None,
    "tool_calls": [{"id": "x", "type": "function", "function": {}}], "reasoning": None,
}  # fmt: skip
CALLS = (
    delta(role="assistant", content=""),
    call("", "f"), call('{"a":'), call("{}", "g", 1), call("1}"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "content"),
    [(PLAIN, ""), (CALLED, None), (CALLED | {"content": ""}, "")],
)
def test_tool_calls_are_put_together_where_the_engine_has_them(
    pattern: dict[str, Any], content: str | None
) -> None:
    found = made(whole(pattern), *CALLS)
    assert found is not None
    message = found[1]["choices"][0]["message"]
    assert list(message) == list(CALLED)
    assert message["content"] == content
    assert [one["function"] for one in message["tool_calls"]] == [
        {"name": "f", "arguments": '{"a":1}'},
        {"name": "g", "arguments": "{}"},
    ]
    assert [one["id"] for one in message["tool_calls"]] == ["id-f", "id-g"]


@pytest.mark.parametrize("pattern", [PLAIN, CALLED])
def test_a_text_has_no_tool_calls_whatever_was_learnt(pattern: dict[str, Any]) -> None:
    found = made(whole(pattern), delta(role="assistant"), delta(content="b"))
    assert found is not None
    assert found[1]["choices"][0]["message"] == PLAIN | {"content": "b"}


def test_nulls_that_a_stream_leaves_out_are_there_and_nothing_is_carried_over() -> None:
    pattern = whole(PLAIN) | {"metrics": {"ms": 5.0}, "odd": None}
    usage = {"prompt_tokens": 9, "details": {"cached": 2}}
    found = made(
        pattern, delta(content="b"), {"id": "s", "choices": [], "usage": usage}
    )
    assert found is not None
    assert found[1]["usage"] == usage | {"details": {"cached": 2, "other": None}}
    assert (found[1]["metrics"], found[1]["odd"], found[1]["id"]) == (None, None, "s")
    assert found[1]["object"] == "chat.completion"


def test_a_captured_stream_becomes_the_captured_whole_reply() -> None:
    _, body = reply_head_and_body("vllm_chat_nonstream")
    pattern = pattern_of(body)
    assert pattern is not None
    reply = WholeReply(pattern)
    reply.feed(stream_body("vllm_chat_stream_usage"))
    found = reply.finish()
    assert found is not None
    ours, theirs = json.loads(found[1]), json.loads(body)
    assert {**ours, "id": 0, "created": 0} == {**theirs, "id": 0, "created": 0}
    assert [*ours] == [*theirs]


@given(cuts=st.lists(st.integers(0, 900), max_size=8))
def test_a_stream_cut_anywhere_gives_the_same_reply(cuts: list[int]) -> None:
    stream, pattern = sse(*CALLS) + DONE, whole(PLAIN)
    one, other = WholeReply(pattern), WholeReply(pattern)
    one.feed(stream)
    edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    for start, end in pairwise(edges):
        other.feed(stream[start:end])
    assert one.finish() == other.finish()


@pytest.mark.parametrize("end", [b"", b"data: [DON"])
def test_without_its_end_there_is_no_reply(end: bytes) -> None:
    assert made(whole(PLAIN), delta(content="b"), end=end) is None


@pytest.mark.parametrize(
    ("code", "status"), [(503, 503), (400, 400), (200, 500), ("x", 500), (None, 500)]
)
def test_an_error_is_a_status(code: object, status: int) -> None:
    error = {"message": "no", "code": code}
    assert made(whole(PLAIN), {"error": error}) == (status, {"error": error})


@pytest.mark.parametrize(
    "fields",
    [
        {"echo": True},
        {"prompt_logprobs": 1},
        {"stream_options": {"include_usage": True}},
        {"use_beam_search": True},
        {"a_new_option": 1},
    ],
)
def test_what_may_be_another_reply_as_a_stream_is_left_alone(
    fields: dict[str, Any],
) -> None:
    body = json.dumps({"model": "m", "prompt": "a"} | fields).encode()
    assert as_stream("completions", body) is None


def test_all_else_of_the_request_stays_as_it_was() -> None:
    body = b'{"model":"m","seed":1.0,"temperature":1e-3,"stream":false,"echo":null}'
    streamed = as_stream("chat", body)
    assert streamed is not None
    assert b'"seed":1.0,"temperature":1e-3' in streamed.body
    told = json.loads(streamed.body)
    assert told["stream"] is True
    assert told["stream_options"]["continuous_usage_stats"] is True


@pytest.mark.parametrize(
    "body", [b"", b"no", b"[]", b"null", b'{"usage":{}}', b'{"choices":[],"usage":{}}']
)
def test_nothing_is_learnt_from_what_is_no_reply(body: bytes) -> None:
    assert pattern_of(body) is None
    assert as_stream("chat", body[:2]) is None
