"""Odd events and replies: what can be read survives, and ledger and load agree."""

from __future__ import annotations

import copy
import json
from collections.abc import Generator, Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loadgen.client.replies import NO_TOKENS, Reply, StreamReader, read_in_steps
from proxy.engines import DIALECTS
from proxy.engines.wire import MAX_COUNT
from proxy.meter.activity.request import RequestTimeline, TokenLog
from proxy.meter.estimate import EnergySoFar
from proxy.relay.counters import RelayCounters
from proxy.relay.tap import MeterGuard, Tap
from proxy.wire.events import Event, RequestClosed, TokensReceived
from proxy.wire.facts import RequestFacts, Usage
from proxy.wire.reply_end import CUT_SHORT

CHAT = "text/event-stream; charset=utf-8"
STRANGE: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner)
    ),
    max_leaves=4,
)


def delta(reason: str | None = None, usage: Any = None, **fields: Any) -> Any:
    choice = {"index": 0, "delta": fields, "logprobs": None, "finish_reason": reason}
    return {"id": "c", "model": "m", "choices": [choice], "usage": usage}


def native(text: str, details: Any = None) -> Any:
    token = {"id": 1, "text": text, "logprob": -0.1, "special": False}
    whole = None if details is None else "ab"
    return {"index": 1, "token": token, "generated_text": whole, "details": details}


USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
OPENAI_EVENTS = [
    delta(role="assistant", content=""),
    delta(content="a"),
    delta(content="b"),
    delta("stop", content="c"),
]
COUNTS = {"finish_reason": "length", "generated_tokens": 3, "input_length": 7}
STREAMS = {
    "vllm": [*OPENAI_EVENTS, {"choices": [], "usage": USAGE}],
    "openai": [*OPENAI_EVENTS, {"choices": [], "usage": USAGE}],
    "tgi": [*OPENAI_EVENTS, {"choices": [], "usage": USAGE}],
    "native": [native("a"), native("b"), native("c", COUNTS)],
    "transformers": [*OPENAI_EVENTS[:-1], delta("stop", USAGE, content="c")],
}
DIALECT_OF = {"native": "tgi"}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in JSON, but for those in what is counted."""
    found = [path] if path else []
    if path and path[-1] in ("usage", "details") and value:
        return []
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    return found + [p for key, inner in items for p in places(inner, (*path, key))]


def put(value: Any, path: Sequence[Any], new: Any) -> Any:
    changed = copy.deepcopy(value)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return changed


def written(events: Sequence[Any], *, end: bytes = b"data: [DONE]\n\n") -> list[bytes]:
    return [*(b"data: " + json.dumps(e).encode() + b"\n\n" for e in events), end]


class Ledger:
    """What the relay tells the meter of one reply."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def feed(self, event: Event) -> None:
        self.events.append(event)

    def estimate(self, key: int, at_seconds: float) -> EnergySoFar | None:
        return None


def ledger_of(
    name: str, reads: Sequence[bytes], kind: str = CHAT, status: int = 200
) -> tuple[RequestTimeline, RequestClosed]:
    ledger, counters = Ledger(), RelayCounters()
    guard = MeterGuard(ledger, counters)
    tap = Tap(guard, DIALECTS[name], counters, 1, 0.0, [], wants_stream=True)
    tap.begin(status, [(b"Content-Type", kind.encode())] if kind else [])
    for number, data in enumerate(reads):
        tap.add(float(number), data)
    tap.close(float(len(reads)), "ok", None)
    timeline = RequestTimeline(0, 0.0, RequestFacts("chat", is_stream=True))
    for event in ledger.events[:-1]:
        assert isinstance(event, TokensReceived)
        timeline.receive(event.at_seconds, event.updates, TokenLog())
    closed = ledger.events[-1]
    assert isinstance(closed, RequestClosed)
    timeline.close(closed.at_seconds)
    assert not counters.meter_errors
    return timeline, closed


def load_of(name: str, reads: Sequence[bytes], kind: str = CHAT) -> Reply:
    stamps = [float(number) for number in range(len(reads))]
    headers = {"content-type": kind} if kind else {}
    steps = read_in_steps(DIALECTS[name], 200, headers, stamps, reads)
    found: list[Reply] = []

    def kept() -> Generator[None, None, None]:
        found.append((yield from steps))

    for _ in kept():
        pass
    return found[0]


def both(name: str, reads: Sequence[bytes], kind: str = CHAT) -> tuple[Any, ...]:
    """The one answer of ledger and load: outcome, counts, first token."""
    timeline, closed = ledger_of(name, reads, kind)
    reply = load_of(name, reads, kind)
    error = None if reply.error == NO_TOKENS else reply.error
    assert closed.error == error
    assert closed.outcome == ("ok" if error is None else "error")
    assert timeline.prompt_tokens == reply.prompt_tokens
    assert timeline.output_tokens == reply.output_tokens
    if timeline.first_token_seconds is not None and timeline.output_tokens != 0:
        assert reply.chunk_stamps[0] == timeline.first_token_seconds
    return closed.error, timeline.output_tokens, timeline.first_token_seconds


@pytest.mark.parametrize("stream", STREAMS)
@given(data=st.data())
def test_any_value_in_any_field_leaves_the_usage_and_one_answer(
    stream: str, data: st.DataObject
) -> None:
    events = STREAMS[stream]
    path = data.draw(st.sampled_from(places(events)).filter(lambda path: len(path) > 1))
    spoilt = put(events, path, data.draw(STRANGE))
    name = DIALECT_OF.get(stream, stream)
    both(name, written(spoilt))
    if path[-1] in ("error", "token", "generated_text"):
        return
    last = DIALECTS[name].read_event(json.dumps(spoilt[-1]).encode())
    assert last.usage == Usage(7, 3)


@pytest.mark.parametrize("name", DIALECTS)
@given(fields=st.dictionaries(st.sampled_from(["choices", "metrics", "id"]), STRANGE))
@example(fields={"choices": "\ud800"})
def test_a_whole_reply_keeps_its_usage_beside_any_field(
    name: str, fields: dict[str, Any]
) -> None:
    body = json.dumps({**fields, "usage": USAGE}).encode()
    assert DIALECTS[name].read_reply(200, {}, body).usage == Usage(7, 3)


SPELLINGS: dict[str, Any] = {
    "floats": {"prompt_tokens": 7.0, "completion_tokens": 3.0},
    "strings": {"prompt_tokens": "7", "completion_tokens": "3"},
    "input and output": {"input_tokens": 7, "output_tokens": 3},
    "details of no kind": {**USAGE, "prompt_tokens_details": 5},
    "no details": {**USAGE, "prompt_tokens_details": None},
    "cached in text": {**USAGE, "prompt_tokens_details": {"cached_tokens": "x"}},
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("name", DIALECTS)
def test_every_spelling_of_usage_is_read(name: str, spelling: dict[str, Any]) -> None:
    event = json.dumps({"choices": [], "usage": spelling}).encode()
    assert DIALECTS[name].read_event(event).usage == Usage(7, 3)


@pytest.mark.parametrize("absurd", [-1, MAX_COUNT + 1, 2.5, "3k", True, [], 1e308])
@pytest.mark.parametrize("name", DIALECTS)
def test_an_absurd_count_is_unknown_and_the_other_is_kept(
    name: str, absurd: Any
) -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": absurd}
    event = json.dumps({"choices": [], "usage": usage}).encode()
    assert DIALECTS[name].read_event(event).usage == Usage(7, None)


ZERO = {"prompt_tokens": 0, "completion_tokens": 0}


@pytest.mark.parametrize("at_the_end", [USAGE, ZERO, None])
@pytest.mark.parametrize("running", [ZERO, {**ZERO, "prompt_tokens": 7}])
def test_zeros_beside_text_are_unknown(running: Any, at_the_end: Any) -> None:
    events = [
        delta(role="assistant", content="", usage=running),
        *(delta(content=text, usage=running) for text in "abc"),
        delta("stop", at_the_end, content=""),
    ]
    error, output_tokens, first_token_seconds = both("openai", written(events))
    assert error is None
    assert output_tokens == (3 if at_the_end is USAGE else None)
    assert first_token_seconds == 1.0


PARTS: dict[str, Any] = {
    "thinking": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}],
    "text": [{"type": "text", "text": "a"}],
    "an object": {"type": "text", "text": "a"},
    "a lone surrogate": "\ud83d",
}


@pytest.mark.parametrize("content", PARTS.values(), ids=PARTS)
def test_the_first_part_of_any_type_is_the_first_token(content: Any) -> None:
    events = [
        delta(role="assistant", content=""),
        delta(content=content),
        delta(content="b"),
        delta("stop", USAGE),
    ]
    assert both("openai", written(events)) == (None, 3, 1.0)


def test_bytes_that_are_no_text_do_not_hide_the_usage() -> None:
    line = (
        b'data: {"choices":[{"delta":{"content":"\xff"}}],"usage":{"prompt_tokens":7,'
    )
    reads = [line + b'"completion_tokens":1}}\n\n', b"data: [DONE]\n\n"]
    assert both("openai", reads) == (None, 1, 0.0)


ERRORS: dict[str, tuple[bytes, str]] = {
    "field": (b'error: {"code":400,"message":"too long"}\n\n', "too long"),
    "event": (b'event: error\ndata: {"message":"too long"}\n\n', "too long"),
    "event of text": (b"event: error\ndata: too long\n\n", "too long"),
    "text": (b'data: {"error":"too long"}\n\n', "too long"),
    "object": (b'data: {"object":"error","message":"too long"}\n\n', "too long"),
    "beside choices": (
        b'data: {"error":{"message":"too long"},"choices":[{"delta":{}}]}\n\n',
        "too long",
    ),
    "whole": (b'{"error":{"message":"too long"}}', "too long"),
    "nested": (
        b'{"object":"error","message":{"detail":[{"msg":"too long"}]}}',
        "too long",
    ),
}


@pytest.mark.parametrize(("read", "message"), ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize("kind", [CHAT, "application/json"])
def test_an_error_in_any_form_is_an_error_with_its_reason(
    name: str, read: bytes, message: str, kind: str
) -> None:
    assert both(name, [read], kind)[0] == message


@pytest.mark.parametrize("reason", ["abort", "error"])
@pytest.mark.parametrize("name", DIALECTS)
def test_what_the_engine_gave_up_did_not_succeed(name: str, reason: str) -> None:
    reads = written([delta(content="a"), delta(reason, content="", usage=USAGE)])
    error, output_tokens, _ = both(name, reads)
    assert error is not None
    assert reason in error
    assert output_tokens == 3


@pytest.mark.parametrize("name", DIALECTS)
def test_a_stream_without_its_end_is_an_error_in_both(name: str) -> None:
    reads = written([delta(content="a"), delta(content="b")], end=b": bye\n\n")
    assert both(name, reads)[0] == CUT_SHORT


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-ndjson", "application/json", ""]
)
@pytest.mark.parametrize("begin", [b"", b"\xef\xbb\xbf", b"\r\n", b": hi\n\n"])
@given(cut=st.integers(1, 40))
def test_a_stream_is_one_under_any_type(kind: str, begin: bytes, cut: int) -> None:
    body = begin + b"".join(written(STREAMS["openai"]))
    reads = [body[:cut], body[cut:]]
    error, output_tokens, _ = both("openai", reads, kind)
    assert (error, output_tokens) == (None, 3)


@pytest.mark.parametrize("end", [b"data: [DONE] \n\n", b"data:[DONE]\r\n\r\n"])
def test_blanks_around_the_end_are_nothing(end: bytes) -> None:
    assert both("vllm", written(STREAMS["vllm"], end=end))[0] is None


WHOLE = {
    "choices": [{"message": {"content": "abc"}, "finish_reason": "stop"}],
    "usage": USAGE,
}


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize("kind", ["application/json", CHAT, ""])
@given(cut=st.integers(1, 40))
def test_one_whole_reply_in_the_place_of_a_stream_is_read_as_such(
    name: str, kind: str, cut: int
) -> None:
    body = json.dumps(WHOLE).encode()
    reads = [body[:cut], body[cut:]]
    assert both(name, reads, kind) == (None, 3, 1.0)
    assert load_of(name, reads, kind).text == "abc"


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize(
    ("kind", "shown"), [("text/html", "text/html"), ("", "no content type")]
)
@pytest.mark.parametrize("page", [b"<html>sign in</html>", b"ok", b""])
def test_what_is_neither_stream_nor_json_is_an_error(
    name: str, kind: str, shown: str, page: bytes
) -> None:
    assert both(name, [page], kind)[0] == f"asked for a stream, got {shown}"


def test_a_reader_of_the_load_sums_what_it_read() -> None:
    reader = StreamReader(DIALECTS["openai"])
    for stamp, data in enumerate(written(STREAMS["openai"])):
        reader.feed(float(stamp), data)
    assert reader.finish().text == "abc"
