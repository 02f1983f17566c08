"""HTTP/1.1 as clients speak it: well, old, all at once, slowly or wrong."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.relaying import (
    Bench,
    answering,
    cutting,
    refusals_by_status,
    relaying,
    run,
)
from tests.support.scripted import (
    DONE,
    LAST_CHUNK,
    Message,
    Peer,
    chunk,
    reply_bytes,
    request_bytes,
    stream_head,
)

PLAIN = b'{"model":"tiny"}'


async def echoing(peer: Peer) -> None:
    """Answers with the target and the body it got."""
    while (request := await peer.request()) is not None:
        if request.method == "HEAD":
            await peer.send(reply_bytes(200, b"12345")[:-5])
        else:
            await peer.send(reply_bytes(200, request.target.encode() + request.body))


async def refusal(bench: Bench, raw: bytes) -> Message:
    """The reply to `raw`, which must end the connection and reach no engine."""
    client = await bench.client()
    await client.send(raw)
    reply = await client.reply()
    assert reply.one("connection") == "close"
    assert reply.one("x-request-id")
    await client.gone.wait()
    assert bench.upstream.requests == []
    assert refusals_by_status(bench.relay.counters)[reply.status] == 1
    return reply


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"GET /health\r\n\r\n", 505),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET /health HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET health HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"POST / HTTP/1.1\r\nHost: a\r\nExpect: magic\r\n\r\n", 417),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n"
            b"Content-Length: 4\r\n\r\nabcd",
            400,
        ),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            400,
        ),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 70_000, 431),
    ],
    ids=[
        "TLS",
        "no version",
        "no colon",
        "folded",
        "no host",
        "two hosts",
        "HTTP/2",
        "no slash",
        "CONNECT",
        "expectation",
        "length and chunks",
        "two lengths",
        "negative",
        "bad chunk",
        "endless header",
    ],
)
def test_what_is_not_a_request_is_refused_and_ends_the_connection(
    loop: str, raw: bytes, status: int
) -> None:
    async def test() -> None:
        async with relaying(echoing) as bench:
            reply = await refusal(bench, raw)
            assert reply.status == status
            assert set(reply.json()["error"]) == {"message", "type", "code"}

    run(loop, test)


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_beyond_the_bound_is_a_413(loop: str, is_chunked: bool) -> None:
    body = b"x" * 1001

    async def test() -> None:
        async with relaying(echoing, max_body_bytes=1000) as bench:
            if is_chunked:
                coding = [("Transfer-Encoding", "chunked")]
                raw = request_bytes(headers=coding) + chunk(body) + LAST_CHUNK
            else:
                raw = request_bytes(body=body)
            reply = await refusal(bench, raw)
            assert reply.status == 413
            message = reply.json()["error"]["message"]
            assert message == "the body exceeds 1000 bytes"

    run(loop, test)


def test_a_body_at_the_bound_passes(loop: str) -> None:
    async def test() -> None:
        async with relaying(echoing, max_body_bytes=1000) as bench:
            assert (await bench.ask(body=b"x" * 1000)).status == 200

    run(loop, test)


def test_requests_cut_anywhere_are_the_same_requests() -> None:
    raw = request_bytes(target="/v1/completions", body=PLAIN)

    async def test() -> None:
        async with relaying(echoing) as bench:
            client = await bench.client()
            for at in range(1, len(raw)):
                await client.send(raw[:at])
                await asyncio.sleep(0)
                await client.send(raw[at:])
                assert (await client.reply()).body == b"/v1/completions" + PLAIN

    run("uvloop", test)


def test_pipelined_requests_are_answered_in_order(loop: str) -> None:
    async def test() -> None:
        async with relaying(echoing) as bench:
            client = await bench.client()
            targets = [f"/v1/models/{number}" for number in range(30)]
            await client.send(b"".join(request_bytes("GET", t) for t in targets))
            for target in targets:
                assert (await client.reply()).body == target.encode()

    run(loop, test)


def test_a_refusal_waits_for_the_requests_before_it(loop: str) -> None:
    async def test() -> None:
        async with relaying(echoing) as bench:
            client = await bench.client()
            good = request_bytes("GET", "/health")
            await client.send(good + request_bytes("GET", "/nope") + good + b"\0\r\n")
            statuses = [(await client.reply()).status for _ in range(4)]
            assert statuses == [200, 404, 200, 400]
            await client.gone.wait()

    run(loop, test)


def test_a_client_that_expects_continue_is_told_to(loop: str) -> None:
    headers = [("Expect", "100-continue"), ("Content-Length", str(len(PLAIN)))]

    async def test() -> None:
        async with relaying(echoing) as bench:
            client = await bench.client()
            for _ in range(2):
                await client.send(request_bytes(headers=headers))
                assert await client.until(b"\r\n\r\n") == (
                    b"HTTP/1.1 100 Continue\r\n\r\n"
                )
                await client.send(PLAIN)
                assert (await client.reply()).status == 200
            assert bench.upstream.requests[0].all("expect") == []

    run(loop, test)


def test_a_body_that_will_be_refused_is_not_asked_for(loop: str) -> None:
    headers = [("Expect", "100-continue"), ("Content-Length", "2000")]

    async def test() -> None:
        async with relaying(echoing, max_body_bytes=1000) as bench:
            reply = await refusal(bench, request_bytes(headers=headers))
            assert reply.status == 413

    run(loop, test)


def test_head_has_the_headers_and_no_body(loop: str) -> None:
    async def test() -> None:
        async with relaying(echoing) as bench:
            client = await bench.client()
            for _ in range(2):
                await client.send(request_bytes("HEAD", "/v1/models"))
                reply = await client.reply(is_head=True)
                assert reply.one("content-length") == "5"
            await client.send(request_bytes("HEAD", "/nope"))
            assert (await client.reply(is_head=True)).status == 404
            await client.send(request_bytes("GET", "/health"))
            assert (await client.reply()).body == b"/health"

    run(loop, test)


def test_a_reply_without_a_body_ends_at_its_head(loop: str) -> None:
    async def test() -> None:
        async with relaying(
            answering(b"HTTP/1.1 204 No Content\r\nx: y\r\n\r\n")
        ) as bench:
            client = await bench.client()
            for _ in range(2):
                await client.send(request_bytes("GET", "/health"))
                reply = await client.reply()
                assert (reply.status, reply.one("transfer-encoding")) == (204, None)

    run(loop, test)


def test_interim_replies_of_the_engine_stop_at_the_relay(loop: str) -> None:
    async def script(peer: Peer) -> None:
        while await peer.request() is not None:
            await peer.send(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n")
            await peer.send(reply_bytes(200, b"{}"))

    async def test() -> None:
        async with relaying(script) as bench:
            client = await bench.client()
            for _ in range(2):
                await client.send(request_bytes(body=PLAIN))
                reply = await client.reply()
                assert (reply.status, reply.all("link")) == (200, [])

    run(loop, test)


def test_trailers_of_the_engine_stop_at_the_relay(loop: str) -> None:
    async def test() -> None:
        async with relaying(
            answering(stream_head(), chunk(DONE), b"0\r\nx-late: 1\r\n\r\n")
        ) as bench:
            client = await bench.client()
            for _ in range(2):
                await client.send(request_bytes(body=PLAIN))
                reply = await client.reply()
                assert (reply.body, reply.all("x-late")) == (DONE, [])

    run(loop, test)


def test_http_10_gets_a_plain_body_that_ends_with_the_connection(loop: str) -> None:
    async def test() -> None:
        async with relaying(
            cutting(stream_head(), chunk(b"data: a\n\n"), chunk(DONE), LAST_CHUNK)
        ) as bench:
            reply = await bench.ask(body=PLAIN, version="HTTP/1.0")
            assert reply.all("transfer-encoding") == []
            assert reply.one("connection") == "close"
            assert reply.body == b"data: a\n\n" + DONE

    run(loop, test)


def test_http_10_is_kept_alive_where_asked_and_possible(loop: str) -> None:
    headers = [("Connection", "keep-alive")]

    async def test() -> None:
        async with relaying(echoing) as bench:
            client = await bench.client()
            for _ in range(2):
                raw = request_bytes("GET", "/health", headers, version="HTTP/1.0")
                await client.send(raw)
                reply = await client.reply()
                assert reply.one("connection") == "keep-alive"

    run(loop, test)


def test_a_client_that_asks_for_close_gets_it(loop: str) -> None:
    async def test() -> None:
        async with relaying(echoing) as bench:
            client = await bench.client()
            headers = [("Connection", "close")]
            await client.send(request_bytes("GET", "/health", headers))
            reply = await client.reply()
            assert (reply.body, reply.one("connection")) == (b"/health", "close")
            await client.gone.wait()

    run(loop, test)


@pytest.mark.parametrize("body", [b"", PLAIN])
def test_an_offer_of_http2_is_declined_without_harm(loop: str, body: bytes) -> None:
    offer = [
        ("Connection", "Upgrade, HTTP2-Settings"),
        ("Upgrade", "h2c"),
        ("HTTP2-Settings", "AAMAAABk"),
    ]

    async def test() -> None:
        async with relaying(echoing) as bench:
            client = await bench.client()
            raw = request_bytes("POST", "/tokenize", offer, body)
            for at in (len(raw), len(raw) - 5, 30):
                await client.send(raw[:at])
                await asyncio.sleep(0)
                await client.send(raw[at:])
                assert (await client.reply()).body == b"/tokenize" + body
            assert bench.upstream.requests[0].all("upgrade") == []

    run(loop, test)


@pytest.mark.parametrize(
    ("raw", "owed"),
    [
        (b"", "header"),
        (b"GET /health HTTP/1.1\r\nHost:", "header"),
        (request_bytes(headers=[("Content-Length", "9")]), "body"),
    ],
    ids=["nothing", "half a head", "half a body"],
)
def test_a_client_that_stalls_is_closed_and_counted(
    loop: str, raw: bytes, owed: str
) -> None:
    async def test() -> None:
        async with relaying(
            echoing,
            header_timeout_seconds=0.01,
            body_timeout_seconds=0.01,
            beat_seconds=0.01,
        ) as bench:
            client = await bench.client()
            await client.send(raw)
            await client.gone.wait()
            assert bench.upstream.requests == []
            assert bench.relay.counters.timeouts == {owed: 1}

    run(loop, test)


def test_an_idle_client_is_closed_in_the_end(loop: str) -> None:
    async def test() -> None:
        async with relaying(
            echoing, idle_timeout_seconds=0.01, beat_seconds=0.01
        ) as bench:
            client = await bench.client()
            await client.send(request_bytes("GET", "/health"))
            assert (await client.reply()).status == 200
            await client.gone.wait()
            assert bench.relay.counters.clients_open == 0

    run(loop, test)


def test_a_long_reply_is_not_an_idle_client(loop: str) -> None:
    gate = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await gate.wait()
        await peer.send(reply_bytes())

    async def test() -> None:
        async with relaying(
            script,
            header_timeout_seconds=0.25,
            body_timeout_seconds=0.25,
            idle_timeout_seconds=0.25,
            beat_seconds=0.01,
        ) as bench:
            client = await bench.client()
            await client.send(request_bytes(body=PLAIN))
            silent = await bench.client()
            await silent.gone.wait()  # every timeout is over, also the first client's
            gate.set()
            assert (await client.reply()).status == 200

    run(loop, test)
