"""A client reads its energy in its reply: simulator and proxy as real processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.wire.sse import SseDecoder
from tests.support.children import metering, post, record_of, simulating

MODEL = "simulated-llama-3.1-8b"
IDLE_WATTS = "90"
"""Given, so that no test has to wait until idle was measured."""


@dataclass(frozen=True)
class Stack:
    """One simulator behind two proxies: one that waits for settlement, one not."""

    waiting: str
    waiting_admin: str
    prompt: str
    prompt_admin: str


@contextlib.contextmanager
def stack(dialect: str, folder: Path) -> Iterator[Stack]:
    tells = ("--engine", dialect, "--idle-watts", IDLE_WATTS, "--energy-in-response")
    with (
        simulating(folder, "--dialect", dialect) as engine,
        metering(folder, engine, *tells, "--energy-wait", "20") as waiting,
        metering(folder, engine, *tells) as prompt,
    ):
        yield Stack(
            waiting["url"], waiting["admin_url"], prompt["url"], prompt["admin_url"]
        )


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack("vllm", tmp_path_factory.mktemp("vllm")) as running:
        yield running


@pytest.fixture(scope="module")
def tgi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack("tgi", tmp_path_factory.mktemp("tgi")) as running:
        yield running


def chat(stream: bool, tokens: int = 20) -> dict[str, Any]:
    return {
        "model": MODEL, "stream": stream, "max_tokens": tokens,
        "ignore_eos": True, "messages": [{"role": "user", "content": "one two three"}],
    }  # fmt: skip


def ask(url: str, body: dict[str, Any], request_id: str, **headers: str) -> bytes:
    reply = post(
        url, json=body, headers={"x-request-id": request_id, **headers}, timeout=60
    )
    assert reply.status_code == 200, reply.text
    return reply.content


def comments_in(stream: bytes) -> list[dict[str, Any]]:
    """The energy told in a stream; the comment is the block before the end."""
    blocks = [block for block in stream.split(b"\n\n") if block]
    told = [block for block in blocks if block.startswith(b": energy ")]
    if told:
        last = blocks[-2] if blocks[-1].endswith(b"[DONE]") else blocks[-1]
        assert told == [last]
    return [json.loads(block.removeprefix(b": energy ")) for block in told]


def joules_of(energy: dict[str, Any]) -> list[float]:
    names = ("prefill_joules", "decode_joules", "idle_share_joules", "energy_joules")
    return [energy[name] for name in names]


@pytest.mark.parametrize("stream", [True, False])
def test_a_settled_figure_is_the_one_in_the_record(vllm: Stack, stream: bool) -> None:
    name = f"settled-{stream}"
    reply = ask(f"{vllm.waiting}/v1/chat/completions", chat(stream), name)
    (told,) = comments_in(reply) if stream else [json.loads(reply)["energy"]]
    assert told["settled"] is True
    assert (told["simulated"], told["boundary"]) == (True, "gpu")
    assert told["request_id"] == name
    assert told["energy_joules"] > 0
    assert told["energy_kwh"] == pytest.approx(told["energy_joules"] / 3.6e6)
    energy = record_of(vllm.waiting_admin, name)["energy"]
    assert joules_of(told) == pytest.approx(joules_of(energy))
    assert (told["policy"], told["quality"]) == (energy["policy"], energy["quality"])


@pytest.mark.parametrize("stream", [True, False])
def test_by_default_an_estimate_comes_at_once(vllm: Stack, stream: bool) -> None:
    name = f"prompt-{stream}"
    reply = ask(f"{vllm.prompt}/v1/chat/completions", chat(stream, 100), name)
    (told,) = comments_in(reply) if stream else [json.loads(reply)["energy"]]
    assert (told["settled"], told["quality"]) == (False, "estimated")
    final = record_of(vllm.prompt_admin, name)["energy"]["energy_joules"]
    assert told["energy_joules"] == pytest.approx(final, rel=0.5)


def test_a_client_may_decline(vllm: Stack) -> None:
    reply = ask(
        f"{vllm.prompt}/v1/chat/completions", chat(True), "no",
        **{"x-servewatt-energy": "0"},
    )  # fmt: skip
    assert comments_in(reply) == []
    assert b"usage" not in reply  # it did not ask for that either
    assert SseDecoder().feed(reply)[-1] == b"[DONE]"


def test_many_at_once_are_told_their_own(vllm: Stack) -> None:
    async def one(client: httpx.AsyncClient, number: int) -> dict[str, Any]:
        reply = await client.post(
            f"{vllm.waiting}/v1/chat/completions", json=chat(True, 5 + 6 * number),
            headers={"x-request-id": f"many-{number}"}, timeout=60,
        )  # fmt: skip
        assert SseDecoder().feed(reply.content)[-1] == b"[DONE]"
        (told,) = comments_in(reply.content)
        return told

    async def all_of_them() -> list[dict[str, Any]]:
        async with httpx.AsyncClient() as client:
            return await asyncio.gather(*(one(client, n) for n in range(8)))

    for number, told in enumerate(asyncio.run(all_of_them())):
        assert told["settled"] is True
        energy = record_of(vllm.waiting_admin, f"many-{number}")["energy"]
        assert joules_of(told) == pytest.approx(joules_of(energy))


def test_tgi_streams_and_lists_have_it_too(tgi: Stack) -> None:
    body = {"inputs": "one two three", "parameters": {"max_new_tokens": 12}}
    (told,) = comments_in(ask(f"{tgi.waiting}/generate_stream", body, "native"))
    assert told["settled"] is True
    assert joules_of(told) == pytest.approx(
        joules_of(record_of(tgi.waiting_admin, "native")["energy"])
    )
    (element,) = json.loads(ask(f"{tgi.waiting}/", body, "list"))
    assert element["energy"]["request_id"] == "list"
    (told,) = comments_in(
        ask(f"{tgi.prompt}/v1/chat/completions", chat(True), "openai-flavour")
    )
    assert told["energy_joules"] > 0
