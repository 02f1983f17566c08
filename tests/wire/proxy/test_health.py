"""Where an upstream is asked whether it is up, by dialect and by `--health-path`."""

from __future__ import annotations

import ssl

import pytest

from proxy.engines import DIALECTS
from proxy.meter.config import MeterConfig
from proxy.meter.meter import Meter
from proxy.relay.config import RelayConfig
from proxy.relay.upstream.upstream import open_upstream
from proxy.serve.health import HealthWatch
from tests.support.relaying import run
from tests.support.scripted import Peer, ScriptedServer, reply_bytes


async def lively(peer: Peer) -> None:
    """LiteLLM with a key and no database: its own pages break, but for one."""
    while (request := await peer.request()) is not None:
        is_up = request.target == "/health/liveliness"
        await peer.send(reply_bytes(200 if is_up else 500))


@pytest.mark.parametrize(
    ("dialect", "path", "asked", "is_up"),
    [
        ("vllm", None, "/health", False),
        ("openai", None, "/v1/models", False),
        ("openai", "/health/liveliness", "/health/liveliness", True),
        ("tgi", "/health/liveliness", "/health/liveliness", True),
    ],
)
def test_health_is_asked_for_where_the_operator_says(
    dialect: str, path: str | None, asked: str, is_up: bool
) -> None:
    async def test() -> None:
        async with ScriptedServer(lively) as server:
            config = RelayConfig(upstream_url=server.url)
            upstream = open_upstream(
                "engine", config, Meter(MeterConfig()), DIALECTS[dialect], lambda: 0.0
            )
            watch = HealthWatch(
                upstream, tls=ssl.create_default_context(), asks_models=False,
                has_fixed_models=False, path=path,
            )  # fmt: skip
            for is_steady in (False, True):
                reason = await watch.ask(is_steady=is_steady)
                assert (reason is None) == is_up
            assert [r.target for r in server.requests] == [asked, asked]

    run("asyncio", test)
