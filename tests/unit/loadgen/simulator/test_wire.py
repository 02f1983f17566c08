"""The simulated dialects on the wire: shapes of the captures, refusals, texts."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.simulator.core.text import (
    block_hashes,
    drawn_tokens,
    reply_words,
    words_of,
)
from loadgen.simulator.core.truth import RequestTruth
from loadgen.simulator.exposition import Page
from loadgen.simulator.realtime.runner import unix_offset_seconds
from loadgen.simulator.tgi.dialect import (
    CHAT,
    COMPLETIONS,
    BeforeStream,
    ChatEvents,
    CompletionEvents,
    NativeEvents,
    TgiGeneration,
    ToolEvents,
    closing,
    native_reply,
    read_chat,
    read_completions,
    read_native,
)
from loadgen.simulator.tgi.metrics import TgiMetrics
from loadgen.simulator.vllm.dialect import (
    VllmEvents,
    VllmGeneration,
    closing_events,
    error_event,
    overloaded,
    read_request,
    unstreamed_reply,
)
from loadgen.simulator.vllm.metrics import VllmMetrics
from loadgen.simulator.wire import EngineRefusal, Gauges, Limits, TokenEvents, compact
from proxy.engines import DIALECTS
from tests.support.captures import (
    CAPTURES,
    joined_replies,
    reply_head_and_body,
    stream_body,
)

LIMITS = Limits("simulated-tiny", 2048, seed=0)


def vllm(*, is_chat: bool = True, **fields: object) -> VllmGeneration:
    prompt: dict[str, object] = {"prompt": "five words make five tokens"}
    if is_chat:
        prompt = {"messages": [{"role": "user", "content": "a few words"}]}
    body = {"max_tokens": 4, "ignore_eos": True, **prompt, **fields}
    return read_request(
        json.dumps(body).encode(),
        is_chat=is_chat,
        request_id="id-1",
        created=1,
        limits=LIMITS,
    )


def refusal_of(
    body: bytes | dict[str, object], *, is_chat: bool = True
) -> EngineRefusal:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(EngineRefusal) as caught:
        read_request(raw, is_chat=is_chat, request_id="r", created=1, limits=LIMITS)
    return caught.value


def truth(tokens: int = 4) -> RequestTruth:
    return RequestTruth(
        "0/0", 3, 1.0, cached_tokens=0, output_tokens=tokens, scheduled_seconds=1.5,
        first_token_seconds=2.0, last_token_seconds=3.5,
    )  # fmt: skip


def spoken(events: TokenEvents, count: int) -> bytes:
    words = [b"time", *[b" year"] * (count - 1)]
    return events.opening() + b"".join(
        events.token(word, number + 1, number == count - 1)
        for number, word in enumerate(words)
    )


def parsed(stream: bytes) -> list[Any]:
    events = [part.removeprefix(b"data: ") for part in stream.split(b"\n\n") if part]
    return [part.decode() if part == b"[DONE]" else json.loads(part) for part in events]


def shape(value: Any) -> Any:
    """Keys in their order, and the kind of every leaf."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value]
    if isinstance(value, float | int) and not isinstance(value, bool):
        return "number"
    return value if value is None else type(value).__name__


def vllm_stream(generation: VllmGeneration) -> bytes:
    events = VllmEvents(generation, LIMITS.model, 0)
    tokens = spoken(events, generation.output_tokens)
    return tokens + closing_events(generation, LIMITS.model, [truth()])


@pytest.mark.parametrize(
    ("capture", "is_chat", "options"),
    [
        ("vllm_chat_stream_per_request_metrics", True, {"include_usage": True}),
        (
            "vllm_chat_stream_continuous_usage",
            True,
            {"include_usage": True, "continuous_usage_stats": True},
        ),
        ("vllm_completions_stream_usage", False, {"include_usage": True}),
    ],
)
def test_streams_have_the_captured_shape(
    capture: str, is_chat: bool, options: dict[str, bool]
) -> None:
    generation = vllm(is_chat=is_chat, stream=True, stream_options=options)
    ours, theirs = parsed(vllm_stream(generation)), parsed(stream_body(capture))
    assert len(ours) == len(theirs)
    for our, their in zip(ours[:-2], theirs[:-2], strict=True):
        assert json.dumps(shape(our)) == json.dumps(shape(their))
    assert set(theirs[-2]) <= set(ours[-2])  # that one without --enable-... flags
    assert ours[-1] == "[DONE]"


def test_the_usage_event_has_the_captured_keys_and_metrics() -> None:
    generation = vllm(stream=True, stream_options={"include_usage": True})
    captured = parsed(stream_body("vllm_chat_stream_per_request_metrics"))[-2]
    ours = parsed(vllm_stream(generation))[-2]
    assert json.dumps(shape(ours)) == json.dumps(shape(captured))
    metrics = ours["metrics"]
    assert metrics["queue_time_ms"] == pytest.approx(500)
    assert metrics["time_to_first_token_ms"] == pytest.approx(500)
    assert metrics["generation_time_ms"] == pytest.approx(1500)
    assert metrics["mean_itl_ms"] == pytest.approx(500)
    assert metrics["tokens_per_second"] == pytest.approx(2)


def test_a_whole_reply_has_the_captured_shape() -> None:
    captured = json.loads(reply_head_and_body("vllm_chat_nonstream")[1])
    ours = json.loads(
        compact(
            unstreamed_reply(vllm(), LIMITS.model, [["a", "b", "c", "d"]], [truth()])
        )
    )
    assert list(ours) == list(captured)
    assert shape(ours["choices"]) == shape(captured["choices"])
    assert list(ours["usage"]) == list(captured["usage"])


def test_without_usage_the_stream_has_neither_counts_nor_metrics() -> None:
    stream = vllm_stream(vllm(stream=True))
    assert b"usage" not in stream
    assert b"metrics" not in stream
    assert parsed(stream)[-2]["system_fingerprint"]


@pytest.mark.parametrize("options", [None, {"include_usage": True}])
@pytest.mark.parametrize("is_chat", [True, False])
def test_the_proxys_dialect_reads_what_is_sent(
    is_chat: bool, options: dict[str, bool] | None
) -> None:
    engine = DIALECTS["vllm"]
    stream = vllm_stream(vllm(is_chat=is_chat, stream=True, stream_options=options))
    updates = [
        engine.read_event(part.removeprefix(b"data: "))
        for part in stream.split(b"\n\n")
        if part
    ]
    text = "".join(update.text for update in updates)
    assert text == "time year year year"
    assert updates[-1].is_end
    usages = [update.usage for update in updates if update.usage]
    assert [usage.output_tokens for usage in usages] == ([4] if options else [])
    phases = [update.phases for update in updates if update.phases]
    assert [p.queue_seconds for p in phases] == ([0.5] if options else [])


CAPTURED_ERRORS = joined_replies("vllm_errors")


@pytest.mark.parametrize(
    ("title", "fields"),
    [
        ("max_tokens 0, stream:true", {"max_tokens": 0, "stream": True}),
        ("negative temperature", {"temperature": -3.0}),
        ("stream_options without stream", {"stream_options": {"include_usage": True}}),
        ("unknown model", {"model": "nope"}),
        ("no prompt", {"prompt": ""}),
        ("over-long prompt, stream:true", {"prompt": "w " * 2050, "stream": True}),
    ],
)
def test_refusals_are_worded_as_captured(title: str, fields: dict[str, object]) -> None:
    status, _, captured = CAPTURED_ERRORS[title]
    refusal = refusal_of({"prompt": "a", "max_tokens": 4, **fields}, is_chat=False)
    expected = captured.decode().replace("Valid aliases: tiny", "Valid aliases: x")
    ours = json.dumps(refusal.body, separators=(",", ":"))
    assert ours.replace(LIMITS.model, "x") == expected
    assert refusal.status == status


def test_malformed_json_is_refused_with_the_captured_keys() -> None:
    status, _, captured = CAPTURED_ERRORS["malformed JSON"]
    refusal = refusal_of(b'{"model": "tiny", "prompt": oops}')
    assert refusal.status == status
    assert shape(refusal.body) == shape(json.loads(captured))


def test_overload_is_worded_as_captured() -> None:
    title = next(title for title in CAPTURED_ERRORS if "queue limit" in title)
    status, _, captured = CAPTURED_ERRORS[title]
    assert (overloaded().status, overloaded().body) == (status, json.loads(captured))


def test_an_error_event_has_no_choices_and_spaces_as_captured() -> None:
    captured = stream_body("vllm_mid_stream_error").split(b"\n\n")[-3]
    ours = error_event(json.loads(captured.removeprefix(b"data: ")))
    assert ours == captured + b"\n\n"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 5000}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"min_tokens": 9}, "min_tokens"),
        ({"n": 2, "temperature": 0}, "n"),
        ({"n": 0}, "n"),
    ],
)
def test_other_bad_parameters_are_named(fields: dict[str, object], param: str) -> None:
    refusal = refusal_of({"prompt": "a", "max_tokens": 4, **fields}, is_chat=False)
    assert refusal.status == 400
    assert isinstance(refusal.body, dict)
    assert refusal.body["error"]["param"] == param


@pytest.mark.parametrize(
    "body", [b"[]", b"{}", b'{"messages": []}', b'{"messages": [{"content": 3}]}']
)
def test_strange_chat_bodies_are_refused(body: bytes) -> None:
    assert refusal_of(body).status == 400


def test_one_word_is_one_token_in_every_kind_of_prompt() -> None:
    parts = [{"type": "text", "text": "two words"}, {"type": "text", "text": "more"}]
    chat = vllm(messages=[{"content": " system \n says "}, {"content": parts}])
    assert chat.prompt_tokens == 5
    assert vllm(is_chat=False, prompt=[1, 2, 3]).prompt_tokens == 3
    assert vllm(is_chat=False, prompt=["just one"]).prompt_tokens == 2


def test_ignore_eos_gives_exactly_the_length_asked_for() -> None:
    generation = vllm(max_tokens=777)
    assert (generation.output_tokens, generation.finish_reason) == (777, "length")


def test_without_it_the_length_is_a_seeded_draw_within_the_limits() -> None:
    draws = [drawn_tokens(0, f"r{i}", 20, 400) for i in range(2000)]
    assert min(draws) == 20
    assert max(draws) == 400
    assert len(set(draws)) > 200
    assert draws == [drawn_tokens(0, f"r{i}", 20, 400) for i in range(2000)]
    assert draws != [drawn_tokens(1, f"r{i}", 20, 400) for i in range(2000)]
    reasons = {
        vllm(ignore_eos=False, max_tokens=limit).finish_reason for limit in (2, 2000)
    }
    assert reasons == {"length", "stop"}


def test_a_reply_of_n_tokens_has_n_words_and_repeats_by_seed() -> None:
    words = reply_words(0, "id", 0, 500)
    assert len(words_of(" ".join(words))) == 500
    assert words == reply_words(0, "id", 0, 500)
    assert words != reply_words(0, "id", 1, 500)


def test_equal_prefixes_have_equal_block_hashes_and_only_full_blocks_count() -> None:
    words = [f"w{i}" for i in range(50)]
    assert len(block_hashes(words)) == 3
    assert block_hashes(words[:33]) == block_hashes(words)[:2]
    changed = ["other", *words[1:]]
    assert not set(block_hashes(changed)) & set(block_hashes(words))


TGI = TgiGeneration("r", ["a", "b"], 3, "eos_token", True, wants_details=True)


def test_a_tgi_stream_has_one_event_per_token_and_ends_with_the_text() -> None:
    events = parsed(spoken(NativeEvents(TGI), 3))
    assert [event["index"] for event in events] == [1, 2, 3]
    keys = ["index", "token", "generated_text", "details"]
    assert all(list(event) == keys for event in events)
    assert all(
        list(event["token"]) == ["id", "text", "logprob", "special"] for event in events
    )
    assert [event["generated_text"] for event in events[:2]] == [None, None]
    assert events[-1]["generated_text"] == "time year year"
    assert events[-1]["details"] == {
        "finish_reason": "eos_token", "generated_tokens": 3, "seed": None,
        "input_length": 2,
    }  # fmt: skip


def test_tgi_chat_says_stop_and_has_an_empty_id() -> None:
    chat = TgiGeneration("r", ["a"], 2, "eos_token", True, kind=CHAT)
    events = parsed(spoken(ChatEvents(chat, "m"), 2) + closing(chat, "m"))
    assert [event["id"] for event in events[:2]] == ["", ""]
    assert events[1]["choices"][0]["finish_reason"] == "stop"
    assert events[2] == "[DONE]"


def test_tgi_completions_tell_usage_in_the_last_event_and_keep_eos_token() -> None:
    generation = TgiGeneration("r", ["a"], 2, "eos_token", True, kind=COMPLETIONS)
    stream = spoken(CompletionEvents(generation, "m"), 2) + closing(generation, "m")
    first, last, done = parsed(stream)
    assert done == "[DONE]"
    assert first["choices"][0]["finish_reason"] == ""
    assert "usage" not in first
    assert last["choices"][0]["finish_reason"] == "eos_token"
    assert last["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    ("fields", "error_type"),
    [
        ({"prompt": ["a"] * 5}, "batch size exceeded"),
        ({"prompt": "a", "suffix": "b"}, "suffix not supported"),
        ({"prompt": []}, "validation"),
        ({"prompt": "a", "top_p": 1.0}, "validation"),
        ({"prompt": "a", "max_tokens": 0}, "validation"),
    ],
)
def test_tgi_completions_refuse_what_the_router_refuses(
    fields: dict[str, object], error_type: str
) -> None:
    with pytest.raises(EngineRefusal) as caught:
        read_completions(fields, request_id="r", created=1, limits=LIMITS)
    assert caught.value.status == 422
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["error_type"] == error_type


@pytest.mark.parametrize(
    ("inputs", "most", "message"),
    [
        ("", 5, "`inputs` cannot be empty"),
        ("a", 0, "must be strictly positive"),
        ("a " * 1500, 700, "Given: 1500 `inputs` tokens and 700 `max_new_tokens`"),
        ("a " * 2048, 5, "must have less than 2047 tokens. Given: 2048"),
    ],
)
def test_tgi_refuses_what_its_router_refuses(
    inputs: str, most: int, message: str
) -> None:
    fields = {"inputs": inputs, "parameters": {"max_new_tokens": most}}
    with pytest.raises(EngineRefusal) as caught:
        read_native(fields, is_stream=False, request_id="r", limits=LIMITS)
    assert caught.value.status == 422
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["error_type"] == "validation"
    assert message in caught.value.body["error"]


def test_tgi_chat_takes_any_model_and_counts_all_messages() -> None:
    fields = {"model": "whatever", "messages": [{"content": "a b"}, {"content": "c"}]}
    generation = read_chat(fields, request_id="r", created=1, limits=LIMITS)
    assert generation.prompt_tokens == 3


@pytest.mark.parametrize(
    ("prompt_tokens", "asked", "parts", "reason"),
    [
        (200, 1000, (1000,), "length"),
        (200, 1024, (1024,), "length"),
        (200, 1100, (1024, 1024), "length"),  # two whole parts
        (6500, 2000, (1024,), "length"),  # a second one would not fit
        (200, None, (*[1024] * 7, 824), "length"),  # up to max_total_tokens
    ],
)
def test_tgi_computes_a_reply_in_parts_of_1024_tokens(
    monkeypatch: pytest.MonkeyPatch,
    prompt_tokens: int,
    asked: int | None,
    parts: tuple[int, ...],
    reason: str,
) -> None:
    monkeypatch.setattr(
        "loadgen.simulator.tgi.dialect.drawn_tokens", lambda *limits: limits[-1]
    )
    limits = Limits("m", 8192, 0)
    for read, fields in (
        (read_chat, {"messages": [{"content": "a " * prompt_tokens}]}),
        (read_completions, {"prompt": "a " * prompt_tokens}),
    ):
        generation = read(
            fields | ({} if asked is None else {"max_tokens": asked}),
            request_id="r", created=1, limits=limits,
        )  # fmt: skip
        assert tuple(generation.parts) == parts
        assert generation.output_tokens == sum(parts)
        assert generation.finish_reason == reason


@given(
    prompt_tokens=st.integers(1, 8000),
    asked=st.none() | st.integers(1, 9000),
    key=st.text(max_size=3),
)
def test_parts_of_a_tgi_reply_fit_and_add_up(
    prompt_tokens: int, asked: int | None, key: str
) -> None:
    fields: dict[str, Any] = {"inputs": "a " * prompt_tokens, "parameters": {}}
    if asked is not None:
        fields["parameters"]["max_new_tokens"] = asked
    try:
        found = read_native(
            fields, is_stream=True, request_id=key, limits=Limits("m", 8192, 0)
        )
    except EngineRefusal:
        assert prompt_tokens + min(asked or 0, 1024) > 8192
        return
    assert sum(found.parts) == found.output_tokens
    assert all(0 < part <= 1024 for part in found.parts)
    assert prompt_tokens + found.output_tokens <= 8192
    assert (found.end_token is None) == (found.finish_reason == "length")


@pytest.mark.parametrize(
    ("parameters", "is_sampled"),
    [
        (None, True),
        ({}, False),
        ({"details": True}, False),
        ({"details": True, "do_sample": True}, True),
        ({"temperature": 0.7}, True),
        ({"seed": 5}, False),
    ],
)
def test_tgi_samples_where_parameters_are_absent_or_ask_for_it(
    parameters: dict[str, Any] | None, is_sampled: bool
) -> None:
    fields = {"inputs": "a"} | (
        {} if parameters is None else {"parameters": parameters}
    )
    found = read_native(fields, is_stream=False, request_id="r", limits=LIMITS)
    assert (found.sampling_seed is not None) == is_sampled


def test_a_seeded_reply_follows_how_it_was_asked_for_and_no_request_id() -> None:
    asked = {"seed": 5, "do_sample": True, "temperature": 0.5}

    def words(request_id: str, **changed: object) -> str:
        fields = {"inputs": "a b", "parameters": asked | changed}
        return read_native(
            fields, is_stream=False, request_id=request_id, limits=LIMITS
        ).text_key

    assert words("r") == words("s") == words("r", details=True)
    changes: list[dict[str, object]] = [
        {"seed": 6}, {"temperature": 0.6}, {"top_p": 0.9},
    ]  # fmt: skip
    assert len({words("r"), *(words("r", **change) for change in changes)}) == 4


@pytest.mark.parametrize(
    ("read", "fields"),
    [
        (read_native, {"parameters": {}}),
        (read_native, {"inputs": "a", "parameters": None}),
        (read_native, {"inputs": 7}),
        (read_chat, {}),
        (read_chat, {"messages": [], "max_tokens": 1, "max_completion_tokens": 1}),
        (read_chat, {"messages": [{"content": "a"}], "stream_options": None}),
        (read_completions, {"prompt": [1, 2]}),
    ],
)
def test_tgi_refuses_a_body_of_the_wrong_shape_in_plain_text(
    read: Any, fields: dict[str, object]
) -> None:
    more = {"is_stream": True} if read is read_native else {"created": 1}
    with pytest.raises(BeforeStream) as caught:
        read(fields, request_id="r", limits=LIMITS, **more)
    assert caught.value.status == 422
    assert str(caught.value.body).startswith("Failed to deserialize the JSON body")


def test_the_special_token_of_a_tgi_reply_is_counted_and_no_text() -> None:
    ended = TgiGeneration("r", ["a"], 2, "eos_token", True, end_token="</s>")
    chat = replace(ended, kind=CHAT)
    completions = replace(ended, kind=COMPLETIONS)
    words = [b"time", b"</s>"]

    def last(events: TokenEvents) -> dict[str, Any]:
        stream = [events.token(word, i, i == 2) for i, word in enumerate(words, 1)]
        found: dict[str, Any] = parsed(stream[-1])[0]
        return found

    native = last(NativeEvents(ended))
    assert native["token"] == {
        "id": 2,
        "text": "</s>",
        "logprob": -1.0,
        "special": True,
    }
    assert native["generated_text"] == "time"
    assert last(ChatEvents(chat, "m"))["choices"][0]["delta"]["content"] == ""
    event = last(CompletionEvents(completions, "m"))
    assert event["choices"][0]["text"] == "</s>"
    assert event["usage"]["completion_tokens"] == 2
    assert ended.reply_of(["time", "</s>"]) == "time"


def test_a_tgi_tool_call_is_silent_at_both_ends_and_gives_no_reason() -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    asked = {"messages": [{"content": "a"}], "tools": [tool], "max_tokens": 12}
    called = read_chat(asked, request_id="r", created=1, limits=LIMITS)
    events = ToolEvents(called, "m")
    tokens = called.output_tokens
    shown = [events.token(b"word", n, n == tokens) for n in range(1, tokens + 1)]
    assert not any(shown[:6])
    assert not any(shown[-2:])
    choices = [part["choices"][0] for part in parsed(b"".join(shown))]
    assert {choice["finish_reason"] for choice in choices} == {None}
    calls = [choice["delta"]["tool_calls"][0]["function"] for choice in choices]
    assert {call["name"] for call in calls} == {"weather"}
    assert "text" in json.loads("".join(call["arguments"] for call in calls))
    with pytest.raises(BeforeStream, match="422"):
        read_chat(
            asked | {"tool_choice": {"function": {"name": "other"}}},
            request_id="r", created=1, limits=LIMITS,
        )  # fmt: skip


def test_best_of_makes_several_replies_and_tells_all_in_the_details() -> None:
    asked = {"best_of": 2, "do_sample": True, "details": True}
    fields = {"inputs": "a", "parameters": asked}
    found = read_native(fields, is_stream=False, request_id="r", limits=LIMITS)
    assert found.sequences == 2
    one = replace(found, output_tokens=1, end_token=None)
    details: Any = native_reply(one, [["time"], ["year"]])["details"]
    assert details["generated_tokens"] == 1
    assert [other["generated_text"] for other in details["best_of_sequences"]] == [
        "year"
    ]
    for wrong in ({"best_of": 3}, {"do_sample": False}, {"seed": 1}):
        with pytest.raises(EngineRefusal):
            read_native(
                {"inputs": "a", "parameters": asked | wrong},
                is_stream=False, request_id="r", limits=LIMITS,
            )  # fmt: skip


@pytest.mark.parametrize("stream", [True, False])
def test_whole_completions_of_tgi_do_without_the_prefix_cache(stream: bool) -> None:
    fields = {"prompt": "a", "stream": stream}
    found = read_completions(fields, request_id="r", created=1, limits=LIMITS)
    assert found.skips_cache is not stream


def test_tgi_has_a_gauge_once_it_was_set() -> None:
    metrics = TgiMetrics()
    assert "tgi_queue_size" not in metrics.page(Gauges(0, 0, 0.0))
    metrics.scheduled(RequestTruth("r", 1, 0.0))
    assert "tgi_batch_current_size" not in metrics.page(Gauges(1, 0, 0.0))
    assert "tgi_queue_size 0.0\n" in metrics.page(Gauges(1, 0, 0.0))


def test_vllm_metrics_use_only_names_types_and_labels_of_the_capture() -> None:
    captured = {
        line.split(" ")[0]: line.split(" ")[1]
        for line in (CAPTURES / "vllm_metrics_names.txt").read_text().splitlines()
        if line.startswith("vllm:")
    }
    page = VllmMetrics("m").page(Gauges(1, 2, 0.5))
    types = [line.split(" ")[2:] for line in page.splitlines() if line[:6] == "# TYPE"]
    assert len(types) > 15
    assert all(captured[name] == kind for name, kind in types)
    assert 'vllm:num_requests_waiting{engine="0",model_name="m"} 2.0\n' in page


def test_a_histogram_counts_up_to_and_including_its_bounds() -> None:
    page = Page({"a": "b"})
    histogram = page.histogram("h", (1, 2.5))
    for value in (0.5, 1, 2, 9):
        histogram.observe(value)
    assert page.text([]).splitlines()[2:] == [
        'h_bucket{a="b",le="1.0"} 2.0',
        'h_bucket{a="b",le="2.5"} 3.0',
        'h_bucket{a="b",le="+Inf"} 4.0',
        'h_count{a="b"} 4.0',
        'h_sum{a="b"} 12.5',
    ]


# --- what clients send ------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "counts"),
    [
        ("a few words", [3]),
        (["a few words"], [3]),
        (["a", "b c", "d e f"], [1, 2, 3]),
        ([7, 8, 9], [3]),
        ([[7, 8], [9]], [2, 1]),
    ],
)
@pytest.mark.parametrize("n", [1, 2])
def test_a_prompt_may_be_a_text_token_ids_or_a_list_of_them(
    prompt: object, counts: list[int], n: int
) -> None:
    generation = vllm(is_chat=False, prompt=prompt, n=n, temperature=1.0)
    assert generation.sequences == n * len(counts)
    assert generation.prompt_tokens == sum(counts)
    each = [len(generation.words_of(i)) for i in range(generation.sequences)]
    assert each == [count for count in counts for _ in range(n)]


@pytest.mark.parametrize("prompt", [[], [""], ["a", 1], [[1, "a"]], [None], 7])
def test_a_list_with_what_is_no_prompt_is_refused(prompt: object) -> None:
    body: dict[str, object] = {"prompt": prompt, "max_tokens": 4}
    assert refusal_of(body, is_chat=False).status == 400


def test_content_may_be_null_beside_tool_calls_and_nowhere_else() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]}
    asked: list[Any] = [{"role": "user", "content": "a few words"}, call]
    assert vllm(messages=asked).prompt_tokens == 3
    assert refusal_of({"messages": [{"role": "user", "content": None}]}).status == 400


def test_what_shapes_no_length_is_taken_as_the_engine_takes_it() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    generation = vllm(
        tools=tools, response_format={"type": "json_object"}, stop=["x"], logprobs=True
    )
    assert generation.output_tokens == 4


TOOL: dict[str, Any] = {
    "type": "function", "function": {"name": "f", "parameters": {}},
}  # fmt: skip


def replied(stream: bytes) -> tuple[str, str, list[Any]]:
    """Text, arguments and log probabilities that a stream's choices add up to."""
    text, arguments, logprobs = "", "", []
    for part in parsed(stream):
        (choice,) = part["choices"]
        delta = choice.get("delta") or {"content": choice.get("text")}
        text += delta.get("content") or ""
        for call in delta.get("tool_calls", ()):
            arguments += call["function"]["arguments"]
        if choice["logprobs"]:
            logprobs.append(choice["logprobs"])
    return text, arguments, logprobs


@pytest.mark.parametrize("choice", ["required", {"function": {"name": "f"}}])
def test_a_tool_that_must_be_called_is_called(choice: object) -> None:
    generation = vllm(tools=[TOOL], tool_choice=choice)
    words = ["a", "b", "c", "d"]
    text, arguments, _ = replied(spoken(VllmEvents(generation, "m", 0), 4))
    whole: Any = unstreamed_reply(generation, "m", [words], [truth()])
    (call,) = whole["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "f"
    assert json.loads(call["function"]["arguments"]) == {"text": "a b c d"}
    assert text == ""
    assert "text" in json.loads(arguments)
    assert whole["choices"][0]["finish_reason"] == "tool_calls"
    assert (
        refusal_of({"messages": [{"content": "a"}], "tool_choice": choice}).status
        == 400
    )


@pytest.mark.parametrize("kind", ["json_object", "json_schema"])
def test_a_reply_in_json_is_json(kind: str) -> None:
    generation = vllm(response_format={"type": kind})
    text, _, _ = replied(spoken(VllmEvents(generation, "m", 0), 4))
    assert "text" in json.loads(text)
    assert json.loads(generation.reply_of(["a", "b"])) == {"text": "a b"}


def test_each_token_has_its_log_probability_in_the_form_of_the_route() -> None:
    chat = vllm(logprobs=True, top_logprobs=2)
    _, _, found = replied(spoken(VllmEvents(chat, "m", 0), 4))
    assert len(found) == 4
    assert all(len(one["content"][0]["top_logprobs"]) == 2 for one in found)
    plain = vllm(is_chat=False, logprobs=1)
    text, _, found = replied(spoken(VllmEvents(plain, "m", 0), 4))
    tokens = [token for one in found for token in one["tokens"]]
    offsets = [offset for one in found for offset in one["text_offset"]]
    assert "".join(tokens) == text
    assert [text[at:].startswith(t) for at, t in zip(offsets, tokens, strict=True)] == [
        True
    ] * 4
    assert vllm(is_chat=False, logprobs=0).top_logprobs == 0
    assert refusal_of({"prompt": "a", "logprobs": 21}, is_chat=False).status == 400


@pytest.mark.parametrize("stop", ["{1}", ["never", "{1}"]])
def test_a_stop_sequence_ends_the_reply_before_it(stop: Any) -> None:
    words = reply_words(0, "id-1", 0, 4)
    wanted = json.loads(json.dumps(stop).replace("{1}", words[1]))
    generation = vllm(stop=wanted)
    at = words.index(words[1])
    assert generation.output_tokens == at + 1
    assert (generation.finish_reason, generation.stop_reason) == ("stop", words[1])
    assert generation.reply_of(words[: at + 1]) == f"{words[0]} "


def test_a_seeded_reply_of_vllm_follows_its_options_too() -> None:
    keys = {
        vllm(**{"seed": 1, "temperature": 1.0} | more).text_key
        for more in ({}, {"temperature": 0.5}, {"seed": 2}, {"top_p": 0.9})
    }
    assert len(keys) == 4
    assert vllm().text_key == "id-1"


def test_unix_time_is_read_together_with_the_engines_own() -> None:
    """A pause between two readings must not lie in every stamp."""
    pauses = iter([0.0, 0.031, 0.020, 0.0, 0.0001, 0.0, *[0.040] * 9])
    now = [100.0]

    def reading(ahead: float) -> float:
        now[0] += next(pauses)
        return now[0] + ahead

    offset = unix_offset_seconds(lambda: reading(0.0), lambda: reading(5000.0))
    assert offset == pytest.approx(5000.0, abs=1e-4)
