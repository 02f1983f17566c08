"""APIs beside chat and completions: their requests, events, replies and counts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.engines import DIALECTS, read_request, reader_of
from proxy.engines.apis import API_READERS, API_ROUTES
from proxy.wire.facts import RequestFacts, Update, Usage
from proxy.wire.reply_end import ReplyEnd
from proxy.wire.token_count import TokenCount
from tests.support.mutations import HOSTILE, spoilt

VLLM = DIALECTS["vllm"]


def asked(path: str, **fields: Any) -> RequestFacts:
    facts = read_request(VLLM, "POST", path, json.dumps(fields).encode())
    assert facts is not None
    return facts


def read(route: str, events: list[Any]) -> tuple[TokenCount, ReplyEnd, str]:
    """A stream of JSON events as ledger and load read it."""
    reader = reader_of(VLLM, route)
    count, end = TokenCount(), ReplyEnd(requires_end=reader.requires_end)
    text = ""
    for event in events:
        update = reader.read_event(json.dumps(event).encode())
        count.count(update)
        end.note(update)
        text += update.text
    count.finish()
    return count, end, text


def reply(route: str, body: Any, status: int = 200) -> Update:
    return reader_of(VLLM, route).read_reply(status, {}, json.dumps(body).encode())


# --- requests ------------------------------------------------------------------


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize("path", API_ROUTES)
def test_every_route_is_metered_by_post_alone(name: str, path: str) -> None:
    facts = read_request(DIALECTS[name], "POST", path, b"{}")
    assert facts is not None
    assert facts.route == API_ROUTES[path]
    assert read_request(DIALECTS[name], "GET", path, b"{}") is None


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
def test_a_request_that_generates_says_model_stream_and_limit(path: str) -> None:
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    facts = asked(path, model="m", stream=True, **{limit: 9}, input=["a", "b"])
    assert (facts.model, facts.is_stream, facts.max_output_tokens) == ("m", True, 9)
    assert facts.sequences == 1
    assert facts.wants_usage  # it always comes: nothing has to be asked for


@pytest.mark.parametrize(
    ("path", "fields", "sequences"),
    [
        ("/v1/embeddings", {"input": "a"}, 1),
        ("/v1/embeddings", {"input": ["a", "b", "c"]}, 3),
        ("/v1/embeddings", {"input": [1, 2, 3]}, 1),
        ("/v1/embeddings", {"input": [[1, 2], [3]]}, 2),
        ("/v1/rerank", {"query": "q", "documents": ["a", "b"]}, 2),
        ("/score", {"text_1": "q", "text_2": ["a", "b"]}, 2),
        ("/embed", {"inputs": ["a", "b"]}, 2),
        ("/v1/chat/completions/batch", {"messages": [[{}], [{}]], "n": 2}, 4),
        ("/invocations", {"prompt": ["a", "b"], "n": 3}, 6),
        ("/invocations", {"messages": [{}, {}]}, 1),
        ("/classify", {}, 1),
    ],
)
def test_a_request_of_many_prompts_is_that_many_sequences(
    path: str, fields: dict[str, Any], sequences: int
) -> None:
    assert asked(path, **fields).sequences == sequences


def test_a_form_is_read_beside_its_file() -> None:
    body = (
        b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n'
        b"content-type: audio/wav\r\n\r\n\x00\xff\r\n"
        b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nwhisper\r\n'
        b'--b\r\ncontent-disposition: form-data; name="stream"\r\n\r\ntrue\r\n--b--\r\n'
    )
    facts = read_request(VLLM, "POST", "/v1/audio/transcriptions", body)
    assert facts == RequestFacts("audio", "whisper", True, wants_usage=True)


@given(data=spoilt([b'{"model":"m","input":["a"],"n":2}']) | st.binary(max_size=80))
def test_spoilt_requests_have_facts(data: bytes) -> None:
    for path, route in API_ROUTES.items():
        facts = read_request(VLLM, "POST", path, data)
        assert facts is not None
        assert facts.route == route
        assert facts.sequences >= 1


# --- responses -----------------------------------------------------------------

USAGE = {
    "input_tokens": 11,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens": 3,
    "total_tokens": 14,
}


def responses(end: str, **last: Any) -> list[Any]:
    deltas = [
        {"type": "response.reasoning_text.delta", "delta": "hm"},
        {"type": "response.output_text.delta", "delta": "Hello"},
        {"type": "response.output_text.delta", "delta": " you"},
    ]
    return [
        {"type": "response.created", "response": {"status": "in_progress"}},
        {"type": "response.output_item.added", "item": {"type": "message"}},
        *deltas,
        {"type": "response.output_text.done", "text": "Hello you"},
        {"type": f"response.{end}", "response": {"status": end, **last}},
    ]


def test_a_responses_stream_ends_by_its_last_event_with_the_usage() -> None:
    count, end, text = read("responses", responses("completed", usage=USAGE))
    assert (count.prompt_tokens, count.cached_tokens, count.output_tokens) == (11, 4, 3)
    assert count.counted_tokens == 3
    assert (end.failure(), text) == (None, "Hello you")


def test_a_response_that_stops_short_is_no_error() -> None:
    details = {"reason": "max_output_tokens"}
    events = responses("incomplete", usage=USAGE, incomplete_details=details)
    count, end, _ = read("responses", events)
    assert count.output_tokens == 3
    assert end.failure() is None


@pytest.mark.parametrize(
    ("last", "error"),
    [
        (
            {"type": "response.failed", "response": {"error": {"message": "broke"}}},
            "broke",
        ),
        ({"type": "error", "message": "overloaded"}, "overloaded"),
        ({"type": "response.cancelled", "response": {}}, "response.cancelled"),
    ],
)
def test_a_response_that_fails_is_an_error(last: Any, error: str) -> None:
    _, end, _ = read("responses", [*responses("completed")[:-1], last])
    assert end.failure() == error


def test_a_responses_stream_without_its_end_is_an_error() -> None:
    _, end, _ = read("responses", responses("completed")[:-1])
    assert end.failure() == "the stream ended before its end marker"


def test_a_whole_response_has_text_and_usage() -> None:
    output = [
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "content": [{"type": "output_text", "text": "Hi"}]},
    ]
    body = {"status": "completed", "output": output, "usage": USAGE, "error": None}
    update = reply("responses", body)
    assert (update.text, update.usage, update.error) == ("Hi", Usage(11, 3, 4), None)
    failed = reply("responses", {"status": "failed", "error": {"message": "broke"}})
    assert failed.error == "broke"


# --- messages ------------------------------------------------------------------


def messages(*last: Any) -> list[Any]:
    start = {"input_tokens": 5, "cache_read_input_tokens": 4, "output_tokens": 1}
    return [
        {"type": "message_start", "message": {"content": [], "usage": start}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text"}},
        {"type": "ping"},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Hi"}},
        {"type": "content_block_delta", "delta": {"partial_json": "{"}},
        {"type": "content_block_stop", "index": 0},
        *last,
    ]


def test_a_messages_stream_sums_the_prompt_and_ends_by_its_stop() -> None:
    delta = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}
    usage = {"output_tokens": 7, "input_tokens": 5}
    usage |= {"cache_read_input_tokens": 4, "cache_creation_input_tokens": 2}
    events = messages(delta | {"usage": usage}, {"type": "message_stop"})
    count, end, text = read("messages", events)
    assert (count.prompt_tokens, count.cached_tokens, count.output_tokens) == (11, 4, 7)
    assert count.counted_tokens == 2
    assert (end.failure(), text) == (None, "Hi")


def test_a_prompt_told_at_the_start_alone_stays_known() -> None:
    delta = {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 7}}
    count, *_ = read("messages", messages(delta, {"type": "message_stop"}))
    assert (count.prompt_tokens, count.output_tokens) == (9, 7)


def test_a_messages_stream_that_fails_or_breaks_off_is_an_error() -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "full"}}
    assert read("messages", messages(error))[1].failure() == "full"
    assert read("messages", messages())[1].failure() is not None


def test_a_whole_message_has_text_and_usage() -> None:
    body = {
        "type": "message",
        "content": [{"type": "text", "text": "Hi"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 5, "output_tokens": 2},
    }
    update = reply("messages", body)
    assert (update.text, update.usage) == ("Hi", Usage(5, 2))
    error = {"type": "error", "error": {"message": "no model"}}
    assert reply("messages", error, 404).error == "no model"
    assert reply("messages", error).error == "no model"


# --- prompts alone ---------------------------------------------------------------


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 8, "total_tokens": 8, "completion_tokens": 0},
        {"total_tokens": 8},
        {"input_tokens": 8},
    ],
)
@pytest.mark.parametrize(
    "route", ["embeddings", "rerank", "score", "pooling", "classify"]
)
def test_what_writes_nothing_has_a_prompt_and_no_output(
    route: str, usage: dict[str, int]
) -> None:
    body = {"data": [{"embedding": [0.1, 0.2]}], "usage": usage}
    assert reply(route, body).usage == Usage(8, 0)
    assert reply(route, {"data": []}).usage is None
    assert reply(route, [[0.1]]).usage is None
    assert reply(route, {"error": "too long"}, 413).error == "too long"


# --- audio -----------------------------------------------------------------------


def test_a_transcription_is_read_in_both_spellings() -> None:
    usage = {"type": "tokens", "input_tokens": 20, "output_tokens": 2}
    typed = [
        {"type": "transcript.text.delta", "delta": "Hi"},
        {"type": "transcript.text.done", "text": "Hi", "usage": usage},
    ]
    count, end, text = read("audio", typed)
    assert (count.prompt_tokens, count.output_tokens) == (20, 2)
    assert (end.failure(), text) == (None, "Hi")
    chunk = {"object": "transcription.chunk", "choices": [{"delta": {"content": "Hi"}}]}
    stop = {"choices": [{"delta": {"content": ""}, "finish_reason": "stop"}]}
    count, end, text = read("audio", [chunk, stop])
    assert (end.failure(), text) == (None, "Hi")
    whole = reply("audio", {"text": "Hi", "usage": {"type": "duration", "seconds": 5}})
    assert (whole.text, whole.usage) == ("Hi", None)


# --- strange bytes ---------------------------------------------------------------

EVENTS = [json.dumps(e).encode() for e in responses("completed", usage=USAGE)]
EVENTS += [json.dumps(e).encode() for e in messages({"type": "message_stop"})]


@pytest.mark.parametrize("route", API_READERS)
@given(data=spoilt(EVENTS) | st.binary(max_size=80) | st.sampled_from(HOSTILE))
def test_spoilt_events_and_replies_raise_nothing(route: str, data: bytes) -> None:
    for update in (
        API_READERS[route].read_event(data),
        API_READERS[route].read_reply(200, {}, data),
    ):
        TokenCount().count(update)
        assert update.text.encode() is not None
