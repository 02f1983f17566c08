"""One relay in front of several upstreams: who gets a request, and who never does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

import pytest

from proxy.engines import DIALECTS
from proxy.relay.config import RelayConfig
from proxy.relay.counters import RelayCounters
from proxy.relay.server import RelayServer
from proxy.relay.upstream.upstream import Upstream, open_upstream
from tests.support.relaying import RecordingMeter, run
from tests.support.scripted import (
    Peer,
    Script,
    ScriptedServer,
    connect,
    reply_bytes,
    request_bytes,
)

CHAT = b'{"model":"tiny"}'


@dataclass
class Fleet:
    """A relay, its upstreams and their meters, by name."""

    relay: RelayServer
    upstreams: dict[str, Upstream]
    servers: dict[str, ScriptedServer]
    meters: dict[str, RecordingMeter]
    clients: list[Peer] = field(default_factory=list)

    async def client(self) -> Peer:
        """A new connection to the relay; closed at the end."""
        self.clients.append(await connect(self.relay.port))
        return self.clients[-1]

    def told(self) -> dict[str, int]:
        """How many requests each meter was told of."""
        return {name: len(meter.requests) for name, meter in self.meters.items()}

    def asked(self) -> dict[str, int]:
        """How many requests each upstream read."""
        return {name: len(server.requests) for name, server in self.servers.items()}


async def answering(peer: Peer) -> None:
    """An engine that answers whatever it is asked."""
    while await peer.request() is not None:
        await peer.send(reply_bytes())


def dead_url() -> str:
    """An address of this host at which nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


@contextlib.asynccontextmanager
async def fleet(
    scripts: Mapping[str, Script | None],
    models: Mapping[str, tuple[str, ...]] | None = None,
    engines: Mapping[str, str] | None = None,
    config: RelayConfig | None = None,
) -> AsyncIterator[Fleet]:
    """A relay in front of these; None is an upstream that cannot be reached."""
    config = config or RelayConfig("")
    servers = {name: ScriptedServer(s) for name, s in scripts.items() if s}
    meters = {name: RecordingMeter() for name in scripts}
    async with contextlib.AsyncExitStack() as stack:
        for server in servers.values():
            await stack.enter_async_context(server)
        upstreams = {}
        for name in scripts:
            url = servers[name].url if name in servers else dead_url()
            engine = DIALECTS[(engines or {}).get(name, "vllm")]
            where = RelayConfig(url)
            upstreams[name] = open_upstream(
                name, where, meters[name], engine, time.monotonic
            )
            upstreams[name].models = (models or {}).get(name, ("tiny",))
        counters = RelayCounters()
        relay = RelayServer(config, list(upstreams.values()), counters, time.monotonic)
        await relay.listen()
        found = Fleet(relay, upstreams, servers, meters)
        try:
            yield found
        finally:
            for client in found.clients:
                client.abort()
                await client.lost.wait()
            await relay.close()


def test_replicas_take_turns_over_one_connection(loop: str) -> None:
    async def test() -> None:
        async with fleet(dict.fromkeys("abc", answering)) as bench:
            client = await bench.client()
            for _ in range(9):
                await client.send(request_bytes(body=CHAT))
                assert (await client.reply()).status == 200
            assert bench.asked() == bench.told() == {"a": 3, "b": 3, "c": 3}
            assert {upstream.in_flight for upstream in bench.upstreams.values()} == {0}

    run(loop, test)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ([("X-Session-ID", "s-{}")], CHAT),
        ([], b'{"model":"tiny","prompt_cache_key":"s-{}"}'),
    ],
    ids=["header", "prompt_cache_key"],
)
def test_a_session_stays_with_its_replica(
    headers: list[tuple[str, str]], body: bytes
) -> None:
    async def test() -> None:
        async with fleet(dict.fromkeys("abcd", answering)) as bench:
            client = await bench.client()
            for number in (0, 1, 2, 0, 1, 2, 0, 1, 2):
                own = [(name, value.format(number)) for name, value in headers]
                asked = body.replace(b"{}", b"%d" % number)
                await client.send(request_bytes(body=asked, headers=own))
                assert (await client.reply()).status == 200
            assert all(count % 3 == 0 for count in bench.asked().values())

    run("asyncio", test)


def test_a_replica_nobody_can_reach_is_routed_around(loop: str) -> None:
    async def test() -> None:
        async with fleet({"dead": None, "live": answering}) as bench:
            client = await bench.client()
            for _ in range(4):
                await client.send(request_bytes(body=CHAT))
                assert (await client.reply()).status == 200
            requests = await bench.meters["live"].closings(4)
            assert {request.outcome for request in requests} == {"ok"}
            assert bench.told() == {"dead": 0, "live": 4}
            dead = bench.upstreams["dead"]
            assert (dead.is_up, dead.counters.rerouted) == (False, 1)
            assert dead.in_flight == 0
            assert "cannot be reached" in (dead.down_reason or "")

    run(loop, test)


def test_a_replica_whose_tls_does_not_hold_is_routed_around(loop: str) -> None:
    async def test() -> None:
        async with (
            ScriptedServer(answering) as plain,
            fleet({"tls": None, "live": answering}) as bench,
        ):
            where = RelayConfig(
                plain.url.replace("http:", "https:"), connect_timeout_seconds=0.5
            )
            upstream, meter = bench.upstreams["tls"], bench.meters["tls"]
            fresh = open_upstream("tls", where, meter, upstream.dialect, time.monotonic)
            upstream.pool = fresh.pool
            client = await bench.client()
            await client.send(request_bytes(body=CHAT))
            assert (await client.reply()).status == 200
            assert not upstream.is_up
            assert bench.told() == {"tls": 0, "live": 1}
            assert plain.requests == []

    run(loop, test)


def test_the_record_keeps_the_instant_of_arrival(loop: str) -> None:
    async def test() -> None:
        async with fleet({"dead": None, "live": answering}) as bench:
            client = await bench.client()
            before = time.monotonic()
            await client.send(request_bytes(body=CHAT))
            await client.reply()
            (request,) = await bench.meters["live"].closings()
            assert before <= request.opened_seconds <= time.monotonic()

    run(loop, test)


def test_a_request_nobody_can_take_has_one_record_and_then_a_time_to_retry(
    loop: str,
) -> None:
    async def test() -> None:
        async with fleet({"one": None, "two": None}) as bench:
            client = await bench.client()
            await client.send(request_bytes(body=CHAT))
            reply = await client.reply()
            assert (reply.status, reply.json()["error"]["code"]) == (
                502,
                "upstream_unreachable",
            )
            (request,) = await bench.meters["two"].closings()
            assert request.outcome == "upstream_error"
            assert bench.told() == {"one": 0, "two": 1}
            await client.send(request_bytes(body=CHAT))
            reply = await client.reply()
            assert reply.status == 503
            assert reply.one("retry-after") == "2"
            assert reply.json()["error"]["type"] == "upstream_error"
            assert reply.json()["error"]["message"] == (
                "no upstream for model 'tiny' takes requests now: "
                "one is down, two is down"
            )
            assert bench.told() == {"one": 0, "two": 1}
            assert bench.relay.counters.refusals[503, "upstream_unavailable"] == 1

    run(loop, test)


@pytest.mark.parametrize("sent_before", [b"", b"HTTP/1.1 200 OK\r\n"])
def test_once_sent_a_request_is_never_given_to_another(
    loop: str, sent_before: bytes
) -> None:
    async def dies(peer: Peer) -> None:
        assert await peer.request() is not None
        if sent_before:
            await peer.send(sent_before)
        peer.abort()

    async def test() -> None:
        async with fleet({"dies": dies, "live": answering}) as bench:
            client = await bench.client()
            await client.send(request_bytes(body=CHAT))
            assert (await client.reply()).status == 502
            (request,) = await bench.meters["dies"].closings()
            assert request.outcome == "upstream_error"
            assert bench.asked() == {"dies": 1, "live": 0}
            assert bench.told() == {"dies": 1, "live": 0}

    run(loop, test)


def test_a_client_that_leaves_while_upstreams_are_tried_has_one_record() -> None:
    async def test() -> None:
        async with fleet({"deaf": None, "live": answering}) as bench:
            # a listener whose backlog is full: neither refused nor accepted
            with socket.socket() as listener, contextlib.ExitStack() as fillers:
                listener.bind(("127.0.0.1", 0))
                listener.listen(0)
                for _ in range(2):
                    filler = fillers.enter_context(socket.socket())
                    filler.setblocking(False)
                    with contextlib.suppress(BlockingIOError):
                        filler.connect(listener.getsockname())
                deaf = bench.upstreams["deaf"]
                port = listener.getsockname()[1]
                where = RelayConfig(f"http://127.0.0.1:{port}")
                fresh = open_upstream(
                    "deaf", where, bench.meters["deaf"], deaf.dialect, time.monotonic
                )
                deaf.pool = fresh.pool
                client = await bench.client()
                await client.send(request_bytes(body=CHAT))
                while not deaf.in_flight:  # noqa: ASYNC110
                    await asyncio.sleep(0)
                client.abort()
                (request,) = await bench.meters["deaf"].closings()
                assert request.outcome == "aborted"
                assert bench.told() == {"deaf": 1, "live": 0}
                assert deaf.in_flight == 0

    run("asyncio", test)


def test_draining_takes_nothing_new_and_lets_the_rest_end(loop: str) -> None:
    asked, may_answer = asyncio.Event(), asyncio.Event()

    async def slow(peer: Peer) -> None:
        while await peer.request() is not None:
            asked.set()
            await may_answer.wait()
            await peer.send(reply_bytes())

    async def test() -> None:
        async with fleet({"slow": slow, "live": answering}) as bench:
            waiting, other = await bench.client(), await bench.client()
            await waiting.send(request_bytes(body=CHAT))
            await asked.wait()
            bench.upstreams["slow"].drain(True)
            for _ in range(3):
                await other.send(request_bytes(body=CHAT))
                assert (await other.reply()).status == 200
            assert bench.asked() == {"slow": 1, "live": 3}
            assert bench.upstreams["slow"].in_flight == 1
            may_answer.set()
            assert (await waiting.reply()).status == 200
            bench.upstreams["slow"].drain(False)
            await other.send(request_bytes(body=CHAT))
            await other.reply()
            await other.send(request_bytes(body=CHAT))
            await other.reply()
            assert bench.asked() == {"slow": 2, "live": 4}

    run(loop, test)


def test_requests_go_to_the_engine_of_their_model() -> None:
    models = {"a": ("x",), "b": ("y", "z")}

    async def test() -> None:
        async with fleet(dict.fromkeys("ab", answering), models) as bench:
            client = await bench.client()
            for model, status in (("x", 200), ("z", 200), ("y", 200), ("w", 404)):
                body = json.dumps({"model": model}).encode()
                await client.send(request_bytes(body=body))
                reply = await client.reply()
                assert reply.status == status
            error = reply.json()["error"]
            assert error["code"] == "model_not_found"
            assert error["message"].endswith("known: x, y, z")
            assert bench.told() == {"a": 1, "b": 2}

    run("asyncio", test)


def test_a_route_goes_to_an_engine_that_speaks_it() -> None:
    models = {"a": ("x",), "b": ("y",)}
    engines = {"a": "vllm", "b": "tgi"}

    async def test() -> None:
        async with fleet(dict.fromkeys("ab", answering), models, engines) as bench:
            client = await bench.client()
            body = b'{"inputs":"one two"}'
            await client.send(request_bytes(target="/generate", body=body))
            assert (await client.reply()).status == 200
            assert bench.told() == {"a": 0, "b": 1}

    run("asyncio", test)


def test_the_models_of_all_are_one_list() -> None:
    models = {"a": ("x", "y"), "b": ("y", "z"), "c": ("v",)}

    async def test() -> None:
        async with fleet(dict.fromkeys("abc", answering), models) as bench:
            bench.upstreams["c"].mark_down("gone")
            client = await bench.client()
            await client.send(request_bytes("GET", "/v1/models"))
            listed = (await client.reply()).json()
            assert listed["object"] == "list"
            assert [card["id"] for card in listed["data"]] == ["x", "y", "z"]
            assert [card["owned_by"] for card in listed["data"]] == ["a", "a", "b"]
            await client.send(request_bytes("GET", "/v1/models/z"))
            assert (await client.reply()).status == 200
            assert bench.asked() == {"a": 0, "b": 1, "c": 0}
            assert bench.told() == {"a": 0, "b": 0, "c": 0}

    run("asyncio", test)


def test_what_is_nobodys_in_particular_goes_to_the_first_that_is_up() -> None:
    async def test() -> None:
        async with fleet(dict.fromkeys("ab", answering)) as bench:
            client = await bench.client()
            await client.send(request_bytes("GET", "/version"))
            assert (await client.reply()).status == 200
            bench.upstreams["a"].mark_down("gone")
            await client.send(request_bytes("GET", "/version"))
            assert (await client.reply()).status == 200
            body = b'{"model":"tiny","prompt":"x"}'
            await client.send(request_bytes(target="/tokenize", body=body))
            assert (await client.reply()).status == 200
            assert bench.asked() == {"a": 1, "b": 2}

    run("asyncio", test)
