"""What is asked at intervals may answer with anything: bounded in bytes and in time."""

from __future__ import annotations

import asyncio
import gzip
import os
import zlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.process.http_get import AsyncGetter, BoundedBody, GetError, GetReply, Getter
from tests.support.scripted import Peer, ScriptedServer

TOTAL_SECONDS = 0.4
MAX_BYTES = 100_000
HEAD = b"HTTP/1.1 200 OK\r\n"

Script = Callable[[Peer], Awaitable[None]]


async def by_loop(url: str) -> GetReply:
    async with AsyncGetter(total_seconds=TOTAL_SECONDS, max_bytes=MAX_BYTES) as getter:
        return await getter.get(url)


async def by_thread(url: str) -> GetReply:
    def ask() -> GetReply:
        with Getter(total_seconds=TOTAL_SECONDS, max_bytes=MAX_BYTES) as getter:
            return getter.get(url)

    return await asyncio.to_thread(ask)


Ask = Callable[[str], Awaitable[GetReply]]
BOTH = pytest.mark.parametrize("ask", [by_loop, by_thread])


def asked(ask: Ask, script: Script) -> GetReply:
    async def run() -> GetReply:
        async with ScriptedServer(script) as server:
            return await ask(f"{server.url}/metrics")

    return asyncio.run(run())


def answering(data: bytes) -> Script:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(data)

    return script


def dripping(head: bytes, drop: bytes) -> Script:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(head)
        while not peer.gone.is_set():
            await asyncio.sleep(0.05)
            await peer.send(drop)

    return script


def packed(body: bytes, encoding: bytes = b"gzip") -> bytes:
    return (
        HEAD + b"content-encoding: " + encoding
        + b"\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    )  # fmt: skip


@BOTH
def test_a_reply_is_whole_with_its_status(ask: Ask) -> None:
    reply = asked(ask, answering(b"HTTP/1.1 503 No\r\ncontent-length: 2\r\n\r\n\xffa"))
    assert (reply.status, reply.body, reply.text) == (503, b"\xffa", "\ufffda")


@BOTH
@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (HEAD + b"content-length: 100000\r\n\r\n", b"#"),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n#\r\n"),
        (HEAD + b"x-odd: ", b"x"),
        (b"", b""),
    ],
    ids=["body", "chunks", "head", "silence"],
)
def test_a_reply_that_drips_ends_at_the_deadline(
    ask: Ask, head: bytes, drop: bytes
) -> None:
    with pytest.raises(GetError, match=r"no whole reply within 0\.4 s"):
        asked(ask, dripping(head, drop))


@BOTH
def test_a_reply_without_end_is_cut(ask: Ask) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + b"\r\n")
        while not peer.gone.is_set():
            await peer.send(b"# x\n" * 1000)
            await asyncio.sleep(0)

    with pytest.raises(GetError, match="over 100000 bytes"):
        asked(ask, script)


@BOTH
def test_a_small_reply_that_unpacks_to_a_large_one_is_cut(ask: Ask) -> None:
    with pytest.raises(GetError, match="over 100000 bytes"):
        asked(ask, answering(packed(gzip.compress(bytes(10_000_000)))))


@BOTH
@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (gzip.compress(b"joules 5\n"), b"gzip"),
        (gzip.compress(b"joules ") + gzip.compress(b"5\n"), b"GZIP"),
        (zlib.compress(b"joules 5\n"), b"deflate"),
        (b"joules 5\n", b"identity"),
    ],
    ids=["gzip", "members", "deflate", "identity"],
)
def test_what_is_packed_unasked_is_unpacked(
    ask: Ask, body: bytes, encoding: bytes
) -> None:
    assert asked(ask, answering(packed(body, encoding))).text == "joules 5\n"


@BOTH
@pytest.mark.parametrize(
    ("body", "encoding", "reason"),
    [
        (b"nonsense", b"gzip", "damaged"),
        (gzip.compress(b"joules 5\n")[:-4], b"gzip", "cut off"),
        (b"x", b"br", "content-encoding 'br' was not asked for"),
    ],
    ids=["damaged", "cut", "unasked"],
)
def test_what_cannot_be_unpacked_is_said(
    ask: Ask, body: bytes, encoding: bytes, reason: str
) -> None:
    with pytest.raises(GetError, match=reason):
        asked(ask, answering(packed(body, encoding)))


@BOTH
@pytest.mark.parametrize(
    ("url", "is_unreachable"),
    [
        ("http://127.0.0.1:9/metrics", True),
        ("ftp://127.0.0.1/metrics", False),
        ("http://127.0.0.1:99999/", False),
    ],
)
def test_what_cannot_be_asked_is_one_line(
    ask: Ask, url: str, is_unreachable: bool
) -> None:
    async def run() -> None:
        await ask(url)

    with pytest.raises(GetError) as caught:
        asyncio.run(run())
    assert "\n" not in str(caught.value)
    assert caught.value.is_unreachable is is_unreachable


@BOTH
@pytest.mark.parametrize("garbage", [b"\x00\x01\n", b"HTTP/9 what\r\n\r\n", b""])
def test_what_is_not_http_is_one_line(ask: Ask, garbage: bytes) -> None:
    with pytest.raises(GetError):
        asked(ask, answering(garbage))


@given(
    body=st.binary(max_size=2000),
    cuts=st.lists(st.integers(0, 2000)),
    limit=st.integers(0, 2000),
    is_packed=st.booleans(),
)
def test_a_body_is_what_was_sent_or_too_long_however_it_is_cut(
    body: bytes, cuts: list[int], limit: int, is_packed: bool
) -> None:
    sent = gzip.compress(body) if is_packed else body
    reader = BoundedBody("gzip" if is_packed else "", limit)
    edges = [0, *sorted(cuts), len(sent)]
    try:
        for start, stop in pairwise(edges):
            reader.feed(sent[start:stop])
    except GetError:
        assert max(len(sent), len(body)) > limit
    else:
        assert max(len(body), len(sent)) <= limit
        assert reader.whole() == body


def open_sockets() -> int:
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            count += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return count


def test_a_question_that_is_given_up_at_any_moment_leaves_no_connection() -> None:
    """While a connection is made, too: httpcore's pool keeps such a one for good."""

    async def run() -> None:
        async with ScriptedServer(
            answering(HEAD + b"Content-Length: 2\r\n\r\nok")
        ) as it:
            before = open_sockets()
            async with AsyncGetter() as getter:
                for turns in range(60):
                    asking = asyncio.create_task(getter.get(f"{it.url}/metrics"))
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    asking.cancel()
                    await asyncio.gather(asking, return_exceptions=True)
                assert (await getter.get(f"{it.url}/metrics")).body == b"ok"
                # both ends of one connection, once the server has closed the others
                while open_sockets() > before + 2:  # noqa: ASYNC110  nobody tells
                    await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(run(), 10))
