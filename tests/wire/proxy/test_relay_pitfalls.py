"""Requests that a proxy and an engine could read differently: one reading, or none."""

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
from tests.support.scripted import LAST_CHUNK, Peer, chunk, reply_bytes, request_bytes

POST = b"POST /tokenize HTTP/1.1\r\nHost: a\r\n"
GET = b"GET /health HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
SMUGGLED = b"POST /pause HTTP/1.1\r\nHost: a\r\n\r\n"


async def echoing(peer: Peer) -> None:
    """Answers with what it understood."""
    while (request := await peer.request()) is not None:
        await peer.send(reply_bytes(200, request.body))


async def answers(bench: Bench, raw: bytes) -> list[int]:
    """Every status that `raw` brings until the relay closes, on a new connection."""
    client = await bench.client()
    await client.send(raw)
    statuses = []
    while head := await client.until(b"\r\n\r\n"):
        statuses.append(int(head.split(b" ")[1]))
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]
        await client.exactly(int(length or 0))
    return statuses


AMBIGUOUS = {
    "length and chunks": POST
    + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": POST
    + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 0\r\nContent-Length: 44\r\n\r\n",
    "the same length twice": POST
    + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "a list of lengths": POST + b"Content-Length: 3, 3\r\n\r\nabc",
    "a signed length": POST + b"Content-Length: +3\r\n\r\nabc",
    "a hex length": POST + b"Content-Length: 0x3\r\n\r\nabc",
    "a length with a space": POST + b"Content-Length: 3 3\r\n\r\nabc",
    "an empty length": POST + b"Content-Length:\r\n\r\nabc",
    "a length beyond 64 bits": POST
    + b"Content-Length: 18446744073709551619\r\n\r\nabc",
    "chunked twice": POST
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked, then something": POST
    + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "space before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a vertical tab": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a folded header": GET + b"X: a\r\n Transfer-Encoding: chunked\r\n\r\n",
    "a folded first header": b"GET /health HTTP/1.1\r\n Host: a\r\n\r\n",
    "bare line feeds": b"GET /health HTTP/1.1\nHost: a\n\n",
    "one bare line feed": b"GET /health HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
    "a bare blank line": GET + b"\n",
    "a bare carriage return": b"GET /health HTTP/1.1\r\nHost: a\rX: y\r\n\r\n",
    "a NUL in a value": GET + b"X: a\0b\r\n\r\n",
    "a NUL in a name": GET + b"X\0: a\r\n\r\n",
    "no name": GET + b": a\r\n\r\n",
    "a space in a name": GET + b"X y: a\r\n\r\n",
    "a tab in the target": b"GET /he\talth HTTP/1.1\r\nHost: a\r\n\r\n",
    "a control in the target": b"GET /he\x01lth HTTP/1.1\r\nHost: a\r\n\r\n",
    "beyond ASCII in the target": b"GET /h\xe9alth HTTP/1.1\r\nHost: a\r\n\r\n",
    "chunks with bare line feeds": CHUNKED + b"3\nabc\n0\n\n",
    "a line feed in an extension": CHUNKED + b"3;a\nabc\r\n0\r\n\r\n",
    "a chunk longer than told": CHUNKED + b"3\r\nabcXX0\r\n\r\n",
    "a chunk size with a space": CHUNKED + b"3 \r\nabc\r\n0\r\n\r\n",
    "a chunk size with a prefix": CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n",
    "a negative chunk size": CHUNKED + b"-3\r\nabc\r\n0\r\n\r\n",
    "a chunk size beyond 64 bits": CHUNKED + b"1" * 17 + b"\r\nabc\r\n0\r\n\r\n",
    "a length among the trailers": CHUNKED + b"0\r\nContent-Length: 5\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "an unknown method": b"STEAL /health HTTP/1.1\r\nHost: a\r\n\r\n",
    "a lower-case method": b"get /health HTTP/1.1\r\nHost: a\r\n\r\n",
    "an unknown version": b"GET /health HTTP/1.2\r\nHost: a\r\n\r\n",
    "a star for a path": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "another scheme": b"GET ftp://a/health HTTP/1.1\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize("raw", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_what_can_be_read_in_two_ways_is_refused_with_all_that_follows(
    raw: bytes,
) -> None:
    async def test() -> None:
        async with relaying(echoing, allow_unknown_routes=True) as bench:
            assert await answers(bench, raw + SMUGGLED) == [400]
            assert bench.upstream.requests == []
            assert refusals_by_status(bench.relay.counters) == {400: 1}

    run("uvloop", test)


@pytest.mark.parametrize(
    "codings", [b"gzip", b"gzip, chunked", b"identity, chunked", b"xchunked"]
)
def test_a_body_in_a_coding_that_would_be_lost_is_refused(codings: bytes) -> None:
    raw = POST + b"Transfer-Encoding: " + codings + b"\r\n\r\n3\r\nabc\r\n0\r\n\r\n"

    async def test() -> None:
        async with relaying(echoing) as bench:
            assert await answers(bench, raw) == [501]
            assert bench.upstream.requests == []

    run("uvloop", test)


def test_chunks_are_not_for_http_10() -> None:
    raw = CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + chunk(b"abc") + LAST_CHUNK

    async def test() -> None:
        async with relaying(echoing) as bench:
            assert await answers(bench, raw) == [501]

    run("uvloop", test)


def test_a_body_is_a_body_whatever_it_looks_like() -> None:
    """The engine gets one request with one length, however it was framed."""

    async def test() -> None:
        async with relaying(echoing) as bench:
            client = await bench.client()
            for raw in (
                request_bytes(target="/tokenize", body=SMUGGLED),
                CHUNKED + b"%x;a=b\r\n" % len(SMUGGLED) + SMUGGLED + b"\r\n0\r\n\r\n",
                request_bytes("GET", "/health", body=SMUGGLED),
            ):
                await client.send(raw)
                assert (await client.reply()).body == SMUGGLED
            for request in bench.upstream.requests:
                assert request.all("content-length") == [str(len(SMUGGLED))]
                assert request.all("transfer-encoding") == []

    run("uvloop", test)


def test_trailers_of_a_client_stop_at_the_relay() -> None:
    raw = CHUNKED + chunk(b"abc") + b"0\r\nX-Late: 1\r\nHost: b\r\n\r\n"

    async def test() -> None:
        async with relaying(echoing) as bench:
            client = await bench.client()
            await client.send(raw)
            assert (await client.reply()).body == b"abc"
            (request,) = bench.upstream.requests
            assert request.all("x-late") == []
            assert len(request.all("host")) == 1

    run("uvloop", test)


@pytest.mark.parametrize(
    ("target", "asked"),
    [
        ("http://other", "/"),
        ("http://other?x=1", "/?x=1"),
        ("HTTP://user:word@other:7/health", "/health"),
        ("https://other/health?x=%20", "/health?x=%20"),
    ],
)
def test_an_absolute_target_never_chooses_the_engine(target: str, asked: str) -> None:
    async def test() -> None:
        async with relaying(echoing) as bench:
            assert (await bench.ask("GET", target)).status == 200
            (request,) = bench.upstream.requests
            assert request.target == asked
            assert request.one("host") == f"127.0.0.1:{bench.upstream.port}"

    run("uvloop", test)


def test_a_websocket_is_not_opened() -> None:
    offer = [
        ("Connection", "Upgrade, X-Secret"),
        ("Upgrade", "websocket"),
        ("X-Secret", "1"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ]

    async def test() -> None:
        async with relaying(echoing) as bench:
            raw = request_bytes("GET", "/health", offer) + b"\x81\x85frame"
            # served as what it is without the offer; frames are no requests
            assert await answers(bench, raw) == [200, 400]
            (request,) = bench.upstream.requests
            for name in ("upgrade", "connection", "x-secret"):
                assert request.all(name) == []

    run("uvloop", test)


def test_an_offer_to_upgrade_from_http_10_is_served_as_http_10() -> None:
    offer = b"GET /health HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"

    async def test() -> None:
        async with relaying(echoing) as bench:
            assert await answers(bench, offer) == [200]

    run("uvloop", test)


def test_an_engine_that_switches_protocols_is_a_502() -> None:
    async def test() -> None:
        async with relaying(
            cutting(
                b"HTTP/1.1 101 Switching Protocols\r\n"
                b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n\x81"
            )
        ) as bench:
            assert (await bench.ask("GET", "/health")).status == 502

    run("uvloop", test)


@pytest.mark.parametrize("method", [b"TRACE", b"PROPFIND", b"SOURCE"])
def test_strange_methods_reach_no_engine(method: bytes) -> None:
    async def test() -> None:
        async with relaying(echoing) as bench:
            client = await bench.client()
            await client.send(method + GET.removeprefix(b"GET") + b"\r\n")
            assert (await client.reply()).status == 404
            assert bench.upstream.requests == []

    run("uvloop", test)


def test_http_10_is_never_told_to_continue() -> None:
    head = [("Expect", "100-continue"), ("Content-Length", "3")]

    async def test() -> None:
        async with relaying(echoing) as bench:
            client = await bench.client()
            raw = request_bytes("POST", "/tokenize", head, version="HTTP/1.0")
            await client.send(raw)
            await (await bench.client()).send(GET + b"\r\n")
            await bench.clients[1].reply()  # all that came before was read
            await client.send(b"abc")
            assert (await client.reply()).status == 200

    run("uvloop", test)


# --- how long a head may be ---------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        GET + b"X: " + b"y" * 70_000 + b"\r\n\r\n",
        GET + b"X: y\r\n" * 15_000 + b"\r\n",
        b"GET /health?" + b"y" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        GET + b"X: " + b"y" * 300_000,
    ],
    ids=["one header", "many headers", "the target", "without an end"],
)
@pytest.mark.parametrize("before", [b"", GET + b"\r\n"], ids=["first", "second"])
def test_a_head_beyond_the_bound_is_a_431(raw: bytes, before: bytes) -> None:
    async def test() -> None:
        async with relaying(echoing) as bench:
            assert await answers(bench, before + raw) == [200] * bool(before) + [431]

    run("uvloop", test)


def test_a_body_before_a_half_head_is_not_counted_as_head() -> None:
    body = b"x" * 80_000
    second = request_bytes(target="/tokenize", body=b"abc")

    async def test() -> None:
        async with relaying(echoing) as bench:
            client = await bench.client()
            first = request_bytes(target="/tokenize", body=body)
            await client.send(first + second[:30])
            assert (await client.reply()).body == body
            await client.send(second[30:])
            assert (await client.reply()).body == b"abc"

    run("uvloop", test)


# --- what an engine may do to the framing -------------------------------------


@pytest.mark.parametrize("name", ["content-length", "Content-Length, X"])
def test_a_length_that_the_engine_nominates_is_replaced_by_chunks(name: str) -> None:
    async def test() -> None:
        async with relaying(
            answering(reply_bytes(200, b"abc", [("Connection", name)]))
        ) as bench:
            client = await bench.client()
            for _ in range(2):
                await client.send(request_bytes("GET", "/health"))
                reply = await client.reply()
                assert reply.body == b"abc"
                assert reply.one("transfer-encoding") == "chunked"

    run("uvloop", test)


@pytest.mark.parametrize(
    "head",
    [
        b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"Transfer-Encoding: gzip\r\n\r\n",
        b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"X: a\r\n b\r\n\r\n",
        b"X: a\nX: b\r\n\r\n",
    ],
    ids=["coded", "coded twice", "not chunked", "two lengths", "both", "fold", "LF"],
)
def test_a_reply_that_could_be_read_in_two_ways_is_a_502(head: bytes) -> None:
    async def test() -> None:
        async with relaying(
            cutting(b"HTTP/1.1 200 OK\r\n" + head + chunk(b"abc") + LAST_CHUNK)
        ) as bench:
            assert (await bench.ask("GET", "/health")).status == 502
            await asyncio.wait_for(bench.upstream.peers[0].gone.wait(), 10)

    run("uvloop", test)
