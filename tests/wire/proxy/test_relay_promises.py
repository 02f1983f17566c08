"""What docs/relay.md promises of the relay, each against an engine over sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from proxy.meter.config import MeterConfig
from proxy.meter.meter import Meter
from proxy.wire.events import PowerSampled
from proxy.wire.facts import Reading, Usage
from tests.support.captures import stream_body
from tests.support.relaying import (
    Bench,
    Clock,
    answering,
    holding,
    relaying,
    run,
    serving,
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
CHAT_WITH_USAGE = CHAT[:-1] + b',"stream_options":{"include_usage":true}}'
GENERATE = b'{"inputs":"x","stream":true,"parameters":{"details":true}}'
PLAIN = b'{"model":"tiny"}'
TOKEN = sse({"choices": [{"index": 0, "delta": {"content": "a"}}]})


# --- one stream, cut anywhere -------------------------------------------------


def native(text: str, index: int, **last: object) -> dict[str, object]:
    token = {"id": index, "text": text, "logprob": -0.5, "special": False}
    return {"index": index, "token": token, "generated_text": None, "details": None} | (
        last
    )


def tgi_chat(**fields: object) -> dict[str, object]:
    common: dict[str, object] = {
        "object": "chat.completion.chunk", "id": "", "created": 1, "model": "tiny",
        "system_fingerprint": "3.3.7-native",
    }  # fmt: skip
    return common | fields


def tgi_text(content: str, finish_reason: str | None = None) -> dict[str, object]:
    delta = {"role": "assistant", "content": content}
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return tgi_chat(choices=[choice | {"logprobs": None}], usage=None)


TGI_NATIVE = sse(
    native(" un", 1),
    native(" été", 2),
    native(
        "</s>", 3, generated_text=" un été",
        details={"finish_reason": "length", "generated_tokens": 3, "input_length": 7},
    ),
)  # fmt: skip
TGI_USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
TGI_OPENAI = (
    sse(tgi_text("un"), tgi_text(" ét"), tgi_text("é", "length"))
    + b": keep-alive\n\n"
    + sse(tgi_chat(choices=[], usage=TGI_USAGE))
    + DONE
)


@dataclass(frozen=True)
class Wire:
    """One engine's stream, what asks for it, and what it says."""

    engine: str
    target: str
    request: bytes
    stream: bytes
    tokens: int
    usage: Usage


CHATS, TEXTS = "/v1/chat/completions", "/v1/completions"
WIRES = {
    "vllm chat": Wire(
        "vllm", CHATS, CHAT_WITH_USAGE,
        stream_body("vllm_chat_stream_usage"), 4, Usage(11, 4),
    ),
    "vllm completions": Wire(
        "vllm", TEXTS, CHAT_WITH_USAGE,
        stream_body("vllm_completions_stream_usage"), 4, Usage(5, 4),
    ),
    "transformers chat": Wire(
        "transformers", CHATS, CHAT, stream_body("hf_chat_stream"), 4, Usage(11, 4)
    ),
    "transformers completions": Wire(
        "transformers", TEXTS, CHAT,
        stream_body("hf_completions_stream_merged_events"), 4, Usage(5, 4),
    ),
    "tgi native": Wire("tgi", "/generate_stream", GENERATE, TGI_NATIVE, 3, Usage(7, 3)),
    "tgi chat": Wire("tgi", CHATS, CHAT_WITH_USAGE, TGI_OPENAI, 3, Usage(7, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", WIRES)
def test_a_stream_split_at_every_byte_gives_the_same_bytes_and_usage(name: str) -> None:
    wire = WIRES[name]
    stream = wire.stream
    positions = iter(range(1, len(stream)))

    async def script(peer: Peer) -> None:
        while await peer.request() is not None:
            at = next(positions)
            await peer.send(stream_head(), chunk(stream[:at]))
            await asyncio.sleep(0)
            await peer.send(chunk(stream[at:]), LAST_CHUNK)

    async def test() -> None:
        async with relaying(script, wire.engine) as bench:
            client = await bench.client()
            raw = request_bytes(target=wire.target, body=wire.request)
            for _ in range(1, len(stream)):
                await client.send(raw)
                assert (await client.reply()).body == stream
            for request in await bench.meter.closings(len(stream) - 1):
                usages = [u.usage for u in request.updates if u.usage is not None]
                assert usages == [wire.usage]
                carriers = sum(update.carries_token for update in request.updates)
                assert (carriers, request.outcome) == (wire.tokens, "ok")

    run("uvloop", test)


@pytest.mark.parametrize("name", WIRES)
def test_a_stream_byte_by_byte_gives_the_same_bytes_and_usage(name: str) -> None:
    wire = WIRES[name]
    bytes_of = [chunk(wire.stream[at : at + 1]) for at in range(len(wire.stream))]

    async def test() -> None:
        script = answering(stream_head(), *bytes_of, LAST_CHUNK)
        async with relaying(script, wire.engine) as bench:
            reply = await bench.ask(target=wire.target, body=wire.request)
            assert reply.body == wire.stream
            request = await bench.meter.only()
            usages = [u.usage for u in request.updates if u.usage is not None]
            assert (usages, request.outcome) == ([wire.usage], "ok")

    run("uvloop", test)


# --- usage that only the relay wants ------------------------------------------


@pytest.mark.parametrize("name", ["vllm chat", "vllm completions", "tgi chat"])
def test_a_client_cannot_tell_that_the_relay_asked_for_usage(
    loop: str, name: str
) -> None:
    """An engine that tells usage only where asked; the reply is that of not asking."""
    wire = WIRES[name]
    events = [event + b"\n\n" for event in wire.stream.split(b"\n\n")[:-1]]
    unasked = b"".join(event for event in events if b'"choices":[]' not in event)
    assert len(unasked) < len(wire.stream)

    async def script(peer: Peer) -> None:
        while (request := await peer.request()) is not None:
            asked = request.json().get("stream_options") == {"include_usage": True}
            reply = wire.stream if asked else unasked
            await peer.send(stream_head(), chunk(reply), LAST_CHUNK)

    async def test() -> None:
        async with (
            relaying(script, wire.engine, usage_event="drop") as asking,
            relaying(script, wire.engine, usage_event="keep") as silent,
        ):
            replies = [
                await bench.ask(
                    target=wire.target, body=CHAT, headers=[("x-request-id", "r")]
                )
                for bench in (asking, silent)
            ]
            assert replies[0] == replies[1]
            assert replies[0].body == unasked
            request = await asking.meter.only()
            usages = [u.usage for u in request.updates if u.usage is not None]
            assert usages == [wire.usage]

    run(loop, test)


# --- a client leaves ----------------------------------------------------------

MAX_TURNS = 50
"""Of the loop, from the client's leaving to the engine's knowing: 3 to 6 in fact."""


@pytest.mark.parametrize(
    ("sent_before", "body"),
    [
        (b"", CHAT),
        (stream_head(), CHAT),
        (stream_head() + chunk(TOKEN), CHAT),
        (b"", PLAIN),
    ],
    ids=["before headers", "after headers", "mid-stream", "not streamed"],
)
@pytest.mark.parametrize("leaves", ["close", "abort"])
def test_the_engine_knows_of_a_leaving_client_within_turns_of_the_loop(
    loop: str, sent_before: bytes, body: bytes, leaves: str
) -> None:
    """Milliseconds are in docs/validation.md; nothing but events may be waited for."""

    async def test() -> None:
        async with relaying(holding(sent_before), beat_seconds=3600.0) as bench:
            client = await bench.client()
            await client.send(request_bytes(body=body))
            await until(lambda: bool(bench.upstream.requests))
            if sent_before:
                await client.until(sent_before[-20:])
            client.close() if leaves == "close" else client.abort()
            gone = bench.upstream.peers[0].gone
            turns = 0
            while not gone.is_set():
                assert turns < MAX_TURNS
                turns += 1
                await asyncio.sleep(0)

    run(loop, test)


async def until(claim: Callable[[], bool]) -> None:
    """Wait in turns of the loop; the test's own patience bounds it."""
    while not claim():  # noqa: ASYNC110 - counters and lists signal nobody
        await asyncio.sleep(0)


# --- kept connections ---------------------------------------------------------


@pytest.mark.parametrize("closes", ["by then", "with the request", "never"])
def test_a_request_after_six_idle_seconds_succeeds(loop: str, closes: str) -> None:
    """uvicorn closes what was idle for 5 s; the relay must not be caught by it."""
    clock = Clock()
    idle = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(reply_bytes())
        if closes == "by then":
            await idle.wait()
        elif closes == "with the request":
            await peer.request()  # its bytes cross with the close
        else:
            await peer.gone.wait()

    async def test() -> None:
        # no beat in between: nobody has had the time to clean up
        async with relaying(script, clock=clock, beat_seconds=3600.0) as bench:
            client = await bench.client()
            await client.send(request_bytes(body=PLAIN))
            assert (await client.reply()).status == 200
            clock.now_seconds += 6.0
            idle.set()
            await client.send(request_bytes(body=PLAIN))
            assert (await client.reply()).status == 200
            assert len(bench.upstream.peers) == 2
            assert [r.outcome for r in await bench.meter.closings(2)] == ["ok", "ok"]
            assert bench.relay.counters.upstream_retries == 0

    run(loop, test)


# --- many at once -------------------------------------------------------------


def test_five_hundred_requests_at_once_all_reach_the_engine() -> None:
    everyone = asyncio.Event()
    count = 0

    async def script(peer: Peer) -> None:
        nonlocal count
        await peer.request()
        count += 1
        if count == 500:
            everyone.set()
        await everyone.wait()  # one that is queued would stop all
        await peer.send(stream_head(), chunk(TOKEN), chunk(DONE), LAST_CHUNK)

    async def test() -> None:
        async with relaying(script) as bench:
            clients = [await bench.client() for _ in range(500)]
            for client in clients:
                client.transport.write(request_bytes(body=CHAT_WITH_USAGE))
            await everyone.wait()
            assert bench.relay.counters.in_flight == 500
            for client in clients:
                assert (await client.reply()).body == TOKEN + DONE
            assert bench.relay.counters.upstream_connects == 500

    run("uvloop", test)


# --- a slow client ------------------------------------------------------------

MAX_READ_BYTES = 256 * 1024
"""What one read of a socket brings at most, on either loop."""


def held_bytes(bench: Bench) -> int:
    """What the relay holds for all clients together, unsent."""
    clients = bench.relay._clients
    return sum(client.transport.get_write_buffer_size() for client in clients)


def test_a_slow_client_costs_a_bounded_buffer_and_nobody_else_a_turn() -> None:
    piece, pieces, bound = 1 << 20, 40, 65536
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        request = await peer.request()
        assert request is not None
        await peer.send(stream_head())
        if request.one("x-slow") is None:
            for _ in range(200):  # each waits for nobody but its own reader
                await peer.send(chunk(TOKEN))
            await peer.send(chunk(DONE), LAST_CHUNK)
            return
        for _ in range(pieces):
            await peer.send(chunk(b"x" * piece))
            sent += 1
        await peer.send(LAST_CHUNK)

    async def test() -> None:
        async with relaying(script, write_buffer_bytes=bound) as bench:
            slow = await bench.client()
            slow.transport.pause_reading()
            await slow.send(request_bytes(body=CHAT, headers=[("x-slow", "1")]))
            await until(lambda: bench.relay.counters.pauses > 0)
            held_at, still = -1, 0
            while still < 10:  # until the engine itself stands still
                still = still + 1 if sent == held_at else 0
                held_at = sent
                reply = await bench.ask(body=CHAT_WITH_USAGE)
                assert reply.body == TOKEN * 200 + DONE
                # at most the read that filled the buffer lies above its bound
                assert held_bytes(bench) <= bound + MAX_READ_BYTES
            assert sent < pieces * 3 // 4, "the kernel's buffers, no more"
            for _ in range(5):
                assert (await bench.ask(body=CHAT_WITH_USAGE)).is_complete
            assert sent == held_at
            slow.transport.resume_reading()
            reply = await slow.reply()
            assert (len(reply.body), reply.is_complete) == (piece * pieces, True)

    run("uvloop", test)


# --- energy of who left -------------------------------------------------------


def test_an_aborted_request_keeps_its_energy_and_the_books_close(loop: str) -> None:
    """100 W idle, 400 W while the engine computes for a client that leaves at 2.5 s."""
    clock = Clock(0.0)
    meter = Meter(MeterConfig(idle_watts=100.0))
    joules = 0.0
    tokens: asyncio.Queue[int] = asyncio.Queue()
    options = b',"stream_options":{"include_usage":true,"continuous_usage_stats":true}}'

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(stream_head())
        while (number := await tokens.get()) and not peer.gone.is_set():
            choice = {"index": 0, "delta": {"content": "a"}}
            usage = {"prompt_tokens": 9, "completion_tokens": number}
            await peer.send(chunk(sse({"choices": [choice], "usage": usage})))

    def pass_time(until_seconds: float, watts: float) -> None:
        nonlocal joules
        while clock.now_seconds < until_seconds:
            clock.now_seconds += 0.02
            joules += 0.02 * watts
            meter.feed(
                PowerSampled(
                    "gpu", clock.now_seconds, (Reading("gpu0", joules=joules),)
                )
            )

    async def test() -> None:
        meter.feed(PowerSampled("gpu", 0.0, (Reading("gpu0", joules=0.0),)))
        async with (
            ScriptedServer(script) as upstream,
            serving(upstream.url, meter, clock=clock) as relay,
        ):
            pass_time(1.0, 100.0)
            client = await connect(relay.port)
            await client.send(request_bytes(body=CHAT[:-1] + options))
            await until(lambda: bool(upstream.requests))
            for number in range(1, 16):
                pass_time(1.0 + number * 0.1, 400.0)
                tokens.put_nowait(number)
                await client.until(b"}}\n\n")
            client.abort()
            await upstream.peers[0].gone.wait()
            await until(lambda: relay.counters.in_flight == 0)
            tokens.put_nowait(0)
            pass_time(6.0, 100.0)
            assert relay.counters.requests == {"aborted": 1}

    run(loop, test)
    (record,) = meter.settle(100.0)
    books = meter.books_at()
    assert (record.outcome, record.output_tokens) == ("aborted", 15)
    assert record.energy.energy_joules == pytest.approx(1.5 * 400.0)
    assert books.residual_joules == pytest.approx(0.0, abs=1e-6)
    assert joules - 100.0 < books.measured_joules <= joules  # the last second, idle
    requests = books.prefill_joules + books.decode_joules + books.idle_share_joules
    assert requests == pytest.approx(record.energy.energy_joules)
