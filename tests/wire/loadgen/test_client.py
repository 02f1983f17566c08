"""The client against a scripted server on real sockets."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from loadgen.client import client as client_module
from loadgen.client.backends import Target
from loadgen.client.client import HttpClient, discover_model
from loadgen.client.connection import MAX_REPLY_BYTES, PIECE_BYTES, Response
from loadgen.errors import StackError, UsageError
from loadgen.replay.clock import SystemClock
from tests.support.scripted import (
    DONE,
    LAST_CHUNK,
    Peer,
    ScriptedServer,
    chunk,
    reply_bytes,
    request_bytes,
    running,
    sse,
    stream_head,
)

NOW = SystemClock().now
REQUEST = request_bytes(body=b"{}")


async def answer_all(peer: Peer) -> None:
    while await peer.request() is not None:
        await peer.send(stream_head(), chunk(DONE), LAST_CHUNK)


async def answer_once(peer: Peer, *pieces: bytes) -> None:
    await peer.request()
    await peer.send(*pieces)


def of(server: ScriptedServer) -> HttpClient:
    return HttpClient(Target(server.url, "vllm"), NOW)


async def sent(client: HttpClient, request: bytes = REQUEST) -> Response:
    response = Response()
    await client.send(request, response)
    return response


async def first_piece(response: Response) -> None:
    """Return once something arrived; the client has no event to wait for."""
    while not response.pieces:  # noqa: ASYNC110
        await asyncio.sleep(0)


def exchanged(script: Callable[[Peer], Awaitable[None]]) -> Response:
    """One request to a server that follows `script`."""

    async def main() -> Response:
        async with ScriptedServer(script) as server:
            client = of(server)
            response = await sent(client)
            await client.close()
            return response

    return asyncio.run(main())


def test_a_reply_is_kept_whole_with_its_stamps_in_order() -> None:
    async def script(peer: Peer) -> None:
        await answer_once(peer, stream_head(), chunk(b"one"), chunk(b"two"), LAST_CHUNK)

    response = exchanged(script)
    assert response.failure is None
    assert response.status == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert b"".join(response.pieces) == b"onetwo"
    assert response.sent_at is not None
    assert response.finished_at is not None
    moments = [response.sent_at, *response.stamps, response.finished_at]
    assert moments == sorted(moments)


def test_pieces_of_one_read_have_one_stamp() -> None:
    async def script(peer: Peer) -> None:
        await answer_once(peer, stream_head() + chunk(b"one") + chunk(b"two"))
        await peer.gone.wait()

    async def main() -> Response:
        async with ScriptedServer(script) as server:
            client, response = of(server), Response()
            task = asyncio.create_task(client.send(REQUEST, response))
            await first_piece(response)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return response

    response = asyncio.run(main())
    assert len(response.pieces) == 2
    assert response.stamps[0] == response.stamps[1]


def test_connections_are_used_again() -> None:
    async def main() -> None:
        async with ScriptedServer(answer_all) as server:
            client = of(server)
            exchanges = [await sent(client) for _ in range(3)]
            assert [e.is_reused for e in exchanges] == [False, True, True]
            assert len(server.peers) == 1
            assert (client.counts.opened, client.counts.reused) == (1, 2)
            await client.close()

    asyncio.run(main())


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_nothing_limits_how_many_requests_are_in_flight(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    arrived = itertools.count(1)
    held: list[Peer] = []

    async def script(peer: Peer) -> None:
        await peer.request()
        held.append(peer)
        if next(arrived) == 150:  # only when all are here is anyone answered
            for each in held:
                await each.send(stream_head(), chunk(DONE), LAST_CHUNK)
        await peer.gone.wait()

    async def main(server: ScriptedServer) -> list[Response]:
        client = of(server)
        exchanges = await asyncio.gather(*(sent(client) for _ in range(150)))
        await client.close()
        return exchanges

    with running(script) as server, asyncio.Runner(loop_factory=loop) as runner:
        exchanges = runner.run(main(server))
    assert {e.failure for e in exchanges} == {None}
    assert {e.status for e in exchanges} == {200}


def test_a_reserved_connection_is_open_before_the_request() -> None:
    async def main() -> None:
        async with ScriptedServer(answer_all) as server:
            client = of(server)
            await client.reserve()
            await client.reserve()
            assert client.counts.opened == 2
            await asyncio.gather(sent(client), sent(client))
            assert client.counts.opened == 2
            await client.reserve()
            assert client.counts.opened == 2  # an idle one is there already
            await client.close()

    asyncio.run(main())


def test_a_connection_idle_for_too_long_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "IDLE_SECONDS", -1.0)

    async def main() -> None:
        async with ScriptedServer(answer_all) as server:
            client = of(server)
            exchanges = [await sent(client) for _ in range(2)]
            assert [e.is_reused for e in exchanges] == [False, False]
            await client.close()

    asyncio.run(main())


def test_a_connection_the_server_closed_while_idle_is_not_used() -> None:
    async def main() -> None:
        async with ScriptedServer(answer_all) as server:
            client = of(server)
            await sent(client)
            server.peers[0].close()
            while client.counts.open:  # noqa: ASYNC110
                await asyncio.sleep(0)
            response = await sent(client)
            assert (response.failure, response.is_reused) == (None, False)
            await client.close()

    asyncio.run(main())


def test_a_server_that_closes_after_each_reply_is_respected() -> None:
    async def script(peer: Peer) -> None:
        await answer_once(peer, reply_bytes(headers=[("connection", "close")]))

    async def main() -> None:
        async with ScriptedServer(script) as server:
            client = of(server)
            exchanges = [await sent(client) for _ in range(2)]
            assert [e.failure for e in exchanges] == [None, None]
            assert client.counts.opened == 2
            await client.close()

    asyncio.run(main())


def test_a_reply_without_a_length_ends_with_the_connection() -> None:
    async def script(peer: Peer) -> None:
        await answer_once(
            peer, b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n", b"all"
        )

    response = exchanged(script)
    assert response.failure is None
    assert b"".join(response.pieces) == b"all"


def test_an_interim_reply_is_passed_over() -> None:
    async def script(peer: Peer) -> None:
        await answer_once(
            peer, b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n", reply_bytes(503)
        )

    response = exchanged(script)
    assert response.status == 503
    assert "link" not in response.headers
    assert response.failure is None


def test_a_stream_cut_in_the_middle_is_a_failure_that_keeps_what_came() -> None:
    async def script(peer: Peer) -> None:
        await answer_once(peer, stream_head(), chunk(sse("one")))

    response = exchanged(script)
    assert response.failure == "the connection was closed in the middle of the reply"
    assert response.pieces == [sse("one")]
    assert response.finished_at is not None


def test_a_connection_closed_without_a_reply_is_a_failure() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()

    response = exchanged(script)
    assert response.failure == "the connection was closed before any reply"
    assert response.status is None
    assert response.sent_at is not None


def test_a_reply_that_is_not_http_is_a_failure() -> None:
    async def script(peer: Peer) -> None:
        await answer_once(peer, b"SSH-2.0-OpenSSH_9.2\r\n")

    assert (exchanged(script).failure or "").startswith("the reply is not HTTP")


def test_a_long_error_page_is_not_kept_whole() -> None:
    async def script(peer: Peer) -> None:
        await answer_once(peer, reply_bytes(500, b"x" * 5_000_000))

    response = exchanged(script)
    assert response.status == 500
    assert response.failure is None
    assert sum(map(len, response.pieces)) < 1_000_000


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (stream_head(), chunk(1024 * 1024 * b"a")),
        (stream_head(), 10_000 * chunk(b"a")),  # its pieces cost more than its bytes
        (b"HTTP/1.1 200 OK\r\ncontent-length: 4294967296\r\n\r\n", 1024 * 1024 * b"a"),
    ],
)
def test_a_reply_without_end_fails_and_is_kept_up_to_a_bound(
    head: bytes, piece: bytes
) -> None:
    async def script(peer: Peer) -> None:
        await answer_once(peer, head)
        while not peer.gone.is_set():
            await peer.send(piece)
            await asyncio.sleep(0)  # a transport that is closing takes all at once

    response = exchanged(script)
    assert response.failure == "the reply is larger than 64 MiB; the rest was not read"
    kept_bytes = sum(PIECE_BYTES + len(piece) for piece in response.pieces)
    assert kept_bytes <= MAX_REPLY_BYTES + 8 * 1024 * 1024
    assert len(response.stamps) == len(response.pieces)


def test_a_refused_connection_was_never_sent() -> None:
    async def main() -> None:
        async with ScriptedServer(answer_all) as server:
            pass  # its port is free again, nobody listens there
        client = of(server)
        await client.reserve()  # no news before the request is due
        response = await sent(client)
        assert response.failure == f"connection refused by 127.0.0.1:{server.port}"
        assert response.sent_at is None
        assert response.finished_at is not None

    asyncio.run(main())


def test_a_cancelled_request_disconnects_so_that_the_engine_can_stop() -> None:
    async def script(peer: Peer) -> None:
        await answer_once(peer, stream_head(), chunk(sse("one")))
        await peer.gone.wait()

    async def main() -> None:
        async with ScriptedServer(script) as server:
            client, response = of(server), Response()
            task = asyncio.create_task(client.send(REQUEST, response))
            await first_piece(response)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await server.peers[0].gone.wait()
            assert response.pieces == [sse("one")]

    asyncio.run(main())


def test_bytes_nobody_asked_for_end_the_connection() -> None:
    async def script(peer: Peer) -> None:
        await answer_once(peer, reply_bytes() + reply_bytes(408))
        await peer.gone.wait()

    async def main() -> None:
        async with ScriptedServer(script) as server:
            client = of(server)
            first = await sent(client)
            assert (first.status, first.failure) == (200, None)
            second = await sent(client)
            assert second.status == 200
            await client.close()

    asyncio.run(main())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that nobody signed but itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test"
    command += " -addext subjectAltName=IP:127.0.0.1"
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    return certificate, key


@pytest.mark.parametrize("is_trusted", [True, False])
def test_tls_is_spoken_with_those_who_can_prove_who_they_are(
    certificate: tuple[Path, Path], is_trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)

    async def answer(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await reader.readuntil(b"{}")
        writer.write(reply_bytes(200))
        await reader.read()  # until the client leaves
        writer.close()

    async def main() -> Response:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        async with server:
            client = HttpClient(Target(f"https://127.0.0.1:{port}", "vllm"), NOW)
            response = await sent(client)
            await client.close()
        return response

    response = uvloop.run(main())
    if is_trusted:
        assert (response.failure, response.status) == (None, 200)
    else:
        assert "certificate" in (response.failure or "")
        assert response.sent_at is None


MODELS = b'{"object":"list","data":[{"id":"llama"},{"id":"lora"}]}'


def discovered(*pieces: bytes, backend: str = "vllm", path: str = "") -> str | None:
    async def main() -> str | None:
        async def script(peer: Peer) -> None:
            await answer_once(peer, *pieces)

        async with ScriptedServer(script) as server:
            target = Target(server.url + path, backend, api_key="sk")
            model = await discover_model(target, NOW)
            if server.requests:
                assert server.requests[0].target == "/v1/models"
                assert server.requests[0].one("authorization") == "Bearer sk"
            return model

    return asyncio.run(main())


@pytest.mark.parametrize("path", ["", "/v1"])
def test_the_model_is_the_first_one_listed(path: str) -> None:
    assert discovered(reply_bytes(200, MODELS), path=path) == "llama"


@pytest.mark.parametrize("backend", ["tgi", "transformers"])
def test_where_the_models_listed_are_not_those_served_none_is_named(
    backend: str,
) -> None:
    assert discovered(reply_bytes(200, MODELS), backend=backend) is None


@pytest.mark.parametrize(
    "reply",
    [
        reply_bytes(200, b'{"data": []}'),
        reply_bytes(200, b"<html>"),
        reply_bytes(500, MODELS),
    ],
)
def test_a_target_that_lists_no_model_asks_for_the_option(reply: bytes) -> None:
    with pytest.raises(UsageError, match="--model"):
        discovered(reply)


def test_a_target_that_is_not_there_is_told_in_one_line() -> None:
    async def main() -> None:
        async with ScriptedServer(answer_all) as server:
            pass
        await discover_model(Target(server.url, "vllm"), NOW)

    with pytest.raises(StackError, match="connection refused"):
        asyncio.run(main())
