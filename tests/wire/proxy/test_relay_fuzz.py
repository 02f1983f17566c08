"""Strange bytes over sockets, from either side: every exchange ends, the next works."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.engines import DIALECTS
from tests.support.captures import STREAMS, stream_body
from tests.support.mutations import HOSTILE, pieces_of, spoilt
from tests.support.profiles import examples
from tests.support.relaying import Bench, relaying, run
from tests.support.scripted import (
    LAST_CHUNK,
    Peer,
    chunk,
    reply_bytes,
    request_bytes,
    stream_head,
)

CHAT = b'{"model":"tiny","stream":true,"messages":[]}'
CLOSING = [("Connection", "close")]
STREAM = stream_body("vllm_chat_stream_usage")
WHOLE_REPLIES = [
    stream_head() + chunk(STREAM) + LAST_CHUNK,
    stream_head([("content-encoding", "gzip")]) + chunk(STREAM[:50]) + LAST_CHUNK,
    reply_bytes(200, b'{"usage":{"prompt_tokens":1,"completion_tokens":2}}'),
    reply_bytes(500, b'{"error":{"message":"no"}}', [("Connection", "x, close")]),
    b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + reply_bytes(),
    b"HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + STREAM,
]
REPLIES = (
    st.binary(max_size=200)
    | spoilt(WHOLE_REPLIES)
    # whole HTTP around a spoilt stream, so that it reaches the meter's side
    | spoilt([stream_body(path.stem) for path in STREAMS]).map(
        lambda body: stream_head() + chunk(body) + LAST_CHUNK
    )
)
REQUESTS = [
    request_bytes(body=CHAT),
    request_bytes("GET", "/health") + request_bytes(body=CHAT),
    request_bytes(headers=[("Transfer-Encoding", "chunked")])
    + chunk(CHAT[:9]) + chunk(CHAT[9:]) + LAST_CHUNK,
    request_bytes("GET", "/v1/models", [("Connection", "Upgrade"), ("Upgrade", "h2c")]),
    request_bytes("HEAD", "/health", version="HTTP/1.0"),
    request_bytes(body=CHAT, headers=[("Expect", "100-continue")]),
    request_bytes("GET", "http://other:1/health"),
]  # fmt: skip
CUTS = st.lists(st.integers(0, 5_000), max_size=4)


def run_quietly(test: Coroutine[Any, Any, None]) -> None:
    """Run it; an exception that only the loop saw fails it too."""
    seen: list[dict[str, Any]] = []

    async def watched() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: seen.append(context))
        await test

    run("uvloop", watched)
    assert seen == []


@asynccontextmanager
async def surviving(
    reply: list[bytes], engine: str = "vllm", **config: Any
) -> AsyncIterator[Bench]:
    """A relay whose engine sends `reply` once, and whole ones to all who come after."""

    async def script(peer: Peer) -> None:
        is_first = not reply_is_sent.is_set()
        while await peer.request() is not None:
            if is_first:
                reply_is_sent.set()
                for piece in reply:
                    await peer.send(piece)
                    await asyncio.sleep(0)
                return
            await peer.send(reply_bytes())

    reply_is_sent = asyncio.Event()
    async with relaying(script, engine, **config) as bench:
        yield bench
        while bench.relay.counters.in_flight:  # noqa: ASYNC110 - signals nobody
            await asyncio.sleep(0)
        assert all(request.outcome for request in bench.meter.requests.values())
        next_reply = await bench.ask("GET", "/health")
        assert (next_reply.status, next_reply.is_complete) == (200, True)


@pytest.mark.parametrize("engine", DIALECTS)
@given(reply=REPLIES, cuts=CUTS, tells_energy=st.booleans())
@examples(60)
def test_whatever_an_engine_sends_the_exchange_ends_and_the_next_one_works(
    engine: str, reply: bytes, cuts: list[int], tells_energy: bool
) -> None:
    async def test() -> None:
        pieces = pieces_of(reply, cuts)
        async with surviving(pieces, engine, energy_in_response=tells_energy) as bench:
            client = await bench.client()
            await client.send(request_bytes(body=CHAT, headers=CLOSING))
            await client.gone.wait()
            (request,) = await bench.meter.closings()
            assert request.outcome in ("ok", "error", "upstream_error")

    run_quietly(test())


@given(
    raw=spoilt(REQUESTS) | st.binary(max_size=200) | st.sampled_from(HOSTILE),
    cuts=CUTS,
)
@examples(200)
def test_whatever_a_client_sends_the_engine_sees_whole_requests_only(
    raw: bytes, cuts: list[int]
) -> None:
    async def test() -> None:
        async with surviving([reply_bytes()]) as bench:
            client = await bench.client()
            for piece in pieces_of(raw, cuts):
                await client.send(piece)
                await asyncio.sleep(0)
            await (await bench.client()).send(b"x")  # refused once all that was read
            await bench.clients[-1].gone.wait()
            while bench.relay.counters.in_flight:  # noqa: ASYNC110 - signals nobody
                await asyncio.sleep(0)
            client.abort()
            host = f"127.0.0.1:{bench.upstream.port}"
            for request in bench.upstream.requests:
                assert request.is_complete
                assert request.target.startswith("/")
                assert request.all("host") == [host]
                assert len(request.all("x-request-id")) == 1
                assert len(request.all("content-length")) <= 1
                assert request.all("transfer-encoding") == []
                assert request.all("connection") == []

    run_quietly(test())
