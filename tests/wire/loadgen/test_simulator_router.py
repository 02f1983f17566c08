"""A router and its two simulated engines on real sockets: two legs, one id."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import ClientSession, web

from loadgen.simulator.app import make_app, make_runner
from loadgen.simulator.config import ServerConfig
from loadgen.simulator.core.truth import TruthRecord
from loadgen.simulator.realtime.runner import Runner
from loadgen.simulator.router import make_router

WAIT_SECONDS = 20
"""A bound on a hang, not an expectation."""
WORDS = " ".join(f"w{n}" for n in range(300))
NOBODY = "http://127.0.0.1:9"
"""The discard port: nothing listens there."""


@dataclass(frozen=True, slots=True)
class Pair:
    session: ClientSession
    """At the router."""
    prefill: Runner
    decode: Runner

    def truths(self) -> tuple[list[TruthRecord], list[TruthRecord]]:
        return list(self.prefill.records), list(self.decode.records)


async def _listening(app: web.Application) -> tuple[web.AppRunner, str]:
    server = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await server.setup()
    await web.TCPSite(server, "127.0.0.1", 0).start()
    return server, f"http://127.0.0.1:{server.addresses[0][1]}"


def talk(
    scene: Callable[[Pair], Awaitable[None]],
    *,
    prefill_url: str | None = None,
    decode_url: str | None = None,
) -> None:
    async def _talk() -> None:
        servers, urls, runners, tasks = [], {}, {}, []
        for role in ("prefill", "decode"):
            config = ServerConfig(role=role)
            runners[role] = make_runner(config)
            server, urls[role] = await _listening(make_app(config, runners[role]))
            servers.append(server)
            tasks.append(asyncio.create_task(runners[role].run()))
        config = ServerConfig(
            role="router",
            prefill=(prefill_url or urls["prefill"],),
            decode=(decode_url or urls["decode"],),
        )
        async with asyncio.timeout(WAIT_SECONDS), ClientSession() as upstream:
            server, base = await _listening(make_router(config, upstream))
            servers.append(server)
            async with ClientSession(base) as session:
                await scene(Pair(session, runners["prefill"], runners["decode"]))
        for task in tasks:
            task.cancel()
        for server in servers:
            await server.cleanup()

    asyncio.run(_talk())


def test_a_request_has_a_leg_on_each_engine_under_its_own_id() -> None:
    async def scene(pair: Pair) -> None:
        body = {"prompt": WORDS, "max_tokens": 5, "ignore_eos": True, "stream": True,
                "stream_options": {"include_usage": True}}  # fmt: skip
        headers = {"X-Request-Id": "mine"}
        async with pair.session.post(
            "/v1/completions", json=body, headers=headers
        ) as reply:
            parts = (await reply.read()).split(b"\n\n")
        usage = json.loads(parts[-3].removeprefix(b"data: "))["usage"]
        assert usage["completion_tokens"] == 5
        assert usage["prompt_tokens_details"]["cached_tokens"] == 299
        (first,), (second,) = pair.truths()
        assert first.request_id == second.request_id == "mine"
        assert (first.prefilled_tokens, first.output_tokens) == (300, 1)
        assert (second.prefilled_tokens, second.output_tokens) == (1, 5)
        assert first.decode_joules == 0
        assert second.prefill_joules < first.prefill_joules

    talk(scene)


def test_a_request_without_an_id_gets_one_for_both_legs() -> None:
    async def scene(pair: Pair) -> None:
        body = {"messages": [{"role": "user", "content": WORDS}], "max_tokens": 2}
        async with pair.session.post("/v1/chat/completions", json=body) as reply:
            assert reply.status == 200
        (first,), (second,) = pair.truths()
        assert first.request_id == second.request_id

    talk(scene)


def test_an_id_that_a_proxy_would_replace_is_replaced_once_for_both_legs() -> None:
    async def scene(pair: Pair) -> None:
        headers = {"X-Request-Id": "x" * 201}
        body = {"prompt": WORDS, "max_tokens": 2}
        async with pair.session.post(
            "/v1/completions", json=body, headers=headers
        ) as reply:
            assert reply.status == 200
        (first,), (second,) = pair.truths()
        assert first.request_id == second.request_id != "x" * 201

    talk(scene)


def test_a_refusal_of_the_first_engine_is_the_client_s_and_there_is_no_second_leg() -> (
    None
):
    async def scene(pair: Pair) -> None:
        body = {"prompt": "a", "temperature": -1}
        async with pair.session.post("/v1/completions", json=body) as reply:
            assert reply.status == 400
            assert "temperature" in (await reply.json())["error"]["message"]
        assert pair.truths() == ([], [])

    talk(scene)


def test_an_engine_that_is_away_is_named() -> None:
    async def scene(pair: Pair) -> None:
        body = {"prompt": "a", "max_tokens": 2}
        async with pair.session.post("/v1/completions", json=body) as reply:
            assert reply.status == 502
            assert NOBODY in (await reply.json())["error"]["message"]
        async with pair.session.get("/health") as reply:
            assert reply.status == 503

    talk(scene, prefill_url=NOBODY)
    talk(scene, decode_url=NOBODY)


def test_what_is_no_generation_is_answered_by_a_decode_engine() -> None:
    async def scene(pair: Pair) -> None:
        async with pair.session.get("/v1/models") as reply:
            assert "simulated" in (await reply.json())["data"][0]["id"]
        async with pair.session.post("/tokenize", json={"prompt": "a b"}) as reply:
            assert (await reply.json())["count"] == 2
        async with pair.session.post("/v1/completions", data=b"{") as reply:
            assert reply.status == 400

    talk(scene)
