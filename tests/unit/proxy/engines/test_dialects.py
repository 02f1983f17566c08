"""The wire dialects against recorded replies, documented shapes and strange JSON."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.engines import DIALECTS
from proxy.engines.dialect import Dialect
from proxy.wire.facts import PhaseSeconds, Update, Usage
from proxy.wire.sse import SseDecoder
from tests.support.captures import (
    STREAMS,
    joined_replies,
    reply_head_and_body,
    stream_body,
)

VLLM, OPENAI = DIALECTS["vllm"], DIALECTS["openai"]
TGI, TRANSFORMERS = DIALECTS["tgi"], DIALECTS["transformers"]


def engine_of(capture: str) -> Dialect:
    return TRANSFORMERS if capture.startswith("hf_") else VLLM


def updates_of(capture: str, *cuts: int) -> list[Update]:
    engine, decoder, stream = engine_of(capture), SseDecoder(), stream_body(capture)
    edges = [0, *cuts, len(stream)]
    reads = [stream[a:b] for a, b in pairwise(edges)]
    return [engine.read_event(data) for read in reads for data in decoder.feed(read)]


def event(engine: Dialect, **fields: Any) -> Update:
    return engine.read_event(json.dumps(fields).encode())


def chat(engine: Dialect, delta: dict[str, Any], **fields: Any) -> Update:
    finish = fields.pop("finish_reason", None)
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return event(engine, choices=[choice], **fields)


# --- recorded streams ---------------------------------------------------------


@pytest.mark.parametrize("name", DIALECTS)
def test_every_engine_is_registered_under_its_own_name(name: str) -> None:
    assert DIALECTS[name].name == name


@pytest.mark.parametrize("capture", [path.stem for path in STREAMS])
def test_a_recorded_stream_says_the_same_at_every_chunk_boundary(capture: str) -> None:
    expected = updates_of(capture)
    for at in range(len(stream_body(capture))):
        assert updates_of(capture, at) == expected


@pytest.mark.parametrize(
    ("capture", "carriers", "usage", "text", "finish_reason"),
    [
        ("vllm_chat_stream_usage", 4, Usage(11, 4), "loatindow\x05ion", "length"),
        (
            "vllm_chat_stream_continuous_usage",
            4,
            Usage(11, 4),
            "loatindow\x05ion",
            "length",
        ),
        ("vllm_chat_stream_immediate_eos", 1, Usage(11, 1), "", "stop"),
        (
            "vllm_chat_stream_per_request_metrics",
            4,
            Usage(9, 4, 0),
            "Fileform---------------- base",
            "length",
        ),
        ("vllm_completions_stream_usage", 4, Usage(5, 4), "ame adur un", "length"),
        (
            "vllm_completions_stream_n2_token_ids",
            6,
            Usage(5, 6),
            " betweenNpack",
            "length",
        ),
        ("hf_chat_stream", 4, Usage(11, 4), "loatindow\x05ion", "length"),
        (
            "hf_completions_stream_merged_events",
            4,
            Usage(5, 4),
            "ame adame')",
            "length",
        ),
    ],
)
def test_a_recorded_stream_tells_tokens_usage_text_and_finish(
    capture: str, carriers: int, usage: Usage, text: str, finish_reason: str
) -> None:
    updates = updates_of(capture)
    assert sum(update.carries_token for update in updates) == carriers
    assert [u.usage for u in updates if u.usage is not None][-1] == usage
    assert "".join(update.text for update in updates) == text
    assert {u.finish_reason for u in updates} - {None} == {finish_reason}
    assert [u.is_end for u in updates] == [False] * (len(updates) - 1) + [True]
    assert not any(update.error for update in updates)


def test_the_role_event_bears_no_token() -> None:
    first = updates_of("vllm_chat_stream_usage")[0]
    assert not first.carries_token
    assert not first.is_visible


def test_the_usage_event_is_told_apart_from_tokens() -> None:
    marks = [u.is_usage_only for u in updates_of("vllm_chat_stream_usage")]
    assert marks == [False] * 5 + [True, False]


def test_running_usage_is_on_every_event_from_zero_up() -> None:
    updates = updates_of("vllm_chat_stream_continuous_usage")
    counts = [u.usage.output_tokens for u in updates if u.usage is not None]
    assert counts == [0, 1, 2, 3, 4, 4]


def test_token_ids_count_the_tokens_of_an_event() -> None:
    updates = updates_of("vllm_completions_stream_n2_token_ids")
    assert [u.tokens for u in updates] == [1, 1, 1, 1, 1, 1, None, None]


def test_per_request_metrics_become_phase_seconds() -> None:
    phases = [
        update.phases
        for update in updates_of("vllm_chat_stream_per_request_metrics")
        if update.phases is not None
    ]
    assert phases == [
        PhaseSeconds(
            queue_seconds=pytest.approx(2.8883e-05, rel=1e-3),  # type: ignore[arg-type]
            prefill_seconds=pytest.approx(0.0131186, rel=1e-3),  # type: ignore[arg-type]
            decode_seconds=pytest.approx(0.00673518, rel=1e-3),  # type: ignore[arg-type]
        )
    ]


def test_done_after_an_error_event_does_not_hide_the_error() -> None:
    *_, error, done = updates_of("vllm_mid_stream_error")
    assert error.error == (
        "EngineCore encountered an issue. See stack trace (above) for the root cause."
    )
    assert not error.carries_token
    assert done.is_end


# --- single events ------------------------------------------------------------


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize(
    ("error", "text"),
    [
        ("Unauthorized", "Unauthorized"),
        ({"message": "queue  full\n", "code": 503}, "queue full"),
        ({"message": "x", "http_status_code": 422}, "x"),
        ({"code": 503}, "503"),
        ({}, "{}"),
        ("", "error without a message"),
    ],
)
def test_an_error_key_is_an_error_in_every_dialect(
    name: str, error: Any, text: str
) -> None:
    assert event(DIALECTS[name], error=error).error == text
    assert event(DIALECTS[name], error=error, error_type="overloaded").error == text
    assert event(DIALECTS[name], choices="odd", error=error).error == text


def test_a_null_error_is_no_error() -> None:
    assert chat(VLLM, {"content": "a"}, error=None).error is None


def test_a_long_error_message_is_cut() -> None:
    text = event(VLLM, error={"message": "x" * 5000}).error
    assert text == "x" * 300


@pytest.mark.parametrize(
    "delta",
    [
        {"reasoning": "hm"},
        {"reasoning_content": "hm"},
        {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]},
        {"function_call": {"arguments": "{"}},
    ],
    ids=lambda delta: next(iter(delta)),
)
@pytest.mark.parametrize("engine", [VLLM, OPENAI, TRANSFORMERS], ids=lambda e: e.name)
def test_reasoning_and_tool_calls_bear_tokens_nobody_sees(
    engine: Dialect, delta: dict[str, Any]
) -> None:
    update = chat(engine, {"role": "assistant", "content": None, **delta})
    assert update.carries_token
    assert not update.is_visible
    assert update.text == ""


def test_empty_text_is_a_token_for_vllm_only() -> None:
    assert chat(VLLM, {"content": ""}).carries_token
    assert not chat(OPENAI, {"content": ""}).carries_token
    assert not chat(OPENAI, {}, finish_reason="stop").carries_token


def test_running_usage_decides_whether_empty_text_was_a_token() -> None:
    def with_usage(delta: dict[str, Any], count: int) -> bool:
        usage = {"prompt_tokens": 3, "completion_tokens": count}
        return chat(VLLM, delta, usage=usage).carries_token

    assert not with_usage({"role": "assistant", "content": ""}, 0)
    assert with_usage({"role": "assistant", "content": ""}, 1)
    assert with_usage({"content": ""}, 1)


def test_empty_token_ids_are_no_token() -> None:
    choice = {"index": 0, "text": "", "token_ids": []}
    update = event(VLLM, choices=[choice])
    assert update.tokens == 0
    assert not update.carries_token


def test_cached_tokens_are_read_from_usage() -> None:
    usage = {
        "prompt_tokens": 301,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 256},
    }
    assert event(VLLM, choices=[], usage=usage).usage == Usage(301, 2, 256)


def test_a_second_choice_is_visible_but_not_the_conversation() -> None:
    update = event(VLLM, choices=[{"index": 1, "text": "other"}])
    assert update.is_visible
    assert update.text == ""


def test_an_empty_usage_free_event_says_nothing() -> None:
    assert event(VLLM, choices=[]) == Update()
    assert event(VLLM, id="x") == Update()


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)
KEYS = ["choices", "usage", "error", "metrics", "token", "details", "delta", "index"]
ODD_EVENTS: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    st.sampled_from(KEYS), JSON | st.just([{}])
)


@pytest.mark.parametrize("name", DIALECTS)
@given(fields=ODD_EVENTS)
def test_strange_json_never_raises(name: str, fields: dict[str, Any]) -> None:
    data = json.dumps(fields).encode()
    DIALECTS[name].read_event(data)
    DIALECTS[name].read_reply(200, {}, data)
    DIALECTS[name].read_reply(500, {}, data)
    DIALECTS[name].read_request("POST", "/v1/completions", data)
    DIALECTS[name].with_usage(data)


def is_object(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), dict)
    except ValueError:
        return False


@pytest.mark.parametrize("name", DIALECTS)
@given(data=st.binary(max_size=60))
def test_strange_bytes_never_raise_and_carry_nothing(name: str, data: bytes) -> None:
    update = DIALECTS[name].read_event(data)
    # an error that is no JSON is one all the same
    assert update.error is None or data.startswith(b'{"error":')
    assert not update.carries_token
    assert DIALECTS[name].read_reply(502, {}, data).error
    if not is_object(data):  # a request, however odd, is asked for its usage
        assert DIALECTS[name].with_usage(data) == data


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize(
    "data",
    [
        b'{"choices": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"[" * 100_000,
        b'{"choices":[{"text":"\xff"}]}',
        b'{"choices":[{"text":"\\ud800"}]}',
        b'{"error":{"message":"\\ud800"}}',
        b'{"usage":{"completion_tokens":-1},"choices":[{"text":"x"}]}',
        b'{"usage":{"completion_tokens":1e999},"choices":[]}',
    ],
    ids=["nested", "open", "not utf-8", "surrogate", "error", "negative", "infinite"],
)
def test_hostile_json_never_raises(name: str, data: bytes) -> None:
    DIALECTS[name].read_event(data).text.encode()
    DIALECTS[name].read_reply(200, {}, data)
    DIALECTS[name].read_request("POST", "/v1/chat/completions", data)
    DIALECTS[name].read_request("POST", "/v1/completions", b'{"prompt":%s}' % data)
    DIALECTS[name].with_usage(data)


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize(
    "count", ["9007199254740992", "1" * 20, "1" * 5000, "-1", "1.5"]
)
def test_a_count_that_no_number_type_holds_is_no_count(name: str, count: str) -> None:
    engine = DIALECTS[name]
    usage = b'{"usage":{"completion_tokens":%s},"choices":[]}' % count.encode()
    limits = b'{"max_tokens":%s,"n":%s}' % (count.encode(), count.encode())
    headers = {"x-prompt-tokens": count, "x-generated-tokens": count}
    assert engine.read_event(usage).usage is None
    assert engine.read_reply(200, headers, usage).usage is None
    facts = engine.read_request("POST", "/v1/completions", limits)
    assert facts is not None
    assert (facts.max_output_tokens, facts.sequences) == (None, 1)


def test_a_time_before_zero_is_no_time() -> None:
    update = event(VLLM, choices=[], metrics={"queue_time_ms": -1.0})
    assert update.phases == PhaseSeconds()


# --- requests -----------------------------------------------------------------


def test_a_chat_request_tells_its_facts() -> None:
    body = json.dumps(
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": "hi"}],
            "stream": True,
            "n": 2,
            "max_tokens": 7,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
    ).encode()
    facts = VLLM.read_request("POST", "/v1/chat/completions", body)
    assert facts is not None
    assert (facts.route, facts.model, facts.is_stream) == ("chat", "tiny", True)
    assert (facts.sequences, facts.max_output_tokens) == (2, 7)
    assert facts.wants_usage
    assert facts.has_running_usage


@pytest.mark.parametrize(
    ("prompt", "n", "sequences"),
    [
        ("one", 1, 1),
        (["one"], 1, 1),
        (["one", "two", "three"], 2, 6),
        ([1, 2, 3], 1, 1),
        ([[1, 2], [3]], 1, 2),
        ([], 1, 1),
        (None, None, 1),
    ],
)
def test_sequences_are_prompts_times_n(prompt: Any, n: Any, sequences: int) -> None:
    body = json.dumps({"prompt": prompt, "n": n}).encode()
    facts = VLLM.read_request("POST", "/v1/completions", body)
    assert facts is not None
    assert facts.sequences == sequences


@pytest.mark.parametrize("name", DIALECTS)
def test_only_generating_routes_are_metered(name: str) -> None:
    engine = DIALECTS[name]
    assert engine.read_request("GET", "/v1/models", b"") is None
    assert engine.read_request("GET", "/v1/chat/completions", b"") is None
    assert engine.read_request("POST", "/tokenize", b"{}") is None
    assert engine.read_request("POST", "/v1/chat/completions", b"{}") is not None


@pytest.mark.parametrize("name", DIALECTS)
def test_a_broken_body_on_a_metered_route_still_has_facts(name: str) -> None:
    facts = DIALECTS[name].read_request("POST", "/v1/completions", b'{"model": ')
    assert facts is not None
    assert (facts.route, facts.model, facts.is_stream) == ("completions", None, False)


@pytest.mark.parametrize("engine", [VLLM, OPENAI, TGI], ids=lambda engine: engine.name)
@pytest.mark.parametrize(
    "options", [{}, {"stream_options": None}, {"stream_options": {"x": 1.50}}]
)
def test_usage_is_asked_for_and_nothing_else_changes(
    engine: Dialect, options: dict[str, Any]
) -> None:
    before = {
        "model": "m",
        "temperature": 0.1,
        "seed": 2**70,
        "s": "é\u2028",
        **options,
    }
    after = json.loads(engine.with_usage(json.dumps(before).encode()))
    if engine is TGI and "stream_options" in before and not before["stream_options"]:
        assert after == before  # TGI refuses it, and goes on doing so
        return
    assert after.pop("stream_options")["include_usage"] is True
    before.pop("stream_options", None)
    assert after == before


@pytest.mark.parametrize("engine", [VLLM, OPENAI, TGI], ids=lambda engine: engine.name)
@pytest.mark.parametrize("body", [b'{"x":"\xff"}', b'{"\xff":1}', b'{"x":1}{'])
def test_a_body_that_is_not_json_stays_as_it_is(engine: Dialect, body: bytes) -> None:
    assert engine.with_usage(body) is body


def test_other_stream_options_survive() -> None:
    body = b'{"stream_options": {"continuous_usage_stats": false, "k": 1.0}}'
    after = VLLM.with_usage(body)
    assert b'"k":1.0' in after
    assert json.loads(after)["stream_options"] == {
        "continuous_usage_stats": False,
        "k": 1.0,
        "include_usage": True,
    }


def test_transformers_is_not_asked_since_it_always_tells() -> None:
    body = b'{"stream": true}'
    assert TRANSFORMERS.with_usage(body) is body


def test_transformers_makes_one_output_whatever_n_says() -> None:
    body = b'{"n": 4, "messages": []}'
    for engine, sequences in ((VLLM, 4), (OPENAI, 4), (TRANSFORMERS, 1)):
        facts = engine.read_request("POST", "/v1/chat/completions", body)
        assert facts is not None
        assert facts.sequences == sequences


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b'{"error": "CUDA out of memory"}', "CUDA out of memory"),
        (b'{"error": "no "such" token"}', 'no "such" token'),
        (b'{"error": "the first line of two', "the first line of two"),
        (b'{"error": ""}', "error without a message"),
        (b'{"error":', "error without a message"),
    ],
)
def test_an_error_that_is_not_escaped_is_an_error(data: bytes, error: str) -> None:
    assert TRANSFORMERS.read_event(data) == Update(error=error)


# --- whole replies ------------------------------------------------------------


def test_a_recorded_reply_tells_usage_text_and_finish() -> None:
    _, body = reply_head_and_body("vllm_chat_nonstream")
    assert VLLM.read_reply(200, {}, body) == Update(
        carries_token=True,
        is_visible=True,
        usage=Usage(11, 4),
        finish_reason="length",
        is_end=True,
        text="loatindow\x05ion",
    )


@pytest.mark.parametrize("title", joined_replies("vllm_errors"))
def test_every_recorded_vllm_error_is_an_error(title: str) -> None:
    status, headers, body = joined_replies("vllm_errors")[title]
    error = VLLM.read_reply(status, headers, body).error
    fields = json.loads(body)
    message = fields["error"]["message"] if "error" in fields else fields["detail"]
    assert error == " ".join(message.split())[:300]


@pytest.mark.parametrize("title", joined_replies("hf_errors"))
def test_recorded_transformers_replies_fail_by_status(title: str) -> None:
    status, headers, body = joined_replies("hf_errors")[title]
    assert (TRANSFORMERS.read_reply(status, headers, body).error is None) == (
        status == 200
    )


def test_an_error_without_a_body_names_the_status() -> None:
    assert VLLM.read_reply(503, {}, b"").error == "status 503"
    assert VLLM.read_reply(502, {}, b"<h1>Bad\nGateway</h1>").error == (
        "<h1>Bad Gateway</h1>"
    )


def test_an_error_inside_a_200_reply_is_an_error() -> None:
    assert VLLM.read_reply(200, {}, b'{"error":{"message":"dead"}}').error == "dead"


# --- TGI ----------------------------------------------------------------------


def tgi_token(text: str, *, special: bool = False, **fields: Any) -> Update:
    token = {"id": 5, "text": text, "logprob": -0.1, "special": special}
    fields = {"generated_text": None, "details": None, **fields}
    return event(TGI, index=1, token=token, **fields)


def test_every_native_event_is_one_token() -> None:
    update = tgi_token(" a")
    assert update == Update(carries_token=True, is_visible=True, tokens=1, text=" a")


def test_the_last_native_event_ends_the_stream_with_counts() -> None:
    details = {
        "finish_reason": "eos_token",
        "generated_tokens": 9,
        "seed": None,
        "input_length": 4,
    }
    update = tgi_token("</s>", special=True, generated_text="x", details=details)
    assert update.is_end
    assert update.carries_token
    assert not update.is_visible
    assert update.usage == Usage(4, 9)
    assert update.finish_reason == "eos_token"


def test_native_streams_without_details_still_end() -> None:
    update = tgi_token(" a", generated_text=" a")
    assert update.is_end
    assert update.usage is None


def test_native_requests_tell_their_facts() -> None:
    body = b'{"inputs":"x","parameters":{"max_new_tokens":5,"best_of":2}}'
    generate = TGI.read_request("POST", "/generate", body)
    stream = TGI.read_request("POST", "/generate_stream", body)
    assert generate is not None
    assert stream is not None
    assert (generate.route, generate.is_stream) == ("generate", False)
    assert (generate.max_output_tokens, generate.sequences) == (5, 2)
    assert stream.is_stream
    assert not stream.wants_usage


@pytest.mark.parametrize("stream", [True, False])
def test_the_root_route_streams_if_the_body_says_so(stream: bool) -> None:
    body = json.dumps({"inputs": "x", "stream": stream}).encode()
    facts = TGI.read_request("POST", "/", body)
    assert facts is not None
    assert facts.is_stream == stream


def test_native_requests_are_asked_for_details() -> None:
    body = b'{"inputs":"x","parameters":{"temperature":0.50}}'
    after = TGI.with_usage(body)
    assert b'"temperature":0.50' in after
    assert json.loads(after)["parameters"] == {"temperature": 0.5, "details": True}
    bare = json.loads(TGI.with_usage(b'{"inputs":"x"}'))
    assert bare == {"inputs": "x", "parameters": {"do_sample": True, "details": True}}


@pytest.mark.parametrize(
    "body",
    [
        b'{"inputs":"x","parameters":null}',
        b'{"messages":[],"stream":true,"stream_options":null}',
    ],
)
def test_a_null_that_tgi_would_refuse_stays(body: bytes) -> None:
    assert TGI.with_usage(body) is body


HEADERS = {
    "x-compute-time": "0.25",
    "x-validation-time": "1",
    "x-queue-time": "20",
    "x-inference-time": "230",
    "x-prompt-tokens": "12",
    "x-generated-tokens": "34",
}


@pytest.mark.parametrize("is_list", [False, True])
def test_a_native_reply_has_counts_and_times_from_its_headers(is_list: bool) -> None:
    reply: Any = {"generated_text": "hello"}
    body = json.dumps([reply] if is_list else reply).encode()
    update = TGI.read_reply(200, HEADERS, body)
    assert update.usage == Usage(12, 34)
    assert update.phases == PhaseSeconds(queue_seconds=0.021, inference_seconds=0.23)
    assert update.text == "hello"
    assert update.is_end


def test_details_count_where_headers_are_missing() -> None:
    body = b'{"generated_text":"a","details":{"generated_tokens":3,"prefill":[]}}'
    update = TGI.read_reply(200, {}, body)
    assert update.usage == Usage(None, 3)
    assert update.phases is None


def test_the_openai_flavour_of_tgi_is_read_as_such() -> None:
    usage = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    text = event(TGI, id="", choices=[{"index": 0, "text": "a", "finish_reason": ""}])
    assert text == Update(carries_token=True, is_visible=True, tokens=1, text="a")
    assert event(TGI, id="", choices=[], usage=usage).is_usage_only
    assert TGI.read_event(b"[DONE]").is_end


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (424, b'{"error":"Request failed","error_type":"generation"}'),
        (429, b'{"error":"Model is overloaded","error_type":"overloaded"}'),
        (422, b'{"error":"`inputs` is empty","error_type":"validation"}'),
        (422, b"Failed to deserialize the JSON body"),
        (401, b""),
    ],
)
def test_every_documented_tgi_error_reply_is_an_error(status: int, body: bytes) -> None:
    assert TGI.read_reply(status, {}, body).error


def test_running_usage_that_would_begin_by_asking_is_not_asked_for() -> None:
    """vLLM sends it only beside `include_usage`, which the client left out."""
    body = b'{"stream":true,"stream_options":{"continuous_usage_stats":true}}'
    named = b'{"stream":true,"prompt":"what are continuous_usage_stats?"}'
    assert DIALECTS["vllm"].with_usage(body) is body
    assert b"include_usage" in DIALECTS["vllm"].with_usage(named)
