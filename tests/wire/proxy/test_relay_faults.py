"""Who leaves when: clients, engines and clocks that give up, and what stays true."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from typing import Any

import pytest

from proxy.engines import DIALECTS
from proxy.errors import ConfigError, ProxyError
from proxy.process.build import build_form
from proxy.process.protocol import factory_of
from proxy.relay.client.response import Outgoing
from proxy.relay.config import RelayConfig
from proxy.relay.server import start_relay
from proxy.relay.upstream.connection import Receiver, UpstreamConnection
from proxy.wire.http1 import ReplyHead
from tests.support.captures import reply_head_and_body, stream_body
from tests.support.relaying import (
    RecordingMeter,
    answering,
    cutting,
    holding,
    relaying,
    run,
)
from tests.support.scripted import (
    DONE,
    LAST_CHUNK,
    Peer,
    Script,
    ScriptedServer,
    chunk,
    reply_bytes,
    request_bytes,
    sse,
    stream_head,
)

CHAT = b'{"model":"tiny","stream":true,"stream_options":{"include_usage":true}}'
PLAIN = b'{"model":"tiny"}'
TOKEN = sse({"choices": [{"index": 0, "delta": {"content": "a"}}]})


# --- the client leaves --------------------------------------------------------


@pytest.mark.parametrize(
    ("sent_before", "body", "status"),
    [
        (b"", CHAT, None),
        (stream_head(), CHAT, 200),
        (stream_head() + chunk(TOKEN), CHAT, 200),
        (b"", PLAIN, None),
    ],
    ids=["before headers", "after headers", "mid-stream", "not streamed"],
)
@pytest.mark.parametrize("leaves", ["close", "abort"])
def test_a_client_that_leaves_closes_the_engines_connection(
    loop: str, sent_before: bytes, body: bytes, status: int | None, leaves: str
) -> None:
    asked = asyncio.Event()

    async def script(peer: Peer) -> None:
        assert await peer.request() is not None
        asked.set()
        await peer.send(sent_before)
        await peer.gone.wait()  # nothing but the client's leaving can end this

    async def test() -> None:
        async with relaying(script) as bench:
            client = await bench.client()
            await client.send(request_bytes(body=body))
            await asked.wait()
            if sent_before:
                await client.until(sent_before[-20:])
            client.close() if leaves == "close" else client.abort()
            await bench.upstream.peers[0].gone.wait()
            request = await bench.meter.only()
            assert (request.outcome, request.status) == ("aborted", status)
            assert request.error == "the client left"
            assert bench.relay.counters.requests == {"aborted": 1}
            assert bench.relay.counters.in_flight == 0

    run(loop, test)


def test_tokens_received_before_the_client_left_are_metered(loop: str) -> None:
    async def test() -> None:
        async with relaying(
            holding(stream_head(), chunk(TOKEN), chunk(TOKEN))
        ) as bench:
            client = await bench.client()
            await client.send(request_bytes(body=CHAT))
            await client.until(TOKEN)
            await client.until(TOKEN)
            client.abort()
            request = await bench.meter.only()
            assert sum(update.carries_token for update in request.updates) == 2

    run(loop, test)


def test_a_client_that_leaves_while_the_engine_is_dialled_is_accounted_for() -> None:
    async def test() -> None:
        async with relaying(_never_asked) as bench:
            client = await bench.client()
            client.transport.write(request_bytes(body=CHAT))
            client.transport.write_eof()
            request = await bench.meter.only()
            assert request.outcome == "aborted"

    run("uvloop", test)


async def _never_asked(peer: Peer) -> None:
    assert await peer.request() is None


# --- the engine fails ---------------------------------------------------------


def test_an_engine_that_is_down_is_a_502_naming_it(loop: str) -> None:
    async def test() -> None:
        async with relaying(_never_asked) as bench:
            url = bench.upstream.url
            await bench.upstream.stop()
            client = await bench.client()
            for _ in range(2):
                await client.send(
                    request_bytes(body=CHAT, headers=[("x-request-id", "r-1")])
                )
                reply = await client.reply()
                assert reply.status == 502
                assert reply.one("x-request-id") == "r-1"
                error = reply.json()["error"]
                assert set(error) == {"message", "type", "code"}
                assert error["code"] == "upstream_unreachable"
                assert error["message"].startswith(f"upstream {url} cannot be reached")
                assert "\n" not in error["message"]
            for request in await bench.meter.closings(2):
                assert request.outcome == "upstream_error"

    run(loop, test)


@pytest.mark.parametrize(
    "sent",
    [b"", b"HTTP/1.1 200 OK\r\ncontent-", b"220 smtp.example.org\r\n"],
    ids=["nothing", "half a head", "another protocol"],
)
def test_an_engine_that_leaves_before_its_head_is_a_502(loop: str, sent: bytes) -> None:
    async def test() -> None:
        async with relaying(cutting(sent)) as bench:
            reply = await bench.ask(body=CHAT)
            assert reply.status == 502
            assert reply.json()["error"]["code"] == "upstream_closed"
            request = await bench.meter.only()
            assert request.outcome == "upstream_error"
            assert len(bench.upstream.peers) == 1, "a fresh connection is not retried"

    run(loop, test)


@pytest.mark.parametrize(
    "sent",
    [
        stream_head() + chunk(TOKEN),
        reply_bytes(200, b"x" * 100)[:-1],
        stream_head() + chunk(TOKEN) + b"zz\r\n",
    ],
    ids=["chunked", "with a length", "broken framing"],
)
def test_a_reply_cut_by_the_engine_is_cut_off_here_too(loop: str, sent: bytes) -> None:
    async def test() -> None:
        async with relaying(cutting(sent)) as bench:
            reply = await bench.ask(body=CHAT)
            assert not reply.is_complete
            assert reply.body == (TOKEN if b"chunked" in sent else b"x" * 99)
            request = await bench.meter.only()
            assert (request.outcome, request.status) == ("upstream_error", 200)
            assert bench.upstream.url in (request.error or "")

    run(loop, test)


@pytest.mark.parametrize(
    ("engine", "target", "stream", "error"),
    [
        (
            "vllm",
            "/v1/chat/completions",
            stream_body("vllm_mid_stream_error"),
            "EngineCore encountered an issue. See stack trace (above) for the root "
            "cause.",
        ),
        (
            "tgi",
            "/generate_stream",
            sse({"error": "Model is overloaded", "error_type": "overloaded"}),
            "Model is overloaded",
        ),
        (
            "tgi",
            "/v1/completions",
            sse({"error": {"message": "too long", "http_status_code": 422}}) + DONE,
            "too long",
        ),
        (
            "vllm",
            "/v1/chat/completions",
            TOKEN,
            "the stream ended before its end marker",
        ),
    ],
    ids=["vllm", "tgi native", "tgi openai", "no end event"],
)
def test_a_200_that_fails_inside_is_an_error(
    loop: str, engine: str, target: str, stream: bytes, error: str
) -> None:
    async def test() -> None:
        async with relaying(
            cutting(stream_head(), chunk(stream), LAST_CHUNK), engine
        ) as bench:
            reply = await bench.ask(target=target, body=CHAT)
            assert (reply.status, reply.body) == (200, stream)
            request = await bench.meter.only()
            assert (request.outcome, request.status) == ("error", 200)
            assert request.error == error

    run(loop, test)


def test_transformers_may_end_without_done(loop: str) -> None:
    head, body = reply_head_and_body("hf_chat_stream")

    async def test() -> None:
        async with relaying(cutting(head + body), "transformers") as bench:
            assert (await bench.ask(body=CHAT)).is_complete
            assert (await bench.meter.only()).outcome == "ok"

    run(loop, test)


def test_transformers_that_ends_without_its_last_event_is_an_error(loop: str) -> None:
    head, _ = reply_head_and_body("hf_chat_stream")
    before_last, _, _ = stream_body("hf_chat_stream").rpartition(b"data: ")

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(head, chunk(before_last), LAST_CHUNK)

    async def test() -> None:
        async with relaying(script, "transformers") as bench:
            client = await bench.client()
            await client.send(request_bytes(body=CHAT))
            assert (await client.reply()).is_complete
            request = await bench.meter.only()
            assert request.outcome == "error"
            assert request.error == "the stream ended before its end marker"

    run(loop, test)


@pytest.mark.parametrize("status", [400, 429, 500, 503])
def test_an_error_status_passes_and_is_an_error(loop: str, status: int) -> None:
    body = json.dumps({"error": {"message": "no", "code": status}}).encode()

    async def test() -> None:
        async with relaying(answering(reply_bytes(status, body))) as bench:
            reply = await bench.ask(body=CHAT)
            assert (reply.status, reply.body) == (status, body)
            request = await bench.meter.only()
            assert (request.outcome, request.status, request.error) == (
                "error",
                status,
                "no",
            )

    run(loop, test)


# --- kept connections ---------------------------------------------------------


def test_one_connection_serves_requests_one_after_another(loop: str) -> None:
    async def test() -> None:
        async with relaying(answering(reply_bytes())) as bench:
            client = await bench.client()
            for _ in range(5):
                await client.send(request_bytes(body=PLAIN))
                assert (await client.reply()).status == 200
            assert len(bench.upstream.peers) == 1

    run(loop, test)


def test_a_kept_connection_that_the_engine_closed_is_not_used(loop: str) -> None:
    async def test() -> None:
        async with relaying(cutting(reply_bytes())) as bench:
            client = await bench.client()
            for _ in range(3):
                await client.send(request_bytes(body=PLAIN))
                assert (await client.reply()).status == 200
                await bench.upstream.peers[-1].lost.wait()
            assert len(bench.upstream.peers) == 3
            assert {r.outcome for r in await bench.meter.closings(3)} == {"ok"}

    run(loop, test)


async def reads_the_second_and_closes(peer: Peer) -> None:
    """A reply to a connection's first request, none to its second, which it reads."""
    first = await peer.request()
    assert first is not None
    if first.one("x-first"):
        await peer.send(reply_bytes())
        await peer.request()
    elif first.method == "GET" and "twice" not in first.target:
        await peer.send(reply_bytes())


def test_a_post_that_may_have_been_read_is_never_sent_twice(loop: str) -> None:
    async def test() -> None:
        async with relaying(reads_the_second_and_closes) as bench:
            client = await bench.client()
            await client.send(request_bytes(body=PLAIN, headers=[("x-first", "1")]))
            assert (await client.reply()).status == 200
            await client.send(request_bytes(body=PLAIN))
            assert (await client.reply()).status == 502
            assert len(bench.upstream.requests) == 2
            assert bench.relay.counters.upstream_retries == 0

    run(loop, test)


@pytest.mark.parametrize(("query", "status"), [("", 200), ("?twice", 502)])
def test_a_get_that_met_a_closing_connection_is_sent_once_more(
    loop: str, query: str, status: int
) -> None:
    async def test() -> None:
        async with relaying(reads_the_second_and_closes) as bench:
            client = await bench.client()
            await client.send(request_bytes(body=PLAIN, headers=[("x-first", "1")]))
            assert (await client.reply()).status == 200
            await client.send(request_bytes("GET", f"/v1/models{query}"))
            assert (await client.reply()).status == status
            assert len(bench.upstream.requests) == 3, "never a third time"
            assert bench.relay.counters.upstream_retries == 1

    run(loop, test)


@pytest.mark.skipif(
    build_form() == "compiled", reason="a native connection takes no made up exchange"
)
@pytest.mark.parametrize("is_read", [False, True])
def test_a_connection_knows_whether_its_request_can_have_been_read(
    loop: str, is_read: bool
) -> None:
    class Asker(Receiver):
        def __init__(self) -> None:
            self.is_head_request = False
            self.lost = asyncio.Event()

        def begin(self, head: ReplyHead) -> None:
            raise AssertionError

        def deliver(self, at_seconds: float, data: bytes, is_last: bool) -> None:
            raise AssertionError

        def upstream_lost(self, reason: str) -> None:
            self.lost.set()

    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            connection = UpstreamConnection(time.monotonic, lambda connection: None)
            await asyncio.get_running_loop().create_connection(
                factory_of(connection), *server.getsockname()
            )
            engine, _ = server.accept()
            connection.was_used = True
            asker = Asker()
            if not is_read:
                engine.close()  # and the relay's loop has not heard of it yet
            connection.send(asker, [request_bytes(body=PLAIN)])
            if is_read:
                assert engine.recv(64)
                engine.close()
            await asker.lost.wait()
            assert connection.was_unread is not is_read

    run(loop, test)


def test_a_request_whose_reply_had_begun_is_not_sent_again(loop: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(reply_bytes())
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n")

    async def test() -> None:
        async with relaying(script) as bench:
            client = await bench.client()
            await client.send(request_bytes(body=PLAIN))
            await client.reply()
            await client.send(request_bytes(body=PLAIN))
            assert (await client.reply()).status == 502
            assert len(bench.upstream.requests) == 2

    run(loop, test)


def test_an_old_idle_connection_is_closed_before_the_engine_does(loop: str) -> None:
    async def test() -> None:
        async with relaying(
            holding(reply_bytes()), upstream_idle_seconds=0.0, beat_seconds=0.01
        ) as bench:
            client = await bench.client()
            await client.send(request_bytes(body=PLAIN))
            await client.reply()
            await bench.upstream.peers[0].gone.wait()
            assert bench.relay.counters.upstream_idle == 0

    run(loop, test)


def test_bytes_after_a_reply_are_dropped_with_their_connection(loop: str) -> None:
    async def test() -> None:
        async with relaying(
            holding(reply_bytes(200, b"mine") + reply_bytes(200, b"not asked for"))
        ) as bench:
            client = await bench.client()
            for number in range(2):
                await client.send(request_bytes(body=PLAIN))
                assert (await client.reply()).body == b"mine"
                await bench.upstream.peers[number].gone.wait()

    run(loop, test)


# --- slow ones ----------------------------------------------------------------


def test_an_engine_that_never_answers_is_a_504(loop: str) -> None:
    async def test() -> None:
        async with relaying(
            holding(), first_byte_timeout_seconds=0.01, beat_seconds=0.01
        ) as bench:
            reply = await bench.ask(body=CHAT)
            assert reply.status == 504
            assert reply.json()["error"]["code"] == "upstream_timeout"
            assert (await bench.meter.only()).outcome == "timeout"
            await bench.upstream.peers[0].gone.wait()

    run(loop, test)


def test_an_engine_that_stops_in_mid_stream_times_out_if_so_configured(
    loop: str,
) -> None:
    async def test() -> None:
        async with relaying(
            holding(stream_head(), chunk(TOKEN)),
            read_timeout_seconds=0.01,
            beat_seconds=0.01,
        ) as bench:
            reply = await bench.ask(body=CHAT)
            assert (reply.body, reply.is_complete) == (TOKEN, False)
            request = await bench.meter.only()
            assert (request.outcome, request.status) == ("timeout", 200)

    run(loop, test)


# --- start and stop -----------------------------------------------------------


def test_draining_lets_requests_finish_and_closes_idle_clients(loop: str) -> None:
    gate = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(stream_head(), chunk(TOKEN))
        await gate.wait()
        await peer.send(chunk(DONE), LAST_CHUNK)

    async def test() -> None:
        async with relaying(script) as bench:
            idle, busy = await bench.client(), await bench.client()
            await busy.send(request_bytes(body=CHAT))
            await busy.until(TOKEN)
            draining = asyncio.ensure_future(bench.relay.drain(10))
            await idle.gone.wait()
            gate.set()
            assert await draining == 0
            assert await busy.until(LAST_CHUNK)
            await busy.gone.wait()
            assert (await bench.meter.only()).outcome == "ok"

    run(loop, test)


def test_closing_cuts_what_is_left_and_accounts_for_it(loop: str) -> None:
    async def test() -> None:
        async with relaying(holding(stream_head(), chunk(TOKEN))) as bench:
            client = await bench.client()
            await client.send(request_bytes(body=CHAT))
            await client.until(TOKEN)
            assert await bench.relay.drain(0.0) == 1
            await bench.relay.close()
            request = await bench.meter.only()
            assert (request.outcome, request.error) == (
                "aborted",
                "the proxy was stopped",
            )
            await client.gone.wait()

    run(loop, test)


def test_a_taken_port_is_one_clear_line(loop: str) -> None:
    async def test() -> None:
        async with ScriptedServer(_never_asked) as other:
            config = RelayConfig(other.url, port=other.port)
            with pytest.raises(ProxyError, match=f"127.0.0.1:{other.port}: .*--listen"):
                await start_relay(config, RecordingMeter(), DIALECTS["vllm"])

    run(loop, test)


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://host",
        "http://",
        "http://h:port",
        "http://h/?a=1",
        "http://user:secret@h",
    ],
)
def test_an_upstream_that_is_not_a_plain_http_url_is_refused(url: str) -> None:
    async def test() -> Any:
        with pytest.raises(ConfigError, match="upstream"):
            await start_relay(RelayConfig(url), RecordingMeter(), DIALECTS["vllm"])

    run("asyncio", test)


def endless(gone: asyncio.Event) -> Script:
    """Streams more than any buffer holds, until its client is gone."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(stream_head())
        while not peer.gone.is_set():
            await peer.send(chunk(sse("x" * 60_000)))
        gone.set()

    return script


def test_a_client_that_never_reads_is_cut_and_its_engine_freed(loop: str) -> None:
    async def test() -> None:
        gone = asyncio.Event()
        async with relaying(endless(gone), write_timeout_seconds=0.1) as bench:
            client = await bench.client()
            client.transport.pause_reading()
            await client.send(request_bytes(body=CHAT))
            await gone.wait()
            request = await bench.meter.only()
            assert request.outcome == "aborted"
            assert request.error == "the client stopped reading"
            assert bench.relay.counters.pauses > 0
            assert bench.relay.counters.timeouts == {"reading": 1}
            assert bench.relay.counters.clients_open == 0

    run(loop, test)


def test_a_client_that_reads_ever_so_slowly_is_not_stuck() -> None:
    class Buffer(asyncio.Transport):
        unread = 1000

        def get_write_buffer_size(self) -> int:
            return self.unread

    buffer = Buffer()
    outgoing = Outgoing(
        buffer, b"r", is_http_10=False, is_head_request=False, keeps_alive=True
    )
    assert not outgoing.is_stuck(0.0, None)
    for minute in range(1, 10):
        buffer.unread -= 1
        assert not outgoing.is_stuck(60.0 * minute, 60.0)
    assert not outgoing.is_stuck(599.0, 60.0)
    assert outgoing.is_stuck(600.0, 60.0)
