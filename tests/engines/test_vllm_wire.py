"""A real vLLM through the proxy: the same bytes, and exact counts in the records."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from loadgen.plan.prompts import prompt_text
from tests.engines.vllm_server import MAX_TOKENS, MODEL, Metered
from tests.support.children import record_of

pytestmark = pytest.mark.vllm

Json = dict[str, Any]
ROUTES = ("/v1/chat/completions", "/v1/completions")
VOLATILE = re.compile(rb'"created":\d+|"metrics":\{[^}]*\}')
"""What differs between two identical requests: the clock, and how long it took."""
ATTEMPTS = 8
"""A busy vLLM now and then puts two tokens in one event: then both are asked again."""
FINGERPRINT = re.compile(rb',"system_fingerprint":"[^"]*"')
"""vLLM says it once in a stream: in the usage event if there is one, else in the last.
Where the proxy asks for usage on its own, it goes with the event that is taken out."""

MODES: dict[str, Json] = {
    "whole": {},
    "stream": {"stream": True},
    "usage": {"stream": True, "stream_options": {"include_usage": True}},
    "running usage": {
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    },
}


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(verify=False, trust_env=False, timeout=60) as client:
        yield client


def body_for(route: str, prompt: str, **fields: Any) -> Json:
    """A greedy request of exactly 12 tokens, unless told otherwise."""
    asked = (
        {"messages": [{"role": "user", "content": prompt}]}
        if "chat" in route
        else {"prompt": prompt}
    )
    fixed = {"model": MODEL, "max_tokens": 12, "ignore_eos": True, "temperature": 0}
    return fixed | asked | fields


def events_of(reply: httpx.Response) -> list[Json]:
    """The JSON events of a stream, `[DONE]` left out."""
    lines = reply.text.split("\n\n")
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    return [json.loads(event) for event in data[:-1]]


def usage_of(reply: httpx.Response) -> Json:
    last: Json = (
        reply.json()
        if "json" in reply.headers["content-type"]
        else events_of(reply)[-1]
    )
    usage: Json = last["usage"]
    return usage


MORE: dict[str, Json] = {
    "token ids": {"stream": True, "return_token_ids": True},
    "log probabilities, chat": {"logprobs": True, "top_logprobs": 2},
    "a stop word": {"stop": ["the"], "stream": True},
    "unknown fields": {"x_of_nobody": {"a": [1, 2]}},
    "seeded and hot": {"temperature": 1.3, "seed": 7, "stream": True},
    "two choices": {"n": 2, "temperature": 1.0, "seed": 3},
    "a tool": {
        "tools": [{"type": "function", "function": {"name": "look", "parameters": {}}}],
        "tool_choice": "none",
    },
}


@pytest.mark.parametrize("mode", [*MODES, *MORE])
@pytest.mark.parametrize("route", ROUTES)
def test_a_client_gets_the_bytes_that_vllm_sends(
    talkative: Metered, client: httpx.Client, route: str, mode: str
) -> None:
    body = body_for(route, "say what you see", **(MODES | MORE)[mode])
    for attempt in range(ATTEMPTS):
        request_id = f"bytes{ROUTES.index(route)}{mode.replace(' ', '-')}{attempt}"
        headers = {"x-request-id": request_id, "accept-encoding": "identity"}
        direct, metered = (
            client.post(f"{url}{route}", json=body, headers=headers)
            for url in (talkative.vllm.url, talkative.url)
        )
        assert metered.status_code == direct.status_code
        assert metered.headers["content-type"] == direct.headers["content-type"]
        assert metered.headers["x-request-id"] == request_id
        expected = VOLATILE.sub(b"", direct.content)
        if body.get("stream") and "stream_options" not in body:
            expected = FINGERPRINT.sub(b"", expected)
        if VOLATILE.sub(b"", metered.content) == expected:
            break
    assert VOLATILE.sub(b"", metered.content) == expected
    assert record_of(talkative.admin, request_id)["status"] == direct.status_code


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("route", ROUTES)
def test_the_record_has_the_exact_counts_of_vllm(
    talkative: Metered, client: httpx.Client, route: str, mode: str
) -> None:
    words = 40 + len(mode)
    body = body_for(route, prompt_text(1, route + mode, words), **MODES[mode])
    request_id = f"counts{ROUTES.index(route)}{mode.replace(' ', '-')}"
    reply = client.post(
        f"{talkative.url}{route}", json=body, headers={"x-request-id": request_id}
    )
    record = record_of(talkative.admin, request_id)
    assert record["outcome"] == "ok"
    assert record["prompt_tokens"] == words + (3 if "chat" in route else 0)
    assert record["output_tokens"] == 12
    if mode != "stream":
        usage = usage_of(reply)
        assert usage["prompt_tokens"] == record["prompt_tokens"]
        assert usage["completion_tokens"] == record["output_tokens"]


def test_usage_the_client_did_not_ask_for_stays_out_of_its_stream(
    talkative: Metered, client: httpx.Client
) -> None:
    body = body_for(ROUTES[0], "one two three", stream=True)
    events = events_of(client.post(talkative.url + ROUTES[0], json=body))
    assert all(event["choices"] for event in events)
    assert not any("usage" in event or "metrics" in event for event in events)


def test_running_usage_counts_every_token_up(
    talkative: Metered, client: httpx.Client
) -> None:
    body = body_for(ROUTES[0], "count with me", **MODES["running usage"])
    events = events_of(client.post(talkative.url + ROUTES[0], json=body))
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] == 12


@pytest.mark.parametrize("tokens", [1, 2, 63, 500])
@pytest.mark.parametrize("mode", ["whole", "stream"])
def test_ignore_eos_gives_exactly_the_length_asked_for(
    talkative: Metered, client: httpx.Client, tokens: int, mode: str
) -> None:
    body = body_for(ROUTES[1], "on and on", max_tokens=tokens, **MODES[mode])
    request_id = f"length-{mode}-{tokens}"
    client.post(
        talkative.url + ROUTES[1], json=body, headers={"x-request-id": request_id}
    )
    record = record_of(talkative.admin, request_id)
    assert record["output_tokens"] == tokens


def test_a_reply_that_ends_at_once_is_one_token(
    talkative: Metered, client: httpx.Client
) -> None:
    body = body_for(
        ROUTES[0], "stop", ignore_eos=False, logit_bias={"2": 100}, stream=True
    )
    headers = {"x-request-id": "ends-at-once"}
    client.post(talkative.url + ROUTES[0], json=body, headers=headers)
    record = record_of(talkative.admin, "ends-at-once")
    assert (record["outcome"], record["output_tokens"]) == ("ok", 1)


@pytest.mark.parametrize("mode", ["whole", "stream", "usage"])
def test_phase_times_of_vllm_make_a_record_exact(
    talkative: Metered, client: httpx.Client, mode: str
) -> None:
    body = body_for(ROUTES[1], prompt_text(2, mode, 3000), **MODES[mode])
    request_id = f"phases-{mode}"
    reply = client.post(
        talkative.url + ROUTES[1], json=body, headers={"x-request-id": request_id}
    )
    record = record_of(talkative.admin, request_id)
    assert record["energy"]["quality"] == "exact"
    assert record["energy"]["prefill_joules"] > 0
    assert record["energy"]["decode_joules"] > 0
    assert (
        record["arrived_unix_seconds"]
        <= record["scheduled_unix_seconds"]
        <= record["first_token_unix_seconds"]
        <= record["last_token_unix_seconds"]
        <= record["finished_unix_seconds"]
    )
    if mode == "usage":
        told = events_of(reply)[-1]["metrics"]["time_to_first_token_ms"] / 1000
        seen = record["first_token_unix_seconds"] - record["scheduled_unix_seconds"]
        assert seen == pytest.approx(told, abs=0.001)


def test_without_phase_times_a_record_is_estimated(
    terse: Metered, client: httpx.Client
) -> None:
    body = body_for(ROUTES[0], "how long did it take", stream=True)
    headers = {"x-request-id": "estimated"}
    client.post(terse.url + ROUTES[0], json=body, headers=headers)
    record = record_of(terse.admin, "estimated")
    assert record["outcome"] == "ok"
    assert record["output_tokens"] == 12
    assert record["cached_tokens"] is None
    assert record["energy"]["quality"] == "estimated"
    assert record["energy"]["energy_joules"] > 0


@pytest.mark.parametrize("mode", ["whole", "stream"])
def test_tokens_from_the_prefix_cache_are_in_the_record(
    talkative: Metered, client: httpx.Client, mode: str
) -> None:
    prompt = prompt_text(3, f"cached {mode}", 1000)
    for time in ("first", "again"):
        body = body_for(ROUTES[1], prompt, **MODES[mode])
        headers = {"x-request-id": f"cached-{mode}-{time}"}
        client.post(talkative.url + ROUTES[1], json=body, headers=headers)
    first = record_of(talkative.admin, f"cached-{mode}-first")
    again = record_of(talkative.admin, f"cached-{mode}-again")
    assert first["cached_tokens"] == 0
    assert again["cached_tokens"] == 896  # whole blocks of 128, never the last token
    assert again["prompt_tokens"] == first["prompt_tokens"] == 1000


REFUSED: dict[str, tuple[int, Json | bytes]] = {
    "an over-long prompt": (
        400,
        body_for(ROUTES[1], prompt_text(4, "long", MAX_TOKENS)),
    ),
    "an over-long prompt, stream": (
        400,
        body_for(ROUTES[1], prompt_text(4, "long", MAX_TOKENS), stream=True),
    ),
    "more tokens than fit": (
        400,
        body_for(ROUTES[1], "much", max_tokens=2 * MAX_TOKENS),
    ),
    "no token": (400, body_for(ROUTES[1], "none", max_tokens=0)),
    "an unknown model": (404, body_for(ROUTES[1], "who", model="of-nobody")),
    "broken JSON": (400, b'{"model": "tiny", "prompt": '),
    "two greedy choices": (400, body_for(ROUTES[1], "both", n=2)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_passes_unchanged_and_is_recorded(
    talkative: Metered, client: httpx.Client, case: str
) -> None:
    status, body = REFUSED[case]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    request_id = f"refused-{list(REFUSED).index(case)}"
    headers = {"content-type": "application/json", "x-request-id": request_id}
    direct, metered = (
        client.post(f"{url}{ROUTES[1]}", content=content, headers=headers)
        for url in (talkative.vllm.url, talkative.url)
    )
    assert metered.status_code == direct.status_code == status
    assert metered.content == direct.content
    assert "error" in metered.json()
    record = record_of(talkative.admin, request_id)
    assert (record["outcome"], record["status"]) == ("error", status)
    message = " ".join(metered.json()["error"]["message"].split())
    assert record["error"]
    assert message.startswith(record["error"])
    assert not record["output_tokens"]


def test_what_is_not_metered_passes_too(
    talkative: Metered, client: httpx.Client
) -> None:
    for path in ("/v1/models", "/version", "/health"):
        direct, metered = (
            client.get(f"{url}{path}") for url in (talkative.vllm.url, talkative.url)
        )
        assert metered.status_code == 200
        pattern = rb'"(created|id)":("[^"]*"|\d+)'
        assert re.sub(pattern, b"", metered.content) == re.sub(
            pattern, b"", direct.content
        )
