"""The `openai` package against what no simulator says, with the relay and without it:
tool calls, every recorded error of vLLM, a stream that breaks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.support.both_ways import failure_of, missing, plain
from tests.support.captures import joined_replies, reply_head_and_body
from tests.support.children import PATIENCE_SECONDS
from tests.support.relaying import Metered, relaying
from tests.support.scripted import (
    DONE,
    LAST_CHUNK,
    Peer,
    chunk,
    reply_bytes,
    sse,
    stream_head,
)

openai: Any = missing("openai")

WORDS: Any = [{"role": "user", "content": "what is the weather in Oslo?"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]
STATUSES = {
    400: "BadRequestError", 401: "AuthenticationError", 404: "NotFoundError",
    405: "APIStatusError", 422: "UnprocessableEntityError", 429: "RateLimitError",
    500: "InternalServerError", 503: "InternalServerError",
}  # fmt: skip
"""Which exception the package promises for a status."""

Ask = Callable[[Any], Awaitable[Any]]


def both(
    pieces: list[bytes], ask: Ask, *, breaks: bool = False
) -> tuple[Any, Any, Metered]:
    """What a client saw of the same reply on either way, and what the meter saw."""

    async def script(peer: Peer) -> None:
        while await peer.request() is not None:
            await peer.send(*pieces)
            if breaks:
                return

    async def at(url: str) -> Any:
        async with openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="none", max_retries=0
        ) as api:
            try:
                return plain(await ask(api))
            except openai.APIError as error:
                return failure_of(error)

    async def scene() -> tuple[Any, Any, Metered]:
        async with (
            asyncio.timeout(PATIENCE_SECONDS),
            relaying(script, usage_event="drop") as bench,
        ):
            direct = await at(bench.upstream.url)
            proxied = await at(f"http://127.0.0.1:{bench.relay.port}")
            return direct, proxied, await bench.meter.only()

    return asyncio.run(scene())


async def whole(api: Any) -> Any:
    return await api.chat.completions.create(model="m", messages=WORDS, tools=TOOLS)


async def streamed(api: Any) -> Any:
    events = await api.chat.completions.create(
        model="m", messages=WORDS, tools=TOOLS, stream=True
    )
    return [event async for event in events]


async def helped(api: Any) -> Any:
    async with api.chat.completions.stream(
        model="m", messages=WORDS, tools=TOOLS
    ) as stream:
        kinds = [event.type async for event in stream]
        return {"kinds": kinds, "whole": await stream.get_final_completion()}


# --- tool calls, in the shape that vLLM gives them ----------------------------


def chat_event(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None}
    return sse(
        {
            "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7,
            "model": "m", "choices": [choice | {"finish_reason": finish_reason}],
        }
    )  # fmt: skip


def called(index: int, **function: str) -> dict[str, Any]:
    call: dict[str, Any] = {"index": index, "function": function}
    if "name" in function:
        call |= {"id": f"chatcmpl-tool-{index}", "type": "function"}
    return {"tool_calls": [call]}


USAGE = {"prompt_tokens": 21, "completion_tokens": 18, "total_tokens": 39}
TOOL_EVENTS = [
    chat_event({"role": "assistant", "content": ""}),
    chat_event(called(0, name="weather")),
    *(chat_event(called(0, arguments=part)) for part in ('{"city"', ': "Oslo', '"}')),
    chat_event(called(1, name="weather")),
    chat_event(called(1, arguments='{"city": "Bergen"}')),
    chat_event({}, "tool_calls"),
]
USAGE_EVENT = sse(
    {
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7,
        "model": "m", "choices": [], "usage": USAGE,
    }
)  # fmt: skip


def tool_stream(*, with_usage: bool) -> list[bytes]:
    events = [*TOOL_EVENTS, *([USAGE_EVENT] if with_usage else []), DONE]
    return [stream_head(), *(chunk(event) for event in events), LAST_CHUNK]


@pytest.mark.parametrize("ask", [streamed, helped])
def test_streamed_tool_calls_are_the_same_and_their_tokens_count(ask: Ask) -> None:
    direct, _, _ = both(tool_stream(with_usage=False), ask)
    # the relay asks for usage, which the engine then sends
    _, proxied, metered = both(tool_stream(with_usage=True), ask)
    assert proxied == direct
    assert "Bergen" in json.dumps(proxied)
    assert (metered.outcome, metered.status) == ("ok", 200)
    (usage,) = [update.usage for update in metered.updates if update.usage]
    assert usage.output_tokens == 18
    # the reply begins with the first call, though nobody sees text
    assert [update.carries_token for update in metered.updates].index(True) == 1
    assert not any(update.is_visible for update in metered.updates)


def test_tool_calls_of_a_whole_reply_are_the_same_and_their_tokens_count() -> None:
    calls = [
        {
            "id": "chatcmpl-tool-0", "type": "function",
            "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
        }
    ]  # fmt: skip
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    reply = {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 7, "model": "m",
        "choices": [choice], "usage": USAGE,
    }  # fmt: skip
    direct, proxied, metered = both(
        [reply_bytes(200, json.dumps(reply).encode())], whole
    )
    assert proxied == direct
    assert proxied["choices"][0]["message"]["tool_calls"][0]["function"]
    (update,) = metered.updates
    assert update.usage is not None
    assert (update.usage.output_tokens, update.finish_reason) == (18, "tool_calls")
    assert metered.outcome == "ok"


# --- errors -------------------------------------------------------------------


RECORDED = {
    title: (status, body)
    for title, (status, _, body) in joined_replies("vllm_errors").items()
    if status in STATUSES
}
CODES = {
    f"status {status}": (status, b'{"error":{"message":"no","code":%d}}' % status)
    for status in STATUSES
}


@pytest.mark.parametrize("ask", [whole, streamed])
@pytest.mark.parametrize("title", RECORDED | CODES)
def test_errors_raise_the_same_exception_with_the_same_words(
    title: str, ask: Ask
) -> None:
    status, body = (RECORDED | CODES)[title]
    direct, proxied, metered = both([reply_bytes(status, body)], ask)
    assert proxied == direct
    assert proxied["type"] == f"openai.{STATUSES[status]}"
    assert proxied["status"] == status
    assert (metered.outcome, metered.status) == ("error", status)


def test_an_error_inside_a_stream_is_the_same_exception_and_an_error() -> None:
    direct, proxied, metered = both(
        [b"".join(reply_head_and_body("vllm_mid_stream_error"))], streamed
    )
    assert proxied == direct
    assert proxied["type"] == "openai.APIError"
    assert (metered.outcome, metered.status) == ("error", 200)
    assert metered.error


def test_a_stream_that_breaks_is_an_error_on_either_way() -> None:
    pieces = [stream_head(), chunk(TOOL_EVENTS[0] + TOOL_EVENTS[1])]

    async def torn(api: Any) -> Any:
        try:
            return await streamed(api)
        except openai.APIError:
            raise
        except Exception as error:  # of the package's own transport
            return {"type": type(error).__name__}

    direct, proxied, metered = both(pieces, torn, breaks=True)
    assert proxied["type"] == direct["type"]
    assert metered.outcome == "upstream_error"
