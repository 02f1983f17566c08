"""Where requests go is configured; nothing that a peer says can change it."""

from __future__ import annotations

import asyncio
import time

import pytest

from proxy.errors import ConfigError, SensorError
from proxy.power.engine_load import GaugeStats, watch_gauges
from proxy.power.http import HttpSensor
from proxy.relay.config import RelayConfig
from proxy.relay.routing.labels import (
    MAX_HASHED_TENANTS,
    LabelReader,
    check_tenant_header,
    hashed_tenant,
)
from proxy.serve.config import MeterOptions, UpstreamConfig
from proxy.serve.upstream import MeteredUpstream
from proxy.store.archive import Archive
from proxy.wire.events import EngineObserved
from proxy.wire.facts import RequestFacts
from proxy.wire.headers import end_to_end, frame_reply
from tests.support.relaying import LOOPS, relaying, run
from tests.support.scripted import (
    Peer,
    ScriptedServer,
    reply_bytes,
    request_bytes,
    running,
)

loops = pytest.mark.parametrize("loop", LOOPS)


async def echo(peer: Peer) -> None:
    while await peer.request() is not None:
        await peer.send(reply_bytes())


@loops
def test_no_word_of_a_client_changes_where_a_request_goes(loop: str) -> None:
    async def test() -> None:
        async with ScriptedServer(echo) as trap, relaying(echo, path="/base") as bench:
            there = f"127.0.0.1:{trap.port}"
            client = await bench.client()
            asked = [
                request_bytes("GET", f"{trap.url}/health"),
                request_bytes("GET", f"http://user:pw@{there}/health"),
                request_bytes(
                    "GET", "/health",
                    [("X-Forwarded-Host", there), ("X-Forwarded-For", there),
                     ("Forwarded", f"host={there};proto=http"),
                     ("X-Original-URL", f"{trap.url}/x"), ("X-Rewrite-URL", "/x"),
                     ("X-Forwarded-Proto", "https"), ("Via", there)],
                ),
                request_bytes("GET", "/health").replace(
                    b"Host: test", b"Host: " + there.encode()
                ),
            ]  # fmt: skip
            for request in asked:
                await client.send(request)
                assert (await client.reply()).status == 200
            await client.send(request_bytes("GET", f"//{there}/health"))
            assert (await client.reply()).status == 404
            assert trap.peers == []
            for seen in bench.upstream.requests:
                assert seen.target == "/base/health"
                assert seen.one("host") == f"127.0.0.1:{bench.upstream.port}"

    run(loop, test)


@loops
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_the_clients_to_follow(loop: str, status: int) -> None:
    async def test() -> None:
        async with ScriptedServer(echo) as trap:
            there = f"{trap.url}/v1/chat/completions"

            async def redirect(peer: Peer) -> None:
                while await peer.request() is not None:
                    await peer.send(reply_bytes(status, b"{}", [("Location", there)]))

            async with relaying(redirect) as bench:
                client = await bench.client()
                body = b'{"model":"m","messages":[]}'
                await client.send(request_bytes(body=body))
                reply = await client.reply()
                assert (reply.status, reply.one("location")) == (status, there)
                assert reply.body == b"{}"
                assert (await bench.meter.only()).status == status
            assert trap.peers == []

    run(loop, test)


def test_what_asks_on_its_own_follows_no_redirect_either() -> None:
    with running(echo) as trap:

        async def redirect(peer: Peer) -> None:
            while await peer.request() is not None:
                where = [("Location", f"{trap.url}/elsewhere")]
                await peer.send(reply_bytes(302, b"", where))

        async def scraped_once(url: str) -> GaugeStats:
            def deliver(event: EngineObserved) -> None:
                raise AssertionError("a redirect is no page of gauges")

            stats = GaugeStats()
            task = asyncio.create_task(watch_gauges(url, deliver, stats))
            while not stats.scrapes_total:  # noqa: ASYNC110  # the task tells nobody
                await asyncio.sleep(0)
            task.cancel()
            return stats

        with running(redirect) as engine:
            sensor = HttpSensor("dcgm")
            with pytest.raises(SensorError, match="answered 302"):
                sensor.get(f"{engine.url}/metrics")
            sensor.close()
            assert asyncio.run(scraped_once(f"{engine.url}/metrics")).errors_total == 1
            upstream = MeteredUpstream(
                UpstreamConfig("vllm", engine.url, "vllm", ("none",)),
                MeterOptions("phase", 0.02, 0.5),
            )
            upstream.open_upstream(RelayConfig(engine.url), time.monotonic, Archive())
            asyncio.run(upstream.health.ask())
        assert trap.peers == []


@loops
def test_own_headers_stop_at_the_relay_both_ways(loop: str) -> None:
    async def test() -> None:
        async def boast(peer: Peer) -> None:
            await peer.request()
            made_up = [("X-ServeWatt-Energy", "0"), ("x-servewatt-tenant", "free")]
            await peer.send(reply_bytes(200, b"{}", made_up))

        async with relaying(boast) as bench:
            client = await bench.client()
            mine = [("X-SERVEWATT-Energy", "0"), ("x-servewatt-anything", "1")]
            await client.send(request_bytes("GET", "/health", mine))
            reply = await client.reply()
            (seen,) = bench.upstream.requests
            for message in (seen, reply):
                names = {name.lower() for name, _ in message.headers}
                assert not {n for n in names if n.startswith("x-servewatt-")}

    run(loop, test)


def test_own_headers_never_count_as_end_to_end() -> None:
    headers = [(b"X-Servewatt-A", b"1"), (b"x-servewat", b"2"), (b"A", b"3")]
    assert end_to_end(headers) == headers[1:]
    framing = frame_reply(
        200, b"OK", headers, request_id=b"r", has_body=False, has_length=True,
        is_http_10=False, keeps_alive=True,
    )  # fmt: skip
    assert b"Servewatt-A" not in framing.head


KEY = "a-secret-key-of-some-length"
FACTS = RequestFacts("chat")


def test_other_tenants_are_keyed_hashes() -> None:
    reader = LabelReader("Authorization", frozenset(["Bearer team-a"]), KEY)
    known = reader.read(FACTS, [(b"authorization", b"Bearer team-a")])
    assert (known.tenant, known.stored_tenant) == ("Bearer team-a", None)
    secret = b"Bearer sk-very-secret"
    hashed = reader.read(FACTS, [(b"AUTHORIZATION", secret)])
    assert hashed.tenant == hashed.stored_tenant == hashed_tenant(KEY.encode(), secret)
    assert hashed.tenant != hashed_tenant(b"another key", secret)
    assert len(hashed.tenant) == 16
    assert "secret" not in hashed.tenant
    assert reader.read(FACTS, []).tenant == "none"


def test_later_tenants_share_a_label_and_keep_their_hash_in_the_record() -> None:
    reader = LabelReader("x-team", frozenset(), KEY)
    read = [
        reader.read(FACTS, [(b"x-team", b"%d" % number)])
        for number in range(2 * MAX_HASHED_TENANTS)
    ]
    assert len({labels.tenant for labels in read}) == MAX_HASHED_TENANTS + 1
    assert {labels.tenant for labels in read[MAX_HASHED_TENANTS:]} == {"other"}
    assert len({labels.stored_tenant for labels in read}) == len(read)


@pytest.mark.parametrize(
    "header", ["authorization", "Authorization", "Cookie", "x-api-key", "api-key"]
)
def test_a_secret_header_names_tenants_under_a_key_only(header: str) -> None:
    with pytest.raises(ConfigError, match="--tenant-hash-key-file"):
        check_tenant_header(header, None)
    check_tenant_header(header, KEY)
    check_tenant_header("x-team", None)
    with pytest.raises(ConfigError, match="give both"):
        check_tenant_header(None, KEY)


def test_a_tenant_is_not_what_a_client_calls_itself() -> None:
    labels = LabelReader(None, frozenset()).read(
        FACTS, [(b"x-servewatt-tenant", b"rich"), (b"x-servewatt-kind", b"code")]
    )
    assert (labels.tenant, labels.kind) == ("none", "code")
