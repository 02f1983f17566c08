"""What a client may take of the serving port, and what happens beyond."""

from __future__ import annotations

import asyncio
import logging
import resource
from dataclasses import fields
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from proxy.cli import cli
from proxy.process.options import configured, settings_of
from proxy.relay.client.limits import (
    MAX_BEING_REFUSED,
    MIN_COUNTED_BYTES,
    Clients,
    address_of,
)
from proxy.relay.config import RelayConfig, RelayLimits
from proxy.relay.counters import RelayCounters
from proxy.serve.app import allow_connections
from tests.support.relaying import LOOPS, Bench, refusals_by_status, relaying, run
from tests.support.scripted import (
    Message,
    Peer,
    Script,
    chunk,
    reply_bytes,
    request_bytes,
    stream_head,
)

loops = pytest.mark.parametrize("loop", LOOPS)
HEALTH = request_bytes("GET", "/health")


async def answering(peer: Peer) -> None:
    while await peer.request() is not None:
        await peer.send(reply_bytes())


async def refused(bench: Bench, raw: bytes) -> Message:
    client = await bench.client()
    await client.send(raw)
    reply = await client.reply()
    assert reply.one("connection") == "close"
    await client.gone.wait()
    assert bench.upstream.requests == []
    assert bench.relay.counters.refusals[reply.status, reply.json()["error"]["code"]]
    return reply


@loops
@pytest.mark.parametrize(
    ("limit", "raw", "status", "code"),
    [
        ({"max_target_bytes": 100}, request_bytes("GET", "/" + 100 * "a"), 414,
         "target_too_long"),
        ({"max_headers": 5},
         request_bytes("GET", "/health", [(f"x-{n}", "") for n in range(5)]), 431,
         "too_many_headers"),
        ({"max_head_bytes": 1000},
         request_bytes("GET", "/health", [("x", 1000 * "a")]), 431, "head_too_large"),
        ({"max_head_bytes": 1000}, b"GET /health HTTP/1.1\r\nx: " + 1001 * b"a", 431,
         "head_too_large"),
        ({"max_body_bytes": 10}, request_bytes(body=11 * b"a"), 413, "body_too_large"),
    ],
)  # fmt: skip
def test_beyond_a_size_there_is_a_refusal_with_its_reason(
    loop: str, limit: dict[str, Any], raw: bytes, status: int, code: str
) -> None:
    async def test() -> None:
        async with relaying(answering, **limit) as bench:
            reply = await refused(bench, raw)
            assert (reply.status, reply.json()["error"]["code"]) == (status, code)

    run(loop, test)


@loops
def test_at_the_limits_a_request_passes(loop: str) -> None:
    async def test() -> None:
        headers = [(f"x-{n}", "") for n in range(4)]  # and Host is the fifth
        raw = request_bytes("GET", "/health", headers)
        async with relaying(
            answering,
            max_headers=5,
            max_target_bytes=len("/health"),
            max_head_bytes=len(raw),
        ) as bench:
            client = await bench.client()
            await client.send(raw)
            assert (await client.reply()).status == 200

    run(loop, test)


@loops
def test_a_trailer_without_end_is_not_kept(loop: str) -> None:
    async def test() -> None:
        head = request_bytes(headers=[("transfer-encoding", "chunked")])
        async with relaying(answering) as bench:
            client = await bench.client()
            await client.send(head, chunk(b"{}"), b"0\r\nx-endless: ")
            while not client.gone.is_set():
                await client.send(64 * 1024 * b"a")
            assert bench.relay.counters.refusals == {(431, "framing_too_large"): 1}
            assert bench.upstream.requests == []

    run(loop, test)


@loops
def test_a_connection_too_many_is_told_so_and_the_others_go_on(loop: str) -> None:
    async def test() -> None:
        async with relaying(answering, max_connections=2) as bench:
            kept = [await bench.client() for _ in range(2)]
            for client in kept:
                await client.send(HEALTH)
                assert (await client.reply()).status == 200
            late = await bench.client()
            reply = await late.reply()
            assert reply.status == 503
            assert reply.json()["error"]["code"] == "too_many_connections"
            await late.gone.wait()
            await kept[0].send(HEALTH)
            assert (await kept[0].reply()).status == 200
            kept[1].abort()
            while bench.relay.counters.clients_open > 1:  # noqa: ASYNC110
                await asyncio.sleep(0)
            new = await bench.client()
            await new.send(HEALTH)
            assert (await new.reply()).status == 200
            assert refusals_by_status(bench.relay.counters) == {503: 1}

    run(loop, test)


@loops
def test_one_address_can_be_held_to_its_share(loop: str) -> None:
    async def test() -> None:
        async with relaying(answering, max_connections_per_client=1) as bench:
            first = await bench.client()
            await first.send(HEALTH)
            assert (await first.reply()).status == 200
            second = await bench.client()
            assert (await second.reply()).status == 429
            assert bench.relay.counters.clients_open == 1

    run(loop, test)


def test_by_default_an_address_has_no_share() -> None:
    clients = Clients(RelayConfig("http://h"), RelayCounters())
    for _ in range(500):
        assert clients.enter(Bystander(), ("10.0.0.1", 1)) is None


class Bystander:
    transport: asyncio.Transport
    held_bytes = 0

    def finish_and_close(self) -> None: ...

    def check_deadline(self, now_seconds: float) -> None: ...


@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=60),
)
def test_however_clients_come_and_go_the_limits_hold(
    most: int, steps: list[tuple[bool, int]]
) -> None:
    counters = RelayCounters()
    config = RelayConfig("http://h", max_connections=most, max_connections_per_client=2)
    clients, inside = Clients(config, counters), list[tuple[Bystander, int]]()
    for comes, address in steps:
        if comes:
            new = Bystander()
            refusal = clients.enter(new, (f"10.0.0.{address}", 1))
            mine = sum(a == address for _, a in inside)
            expected = 503 if len(inside) >= most else 429 if mine >= 2 else None
            assert (refusal and refusal.status) == expected
            if refusal is None:
                inside.append((new, address))
            else:
                clients.leave(new)
        elif inside:
            gone, _ = inside.pop(address % len(inside))
            clients.leave(gone)
            clients.leave(gone)
        assert counters.clients_open == len(inside) == len(clients)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9000)), max_size=60))
def test_however_clients_hold_and_let_go_the_sum_is_theirs(
    steps: list[tuple[int, int]],
) -> None:
    clients = Clients(RelayConfig("http://h"), RelayCounters())
    inside: dict[int, Bystander] = {}
    for who, held in steps:
        if who not in inside:
            inside[who] = Bystander()
            clients.enter(inside[who], (f"10.0.0.{who % 2}", 1))
        inside[who].held_bytes = held
        clients.count(inside[who])
        if held % 7 == 0:
            clients.leave(inside.pop(who))
        counted = (c.held_bytes for c in inside.values())
        assert clients.held_bytes == sum(n for n in counted if n >= MIN_COUNTED_BYTES)


def test_who_only_waits_for_a_refusal_is_bounded_too() -> None:
    config = RelayConfig("http://h", max_connections=1)
    clients = Clients(config, RelayCounters())
    clients.enter(Bystander(), None)
    for _ in range(MAX_BEING_REFUSED):
        assert clients.enter(Bystander(), None)
        assert not clients.are_flooding
    clients.enter(Bystander(), None)
    assert clients.are_flooding


@loops
def test_a_flood_of_connections_is_closed_and_takes_nothing_from_who_is_in(
    loop: str,
) -> None:
    async def test() -> None:
        async with relaying(answering, max_connections=1) as bench:
            first = await bench.client()
            flood = [await bench.client() for _ in range(MAX_BEING_REFUSED + 100)]
            for client in flood:
                await client.gone.wait()  # some were told so, the others not even that
            assert refusals_by_status(bench.relay.counters) == {503: len(flood)}
            await first.send(HEALTH)
            assert (await first.reply()).status == 200
            assert bench.relay.counters.clients_open == 1

    run(loop, test)


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        (("10.1.2.3", 5), "10.1.2.3"),
        (("2001:db8::1", 5, 0, 0), "2001:db8::/64"),
        (("2001:db8::ffff:2", 5, 0, 0), "2001:db8::/64"),
        (("fe80::1%eth0", 5, 0, 2), "fe80::/64"),
        (("::ffff:10.1.2.3", 5, 0, 0), "10.1.2.3"),
        ("/run/socket", ""),
        (None, ""),
    ],
)
def test_whom_a_connection_counts_for(peer: object, address: str) -> None:
    assert address_of(peer) == address


@loops
@pytest.mark.parametrize(
    ("first", "limit"),
    [
        (b"GET /health HTTP/1.1\r\nx: ", "header_timeout_seconds"),
        (request_bytes(headers=[("Content-Length", "1000000")]),
         "request_timeout_seconds"),
    ],
)  # fmt: skip
def test_a_request_that_drips_is_cut_however_often_it_drips(
    loop: str, first: bytes, limit: str
) -> None:
    async def test() -> None:
        config: dict[str, Any] = {limit: 0.1, "beat_seconds": 0.01}
        async with relaying(answering, **config) as bench:
            client = await bench.client()
            await client.send(first)
            while not client.gone.is_set():
                await client.send(b"a")
                await asyncio.sleep(0.005)
            assert bench.upstream.requests == []

    run(loop, test)


def test_every_limit_is_an_option_with_its_default_on_the_help_page() -> None:
    page = " ".join(CliRunner().invoke(cli, ["serve", "--help"]).output.split())
    limits = settings_of(RelayLimits)
    for limit in limits:
        assert f"--{limit.name}" in page
        assert f"[default: {limit.default}" in page
    bounded = {f.name for f in fields(RelayConfig) if f.name.startswith("max_")}
    waited = {f.name for f in fields(RelayConfig) if f.name.endswith("timeout_seconds")}
    internal = {"connect_timeout_seconds"}
    assert (bounded | waited) - internal == {limit.field for limit in limits}


def holding_back(gate: asyncio.Event) -> Script:
    async def script(peer: Peer) -> None:
        while await peer.request() is not None:
            await gate.wait()
            await peer.send(reply_bytes())

    return script


@loops
def test_what_waits_for_an_engine_counts_until_it_answers(loop: str) -> None:
    async def test() -> None:
        gate, body = asyncio.Event(), 600_000 * b"a"
        async with relaying(
            holding_back(gate),
            max_buffered_bytes=1_000_000,
            max_buffered_bytes_per_client=1_000_000,
        ) as bench:
            first = await bench.client()
            await first.send(request_bytes(body=body))
            while not bench.upstream.requests:  # noqa: ASYNC110
                await asyncio.sleep(0)
            late = await bench.client()
            await late.send(request_bytes(body=body))
            reply = await late.reply()
            assert reply.status == 503
            assert reply.json()["error"]["code"] == "memory_full"
            small = await bench.client()
            await small.send(request_bytes("GET", "/unknown"))
            assert (await small.reply()).status == 404
            gate.set()
            assert (await first.reply()).status == 200
            assert (await bench.ask(body=body)).status == 200
            assert bench.relay.counters.refusals[503, "memory_full"] == 1

    run(loop, test)


@loops
@pytest.mark.parametrize(
    ("size", "status", "code"),
    [(600_000, 413, "body_too_large"), (400_000, 503, "memory_full")],
)
def test_a_body_for_which_there_is_no_room_is_refused_before_it_is_read(
    loop: str, size: int, status: int, code: str
) -> None:
    async def test() -> None:
        gate = asyncio.Event()
        async with relaying(holding_back(gate), max_buffered_bytes=1_000_000) as bench:
            first = await bench.client()
            await first.send(request_bytes(body=200_000 * b"a"))
            while not bench.upstream.requests:  # noqa: ASYNC110
                await asyncio.sleep(0)
            late = await bench.client()
            await late.send(request_bytes(headers=[("content-length", str(size))]))
            reply = await late.reply()
            assert (reply.status, reply.json()["error"]["code"]) == (status, code)
            gate.set()
            assert (await first.reply()).status == 200

    run(loop, test)


@loops
def test_a_body_in_chunks_is_refused_when_the_memory_is_full(loop: str) -> None:
    async def test() -> None:
        async with relaying(answering, max_buffered_bytes=1_000_000) as bench:
            client = await bench.client()
            await client.send(request_bytes(headers=[("transfer-encoding", "chunked")]))
            while not client.gone.is_set():
                await client.send(chunk(50_000 * b"a"))
                await asyncio.sleep(0)
            assert bench.relay.counters.refusals == {(503, "memory_full"): 1}
            assert bench.upstream.requests == []

    run(loop, test)


@loops
def test_whoever_reads_least_is_cut_when_replies_fill_the_memory(loop: str) -> None:
    async def test() -> None:
        async with relaying(
            pouring,
            max_buffered_bytes=900_000,
            max_buffered_bytes_per_client=900_000,
            beat_seconds=0.01,
        ) as bench:
            slow = [await bench.client() for _ in range(8)]
            for client in slow:
                client.transport.pause_reading()
                await client.send(request_bytes(body=b"{}"))
            while not bench.relay.counters.refusals:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert set(bench.relay.counters.refusals) == {(503, "memory_full")}
            assert bench.relay.counters.clients_open >= 1

    run(loop, test)


async def pouring(peer: Peer) -> None:
    await peer.request()
    await peer.send(stream_head())
    while not peer.gone.is_set():
        await peer.send(chunk(100_000 * b"a"))
        await asyncio.sleep(0)  # a transport that is closing takes all at once


def test_zero_is_no_limit_where_there_may_be_none() -> None:
    limits = settings_of(RelayLimits)
    may_be_none = {
        "first_byte_timeout_seconds", "read_timeout_seconds", "write_timeout_seconds",
    }  # fmt: skip
    assert {limit.field for limit in limits if limit.value(0) is None} == may_be_none
    written = {limit.variable: limit.value(limit.default) for limit in limits}
    assert configured(RelayLimits, written) == RelayLimits()


def test_open_files_are_allowed_as_far_as_they_may(
    caplog: pytest.LogCaptureFixture,
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, soft), hard))
        allow_connections(max_connections=1, admin_connections=1)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
        assert caplog.records == []
        if hard == resource.RLIM_INFINITY:
            return
        with caplog.at_level(logging.WARNING):
            allow_connections(max_connections=hard, admin_connections=1)
        (record,) = caplog.records
        assert "--max-connections" in record.getMessage()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
