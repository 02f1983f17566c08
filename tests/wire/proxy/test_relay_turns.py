"""What one client can make the relay do while others wait: little, and in turns."""

from __future__ import annotations

import asyncio
import tracemalloc

import pytest

from proxy.relay.tap import STEP_BYTES
from proxy.relay.turns import READS, STRETCH_STEPS
from proxy.wire.facts import Usage
from tests.support.relaying import LOOPS, relaying, run, streaming
from tests.support.relaying import answering as sending
from tests.support.scripted import Peer, chunk, reply_bytes, request_bytes

loops = pytest.mark.parametrize("loop", LOOPS)
UNKNOWN = request_bytes("GET", "/x")
MIB = 1024 * 1024


async def answering(peer: Peer) -> None:
    while await peer.request() is not None:
        await peer.send(reply_bytes())


@loops
def test_a_client_that_pipelines_leaves_turns_of_the_loop_to_others(loop: str) -> None:
    async def test() -> None:
        async with relaying(answering) as bench:
            client = await bench.client()
            refusals = bench.relay.counters.refusals
            client.transport.write(3000 * UNKNOWN)
            most, before = 0, 0
            while refusals.total() < 3000:
                await asyncio.sleep(0)
                most = max(most, refusals.total() - before)
                before = refusals.total()
            # the first of a read at once, and a sleep may see two stretches
            assert most <= 2 * (STRETCH_STEPS + 1)
            for _ in range(3000):
                assert (await client.reply()).status == 404

    run(loop, test)


@loops
def test_who_does_not_read_replies_gets_no_more_of_them(loop: str) -> None:
    async def test() -> None:
        async with relaying(answering, write_timeout_seconds=None) as bench:
            client = await bench.client()
            client.transport.pause_reading()
            refusals, before = bench.relay.counters.refusals, -1
            sent = 40_000
            client.transport.write(sent * UNKNOWN)
            while refusals.total() > before:  # until it stands still
                before = refusals.total()
                await asyncio.sleep(0.3)
            assert refusals.total() < sent
            client.transport.resume_reading()
            while refusals.total() < sent:  # noqa: ASYNC110  # counted, not told
                await asyncio.sleep(0.01)

    run(loop, test)


@loops
def test_behind_a_slow_reply_little_is_read_ahead(loop: str) -> None:
    async def test() -> None:
        gate = asyncio.Event()

        async def slow(peer: Peer) -> None:
            while await peer.request() is not None:
                await gate.wait()
                await peer.send(reply_bytes())

        body = 20 * MIB * b"a"
        async with relaying(slow, body_timeout_seconds=60) as bench:
            client = await bench.client()
            await client.send(request_bytes(body=b"{}"))
            client.transport.write(2 * request_bytes(body=body))
            for _ in range(100):
                await asyncio.sleep(0.002)
            unsent = client.transport.get_write_buffer_size()
            assert unsent > 2 * len(body) - 16 * MIB  # in the system's own buffers
            gate.set()
            for _ in range(3):
                assert (await client.reply()).status == 200
            assert [len(r.body) for r in bench.upstream.requests] == [
                2, len(body), len(body),
            ]  # fmt: skip

    run(loop, test)


@loops
def test_large_bodies_are_read_a_little_in_each_turn(loop: str) -> None:
    """uvloop would read 8 MB of each connection before anybody else's turn."""

    async def test() -> None:
        async with relaying(answering, request_timeout_seconds=60) as bench:
            senders = [await bench.client() for _ in range(4)]
            body = 12 * MIB * b"a"
            for sender in senders:
                sender.transport.write(request_bytes(body=body))
            clients = list(bench.relay._clients)
            most = before = 0
            while bench.relay.counters.in_flight < len(senders):
                await asyncio.sleep(0)
                held = sum(client.held_bytes for client in clients)
                most, before = max(most, held - before), held
            for sender in senders:
                assert (await sender.reply()).status == 200
            # each reads once before its first pause, and a sleep may see two turns
            assert most <= (len(senders) + 2 * READS) * 256 * 1024

    run(loop, test)


@loops
def test_a_body_in_tiny_chunks_costs_its_bytes(loop: str) -> None:
    async def test() -> None:
        head = request_bytes(headers=[("transfer-encoding", "chunked")])
        async with relaying(answering) as bench:
            client = await bench.client()
            await client.send(head)
            tracemalloc.start()
            try:
                for _ in range(16):
                    await client.send(16384 * chunk(b"a"))
                    await asyncio.sleep(0)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            # 256 KiB of body; a byte object for each would be 10 MiB and more
            assert peak < 8 * MIB
            await client.send(b"0\r\n\r\n")
            assert (await client.reply()).status == 200
            (request,) = bench.upstream.requests
            assert request.body == 16 * 16384 * b"a"

    run(loop, test)


@loops
@pytest.mark.parametrize("options", ["", ',"stream_options":{"x":1}'])
def test_a_large_body_is_read_in_turns_and_passes_with_its_very_bytes(
    loop: str, options: str
) -> None:
    async def test() -> None:
        text = '\\"é\\u00e9 ' * (MIB // 8)
        first = '{"model":"m","n":2,"messages":[{"content":"' + text + '"}]'
        body = f'{first},"stream":true{options}}}'.encode()
        async with relaying(answering, usage_event="drop") as bench:
            reply = await bench.ask(body=body)
            assert reply.status == 200
            (request,) = bench.upstream.requests
            usage = '"include_usage":true}}'
            expected = f'{first},"stream":true,"stream_options":{{{usage}'
            if options:
                expected = f'{first},"stream":true{options[:-1]},{usage}'
            assert request.body.decode() == expected
            facts = (await bench.meter.only()).facts
            assert (facts.model, facts.is_stream, facts.sequences) == ("m", True, 2)

    run(loop, test)


@loops
def test_whoever_leaves_while_its_large_body_is_read_reaches_no_engine(
    loop: str,
) -> None:
    async def test() -> None:
        async with relaying(answering) as bench:
            client = await bench.client()
            await client.send(request_bytes(body=b'{"prompt":[' + 8 * MIB * b"1,"))
            while not bench.relay.counters.in_flight:  # noqa: ASYNC110
                await asyncio.sleep(0)
            client.abort()
            while bench.relay.counters.in_flight:  # noqa: ASYNC110
                await asyncio.sleep(0)
            assert bench.upstream.requests == []

    run(loop, test)


STREAMED = b'{"model":"m","stream":true,"messages":[]}'
EVENT = (
    b'data: {"id":"c","object":"chat.completion.chunk","choices":'
    b'[{"index":0,"delta":{"content":" w"},"finish_reason":null}]}\n\n'
)
USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":7,'
    b'"total_tokens":10}}\n\ndata: [DONE]\n\n'
)


@loops
def test_a_large_stream_is_parsed_a_little_in_each_turn(loop: str) -> None:
    """However fast the engine is; no byte is lost, nor what the meter is told."""
    events = 12 * MIB // len(EVENT)

    async def test() -> None:
        engine = streaming(*[events // 40 * EVENT] * 40, USAGE)
        async with relaying(engine, usage_event="keep") as bench:
            client = await bench.client()
            await client.send(request_bytes(body=STREAMED))
            counters, most, before = bench.relay.counters, 0, 0
            reply = asyncio.ensure_future(client.reply())
            while not reply.done() or counters.in_flight:
                await asyncio.sleep(0)
                most = max(most, counters.reply_bytes - before)
                before = counters.reply_bytes
            # a turn's stretch; at first a read, before it is known to be a stream
            assert most <= 2 * (STRETCH_STEPS + 1) * STEP_BYTES + 256 * 1024
            assert reply.result().body == events // 40 * 40 * EVENT + USAGE
            assert counters.events == events // 40 * 40 + 2
            told = await bench.meter.only()
            assert told.outcome == "ok"
            assert told.updates[-2].usage == Usage(3, 7)

    run(loop, test)


@loops
def test_of_a_large_whole_reply_the_usage_is_known(loop: str) -> None:
    text = 3 * MIB * b"w"
    body = (
        b'{"id":"x","choices":[{"index":0,"message":{"role":"assistant","content":"'
        b'%b"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,'
        b'"completion_tokens":7,"total_tokens":10}}' % text
    )

    async def test() -> None:
        async with relaying(sending(reply_bytes(body=body))) as bench:
            client = await bench.client()
            await client.send(request_bytes(body=b'{"model":"m","messages":[]}'))
            assert (await client.reply()).body == body
            while bench.relay.counters.in_flight:  # noqa: ASYNC110  parsed in turns
                await asyncio.sleep(0)
            told = await bench.meter.only()
            assert (told.outcome, told.updates[-1].usage) == ("ok", Usage(3, 7))

    run(loop, test)
