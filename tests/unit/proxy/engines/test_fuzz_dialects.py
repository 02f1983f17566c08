"""Strange bytes through the SSE decoder and every dialect: facts or silence."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import astuple

from proxy.engines import DIALECTS
from proxy.engines.wire import ERROR_CHARACTERS, MAX_COUNT
from proxy.errors import SseError
from proxy.meter.config import MeterConfig
from proxy.meter.meter import Meter
from proxy.wire.events import PowerSampled, RequestClosed, RequestOpened, TokensReceived
from proxy.wire.facts import Labels, Reading, RequestFacts, Update
from proxy.wire.sse import SseDecoder
from tests.support.captures import (
    STREAMS,
    joined_replies,
    reply_head_and_body,
    stream_body,
)
from tests.support.mutations import HOSTILE, pieces_of, spoilt

TGI_EVENTS = [
    b'data: {"index":1,"token":{"id":1,"text":" a","logprob":-0.1,"special":false},'
    b'"generated_text":null,"details":null}\n\n',
    b'data: {"index":2,"token":{"id":2,"text":"</s>","special":true},"generated_text":'
    b'" a","details":{"finish_reason":"length","generated_tokens":2,"input_length":3}}'
    b"\n\n",
    b'data: {"error":"overloaded","error_type":"overloaded"}\n\n',
]
BODIES = [stream_body(path.stem) for path in STREAMS] + [b"".join(TGI_EVENTS)]
EVENTS = [event for body in BODIES for event in SseDecoder().feed(body)]
REPLIES = [
    reply_head_and_body("vllm_chat_nonstream")[1],
    *(body for _, _, body in joined_replies("vllm_errors").values()),
    b'[{"generated_text":"a","details":{"generated_tokens":3,"prefill":[]}}]',
]
REQUESTS = [
    b'{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true,"n":2,'
    b'"max_tokens":7,"stream_options":{"include_usage":false,"k":1.50}}',
    b'{"model":"m","prompt":["a","b"],"max_tokens":5,"best_of":3,"stream_options":null}',
    b'{"inputs":"x","parameters":{"max_new_tokens":5,"best_of":2},"stream":true}',
]
COUNTS = st.text("0123456789", max_size=40) | st.just("9" * 5000) | st.text(max_size=9)
HEADERS = st.dictionaries(
    st.sampled_from(
        ["x-prompt-tokens", "x-generated-tokens", "x-queue-time", "x-inference-time",
         "x-validation-time"]
    ),
    COUNTS,
)  # fmt: skip


def is_count(value: object) -> bool:
    return value is None or (type(value) is int and 0 <= value <= MAX_COUNT)


def assert_sound(update: Update) -> None:
    """An update that every reader after the dialect can rely on."""
    usage, phases = update.usage, update.phases
    assert is_count(update.tokens)
    if usage is not None:
        counts = (usage.prompt_tokens, usage.output_tokens, usage.cached_tokens)
        assert all(map(is_count, counts))
    if phases is not None:
        for seconds in astuple(phases):
            assert seconds is None or (math.isfinite(seconds) and seconds >= 0)
    update.text.encode()  # no lone surrogate
    if update.error is not None:
        assert 0 < len(update.error) <= ERROR_CHARACTERS
        assert "\n" not in update.error


def assert_plausible(facts: RequestFacts | None) -> None:
    assert facts is not None
    assert 1 <= facts.sequences <= MAX_COUNT
    assert is_count(facts.max_output_tokens)
    (facts.model or "").encode()


# --- the decoder --------------------------------------------------------------

CUTS = st.lists(st.integers(0, 100_000), max_size=12)


@given(stream=spoilt(BODIES) | st.binary(max_size=400), cuts=CUTS)
def test_a_spoilt_stream_has_the_same_events_however_it_is_cut(
    stream: bytes, cuts: list[int]
) -> None:
    whole, pieces = SseDecoder(), SseDecoder()
    expected = whole.feed(stream)
    found = [event for read in pieces_of(stream, cuts) for event in pieces.feed(read)]
    assert found == expected
    assert (pieces.comments, pieces.has_partial) == (whole.comments, whole.has_partial)


@given(stream=spoilt(BODIES), limit=st.integers(1, 300), cuts=CUTS)
def test_a_decoder_never_holds_more_than_its_bound(
    stream: bytes, limit: int, cuts: list[int]
) -> None:
    decoder = SseDecoder(max_event_bytes=limit)
    for read in pieces_of(stream * 3, cuts):
        try:
            decoder.feed(read)
        except SseError:
            assert not decoder.has_partial
        assert len(decoder._partial) <= limit


# --- the dialects -------------------------------------------------------------


@pytest.mark.parametrize("name", DIALECTS)
@given(data=spoilt(EVENTS) | st.binary(max_size=100) | st.sampled_from(HOSTILE))
@example(data=b'{"error":99999999999999999999999}')
@example(data=b'{"choices":[],"usage":{"completion_tokens":9007199254740992}}')
@example(data=b'{"token":{},"details":{"generated_tokens":18446744073709551616}}')
@example(data=b'{"choices":[],"metrics":{"queue_time_ms":-1e308}}')
@example(data=b'{"choices":[{"text":"a","token_ids":null}],"usage":{}}')
def test_a_spoilt_event_is_a_sound_update(name: str, data: bytes) -> None:
    assert_sound(DIALECTS[name].read_event(data))


@pytest.mark.parametrize("name", DIALECTS)
@given(
    status=st.integers(0, 999),
    headers=HEADERS,
    data=spoilt(REPLIES) | st.binary(max_size=100),
)
def test_a_spoilt_reply_is_a_sound_update(
    name: str, status: int, headers: dict[str, str], data: bytes
) -> None:
    update = DIALECTS[name].read_reply(status, headers, data)
    assert_sound(update)
    assert update.is_end
    assert update.error is not None or 200 <= status < 300


@pytest.mark.parametrize("name", DIALECTS)
@given(data=spoilt(REQUESTS) | st.binary(max_size=100))
def test_a_spoilt_request_has_plausible_facts(name: str, data: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        assert_plausible(DIALECTS[name].read_request("POST", path, data))
    if name == "tgi":
        for path in ("/", "/generate", "/generate_stream"):
            assert_plausible(DIALECTS[name].read_request("POST", path, data))


def loaded(body: bytes) -> Any:
    """JSON with its numbers as they were written."""
    return json.loads(body, parse_int=str, parse_float=str, parse_constant=str)


@pytest.mark.parametrize("name", DIALECTS)
@given(body=st.sampled_from(REQUESTS) | spoilt(REQUESTS) | st.binary(max_size=60))
@example(body=b'{"stream_options":{"a":1,"a":2},"stream_options":{"b":01}}')
@example(body=b'{"a":1,"a":[2],"\\u0061":3}')
def test_asking_for_usage_changes_that_one_key_or_nothing(
    name: str, body: bytes
) -> None:
    asking = DIALECTS[name].with_usage(body)
    if asking == body:
        return
    before, after = loaded(body), loaded(asking)
    is_native = name == "tgi" and "inputs" in before
    section, field = (
        ("parameters", "details") if is_native else ("stream_options", "include_usage")
    )
    old = before.get(section)
    if is_native and old is None:
        old = {"do_sample": True}  # what TGI takes it for
    assert after == before | {section: (old or {}) | {field: True}}


# --- on to the meter ----------------------------------------------------------


@pytest.mark.parametrize("name", DIALECTS)
@given(stream=spoilt(BODIES))
def test_a_spoilt_stream_leaves_the_books_closed(name: str, stream: bytes) -> None:
    meter, engine = Meter(MeterConfig(idle_watts=100.0)), DIALECTS[name]
    meter.feed(PowerSampled("gpu", 0.0, (Reading("gpu0", joules=0.0),)))
    facts = RequestFacts("chat", is_stream=True)
    meter.feed(RequestOpened(1, 0.5, "r", facts, Labels()))
    for number, data in enumerate(SseDecoder().feed(stream)):
        meter.feed(TokensReceived(1, 1.0 + 0.01 * number, (engine.read_event(data),)))
    meter.feed(RequestClosed(1, 3.0, "ok", status=200))
    for step in range(1, 400):
        meter.feed(
            PowerSampled(
                "gpu", step * 0.02, (Reading("gpu0", joules=step * 0.02 * 300.0),)
            )
        )
    (record,) = meter.settle(100.0)
    books = meter.books_at()
    assert is_count(record.output_tokens)
    assert is_count(record.prompt_tokens)
    assert record.energy.energy_joules is not None
    assert 0 <= record.energy.energy_joules <= books.measured_joules
    assert books.residual_joules == pytest.approx(0.0, abs=1e-6)
