"""Published clients of APIs beside chat and completions, with the relay and without:
`openai` for responses, embeddings and transcriptions, `anthropic` for messages."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.support.both_ways import failure_of, missing, plain
from tests.support.children import PATIENCE_SECONDS
from tests.support.relaying import Metered, relaying
from tests.support.scripted import LAST_CHUNK, Peer, chunk, reply_bytes, stream_head

openai: Any = missing("openai")

Ask = Callable[[Any], Awaitable[Any]]
Connect = Callable[[str], Any]


def by_openai(url: str) -> Any:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def by_anthropic(url: str) -> Any:
    anthropic: Any = missing("anthropic")
    return anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0)


def both(
    pieces: list[bytes], connect: Connect, ask: Ask, fails: bool = False
) -> tuple[Any, Metered]:
    """What a client saw, the same on either way, and what the meter saw."""

    async def script(peer: Peer) -> None:
        while await peer.request() is not None:
            await peer.send(*pieces)

    async def at(url: str) -> Any:
        async with connect(url) as api:
            if not fails:
                return plain(await ask(api))
            with pytest.raises(Exception, match="full") as failure:
                await ask(api)
            return failure_of(failure.value)

    async def scene() -> tuple[Any, Any, Metered]:
        async with asyncio.timeout(PATIENCE_SECONDS), relaying(script) as bench:
            direct = await at(bench.upstream.url)
            proxied = await at(f"http://127.0.0.1:{bench.relay.port}")
            return direct, proxied, await bench.meter.only()

    direct, proxied, metered = asyncio.run(scene())
    assert proxied == direct
    return proxied, metered


def whole(body: Any) -> list[bytes]:
    return [reply_bytes(200, json.dumps(body).encode())]


def named(*events: dict[str, Any]) -> list[bytes]:
    """A stream of events that have their type as name."""
    texts = (f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in events)
    return [stream_head(), *(chunk(text.encode()) for text in texts), LAST_CHUNK]


def usage_of(metered: Metered) -> tuple[int | None, int | None]:
    """Prompt and output tokens, the last that were told."""
    usages = [update.usage for update in metered.updates if update.usage]
    prompts = [u.prompt_tokens for u in usages if u.prompt_tokens is not None]
    outputs = [u.output_tokens for u in usages if u.output_tokens is not None]
    return max(prompts, default=None), max(outputs, default=None)


# --- openai: responses -----------------------------------------------------------

RESPONSE = {
    "id": "resp_1", "object": "response", "created_at": 7, "model": "m",
    "status": "completed", "error": None, "incomplete_details": None,
    "instructions": None, "metadata": {}, "parallel_tool_calls": True,
    "temperature": 1.0, "tool_choice": "auto", "tools": [], "top_p": 1.0,
    "output": [
        {
            "id": "msg_1", "type": "message", "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Hi you", "annotations": []}],
        }
    ],
    "usage": {
        "input_tokens": 9, "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 2, "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 11,
    },
}  # fmt: skip


def delta(text: str, number: int) -> dict[str, Any]:
    return {
        "type": "response.output_text.delta", "delta": text, "item_id": "msg_1",
        "output_index": 0, "content_index": 0, "sequence_number": number,
        "logprobs": [],
    }  # fmt: skip


async def respond(api: Any) -> Any:
    return await api.responses.create(model="m", input="hello")


async def respond_in_stream(api: Any) -> Any:
    events = await api.responses.create(model="m", input="hello", stream=True)
    return [event async for event in events]


def test_a_whole_response_reaches_the_client_and_the_ledger() -> None:
    seen, metered = both(whole(RESPONSE), by_openai, respond)
    assert seen["output"][0]["content"][0]["text"] == "Hi you"
    assert (metered.facts.route, metered.outcome) == ("responses", "ok")
    assert usage_of(metered) == (9, 2)


def test_a_streamed_response_reaches_the_client_and_the_ledger() -> None:
    begun = RESPONSE | {"status": "in_progress", "output": [], "usage": None}
    events = named(
        {"type": "response.created", "response": begun, "sequence_number": 0},
        delta("Hi", 1),
        delta(" you", 2),
        {"type": "response.completed", "response": RESPONSE, "sequence_number": 3},
    )
    seen, metered = both(events, by_openai, respond_in_stream)
    assert len(seen) == 4
    assert metered.facts.is_stream
    assert (metered.facts.route, metered.outcome) == ("responses", "ok")
    assert usage_of(metered) == (9, 2)
    assert sum(update.carries_token for update in metered.updates) == 2


def test_a_response_stream_that_breaks_off_is_an_error() -> None:
    _, metered = both(named(delta("Hi", 1)), by_openai, respond_in_stream)
    assert metered.outcome == "error"


# --- openai: embeddings and transcriptions -----------------------------------------


def test_embeddings_have_a_prompt_and_no_output() -> None:
    body = {
        "object": "list", "model": "m",
        "data": [
            {"object": "embedding", "index": n, "embedding": [0.5, 0.25]}
            for n in range(2)
        ],
        "usage": {"prompt_tokens": 6, "total_tokens": 6},
    }  # fmt: skip

    async def embed(api: Any) -> Any:
        return await api.embeddings.create(
            model="m", input=["a", "b"], encoding_format="float"
        )

    seen, metered = both(whole(body), by_openai, embed)
    assert len(seen["data"]) == 2
    assert (metered.facts.route, metered.outcome) == ("embeddings", "ok")
    assert metered.facts.sequences == 2
    assert usage_of(metered) == (6, 0)


def test_a_transcription_is_recorded_with_its_model() -> None:
    async def transcribe(api: Any) -> Any:
        sound = io.BytesIO(b"RIFF" + bytes(5000))
        sound.name = "a.wav"
        return await api.audio.transcriptions.create(model="whisper", file=sound)

    seen, metered = both(whole({"text": "Hi"}), by_openai, transcribe)
    assert seen["text"] == "Hi"
    assert (metered.facts.route, metered.facts.model) == ("audio", "whisper")
    assert metered.outcome == "ok"


# --- anthropic: messages ---------------------------------------------------------

MESSAGE = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "m",
    "content": [{"type": "text", "text": "Hi you"}], "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {
        "input_tokens": 5, "cache_read_input_tokens": 4,
        "cache_creation_input_tokens": 0, "output_tokens": 2,
    },
}  # fmt: skip
BEGUN = MESSAGE | {
    "content": [], "stop_reason": None,
    "usage": {"input_tokens": 5, "cache_read_input_tokens": 4, "output_tokens": 0},
}  # fmt: skip


def block(text: str) -> dict[str, Any]:
    part = {"type": "text_delta", "text": text}
    return {"type": "content_block_delta", "index": 0, "delta": part}


MESSAGE_EVENTS: list[dict[str, Any]] = [
    {"type": "message_start", "message": BEGUN},
    {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "text", "text": ""},
    },
    block("Hi"),
    block(" you"),
    {"type": "content_block_stop", "index": 0},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {"output_tokens": 2},
    },
    {"type": "message_stop"},
]
WORDS: Any = [{"role": "user", "content": "hello"}]


async def say(api: Any) -> Any:
    return await api.messages.create(model="m", max_tokens=9, messages=WORDS)


async def say_in_stream(api: Any) -> Any:
    async with api.messages.stream(model="m", max_tokens=9, messages=WORDS) as stream:
        kinds = [event.type async for event in stream]
        return {"kinds": kinds, "whole": await stream.get_final_message()}


def test_a_whole_message_reaches_the_client_and_the_ledger() -> None:
    seen, metered = both(whole(MESSAGE), by_anthropic, say)
    assert seen["content"][0]["text"] == "Hi you"
    assert (metered.facts.route, metered.outcome) == ("messages", "ok")
    assert usage_of(metered) == (9, 2)


def test_a_streamed_message_reaches_the_client_and_the_ledger() -> None:
    seen, metered = both(named(*MESSAGE_EVENTS), by_anthropic, say_in_stream)
    assert seen["whole"]["content"][0]["text"] == "Hi you"
    assert (metered.facts.route, metered.outcome) == ("messages", "ok")
    assert usage_of(metered) == (9, 2)


def test_an_error_inside_a_message_stream_is_an_error_on_both_sides() -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "full"}}
    events = named(*MESSAGE_EVENTS[:3], error)
    _, metered = both(events, by_anthropic, say_in_stream, fails=True)
    assert (metered.outcome, metered.error) == ("error", "full")
