"""One rule of counting tokens: what the ledger counts is what the load counts."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.client.replies import StreamReader
from proxy.engines import DIALECTS
from proxy.engines.dialect import Dialect
from proxy.meter.activity.request import RequestTimeline, TokenLog
from proxy.wire.facts import RequestFacts, Update, Usage
from proxy.wire.sse import SseDecoder
from proxy.wire.token_count import TokenCount
from tests.support.captures import STREAMS, stream_body
from tests.support.tgi_shapes import FAILED_STREAMS, TWO_PROMPTS, Stream
from tests.support.tgi_shapes import STREAMS as TGI_STREAMS

COUNTS = st.none() | st.integers(0, 12)
UPDATES = st.builds(
    Update,
    carries_token=st.booleans(),
    tokens=COUNTS,
    usage=st.none() | st.builds(Usage, COUNTS, COUNTS, COUNTS),
    finish_reason=st.none() | st.just("length"),
    is_usage_only=st.booleans(),
    is_end=st.booleans(),
    has_own_usage=st.booleans(),
    error=st.none() | st.just("cut"),
)


class Played:
    """A dialect whose events are the numbers of updates made before."""

    name = "played"
    requires_end = False

    def __init__(self, updates: Sequence[Update]) -> None:
        self._updates = updates

    def read_request(self, method: str, path: str, body: bytes) -> RequestFacts | None:
        raise NotImplementedError

    def with_usage(self, body: bytes) -> bytes:
        raise NotImplementedError

    def read_event(self, data: bytes) -> Update:
        return self._updates[int(data)]

    def read_reply(self, status: int, headers: object, body: bytes) -> Update:
        raise NotImplementedError


def both(
    dialect: Dialect, reads: Sequence[bytes], sequences: int
) -> tuple[RequestTimeline, TokenLog, StreamReader]:
    """The same reads, one a second, to the ledger's side and to the load's."""
    facts = RequestFacts("chat", is_stream=True, sequences=sequences)
    timeline, log = RequestTimeline(0, 0.0, facts), TokenLog()
    reader, decoder = StreamReader(dialect, sequences), SseDecoder()
    for number, data in enumerate(reads):
        updates = [dialect.read_event(event) for event in decoder.feed(data)]
        timeline.receive(float(number), updates, log)
        reader.feed(float(number), data)
    return timeline, log, reader


def agree(dialect: Dialect, reads: Sequence[bytes], sequences: int = 1) -> None:
    timeline, log, reader = both(dialect, reads, sequences)
    # the ledger keeps the events of a read apart
    stamps, read = np.unique(log.seconds.round(3), return_inverse=True)
    assert stamps.tolist() == reader._stamps
    assert np.bincount(read, log.tokens).tolist() == reader._weights
    timeline.close(float(len(reads)))
    reply = reader.finish()
    assert timeline.output_tokens == reply.output_tokens
    assert timeline.prompt_tokens == reply.prompt_tokens
    assert timeline.cached_tokens == reply.cached_tokens


@given(updates=st.lists(UPDATES, max_size=12), sequences=st.integers(1, 3))
def test_ledger_and_load_count_any_events_alike(
    updates: list[Update], sequences: int
) -> None:
    reads = [b"data: %d\n\n" % number for number in range(len(updates))]
    agree(Played(updates), reads, sequences)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", [path.stem for path in STREAMS])
@given(size=st.integers(20, 2000), sequences=st.integers(1, 2))
def test_ledger_and_load_count_every_capture_alike(
    name: str, dialect: str, size: int, sequences: int
) -> None:
    body = stream_body(name)
    reads = [body[at : at + size] for at in range(0, len(body), size)]
    agree(DIALECTS[dialect], reads, sequences)


TGI_SHAPES = {**TGI_STREAMS, **FAILED_STREAMS, "two prompts": TWO_PROMPTS}


@pytest.mark.parametrize("shape", TGI_SHAPES.values(), ids=TGI_SHAPES)
@given(size=st.integers(20, 500), sequences=st.integers(1, 2))
def test_ledger_and_load_count_every_stream_of_tgi_alike(
    shape: Stream, size: int, sequences: int
) -> None:
    body = shape.body
    reads = [body[at : at + size] for at in range(0, len(body), size)]
    agree(DIALECTS["tgi"], reads, sequences)


WHOLE = {
    path.stem: ("openai", stream_body(path.stem))
    for path in STREAMS
    if path.stem.startswith("vllm")
} | {name: ("tgi", shape.body) for name, shape in TGI_STREAMS.items()}


@pytest.mark.parametrize("name", WHOLE)
@given(cut=st.integers(0, 20_000))
def test_what_was_seen_of_a_cut_stream_is_at_most_its_count(
    name: str, cut: int
) -> None:
    dialect, body = WHOLE[name]
    whole, *_ = both(DIALECTS[dialect], [body], 1)
    whole.close(1.0)
    seen, *_ = both(DIALECTS[dialect], [body[:cut]], 1)
    seen.close(1.0, is_cut=True)
    if whole.output_tokens is not None:
        assert (seen.recorded_output_tokens or 0) <= whole.output_tokens
    if seen.counted_tokens:
        assert seen.recorded_output_tokens
        assert seen.is_output_lower_bound is not seen.has_final_usage


@given(
    updates=st.lists(UPDATES, max_size=12),
    sequences=st.integers(1, 2),
    context_tokens=st.sampled_from([None, 6]),
    is_streamed=st.booleans(),
)
def test_events_that_only_tell_more_tokens_are_counted_as_any_others(
    updates: list[Update],
    sequences: int,
    context_tokens: int | None,
    is_streamed: bool,
) -> None:
    quick, long = (
        TokenCount(
            sequences=sequences,
            context_tokens=context_tokens,
            is_streamed=is_streamed,
            has_running_usage=True,
        )
        for _ in range(2)
    )
    for update in updates:
        assert quick.count(update) == long.count_other(update)
        assert figures(quick) == figures(long)


def figures(count: TokenCount) -> dict[str, object]:
    """All that it tells; a compiled class has no list of slots."""
    found = {name: getattr(count, name) for name in dir(count) if name[0] != "_"}
    return {name: value for name, value in found.items() if not callable(value)}


def counted(*updates: Update, sequences: int = 1) -> tuple[list[int], int | None]:
    count = TokenCount(sequences=sequences)
    tokens = [count.count(update) for update in updates]
    count.finish()
    return tokens, count.output_tokens


def test_usage_of_each_prompt_alone_is_added_up() -> None:
    def ended(output_tokens: int) -> Update:
        usage = Usage(10, output_tokens)
        return Update(
            True, tokens=1, usage=usage, finish_reason="stop", has_own_usage=True
        )

    token = Update(carries_token=True, tokens=1)
    assert counted(token, ended(2), ended(1), sequences=2) == ([1, 1, 1], 3)
    assert counted(token, ended(2), sequences=2) == ([1, 1], None)  # one told nothing


def test_usage_of_one_of_several_sequences_is_not_the_requests() -> None:
    running = [Update(True, usage=Usage(10, count)) for count in (1, 1, 2)]
    assert counted(*running, sequences=2) == ([1, 1, 1], None)  # cut before the sum
    total = Update(usage=Usage(10, 4), is_usage_only=True)
    assert counted(*running, total, sequences=2) == ([1, 1, 1, 0], 4)


def test_running_usage_counts_a_token_that_shows_nothing() -> None:
    events = [Update(usage=Usage(10, 0)), Update(True, usage=Usage(10, 1)),
              Update(usage=Usage(10, 3)), Update(True, usage=Usage(10, 4))]  # fmt: skip
    assert counted(*events) == ([0, 1, 2, 1], 4)


def test_events_that_count_themselves_need_no_usage() -> None:
    assert counted(Update(True, tokens=2), Update(True, tokens=1)) == ([2, 1], 3)
    assert counted(Update(True, tokens=2), Update(True)) == ([2, 1], None)


@pytest.mark.parametrize(("prompts", "cached_tokens"), [(1, 5), (2, None)])
def test_cached_tokens_of_several_prompts_are_unknown(
    prompts: int, cached_tokens: int | None
) -> None:
    body = json.dumps({"prompt": ["a"] * prompts}).encode()
    facts = DIALECTS["vllm"].read_request("POST", "/v1/completions", body)
    assert facts is not None
    timeline = RequestTimeline(0, 0.0, facts)
    timeline.receive(1.0, [Update(usage=Usage(9, 3, 5), is_end=True)], TokenLog())
    assert timeline.cached_tokens == cached_tokens
    assert (timeline.prompt_tokens, timeline.output_tokens) == (9, 3)


@pytest.mark.parametrize(
    ("more", "output_tokens"),
    [
        ({}, None),
        ({"details": {"generated_tokens": 3}}, None),
        (
            {
                "details": {
                    "generated_tokens": 3,
                    "best_of_sequences": [{"generated_tokens": 4}],
                }
            },
            7,
        ),
    ],
)
def test_the_tokens_of_the_best_of_several_replies_are_not_all(
    more: dict[str, object], output_tokens: int | None
) -> None:
    """TGI's headers count one reply of those that `best_of` made."""
    body = b'{"inputs":"a","parameters":{"best_of":2,"do_sample":true}}'
    tgi = DIALECTS["tgi"]
    facts = tgi.read_request("POST", "/generate", body)
    assert facts is not None
    headers = {"x-prompt-tokens": "9", "x-generated-tokens": "3"}
    reply = json.dumps({"generated_text": "a b c", **more}).encode()
    timeline = RequestTimeline(0, 0.0, facts)
    timeline.receive(1.0, [tgi.read_reply(200, headers, reply)], TokenLog())
    timeline.finish()
    assert (timeline.prompt_tokens, timeline.output_tokens) == (9, output_tokens)


@pytest.mark.parametrize(
    ("told", "known"),
    [
        (Usage(100, 3), Usage(100, 3)),
        (Usage(201, 3), Usage(None, 3)),
        (Usage(7, 10**9, 5), Usage(7, None, 5)),
        (Usage(7, 3, 201), Usage(7, 3, None)),
    ],
)
def test_a_count_beyond_the_context_is_unknown(told: Usage, known: Usage) -> None:
    count = TokenCount(sequences=2, context_tokens=100, is_streamed=False)
    count.count(Update(usage=told, is_end=True))
    count.finish()
    assert Usage(count.prompt_tokens, count.output_tokens, count.cached_tokens) == known
