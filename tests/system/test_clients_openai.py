"""The published `openai` package, unchanged: through the proxy it sees what it would
see without, and every request of it is in the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.both_ways import (
    MODEL,
    Ask,
    Asked,
    ask_both,
    assert_as_recorded,
    both_ways,
    failure_of,
    missing,
    plain,
)

openai: Any = missing("openai")

WORDS: Any = [{"role": "user", "content": "seven words for a model to read"}]
TOKENS = 9
LENGTH: dict[str, Any] = {"ignore_eos": True}
USAGE: dict[str, Any] = {"stream_options": {"include_usage": True}}
RUNNING: dict[str, Any] = {
    "stream_options": {"include_usage": True, "continuous_usage_stats": True}
}


def client(url: str) -> Any:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def chat(url: str, request_id: str, **more: Any) -> Any:
    """A whole reply, or a stream if asked for; a refusal is data too."""
    with client(url) as api:
        try:
            reply = api.chat.completions.create(
                model=more.pop("model", MODEL), messages=WORDS, extra_body=LENGTH,
                max_tokens=more.pop("max_tokens", TOKENS),
                extra_headers={"x-request-id": request_id}, **more,
            )  # fmt: skip
            return plain(list(reply) if more.get("stream") else reply)
        except openai.APIError as error:
            return failure_of(error)


def completion(url: str, request_id: str, **more: Any) -> Any:
    with client(url) as api:
        reply = api.completions.create(
            model=MODEL, prompt="four words for it", max_tokens=TOKENS,
            extra_body=LENGTH, extra_headers={"x-request-id": request_id}, **more,
        )  # fmt: skip
        return plain(list(reply) if more.get("stream") else reply)


def helper_stream(url: str, request_id: str) -> Any:
    """The package's own accumulating helper; it takes no reply that was cut short."""
    with (
        client(url) as api,
        api.chat.completions.stream(
            model=MODEL, messages=WORDS, max_tokens=1000, **USAGE,
            extra_headers={"x-request-id": request_id},
        ) as stream,
    ):  # fmt: skip
        kinds = [event.type for event in stream]
        return {"kinds": kinds, "whole": plain(stream.get_final_completion())}


def raw(url: str, request_id: str, **more: Any) -> Any:
    """Status, headers and lines, as the package hands them out."""
    with client(url) as api:
        reply = api.chat.completions.with_raw_response.create(
            model=MODEL, messages=WORDS, max_tokens=TOKENS, extra_body=LENGTH,
            extra_headers={"x-request-id": request_id}, **more,
        )  # fmt: skip
        body = reply.parse()
        body = list(body) if more.get("stream") else body
        return {
            "status": reply.status_code,
            "type": reply.headers["content-type"],
            "id": reply.headers["x-request-id"],
            "own": [name for name in reply.headers if "servewatt" in name],
            "body": plain(body),
        }


def abandoned(url: str, request_id: str) -> Any:
    """A client that has read enough of a long stream (that tells its count)."""
    with client(url) as api:
        stream = api.chat.completions.create(
            model=MODEL, messages=WORDS, max_tokens=2000, stream=True,
            **RUNNING, extra_body=LENGTH, extra_headers={"x-request-id": request_id},
        )  # fmt: skip
        first = [plain(next(stream)) for _ in range(3)]
        stream.close()
        return first


def in_a_loop(url: str, request_id: str, **more: Any) -> Any:
    """The asynchronous client."""

    async def ask() -> Any:
        async with openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="none", max_retries=0
        ) as api:
            reply = await api.chat.completions.create(
                model=MODEL, messages=WORDS, max_tokens=TOKENS, extra_body=LENGTH,
                extra_headers={"x-request-id": request_id}, **more,
            )  # fmt: skip
            if more.get("stream"):
                return plain([event async for event in reply])
            return plain(reply)

    return asyncio.run(ask())


ANSWERED: dict[str, Ask] = {
    "chat": chat,
    "chat-stream": lambda url, name: chat(url, name, stream=True),
    "chat-usage": lambda url, name: chat(url, name, stream=True, **USAGE),
    "chat-running": lambda url, name: chat(url, name, stream=True, **RUNNING),
    "chat-n": lambda url, name: chat(url, name, n=3),
    "chat-n-stream": lambda url, name: chat(url, name, n=3, stream=True),
    "completion": completion,
    "completion-stream": lambda url, name: completion(url, name, stream=True),
    "completion-n": lambda url, name: completion(url, name, stream=True, n=2, **USAGE),
    "raw": raw,
    "raw-stream": lambda url, name: raw(url, name, stream=True),
    "async": in_a_loop,
    "async-stream": lambda url, name: in_a_loop(url, name, stream=True),
    "async-n": lambda url, name: in_a_loop(url, name, stream=True, n=3, **USAGE),
}
REFUSED: dict[str, tuple[Ask, str, int]] = {
    "wrong-model": (
        lambda url, name: chat(url, name, model="gpt-9"), "NotFoundError", 404,
    ),
    "no-tokens": (
        lambda url, name: chat(url, name, max_tokens=0), "BadRequestError", 400,
    ),
    "no-tokens-stream": (
        lambda url, name: chat(url, name, max_tokens=0, stream=True),
        "BadRequestError", 400,
    ),
    "greedy-n": (
        lambda url, name: chat(url, name, n=2, temperature=0), "BadRequestError", 400,
    ),
}  # fmt: skip
OTHERS: dict[str, Ask] = {"abandoned": abandoned, "helper": helper_stream}


LOSES_FINGERPRINT = [name for name in ANSWERED if name.endswith("stream")]
"""vLLM tells `system_fingerprint` once, in the last event. Where the proxy asked for
usage that is the event it takes out again, and the client goes without."""


def without_fingerprint(seen: Any) -> Any:
    """The same, with that one field as it is where nobody told it."""
    if isinstance(seen, dict):
        return {
            key: None if key == "system_fingerprint" else without_fingerprint(value)
            for key, value in seen.items()
        }
    return [without_fingerprint(v) for v in seen] if isinstance(seen, list) else seen


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Asked]]:
    folder = tmp_path_factory.mktemp("openai")
    refused = {name: ask for name, (ask, _, _) in REFUSED.items()}
    with both_ways(folder, "vllm") as ways:
        yield ask_both(ways, ANSWERED | refused | OTHERS)


@pytest.mark.parametrize("name", [*ANSWERED, *REFUSED, *OTHERS])
def test_the_client_sees_through_the_proxy_what_it_sees_without(
    served: dict[str, Asked], name: str
) -> None:
    direct, proxied = served[name].direct, served[name].proxied
    if name in LOSES_FINGERPRINT:
        direct = without_fingerprint(direct)
        assert direct != served[name].direct
    assert proxied == direct


@pytest.mark.parametrize("name", ANSWERED)
def test_the_ledger_counts_what_the_client_was_sent(
    served: dict[str, Asked], name: str
) -> None:
    copies = {"chat-n": 3, "chat-n-stream": 3, "async-n": 3, "completion-n": 2}
    is_chat = not name.startswith("completion")
    assert_as_recorded(
        served[name],
        route="chat" if is_chat else "completions",
        prompt_tokens=7 if is_chat else 4,
        output_tokens=copies.get(name, 1) * TOKENS,
        outcome="ok",
        status=200,
        model=MODEL,
    )


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_raises_the_packages_own_exception_and_is_recorded(
    served: dict[str, Asked], name: str
) -> None:
    _, kind, status = REFUSED[name]
    assert served[name].proxied["type"].endswith(f".{kind}")
    assert served[name].proxied["status"] == status
    assert_as_recorded(served[name], outcome="error", status=status)


def test_a_client_that_leaves_is_recorded_as_having_left(
    served: dict[str, Asked],
) -> None:
    record = served["abandoned"].record
    assert record["outcome"] == "aborted"
    assert 0 < record["output_tokens"] < 2000
    assert record["energy"]["energy_joules"] > 0


def test_the_packages_helper_adds_up_what_the_ledger_counts(
    served: dict[str, Asked],
) -> None:
    usage = served["helper"].proxied["whole"]["usage"]
    assert served["helper"].record["output_tokens"] == usage["completion_tokens"]


ON_TGI = [
    "chat", "chat-stream", "chat-usage", "completion", "completion-stream", "async",
    "async-stream",
]  # fmt: skip


@pytest.fixture(scope="module")
def served_by_tgi(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Asked]]:
    with both_ways(tmp_path_factory.mktemp("openai-tgi"), "tgi") as ways:
        yield ask_both(ways, {name: ANSWERED[name] for name in ON_TGI})


@pytest.mark.parametrize("name", ON_TGI)
def test_the_openai_routes_of_tgi_are_the_same_too(
    served_by_tgi: dict[str, Asked], name: str
) -> None:
    asked = served_by_tgi[name]
    assert asked.proxied == asked.direct
    is_chat = not name.startswith("completion")
    assert_as_recorded(
        asked, outcome="ok", status=200, prompt_tokens=7 if is_chat else 4,
        route="chat" if is_chat else "completions",
    )  # fmt: skip
    served = asked.record["output_tokens"]
    assert 1 <= served <= TOKENS
    reply = asked.proxied
    if isinstance(reply, dict):
        assert reply["usage"]["completion_tokens"] == served
    else:
        assert sum(bool(event["choices"]) for event in reply) == served


def test_the_events_of_a_plain_stream_carry_no_usage(served: dict[str, Asked]) -> None:
    # the proxy asked the engine for it; the client did not, and never sees it
    events = served["chat-stream"].proxied
    assert len(events) == TOKENS + 1
    assert all(event["usage"] is None and event["choices"] for event in events)
    with_usage = served["chat-usage"].proxied
    assert len(with_usage) == TOKENS + 2
    assert with_usage[-1]["usage"]["completion_tokens"] == TOKENS
