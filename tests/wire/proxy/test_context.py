"""What an engine tells of its models' contexts, and what no count can be beyond."""

from __future__ import annotations

import asyncio
import json
import ssl
import time

import pytest

from proxy.engines import DIALECTS
from proxy.relay.config import RelayConfig
from proxy.relay.upstream.upstream import open_upstream
from proxy.serve.health import HealthWatch
from proxy.wire.facts import RequestFacts
from tests.support.relaying import RecordingMeter
from tests.support.scripted import Peer, ScriptedServer, reply_bytes


@pytest.mark.parametrize(
    ("length", "model", "route", "context_tokens"),
    [
        (4096, "m", "chat", 4096),
        (4096, None, "completions", 4096),
        (4096, "an alias", "messages", 4096),
        (4096, "m", "responses", None),  # its tools may take several turns
        ("4k", "m", "chat", None),
        (None, "m", "chat", None),
    ],
)
def test_the_context_is_learnt_from_the_list_of_models(
    length: object, model: str | None, route: str, context_tokens: int | None
) -> None:
    page = json.dumps({"data": [{"id": "m", "max_model_len": length}]}).encode()

    async def script(peer: Peer) -> None:
        while await peer.request() is not None:
            await peer.send(reply_bytes(200, page))

    async def test() -> RequestFacts:
        async with ScriptedServer(script) as server:
            upstream = open_upstream(
                "a",
                RelayConfig(server.url),
                RecordingMeter(),
                DIALECTS["vllm"],
                time.monotonic,
            )
            watch = HealthWatch(
                upstream,
                tls=ssl.create_default_context(),
                asks_models=True,
                has_fixed_models=False,
            )
            assert await watch.ask() is None
            return upstream.with_context(RequestFacts(route, model))

    assert asyncio.run(test()).context_tokens == context_tokens


@pytest.mark.parametrize(
    ("told", "role", "route", "leg"),
    [
        (None, None, "chat", None),
        (None, "decode", "chat", "decode"),
        ("prefill", "decode", "completions", "prefill"),
        (None, "decode", "embeddings", None),
    ],
    ids=["whole", "role", "told", "not-written"],
)
def test_a_request_that_tells_no_leg_is_of_its_engine_s_role(
    told: str | None, role: str | None, route: str, leg: str | None
) -> None:
    async def test() -> RequestFacts:
        upstream = open_upstream(
            "a", RelayConfig("http://127.0.0.1:9"), RecordingMeter(),
            DIALECTS["vllm"], time.monotonic,
        )  # fmt: skip
        upstream.role = role
        return upstream.with_context(RequestFacts(route, leg=told))

    assert asyncio.run(test()).leg == leg
