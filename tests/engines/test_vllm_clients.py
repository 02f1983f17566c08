"""The `openai` package against a real vLLM: the same with the proxy and without."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engines.vllm_server import MODEL, Metered, metered
from tests.support.both_ways import (
    Ask,
    Asked,
    Ways,
    ask_both,
    assert_as_recorded,
    failure_of,
    missing,
    plain,
)
from tests.support.children import get, record_of

pytestmark = pytest.mark.vllm
openai: Any = missing("openai")

WORDS: Any = [{"role": "user", "content": "where is it warm today?"}]
TOKENS = 11
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CALLING: dict[str, Any] = {
    "tools": [TOOL], "max_tokens": 60, "extra_body": {},
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
}  # fmt: skip
USAGE: dict[str, Any] = {"stream_options": {"include_usage": True}}
CALL_ID = re.compile(r"chatcmpl-tool-[0-9a-f]+")


def asking(url: str, request_id: str, **more: Any) -> Any:
    """What a request must have to be the same when it is repeated."""
    return {
        "model": MODEL, "messages": WORDS, "max_tokens": TOKENS, "temperature": 0,
        "extra_body": {"ignore_eos": True},
        "extra_headers": {"x-request-id": request_id},
    } | more  # fmt: skip


def seen(value: Any) -> Any:
    """Plain data; vLLM makes up an id for each tool call."""
    return json.loads(CALL_ID.sub("chatcmpl-tool", json.dumps(plain(value))))


def folded(events: list[Any]) -> Any:
    """A stream without its cuts: two tokens may share an event, as time wills."""
    choices: dict[int, dict[str, Any]] = {}
    for event in events:
        for choice in event["choices"]:
            found = choices.setdefault(
                choice["index"], {"text": "", "arguments": "", "names": []}
            )
            delta = choice["delta"]
            found["text"] += delta["content"] or ""
            found["finish_reason"] = choice["finish_reason"]
            for call in delta["tool_calls"] or []:
                found["arguments"] += call["function"]["arguments"] or ""
                found["names"] += filter(None, [call["function"]["name"]])
    last = events[-1]
    return {"id": last["id"], "usage": last["usage"], "choices": choices}


def chat(url: str, request_id: str, **more: Any) -> Any:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as api:
        try:
            reply = api.chat.completions.create(**asking(url, request_id, **more))
            return folded(seen(list(reply))) if more.get("stream") else seen(reply)
        except openai.APIError as error:
            return failure_of(error)


def in_a_loop(url: str, request_id: str, **more: Any) -> Any:
    async def ask() -> Any:
        async with openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="none", max_retries=0
        ) as api:
            reply = await api.chat.completions.create(**asking(url, request_id, **more))
            if more.get("stream"):
                return folded(seen([event async for event in reply]))
            return seen(reply)

    return asyncio.run(ask())


HOT: dict[str, Any] = {"n": 3, "temperature": 1.0, "seed": 5}
ANSWERED: dict[str, Ask] = {
    "o-chat": chat,
    "o-stream": lambda url, name: chat(url, name, stream=True, **USAGE),
    "o-n": lambda url, name: chat(url, name, **HOT),
    "o-n-stream": lambda url, name: chat(url, name, stream=True, **HOT, **USAGE),
    "o-tool": lambda url, name: chat(url, name, **CALLING),
    "o-tool-stream": lambda url, name: chat(url, name, stream=True, **CALLING, **USAGE),
    "o-async": in_a_loop,
    "o-async-stream": lambda url, name: in_a_loop(url, name, stream=True, **USAGE),
}
REFUSED: dict[str, Ask] = {
    "o-no-tokens": lambda url, name: chat(url, name, max_tokens=0),
    "o-greedy-n": lambda url, name: chat(url, name, n=2),
    "o-wrong-model": lambda url, name: chat(url, name, model="gpt-9"),
}


@pytest.fixture(scope="module")
def served(talkative: Metered) -> dict[str, Asked]:
    ways = Ways(talkative.vllm.url, talkative.url, talkative.admin)
    return ask_both(ways, ANSWERED | REFUSED)


@pytest.mark.parametrize("name", ANSWERED)
def test_openai_sees_the_same_and_the_ledger_counts_it(
    served: dict[str, Asked], name: str
) -> None:
    asked = served[name]
    assert asked.proxied == asked.direct
    count = asked.proxied["usage"]["completion_tokens"]
    if "tool" not in name:
        assert count == TOKENS * (3 if "-n" in name else 1)
    assert_as_recorded(asked, outcome="ok", status=200, output_tokens=count)


def test_a_tool_call_of_a_real_engine_is_one(served: dict[str, Asked]) -> None:
    (call,) = served["o-tool"].proxied["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert call["function"]["arguments"]  # words of a random model, of no meaning
    streamed = served["o-tool-stream"].proxied["choices"][0]
    assert streamed["names"] == ["weather"]
    assert streamed["arguments"] == call["function"]["arguments"]


@pytest.mark.parametrize("name", REFUSED)
def test_openai_raises_the_same_refusal_and_it_is_recorded(
    served: dict[str, Asked], name: str
) -> None:
    asked = served[name]
    assert asked.proxied == asked.direct
    status = 404 if "model" in name else 400
    assert asked.proxied["status"] == status
    assert_as_recorded(asked, outcome="error", status=status)


def test_openai_follows_a_trailing_slash_and_stays_metered(talkative: Metered) -> None:
    with openai.OpenAI(
        base_url=f"{talkative.url}/v1", api_key="none", max_retries=0
    ) as api:
        reply = api.post(
            "/chat/completions/", cast_to=httpx.Response,
            body={"model": MODEL, "messages": WORDS, "max_tokens": TOKENS},
            options={"headers": {"x-request-id": "o-slash"}},
        )  # fmt: skip
    (redirected,) = reply.history
    assert redirected.headers["location"] == "/v1/chat/completions"
    assert str(reply.url) == f"{talkative.url}/v1/chat/completions"
    record = record_of(talkative.admin, "o-slash")
    assert (record["outcome"], record["output_tokens"]) == ("ok", TOKENS)


def test_one_route_more_passes_where_it_is_allowed(
    talkative: Metered, tmp_path: Path
) -> None:
    with metered(talkative.vllm, tmp_path, "--allow-route", "/docs") as served:
        assert b"swagger" in get(f"{served.url}/docs").content
        assert get(f"{served.url}/openapi.json").status_code == 404
    assert get(f"{talkative.url}/docs").status_code == 404
