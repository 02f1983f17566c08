"""What passes the relay: bytes, headers, usage, and what the meter hears of it."""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from proxy.meter.config import MeterConfig
from proxy.meter.meter import Meter
from tests.support.captures import STREAMS, reply_head_and_body, stream_body
from tests.support.relaying import (
    answering,
    ask,
    cutting,
    relaying,
    run,
    serving,
    streaming,
)
from tests.support.scripted import (
    DONE,
    LAST_CHUNK,
    Peer,
    ScriptedServer,
    chunk,
    connect,
    reply_bytes,
    request_bytes,
    sse,
    stream_head,
)

CHAT = b'{"model":"tiny","stream":true,"messages":[]}'
CHAT_WITH_USAGE = (
    b'{"model":"tiny","stream":true,"stream_options":{"include_usage":true}}'
)
USAGE: dict[str, Any] = {
    "id": "x",
    "choices": [],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}


def text(content: str) -> dict[str, Any]:
    return {"id": "x", "choices": [{"index": 0, "delta": {"content": content}}]}


# --- bytes --------------------------------------------------------------------


@pytest.mark.parametrize("capture", [path.stem for path in STREAMS])
def test_a_recorded_stream_arrives_byte_for_byte(loop: str, capture: str) -> None:
    engine = "transformers" if capture.startswith("hf_") else "vllm"
    head, body = reply_head_and_body(capture)

    async def test() -> None:
        async with relaying(answering(head + body), engine) as bench:
            reply = await ask(await bench.client(), body=CHAT_WITH_USAGE)
            assert reply.body == stream_body(capture)
            assert reply.is_complete

    run(loop, test)


def test_a_reply_with_a_length_keeps_it(loop: str) -> None:
    body = b'{"usage":{"prompt_tokens":1,"completion_tokens":2}}'

    async def test() -> None:
        async with relaying(answering(reply_bytes(200, body))) as bench:
            reply = await ask(await bench.client(), body=b"{}")
            assert reply.body == body
            assert reply.one("content-length") == str(len(body))
            assert reply.one("transfer-encoding") is None
            request = await bench.meter.only()
            (update,) = request.updates
            assert update.usage is not None
            assert (update.usage.prompt_tokens, update.usage.output_tokens) == (1, 2)

    run(loop, test)


def test_a_reply_that_ends_with_its_connection_is_framed_for_the_client(
    loop: str,
) -> None:
    async def test() -> None:
        async with relaying(
            cutting(b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n{}")
        ) as bench:
            client = await bench.client()
            for _ in range(2):
                reply = await ask(client, body=b"{}")
                assert reply.body == b"{}"
                assert reply.one("transfer-encoding") == "chunked"

    run(loop, test)


def test_a_compressed_body_passes_byte_identical(loop: str) -> None:
    body = gzip.compress(b'{"data":[]}' * 50)
    headers = [("content-encoding", "gzip")]

    async def test() -> None:
        async with relaying(answering(reply_bytes(200, body, headers))) as bench:
            client = await bench.client()
            reply = await ask(client, method="GET", target="/v1/models")
            assert reply.body == body
            assert reply.one("content-encoding") == "gzip"
            metered = await ask(client, body=b"{}")
            assert metered.body == body
            assert (await bench.meter.only()).outcome == "ok"
            assert bench.relay.counters.unreadable_replies == 1

    run(loop, test)


def test_compression_is_not_offered_where_the_reply_is_metered(loop: str) -> None:
    async def test() -> None:
        async with relaying(answering(reply_bytes())) as bench:
            client = await bench.client()
            headers = [("Accept-Encoding", "gzip, br")]
            await ask(client, body=b"{}", headers=headers)
            await ask(client, method="GET", target="/v1/models", headers=headers)
            metered, passed = bench.upstream.requests
            assert metered.one("accept-encoding") == "identity"
            assert passed.one("accept-encoding") == "gzip, br"

    run(loop, test)


def test_a_request_body_in_chunks_arrives_whole(loop: str) -> None:
    body = chunk(b'{"model":') + chunk(b'"tiny"}') + LAST_CHUNK

    async def test() -> None:
        async with relaying(answering(reply_bytes())) as bench:
            client = await bench.client()
            head = request_bytes(headers=[("Transfer-Encoding", "chunked")])
            for at in range(0, len(body), 7):
                await client.send(head + body[:at])
                await asyncio.sleep(0)
                await client.send(body[at:])
                await client.reply()
            assert {r.body for r in bench.upstream.requests} == {b'{"model":"tiny"}'}
            assert {r.one("content-length") for r in bench.upstream.requests} == {"16"}

    run(loop, test)


def test_the_target_keeps_its_query_and_gets_the_configured_prefix(loop: str) -> None:
    async def test() -> None:
        async with relaying(answering(reply_bytes()), path="/engine/") as bench:
            client = await bench.client()
            await ask(client, target="/v1/completions?a=%20b", body=b"{}")
            await ask(client, method="GET", target="http://other:1/health")
            assert [r.target for r in bench.upstream.requests] == [
                "/engine/v1/completions?a=%20b",
                "/engine/health",
            ]
            hosts = {r.one("host") for r in bench.upstream.requests}
            assert hosts == {f"127.0.0.1:{bench.upstream.port}"}

    run(loop, test)


def test_a_redirect_to_the_engine_leads_to_this_proxy(loop: str) -> None:
    async def redirect(peer: Peer) -> None:
        while (request := await peer.request()) is not None:
            to = f"http://{request.one('host')}/engine/v1/completions".encode()
            fields = [("Location", to.decode())]
            await peer.send(reply_bytes(307, headers=fields))

    async def test() -> None:
        async with relaying(redirect, path="/engine/") as bench:
            reply = await ask(await bench.client(), target="/v1/completions/")
            assert reply.status == 307
            assert reply.one("location") == "/v1/completions"

    run(loop, test)


# --- headers ------------------------------------------------------------------


def test_hop_by_hop_and_nominated_headers_stop_at_the_relay(loop: str) -> None:
    hops = [
        ("Connection", "X-Secret, keep-alive"),
        ("X-Secret", "1"),
        ("Keep-Alive", "timeout=5"),
        ("TE", "trailers"),
        ("Trailer", "X"),
        ("Upgrade", "none"),
        ("Proxy-Authorization", "p"),
        ("Proxy-Connection", "keep-alive"),
    ]
    kept = [("X-Twice", "a"), ("X-Twice", "b"), ("Authorization", "Bearer k")]

    async def test() -> None:
        replying = answering(reply_bytes(200, b"{}", hops + kept))
        async with relaying(replying) as bench:
            reply = await ask(await bench.client(), body=b"{}", headers=hops + kept)
            for message in (bench.upstream.requests[0], reply):
                for name, _ in hops:
                    assert message.all(name) == [], name
                assert message.all("x-twice") == ["a", "b"]
                assert message.one("authorization") == "Bearer k"

    run(loop, test)


def test_the_request_id_goes_up_and_comes_back(loop: str) -> None:
    theirs = [("X-Request-ID", "the-engines-own")]

    async def test() -> None:
        async with relaying(answering(reply_bytes(200, b"{}", theirs))) as bench:
            client = await bench.client()
            reply = await ask(client, body=b"{}", headers=[("x-request-id", "mine-1")])
            assert reply.one("x-request-id") == "mine-1"
            assert bench.upstream.requests[0].one("x-request-id") == "mine-1"
            assert (await bench.meter.only()).request_id == "mine-1"

    run(loop, test)


@pytest.mark.parametrize("given", [[], [("x-request-id", "x" * 300)]])
def test_a_missing_or_unfit_request_id_is_made(
    loop: str, given: list[tuple[str, str]]
) -> None:
    async def test() -> None:
        async with relaying(answering(reply_bytes())) as bench:
            client = await bench.client()
            ids = {
                (await ask(client, body=b"{}", headers=given)).one("x-request-id")
                for _ in range(3)
            }
            assert len(ids) == 3
            assert {r.one("x-request-id") for r in bench.upstream.requests} == ids
            assert all(len(i or "") == 32 for i in ids)

    run(loop, test)


def test_our_own_headers_stop_here_and_become_labels(loop: str) -> None:
    headers = [
        ("X-Servewatt-Kind", "code"),
        ("x-servewatt-other", "1"),
        ("x-team", "blue"),
    ]

    async def test() -> None:
        async with relaying(
            answering(reply_bytes()),
            tenant_header="X-Team",
            tenants=frozenset(["blue"]),
        ) as bench:
            await ask(await bench.client(), body=CHAT, headers=headers)
            sent = {name.lower() for name, _ in bench.upstream.requests[0].headers}
            assert not {name for name in sent if name.startswith("x-servewatt")}
            assert "x-team" in sent
            labels = (await bench.meter.only()).labels
            assert (labels.kind, labels.tenant, labels.model) == (
                "code",
                "blue",
                "tiny",
            )

    run(loop, test)


def test_streams_tell_proxies_in_front_not_to_buffer(loop: str) -> None:
    async def test() -> None:
        async with relaying(streaming(DONE)) as bench:
            reply = await ask(await bench.client(), body=CHAT)
            assert reply.one("x-accel-buffering") == "no"

    run(loop, test)


def test_server_and_date_are_the_engines(loop: str) -> None:
    theirs = [("server", "uvicorn"), ("date", "Fri, 20 Nov 2026 21:47:52 GMT")]

    async def test() -> None:
        async with relaying(answering(reply_bytes(200, b"{}", theirs))) as bench:
            reply = await ask(await bench.client(), method="GET", target="/health")
            assert (reply.one("server"), reply.one("date")) == (
                theirs[0][1],
                theirs[1][1],
            )

    run(loop, test)


# --- usage --------------------------------------------------------------------


@pytest.mark.parametrize("gap", ["", " "], ids=["compact", "spaced"])
def test_usage_asked_for_by_the_relay_is_invisible_to_the_client(
    loop: str, gap: str
) -> None:
    usage = json.dumps(USAGE, separators=(",", ":" + gap)).encode()
    before, after = sse(text("a"), text("b")), DONE
    stream = before + b"data: " + usage + b"\n\n" + after
    splits = [[stream[:at], stream[at:]] for at in range(1, len(stream))]
    reads = iter([[stream], *splits])

    async def script(peer: Peer) -> None:
        while await peer.request() is not None:
            await peer.send(stream_head())
            for read in next(reads):
                await peer.send(chunk(read))
                await asyncio.sleep(0)
            await peer.send(LAST_CHUNK)

    async def test() -> None:
        async with relaying(script, usage_event="drop") as bench:
            client = await bench.client()
            for _ in range(1 + len(splits)):
                reply = await ask(client, body=CHAT)
                assert reply.body == before + after
            for request in await bench.meter.closings(1 + len(splits)):
                usages = [u.usage for u in request.updates if u.usage is not None]
                assert [u.output_tokens for u in usages] == [2]
            asked = bench.upstream.requests[0].json()["stream_options"]
            assert asked == {"include_usage": True}

    run(loop, test)


def test_usage_that_the_client_asked_for_stays(loop: str) -> None:
    stream = sse(text("a"), USAGE) + DONE

    async def test() -> None:
        async with relaying(streaming(stream)) as bench:
            reply = await ask(await bench.client(), body=CHAT_WITH_USAGE)
            assert reply.body == stream
            assert bench.upstream.requests[0].body == CHAT_WITH_USAGE

    run(loop, test)


def test_without_asking_for_usage_the_body_is_not_touched(loop: str) -> None:
    async def test() -> None:
        async with relaying(streaming(DONE), usage_event="keep") as bench:
            await ask(await bench.client(), body=CHAT)
            assert bench.upstream.requests[0].body == CHAT

    run(loop, test)


@pytest.mark.parametrize("status", [400, 422])
def test_an_engine_that_refuses_stream_options_gets_the_request_as_written(
    loop: str, status: int
) -> None:
    stream = sse(text("a")) + DONE
    refusal = b'{"detail":[{"loc":["body","stream_options"],"msg":"not permitted"}]}'

    async def script(peer: Peer) -> None:
        while (request := await peer.request()) is not None:
            if b"stream_options" in request.body:
                await peer.send(reply_bytes(status, refusal))
            else:
                await peer.send(stream_head(), chunk(stream), LAST_CHUNK)

    async def test() -> None:
        async with relaying(script, usage_event="drop") as bench:
            for _ in range(2):
                reply = await ask(await bench.client(), body=CHAT)
                assert (reply.status, reply.body) == (200, stream)
            bodies = [request.body for request in bench.upstream.requests]
            assert bodies[1:] == [CHAT, CHAT], "asked once, and never again"
            assert {r.outcome for r in await bench.meter.closings(2)} == {"ok"}

    run(loop, test)


def test_a_refusal_for_another_reason_passes_and_is_not_held_against_it(
    loop: str,
) -> None:
    refusal = b'{"error":{"message":"no such model"},"input":{"stream_options":{}}}'

    async def test() -> None:
        async with relaying(
            answering(reply_bytes(400, refusal)), usage_event="drop"
        ) as bench:
            for number in (1, 2):
                reply = await ask(await bench.client(), body=CHAT)
                assert (reply.status, reply.body) == (400, refusal)
                assert len(bench.upstream.requests) == 2 * number

    run(loop, test)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-ndjson"])
def test_usage_is_invisible_under_any_content_type(loop: str, kind: str) -> None:
    stream = sse(text("a")) + DONE
    asked = sse(text("a"), USAGE) + DONE
    head = stream_head().replace(b"text/event-stream", kind.encode())

    async def test() -> None:
        async with relaying(
            answering(head, chunk(asked), LAST_CHUNK), usage_event="drop"
        ) as bench:
            reply = await ask(await bench.client(), body=CHAT)
            assert reply.body == stream
            assert [r.outcome for r in await bench.meter.closings(1)] == ["ok"]

    run(loop, test)


@pytest.mark.parametrize("is_forced", [True, False])
def test_usage_that_the_engine_sends_unasked_stays(loop: str, is_forced: bool) -> None:
    """The first stream is sent as written, and shows what the engine does."""
    told, untold = sse(text("a"), USAGE) + DONE, sse(text("a")) + DONE

    async def script(peer: Peer) -> None:
        while (request := await peer.request()) is not None:
            is_told = is_forced or b"include_usage" in request.body
            await peer.send(
                stream_head(), chunk(told if is_told else untold), LAST_CHUNK
            )

    async def test() -> None:
        async with relaying(script) as bench:
            for number in range(1, 4):
                reply = await ask(await bench.client(), body=CHAT)
                assert reply.body == (told if is_forced else untold)
                await bench.meter.closings(number)
            asked = [b"include_usage" in r.body for r in bench.upstream.requests]
            assert asked == ([False] * 3 if is_forced else [False, True, True])

    run(loop, test)


def test_usage_stays_in_streams_that_began_before_it_was_known(loop: str) -> None:
    """What is known when the event comes counts, not what was when it was asked for."""
    gate = asyncio.Event()

    async def script(peer: Peer) -> None:
        while (request := await peer.request()) is not None:
            await peer.send(stream_head(), chunk(sse(text("a"))))
            if b"include_usage" in request.body:
                await gate.wait()
            await peer.send(chunk(sse(USAGE) + DONE), LAST_CHUNK)

    async def test() -> None:
        async with relaying(script) as bench:
            clients = [await bench.client() for _ in range(2)]
            for client in clients:
                await client.send(request_bytes(body=CHAT))
            await bench.meter.closings(1)
            gate.set()
            replies = [await client.reply() for client in clients]
            assert [reply.body for reply in replies] == [
                sse(text("a")) + sse(USAGE) + DONE
            ] * 2

    run(loop, test)


def test_usage_beside_the_text_that_nobody_asked_for_is_the_engines_own(
    loop: str,
) -> None:
    beside = text("a") | {"usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    stream = sse(beside) + sse(USAGE) + DONE
    gate, is_first = asyncio.Event(), iter([True])

    async def script(peer: Peer) -> None:
        while await peer.request() is not None:
            if next(is_first, False):
                await gate.wait()
            await peer.send(stream_head(), chunk(stream), LAST_CHUNK)

    async def test() -> None:
        async with relaying(script) as bench:
            await (await bench.client()).send(request_bytes(body=CHAT))
            while not bench.upstream.requests:  # noqa: ASYNC110 - no signal
                await asyncio.sleep(0)
            for _ in range(2):
                assert (await ask(await bench.client(), body=CHAT)).body == stream
            asked = [b"include_usage" in r.body for r in bench.upstream.requests]
            assert asked == [False, True, False]
            gate.set()

    run(loop, test)


def test_only_one_stream_at_a_time_is_learnt_from(loop: str) -> None:
    gate = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await gate.wait()
        await peer.send(stream_head(), chunk(sse(text("a"))))  # and leaves

    async def test() -> None:
        async with relaying(script) as bench:
            clients = [await bench.client() for _ in range(3)]
            for client in clients:
                await client.send(request_bytes(body=CHAT))
            while len(bench.upstream.requests) < 3:  # noqa: ASYNC110 - no signal
                await asyncio.sleep(0)
            asked = [b"include_usage" in r.body for r in bench.upstream.requests]
            assert sorted(asked) == [False, True, True]
            gate.set()
            await bench.meter.closings(3)
            client = await bench.client()
            await client.send(request_bytes(body=CHAT))
            await bench.meter.closings(4)
            assert b"include_usage" not in bench.upstream.requests[3].body

    run(loop, test)


BARE: list[dict[str, Any]] = [{"index": 0, "delta": {}}]


@pytest.mark.parametrize("choices", [BARE, None])
def test_a_usage_event_is_recognised_however_it_is_spelled(
    loop: str, choices: Any
) -> None:
    usage = {"choices": choices, "usage": {"prompt_tokens": 1, "completion_tokens": 1}}

    async def test() -> None:
        async with relaying(
            streaming(sse(text("a"), usage) + DONE), usage_event="drop"
        ) as bench:
            reply = await ask(await bench.client(), body=CHAT)
            assert reply.body == sse(text("a")) + DONE

    run(loop, test)


def test_tokens_do_not_wait_for_the_event_that_follows(loop: str) -> None:
    gate = asyncio.Event()
    first, second = sse(text("a")), sse(text("b"))

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(stream_head(), chunk(first + second[:20]))
        await gate.wait()
        await peer.send(chunk(second[20:]), chunk(DONE), LAST_CHUNK)

    async def test() -> None:
        async with relaying(script) as bench:
            client = await bench.client()
            await client.send(request_bytes(body=CHAT))
            assert await client.until(first) != b""
            gate.set()
            assert await client.until(DONE) != b""

    run(loop, test)


# --- TLS ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes "
    command += f"-keyout {path} -out {path}.crt -days 2 -subj /CN=localhost "
    command += "-addext subjectAltName=IP:127.0.0.1"
    subprocess.run(command.split(), check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
    return path


@pytest.mark.parametrize("is_trusted", [True, False])
def test_an_engine_behind_tls_must_be_who_it_claims_to_be(
    loop: str, certificate: Path, is_trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    stream = sse(text("a")) + DONE

    async def test() -> None:
        async with relaying(streaming(stream), tls=tls) as bench:
            client = await bench.client()
            for _ in range(2):
                reply = await ask(client, body=CHAT)
                if is_trusted:
                    assert (reply.status, reply.body) == (200, stream)
                else:
                    assert reply.status == 502
                    assert "certificate" in reply.json()["error"]["message"]

    run(loop, test)


# --- what the meter hears -----------------------------------------------------


def test_each_read_has_one_stamp_and_stamps_only_grow(loop: str) -> None:
    gates = [asyncio.Event() for _ in range(3)]

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(stream_head())
        for number, gate in enumerate(gates):
            await gate.wait()
            await peer.send(chunk(sse(text(str(number)), text("more"))))
        await peer.send(chunk(DONE), LAST_CHUNK)

    async def test() -> None:
        async with relaying(script) as bench:
            client = await bench.client()
            await client.send(request_bytes(body=CHAT))
            for number, gate in enumerate(gates):
                gate.set()
                await client.until(sse(text(str(number)), text("more")))
            request = await bench.meter.only()
            assert [len(updates) for _, updates in request.reads][:2] == [2, 2]
            stamps = [request.opened_seconds, *(at for at, _ in request.reads)]
            assert stamps == sorted(stamps)
            assert request.closed_seconds is not None
            assert request.closed_seconds >= stamps[-1]
            assert (request.outcome, request.status) == ("ok", 200)

    run(loop, test)


def test_health_and_models_pass_unmetered(loop: str) -> None:
    async def test() -> None:
        async with relaying(answering(reply_bytes())) as bench:
            client = await bench.client()
            for target in ("/health", "/v1/models", "/v1/models/tiny", "/version"):
                assert (await ask(client, method="GET", target=target)).status == 200
            assert (await ask(client, target="/tokenize", body=b"{}")).status == 200
            assert bench.relay.counters.unmetered == 5
            assert bench.meter.requests == {}

    run(loop, test)


@pytest.mark.parametrize("allow", [False, True])
def test_other_routes_pass_only_if_allowed(loop: str, allow: bool) -> None:
    async def test() -> None:
        async with relaying(
            answering(reply_bytes()), allow_unknown_routes=allow
        ) as bench:
            client = await bench.client()
            reply = await ask(client, target="/abort_requests", body=b"{}")
            assert reply.status == (200 if allow else 404)
            if not allow:
                error = reply.json()["error"]
                assert error["message"] == (
                    "POST /abort_requests is not a route of this proxy"
                )
                assert bench.upstream.requests == []
            assert (await ask(client, method="GET", target="/health")).status == 200

    run(loop, test)


def test_the_meter_hears_of_the_time_of_what_passes_unread(loop: str) -> None:
    async def test() -> None:
        async with relaying(
            answering(reply_bytes()), allow_route=("/start_profile",)
        ) as bench:
            client = await bench.client()
            assert (await ask(client, target="/start_profile")).status == 200
            assert (await ask(client, target="/stop_profile")).status == 404
            assert (await ask(client, method="GET", target="/health")).status == 200
            unread = await bench.meter.only()
            assert (unread.facts.route, unread.outcome) == ("unmetered", "ok")
            assert unread.reads == []

    run(loop, test)


def test_the_meter_records_tokens_and_outcome_of_what_passed(loop: str) -> None:
    meter = Meter(MeterConfig(has_sensor=False))
    stream = stream_body("vllm_chat_stream_usage")

    async def test() -> None:
        async with (
            ScriptedServer(streaming(stream)) as upstream,
            serving(upstream.url, meter) as relay,
        ):
            client = await connect(relay.port)
            await ask(client, body=CHAT, headers=[("x-request-id", "r-7")])
            assert await relay.drain(5) == 0
            await client.gone.wait()
            client.close()
            await client.lost.wait()
        (record,) = meter.settle(time.monotonic())
        assert (record.request_id, record.outcome, record.status) == ("r-7", "ok", 200)
        assert (record.prompt_tokens, record.output_tokens) == (11, 4)

    run(loop, test)


def test_a_failing_meter_stops_no_request(loop: str) -> None:
    stream = sse(text("a")) + DONE

    async def test() -> None:
        async with relaying(streaming(stream)) as bench:
            bench.meter.fails = True
            client = await bench.client()
            for _ in range(2):
                assert (await ask(client, body=CHAT)).body == stream
            assert await bench.relay.drain(5) == 0
            assert bench.relay.counters.meter_errors >= 4

    run(loop, test)


# --- whole replies made from streams ------------------------------------------------

ASKED_WHOLE = b'{"model":"m","messages":[]}'
WHOLE_REPLY = (
    b'{"id":"c","object":"chat.completion","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"ab","audio":null},"logprobs":null,'
    b'"finish_reason":"stop"}],"odd":null,"usage":{"prompt_tokens":1,'
    b'"completion_tokens":2,"details":null}}'
)


def piece(text: str, reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
    return {"id": "c", "object": "chat.completion.chunk", "choices": [choice]}


ROLE = {"id": "c", "choices": [{"index": 0, "delta": {"role": "assistant"}}]}
COUNTED = {
    "id": "c",
    "choices": [],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2},
}
FAILURE = {"error": {"message": "no", "type": "busy", "code": 503}}


@pytest.mark.parametrize(
    ("stream", "status", "body"),
    [
        (sse(ROLE, piece("a"), piece("b", "stop"), COUNTED) + DONE, 200, WHOLE_REPLY),
        (sse(ROLE, piece("a"), FAILURE) + DONE, 503, json.dumps(FAILURE).encode()),
        (sse({"error": {"message": "no"}}), 500, b'{"error":{"message":"no"}}'),
        (sse(ROLE, piece("a")), 502, None),
        (b"data: {\n\n" + DONE, 502, None),
        (DONE, 502, None),
    ],
)
def test_a_whole_reply_is_made_from_a_stream_or_is_an_error(
    loop: str, stream: bytes, status: int, body: bytes | None
) -> None:
    async def script(peer: Peer) -> None:
        while (request := await peer.request()) is not None:
            if b'"stream":true' in request.body:
                halves = stream[: len(stream) // 2], stream[len(stream) // 2 :]
                await peer.send(stream_head(), *map(chunk, halves), LAST_CHUNK)
            else:
                await peer.send(reply_bytes(200, WHOLE_REPLY))

    async def test() -> None:
        async with relaying(script, stream_upstream=True) as bench:
            client = await bench.client()
            assert (await ask(client, body=ASKED_WHOLE)).body == WHOLE_REPLY
            reply = await ask(client, body=ASKED_WHOLE)
            assert reply.status == status
            if body is not None:
                assert json.loads(reply.body) == json.loads(body)
            if status == 200:
                assert reply.body == WHOLE_REPLY
                assert ("content-type", "application/json") in reply.headers
            closings = await bench.meter.closings(2)
            outcome = "ok" if status == 200 else "error"
            outcome = "upstream_error" if status == 502 else outcome
            assert [one.outcome for one in closings] == ["ok", outcome]

    run(loop, test)
