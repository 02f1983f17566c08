"""The published `text-generation` package against the simulated TGI, with the proxy in
between and without: an independent reading of TGI's contract."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from loadgen.simulator.core.text import drawn_tokens
from tests.support.both_ways import (
    Ask,
    Asked,
    Ways,
    ask_both,
    assert_as_recorded,
    both_ways,
    failure_of,
    missing,
    plain,
)
from tests.support.children import PATIENCE_SECONDS, get, wait_for
from tests.support.relaying import relaying, run
from tests.support.scripted import LAST_CHUNK, Peer, chunk, reply_bytes, stream_head
from tests.support.tgi_shapes import refusal, token

text_generation: Any = missing("text_generation")
# the package calls pydantic's `dict`, which pydantic would rather have called otherwise
pytestmark = pytest.mark.filterwarnings("ignore:.*`dict` method is deprecated")

PROMPT = "four words for it"
MOST = 12
HELLO: Any = [{"role": "user", "content": "three small words"}]


def sync(url: str, request_id: str) -> Any:
    headers = {"x-request-id": request_id}
    return text_generation.Client(url, headers=headers, timeout=PATIENCE_SECONDS)


def in_a_loop(url: str, request_id: str, ask: Callable[[Any], Any]) -> Any:
    client = text_generation.AsyncClient(
        url, headers={"x-request-id": request_id}, timeout=PATIENCE_SECONDS
    )
    return asyncio.run(ask(client))


def generate(url: str, request_id: str, **more: Any) -> Any:
    options = {"max_new_tokens": MOST} | more
    return plain(sync(url, request_id).generate(PROMPT, **options))


def stream(url: str, request_id: str, **more: Any) -> Any:
    options = {"max_new_tokens": MOST} | more
    return plain(list(sync(url, request_id).generate_stream(PROMPT, **options)))


def chat(url: str, request_id: str, **more: Any) -> Any:
    return plain(sync(url, request_id).chat(HELLO, max_tokens=MOST, **more))


def async_generate(url: str, request_id: str, **more: Any) -> Any:
    async def ask(client: Any) -> Any:
        options = {"max_new_tokens": MOST} | more
        return plain(await client.generate(PROMPT, **options))

    return in_a_loop(url, request_id, ask)


def async_stream(url: str, request_id: str, **more: Any) -> Any:
    async def ask(client: Any) -> Any:
        options = {"max_new_tokens": MOST} | more
        return [plain(e) async for e in client.generate_stream(PROMPT, **options)]

    return in_a_loop(url, request_id, ask)


def async_chat(url: str, request_id: str) -> Any:
    async def ask(client: Any) -> Any:
        return plain(await client.chat(HELLO, max_tokens=MOST))

    return in_a_loop(url, request_id, ask)


def async_chat_stream(url: str, request_id: str) -> Any:
    async def ask(client: Any) -> Any:
        events = await client.chat(HELLO, max_tokens=MOST, stream=True)
        return [plain(event) async for event in events]

    return in_a_loop(url, request_id, ask)


def refused(ask: Callable[..., Any], **more: Any) -> Ask:
    """The exception as data; a request that goes well is a failure here."""

    def asking(url: str, request_id: str) -> Any:
        try:
            ask(url, request_id, **more)
        except Exception as error:
            return failure_of(error)
        raise AssertionError("not refused")

    return asking


EVERY = {
    "generate": generate, "stream": stream, "async-generate": async_generate,
    "async-stream": async_stream,
}  # fmt: skip
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 0.7, "top_p": 0.9}
ANSWERED: dict[str, Ask] = {
    **EVERY,
    "sampled": lambda url, name: generate(url, name, **SAMPLED),
    "sampled-stream": lambda url, name: stream(url, name, **SAMPLED),
    "chat": chat,
    "async-chat": async_chat,
}
NO_TOKENS = {
    f"no-tokens-{name}": refused(ask, max_new_tokens=0) for name, ask in EVERY.items()
}
TOO_MANY = {
    f"too-many-{name}": refused(ask, stop_sequences=list("abcde"))
    for name, ask in EVERY.items()
}
BROKEN = {f"broken-{name}": refused(ask) for name, ask in EVERY.items()} | {
    "broken-chat": refused(chat)
}
BUSY = {f"busy-{name}": refused(ask) for name, ask in EVERY.items()} | {
    "busy-chat": refused(chat)
}


def errors_of(record: dict[str, Any]) -> tuple[str, int]:
    return record["outcome"], record["status"]


def status_in(name: str, whole: int) -> int:
    """A stream has its 200 before anything is known."""
    return 200 if name.endswith("stream") else whole


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Asked]]:
    with both_ways(tmp_path_factory.mktemp("tgi"), "tgi") as ways:
        strict = {"chat-stream": refused(async_chat_stream)}
        yield ask_both(ways, ANSWERED | NO_TOKENS | TOO_MANY | strict)


@pytest.mark.parametrize("name", ANSWERED)
def test_the_package_reads_the_same_with_the_proxy_and_without(
    served: dict[str, Asked], name: str
) -> None:
    asked = served[name]
    assert asked.proxied == asked.direct
    found = asked.proxied
    if "stream" in name:
        count = len(found)
        assert found[-1]["details"]["generated_tokens"] == count
        assert found[-1]["generated_text"] == "".join(
            e["token"]["text"] for e in found if not e["token"]["special"]
        )
    elif "chat" in name:
        count = found["usage"]["completion_tokens"]
    else:
        count = len(found["details"]["tokens"])
        assert found["details"]["generated_tokens"] == count
    assert_as_recorded(
        asked, route="chat" if "chat" in name else "generate", outcome="ok",
        status=200, output_tokens=count, prompt_tokens=3 if "chat" in name else 4,
    )  # fmt: skip


@pytest.mark.parametrize("name", NO_TOKENS | TOO_MANY)
def test_what_fails_validation_raises_the_packages_validation_error(
    served: dict[str, Asked], name: str
) -> None:
    asked = served[name]
    assert asked.proxied == asked.direct
    assert asked.proxied["type"] == "text_generation.errors.ValidationError"
    named = "max_new_tokens" if name in NO_TOKENS else "stop"
    assert f"`{named}`" in asked.proxied["text"]
    assert errors_of(asked.record) == ("error", status_in(name, 422))
    assert asked.record["error"] == asked.proxied["text"]


def test_the_packages_streamed_chat_fails_the_same_way_on_either_way(
    served: dict[str, Asked],
) -> None:
    # it wants `tool_calls` in every event, which TGI sends only with a tool call
    asked = served["chat-stream"]
    assert asked.proxied == asked.direct
    assert asked.proxied["type"] == "builtins.KeyError"


# --- an engine that breaks, and one that is full ------------------------------


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Asked]]:
    folder = tmp_path_factory.mktemp("broken")
    with both_ways(folder, "tgi", "--fail-every", "1") as ways:
        yield ask_both(ways, BROKEN)


@pytest.mark.parametrize("name", BROKEN)
def test_a_generation_that_breaks_raises_the_packages_generation_error(
    broken: dict[str, Asked], name: str
) -> None:
    asked = broken[name]
    assert asked.proxied == asked.direct
    assert asked.proxied["type"] == "text_generation.errors.GenerationError"
    assert errors_of(asked.record) == ("error", status_in(name, 424))


@contextlib.contextmanager
def occupied(ways: Ways) -> Iterator[None]:
    """One request that runs and one that waits, for as long as this lasts."""
    until = threading.Event()
    # TGI cannot be told a length: of many ids the one with the longest reply
    names = (f"long-{number}" for number in range(20_000))
    longest = max(names, key=lambda name: drawn_tokens(0, name, 1, 100_000))

    def hold() -> None:
        body = {
            "inputs": "a",
            "parameters": {"max_new_tokens": 100_000, "do_sample": True},
        }
        url = f"{ways.direct}/generate_stream"
        headers = {"x-request-id": longest}
        with httpx.stream(
            "POST", url, json=body, headers=headers, timeout=None
        ) as reply:
            for _ in reply.iter_raw():
                if until.is_set():
                    return

    def state(name: str) -> int:
        return int(get(f"{ways.direct}/simulator/state").json()[name])

    threads = [threading.Thread(target=hold, daemon=True) for _ in range(2)]
    threads[0].start()
    wait_for(lambda: state("requests_running"))
    threads[1].start()
    wait_for(lambda: state("requests_waiting"))
    try:
        yield
    finally:
        until.set()


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Asked]]:
    full = ("--max-num-seqs", "1", "--max-num-queued", "2")
    with (
        both_ways(tmp_path_factory.mktemp("busy"), "tgi", *full) as ways,
        occupied(ways),
    ):
        yield ask_both(ways, BUSY)


@pytest.mark.parametrize("name", BUSY)
def test_a_full_queue_raises_the_packages_overloaded_error(
    busy: dict[str, Asked], name: str
) -> None:
    asked = busy[name]
    assert asked.proxied == asked.direct
    assert asked.proxied["type"] == "text_generation.errors.OverloadedError"
    assert errors_of(asked.record) == ("error", status_in(name, 429))


# --- what the simulator never says --------------------------------------------


def scripted(pieces: list[bytes], *, is_stream: bool) -> tuple[Any, Any, Any]:
    """Both ways to a server that says just this, and what the meter was told."""
    seen: list[tuple[Any, Any, Any]] = []

    async def script(peer: Peer) -> None:
        while await peer.request() is not None:
            await peer.send(*pieces)

    async def at(url: str) -> Any:
        client = text_generation.AsyncClient(url, timeout=PATIENCE_SECONDS)
        try:
            if is_stream:
                return [plain(e) async for e in client.generate_stream(PROMPT)]
            return plain(await client.generate(PROMPT))
        except Exception as error:
            return failure_of(error)

    async def test() -> None:
        async with relaying(script, "tgi") as bench:
            direct = await at(bench.upstream.url)
            proxied = await at(f"http://127.0.0.1:{bench.relay.port}")
            seen.append((direct, proxied, await bench.meter.only()))

    run("asyncio", test)
    return seen[0]


def test_an_incomplete_generation_raises_the_packages_own_error() -> None:
    body = json.dumps(refusal("incomplete_generation", "Incomplete")).encode()
    direct, proxied, metered = scripted([reply_bytes(500, body)], is_stream=False)
    assert proxied == direct
    assert proxied["type"] == "text_generation.errors.IncompleteGenerationError"
    assert (metered.outcome, metered.status) == ("error", 500)


def test_a_stream_that_ends_early_is_an_error_the_package_does_not_know() -> None:
    told = refusal("incomplete_generation_stream", "Stream ended early")
    event = b"data:%s\n\n" % json.dumps(told).encode()
    pieces = [stream_head(), chunk(token(1, " one")), chunk(event), LAST_CHUNK]
    direct, proxied, metered = scripted(pieces, is_stream=True)
    assert proxied == direct
    assert proxied["type"] == "text_generation.errors.UnknownError"
    assert (metered.outcome, metered.error) == ("error", "Stream ended early")
