"""Pitfalls of reading streams, each as the stream that shows it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.client.replies import (
    Reply,
    StreamReader,
    read_in_steps,
    request_id_in,
    spread,
)
from proxy.engines import DIALECTS
from tests.support.captures import stream_body
from tests.support.scripted import DONE, sse

Read = tuple[float, bytes]


def event(content: str | None = None, **rest: Any) -> dict[str, Any]:
    """A chat event; `finish`, `usage` (output tokens) and delta fields by name."""
    delta: dict[str, Any] = {} if content is None else {"content": content}
    finish = rest.pop("finish", None)
    output_tokens = rest.pop("usage", None)
    delta |= rest
    body: dict[str, Any] = {
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]
    }
    if output_tokens is not None:
        body["usage"] = {"prompt_tokens": 5, "completion_tokens": output_tokens}
    return body


def total(output_tokens: int, cached_tokens: int | None = None) -> dict[str, Any]:
    """The usage-only event at the end."""
    usage: dict[str, Any] = {"prompt_tokens": 5, "completion_tokens": output_tokens}
    if cached_tokens is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": cached_tokens}
    return {"choices": [], "usage": usage}


ROLE = event("", role="assistant")


def read(*reads: Read, engine: str = "vllm", sequences: int = 1) -> Reply:
    reader = StreamReader(DIALECTS[engine], sequences)
    for stamp, data in reads:
        reader.feed(stamp, data)
    return reader.finish()


def test_the_role_is_not_the_first_token() -> None:
    reply = read(
        (1.0, sse(ROLE)),
        (2.0, sse(event("a"))),
        (3.0, sse(event("b", finish="length"))),
        (4.0, sse(total(2)) + DONE),
    )
    assert reply.chunk_stamps == [2.0, 3.0]
    assert reply.chunk_tokens == [1, 1]
    assert reply.error is None


def test_the_role_is_not_the_first_token_with_running_usage_either() -> None:
    reply = read(
        (1.0, sse(event("", role="assistant", usage=0))),
        (2.0, sse(event("a", usage=1))),
        (3.0, sse(total(1)) + DONE),
    )
    assert reply.chunk_stamps == [2.0]


def test_several_events_in_one_read_share_its_stamp() -> None:
    reply = read(
        (1.0, sse(ROLE, event("a"), event("b"))),
        (2.0, sse(event("c", finish="stop"), total(3)) + DONE),
    )
    assert reply.chunk_stamps == [1.0, 2.0]
    assert reply.chunk_tokens == [2, 1]
    assert reply.text == "abc"


def test_running_usage_counts_several_tokens_of_one_event() -> None:
    reply = read(
        (1.0, sse(event("a b c", usage=3))),
        (2.0, sse(event("d", usage=4))),
        (3.0, sse(event("e f", usage=6, finish="stop"))),
        (4.0, sse(total(6)) + DONE),
    )
    assert reply.chunk_tokens == [3, 1, 2]
    assert reply.output_tokens == 6


def test_without_running_usage_the_total_is_spread_over_the_events() -> None:
    reply = read(
        (1.0, sse(event("a"))),
        (2.0, sse(event("b"))),
        (3.0, sse(event("c", finish="stop"))),
        (4.0, sse(total(9)) + DONE),
        engine="openai",
    )
    assert reply.chunk_tokens == [3, 3, 3]


def test_token_ids_are_counted_as_they_are() -> None:
    first = event("a")
    first["choices"][0]["token_ids"] = [1, 2]
    second = event("b", finish="stop")
    second["choices"][0]["token_ids"] = [3]
    reply = read((1.0, sse(first)), (2.0, sse(second) + DONE))
    assert reply.chunk_tokens == [2, 1]
    assert reply.output_tokens == 3


def test_an_empty_text_that_usage_counts_is_a_token() -> None:
    reply = read(
        (1.0, sse(event("", role="assistant", usage=0))),
        (2.0, sse(event("", usage=1))),
        (3.0, sse(event("a", usage=2, finish="stop"))),
        (4.0, sse(total(2)) + DONE),
    )
    assert reply.chunk_stamps == [2.0, 3.0]
    assert reply.first_visible_stamp == 3.0


@pytest.mark.parametrize("channel", ["reasoning", "reasoning_content"])
def test_reasoning_is_the_first_token_but_not_the_first_visible_one(
    channel: str,
) -> None:
    reply = read(
        (1.0, sse(ROLE, event(**{channel: "hm"}))),
        (2.0, sse(event("a", finish="stop"), total(2)) + DONE),
        engine="openai",
    )
    assert reply.chunk_stamps == [1.0, 2.0]
    assert reply.first_visible_stamp == 2.0
    assert reply.text == "a"


def test_tool_call_deltas_are_tokens() -> None:
    call = [{"index": 0, "function": {"arguments": "{"}}]
    reply = read(
        (1.0, sse(ROLE)),
        (2.0, sse(event(tool_calls=call))),
        (3.0, sse(event(finish="tool_calls"), total(4)) + DONE),
        engine="openai",
    )
    assert reply.chunk_stamps == [2.0]
    assert reply.chunk_tokens == [4]
    assert reply.first_visible_stamp is None


def test_usage_and_done_do_not_extend_the_stream() -> None:
    reply = read(
        (1.0, sse(event("a", finish="stop"))), (2.0, sse(total(1))), (3.0, DONE)
    )
    assert reply.chunk_stamps == [1.0]


def test_tokens_that_were_all_hidden_came_by_the_finish() -> None:
    reply = read(
        (1.0, sse(ROLE)),
        (2.0, sse(event(finish="length"))),
        (3.0, sse(total(40)) + DONE),
        engine="openai",
    )
    assert reply.chunk_stamps == [2.0]
    assert reply.chunk_tokens == [40]
    assert reply.error is None


def test_two_outputs_are_counted_by_the_final_usage() -> None:
    def of_choice(index: int, text: str, usage: int) -> dict[str, Any]:
        body = event(text, usage=usage, finish="stop" if usage == 2 else None)
        body["choices"][0]["index"] = index
        return body

    reply = read(
        (1.0, sse(of_choice(0, "a", 1))),
        (2.0, sse(of_choice(1, "x", 1))),
        (3.0, sse(of_choice(0, "b", 2))),
        (4.0, sse(of_choice(1, "y", 2))),
        (5.0, sse(total(4)) + DONE),
        sequences=2,
    )
    assert reply.chunk_stamps == [1.0, 2.0, 3.0, 4.0]
    assert reply.chunk_tokens == [1, 1, 1, 1]
    assert reply.text == "ab"


def test_usage_on_the_last_event_of_transformers_is_no_burst_of_tokens() -> None:
    last = event(finish="length", usage=2)
    reply = read(
        (1.0, sse(event(role="assistant"))),
        (2.0, sse(event("a"))),
        (3.0, sse(event("b"))),
        (4.0, sse(last)),
        engine="transformers",
    )
    assert reply.chunk_stamps == [2.0, 3.0]
    assert reply.chunk_tokens == [1, 1]
    assert reply.prompt_tokens == 5
    assert reply.error is None


def tgi(text: str, special: bool = False, **last: Any) -> dict[str, Any]:
    token = {"id": 1, "text": text, "logprob": -1.0, "special": special}
    return {"index": 1, "token": token, "generated_text": None, "details": None} | last


def test_tgi_counts_one_token_per_event_and_ends_with_its_text() -> None:
    details = {"finish_reason": "length", "generated_tokens": 3, "input_length": 8}
    reply = read(
        (1.0, sse(tgi("a"))),
        (
            2.0,
            sse(tgi("", special=True), tgi("b", generated_text="ab", details=details)),
        ),
        engine="tgi",
    )
    assert reply.chunk_tokens == [1, 2]
    assert (reply.prompt_tokens, reply.output_tokens) == (8, 3)
    assert reply.error is None


def test_comments_crlf_and_data_without_a_space_are_read_as_they_should() -> None:
    payload = json.dumps(event("a", finish="stop"))
    reply = read(
        (1.0, b": keep-alive\r\n\r\n"),
        (2.0, f"data:{payload}\r\n\r\n".encode()),
        (3.0, b"data:[DONE]\r\n\r\n"),
    )
    assert reply.chunk_stamps == [2.0]
    assert reply.error is None


def test_a_character_split_between_reads_is_whole_again() -> None:
    data = sse(json.dumps(event("Ü🙂", finish="stop"), ensure_ascii=False)) + DONE
    for cut in range(1, len(data)):
        reply = read((1.0, data[:cut]), (2.0, data[cut:]))
        assert reply.text == "Ü🙂"
        assert reply.error is None


def test_an_event_is_stamped_by_the_read_that_completes_it() -> None:
    data = sse(event("a", finish="stop"))
    reply = read((1.0, data[:20]), (2.0, data[20:]), (3.0, DONE))
    assert reply.chunk_stamps == [2.0]


def test_an_error_inside_a_200_is_a_failure_also_before_done() -> None:
    reply = read(
        (1.0, sse(event("a"))),
        (2.0, sse({"error": {"message": "engine died", "code": 500}}) + DONE),
    )
    assert reply.error == "engine died"
    assert reply.chunk_stamps == [1.0]


@pytest.mark.parametrize("engine", DIALECTS)
def test_a_stream_that_just_stops_is_a_failure(engine: str) -> None:
    first = tgi("a") if engine == "tgi" else event("a")
    reply = read((1.0, sse(first)), engine=engine)
    assert reply.error == "the stream ended before its end marker"
    assert reply.chunk_stamps == [1.0]


@pytest.mark.parametrize("engine", ["vllm", "openai"])
def test_no_tokens_is_a_failure(engine: str) -> None:
    reply = read((1.0, sse(ROLE, total(0)) + DONE), engine=engine)
    assert reply.error == "the reply has no tokens"
    assert reply.chunk_stamps == []


def test_an_unknown_count_stays_unknown() -> None:
    reply = read((1.0, sse(event("a", finish="stop")) + DONE), engine="openai")
    assert reply.output_tokens is None
    assert reply.chunk_tokens == [1]


def test_cached_tokens_are_those_of_the_last_usage() -> None:
    reply = read((1.0, sse(event("a", usage=1, finish="stop"), total(1, 4)) + DONE))
    assert reply.cached_tokens == 4


@pytest.mark.parametrize(
    ("capture", "engine", "tokens"),
    [
        ("vllm_chat_stream_usage", "vllm", None),
        ("vllm_chat_stream_continuous_usage", "vllm", None),
        ("vllm_chat_stream_immediate_eos", "vllm", 1),
        ("vllm_completions_stream_usage", "vllm", None),
        ("hf_chat_stream", "transformers", 4),
        ("hf_completions_stream_merged_events", "transformers", 4),
    ],
)
def test_recorded_streams_say_the_same_in_one_read_and_byte_by_byte(
    capture: str, engine: str, tokens: int | None
) -> None:
    body = stream_body(capture)
    whole = read((0.0, body), engine=engine)
    bytewise = read(
        *((float(n), body[n : n + 1]) for n in range(len(body))), engine=engine
    )
    assert whole.error is None
    assert whole.output_tokens == sum(whole.chunk_tokens)
    assert sum(bytewise.chunk_tokens) == whole.output_tokens
    assert bytewise.text == whole.text
    assert tokens is None or whole.output_tokens == tokens


@given(
    total_tokens=st.integers(1, 10_000),
    weights=st.lists(st.integers(1, 50), min_size=1, max_size=60),
)
def test_spreading_keeps_the_sum_and_starts_with_the_first_read(
    total_tokens: int, weights: list[int]
) -> None:
    parts = spread(total_tokens, weights)
    assert sum(parts) == total_tokens
    assert parts[0] >= 1
    assert min(parts) >= 0
    even = total_tokens / sum(weights)
    assert all(
        abs(part - weight * even) <= 1
        for part, weight in zip(parts, weights, strict=True)
    )


def unstreamed_reply(
    status: int | None, kind: str, body: bytes, headers: dict[str, str] | None = None
) -> Reply:
    """What reading a reply says, however many steps it takes."""
    steps = read_in_steps(
        DIALECTS["vllm"],
        status,
        {"content-type": kind, **(headers or {})},
        [1.0],
        [body],
    )
    while True:
        try:
            next(steps)
        except StopIteration as end:
            reply: Reply = end.value
            return reply


def test_a_refusal_is_its_status_and_its_message() -> None:
    body = b'{"error": {"message": "prompt too long", "code": 400}}'
    reply = unstreamed_reply(400, "application/json", body)
    assert reply.error == "HTTP 400: prompt too long"
    assert reply.chunk_stamps == []


def test_an_empty_refusal_is_its_status() -> None:
    assert (unstreamed_reply(502, "text/html", b"").error or "").startswith("HTTP 502")


def test_a_redirect_is_told_and_not_followed() -> None:
    reply = unstreamed_reply(307, "", b"", {"location": "/elsewhere"})
    assert reply.error == "HTTP 307: redirects to /elsewhere, which is not followed"


def test_a_whole_reply_in_the_place_of_a_stream_comes_at_its_last_byte() -> None:
    body = json.dumps({"choices": [{"text": "a"}], "usage": {"completion_tokens": 5}})
    reply = unstreamed_reply(200, "application/json", body.encode())
    assert reply.error is None
    assert (reply.chunk_stamps, reply.chunk_tokens) == ([1.0], [5])
    assert reply.text == "a"


def test_a_reply_that_is_no_stream_has_no_stamps() -> None:
    reply = unstreamed_reply(200, "text/html", b"<html>")
    assert reply.error == "asked for a stream, got text/html"
    assert reply.chunk_stamps == []


def test_a_reply_that_never_came_says_nothing() -> None:
    assert unstreamed_reply(None, "", b"") == Reply()


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b'data: {"id":"chatcmpl-r-1","object":"chat.completion.chunk"}', "r-1"),
        (b'{"id": "cmpl-r 1", "choices": []}', None),
        (b'\n data:{ "id" : "cmpl-r-1","choices":[]}', "r-1"),
        (b'{"id":"chatcmpl-a\\"b"}', None),
        (b'{"id":"chatcmpl-' + b"x" * 201 + b'"}', None),
        (b'{"id":""}', None),
        (b'{"object":"x","id":"cmpl-r-1"}', None),
        (b'data: {"text":"{\\"id\\":\\"cmpl-r-1\\"}"}', None),
        (b'{"id":"cmpl-r', None),
        (b"", None),
    ],
    ids=["chat", "space", "spaced", "escape", "long", "tgi", "later", "text", "cut",
         "nothing"],
)  # fmt: skip
def test_the_id_of_a_request_is_what_its_reply_begins_with(
    body: bytes, named: str | None
) -> None:
    assert request_id_in(body) == named


@given(name=st.text(st.characters(min_codepoint=33, max_codepoint=126,
                                  exclude_characters='"\\'), min_size=1,
                    max_size=200))  # fmt: skip
def test_every_id_that_may_be_sent_is_read_back(name: str) -> None:
    assert request_id_in(b'{"id":"chatcmpl-%b","x":1}' % name.encode()) == name
