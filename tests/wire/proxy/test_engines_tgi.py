"""TGI's dialect on every documented shape, however the network cuts it."""

from __future__ import annotations

import json

import pytest

from proxy.engines import DIALECTS
from proxy.meter.activity.request import RequestTimeline, TokenLog
from proxy.wire.facts import Update, Usage
from proxy.wire.sse import SseDecoder
from tests.support.relaying import relaying, run
from tests.support.scripted import (
    LAST_CHUNK,
    Peer,
    chunk,
    reply_bytes,
    request_bytes,
    stream_head,
)
from tests.support.tgi_shapes import (
    FAILED,
    FAILED_STREAMS,
    STREAMS,
    TWO_PROMPTS,
    Stream,
    Whole,
)

TGI = DIALECTS["tgi"]
EVERY_STREAM = STREAMS | FAILED_STREAMS | {"two prompts": TWO_PROMPTS}


def updates_of(reads: list[bytes]) -> list[Update]:
    decoder = SseDecoder()
    return [TGI.read_event(data) for read in reads for data in decoder.feed(read)]


def timeline_of(stream: Stream, updates: list[Update]) -> RequestTimeline:
    body = json.dumps(stream.request).encode()
    facts = TGI.read_request("POST", stream.path, body)
    assert facts is not None
    request = RequestTimeline(1, 0.0, facts)
    request.receive(1.0, updates, TokenLog())
    request.close(2.0)
    return request


@pytest.mark.parametrize("name", EVERY_STREAM)
def test_a_documented_stream_says_the_same_at_every_chunk_boundary(name: str) -> None:
    body = EVERY_STREAM[name].body
    whole = updates_of([body])
    for cut in range(1, len(body)):
        assert updates_of([body[:cut], body[cut:]]) == whole
    assert updates_of([body[at : at + 1] for at in range(len(body))]) == whole


@pytest.mark.parametrize("name", STREAMS)
def test_a_documented_stream_is_understood(name: str) -> None:
    stream = STREAMS[name]
    updates = updates_of([stream.body])
    assert "".join(update.text for update in updates) == stream.text
    assert [u.usage for u in updates if u.usage] == [stream.usage] * bool(stream.usage)
    reasons = [u.finish_reason for u in updates if u.finish_reason]
    assert reasons == [stream.finish_reason] * bool(stream.finish_reason)
    assert [update.is_end for update in updates] == [False] * (len(updates) - 1) + [
        True
    ]
    request = timeline_of(stream, updates)
    assert request.counted_tokens == stream.tokens
    if stream.usage is not None:
        assert request.output_tokens == stream.usage.output_tokens
        assert request.prompt_tokens == stream.usage.prompt_tokens


@pytest.mark.parametrize("name", FAILED_STREAMS)
def test_a_documented_error_in_a_stream_is_one(name: str) -> None:
    stream = FAILED_STREAMS[name]
    updates = updates_of([stream.body])
    assert [update.error for update in updates if update.error] == [stream.error]
    assert timeline_of(stream, updates).counted_tokens == stream.tokens


def test_usage_of_several_prompts_is_added_up() -> None:
    updates = updates_of([TWO_PROMPTS.body])
    request = timeline_of(TWO_PROMPTS, updates)
    assert (request.prompt_tokens, request.output_tokens) == (7, 5)
    assert request.counted_tokens == 5
    assert request.token_scale == 1.0


def test_usage_of_only_some_prompts_is_not_the_requests() -> None:
    # the client left after the first prompt had ended
    cut = TWO_PROMPTS.body.index(b'"text":"e"')
    request = timeline_of(TWO_PROMPTS, updates_of([TWO_PROMPTS.body[:cut]]))
    assert (request.prompt_tokens, request.output_tokens) == (None, None)
    assert (request.counted_tokens, request.token_scale) == (4, 1.0)


@pytest.mark.parametrize("name", FAILED)
def test_a_documented_error_reply_is_one(name: str) -> None:
    reply = FAILED[name]
    assert TGI.read_reply(reply.status, reply.headers, reply.body).error


def test_n_is_taken_and_ignored_as_documented() -> None:
    body = b'{"messages":[],"n":4,"best_of":3}'
    facts = TGI.read_request("POST", "/v1/chat/completions", body)
    assert facts is not None
    assert facts.sequences == 1
    two = TGI.read_request("POST", "/v1/completions", b'{"prompt":["a","b"],"n":4}')
    assert two is not None
    assert two.sequences == 2


# --- through the relay --------------------------------------------------------


def relayed(reply: Stream | Whole) -> tuple[bytes, int, str | None, str | None]:
    """Body and status that a client gets; outcome and error that the meter gets."""
    seen: list[tuple[bytes, int, str | None, str | None]] = []
    request = reply.request if isinstance(reply, Stream) else {"inputs": "x"}
    pieces = (
        [stream_head(), chunk(reply.body), LAST_CHUNK]
        if isinstance(reply, Stream)
        else [reply_bytes(reply.status, reply.body)]
    )

    async def script(peer: Peer) -> None:
        while await peer.request() is not None:
            await peer.send(*pieces)

    async def test() -> None:
        async with relaying(script, "tgi") as bench:
            client = await bench.client()
            body = json.dumps(request).encode()
            await client.send(request_bytes(target=reply.path, body=body))
            got = await client.reply()
            metered = await bench.meter.only()
            seen.append((got.body, got.status, metered.outcome, metered.error))

    run("asyncio", test)
    return seen[0]


@pytest.mark.parametrize("name", EVERY_STREAM)
def test_a_stream_passes_as_it_is_and_its_errors_are_recorded(name: str) -> None:
    stream = EVERY_STREAM[name]
    body, status, outcome, error = relayed(stream)
    assert body == stream.body
    assert status == 200  # TGI said so before it knew
    assert outcome == ("ok" if stream.error is None else "error")
    assert error == stream.error


@pytest.mark.parametrize("name", FAILED)
def test_an_error_reply_passes_as_it_is_and_is_recorded(name: str) -> None:
    body, status, outcome, error = relayed(FAILED[name])
    assert (body, status) == (FAILED[name].body, FAILED[name].status)
    assert outcome == "error"
    assert error


@pytest.mark.parametrize(
    ("name", "outcome"), [("native generation, after tokens", "error"), ("chat", "ok")]
)
def test_a_client_that_leaves_at_the_end_was_told_all(name: str, outcome: str) -> None:
    stream = EVERY_STREAM[name]

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(stream_head(), chunk(stream.body))
        await peer.gone.wait()  # the end of the HTTP message never comes

    async def test() -> None:
        async with relaying(script, "tgi") as bench:
            client = await bench.client()
            body = json.dumps(stream.request).encode()
            await client.send(request_bytes(target=stream.path, body=body))
            await client.until(stream.body[-20:])
            client.close()
            metered = await bench.meter.only()
            assert (metered.outcome, metered.error) == (outcome, stream.error)

    run("asyncio", test)


def test_an_unhealthy_server_is_no_request() -> None:
    body = b'{"error":"unhealthy","error_type":"healthcheck"}'

    async def script(peer: Peer) -> None:
        while await peer.request() is not None:
            await peer.send(reply_bytes(503, body))

    async def test() -> None:
        async with relaying(script, "tgi") as bench:
            client = await bench.client()
            await client.send(request_bytes("GET", "/health"))
            got = await client.reply()
            assert (got.status, got.body) == (503, body)
            assert bench.meter.requests == {}

    run("asyncio", test)


def test_a_list_reply_is_read_as_its_one_element() -> None:
    reply = [{"generated_text": "a b", "details": {"generated_tokens": 2}}]
    update = TGI.read_reply(200, {"x-prompt-tokens": "3"}, json.dumps(reply).encode())
    assert (update.usage, update.text) == (Usage(3, 2), "a b")
