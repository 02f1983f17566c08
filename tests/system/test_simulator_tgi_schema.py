"""The simulated TGI's replies have the fields that TGI's OpenAPI page requires, with
their types, and no field that the page does not know."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.both_ways import MODEL
from tests.support.children import get, post, simulating

COUNT, TEXT, NUMBER, FLAG = "count", "text", "number", "flag"
PLAIN: dict[str, tuple[type, ...]] = {
    COUNT: (int,), TEXT: (str,), NUMBER: (int, float), FLAG: (bool,),
}  # fmt: skip
Schema = dict[str, Any]
"""Field -> type, `?` behind the name: may be left out or null; a list: of these."""

TOKEN: Schema = {"id": COUNT, "text": TEXT, "logprob?": NUMBER, "special": FLAG}
DETAILS: Schema = {
    "finish_reason": TEXT, "generated_tokens": COUNT, "seed?": COUNT,
    "prefill": [{"id": COUNT, "text": TEXT, "logprob?": NUMBER}], "tokens": [TOKEN],
    "best_of_sequences?": [{}], "top_tokens?": [[TOKEN]],
}  # fmt: skip
GENERATE: Schema = {"generated_text": TEXT, "details?": DETAILS}
STREAM_DETAILS: Schema = {
    "finish_reason": TEXT, "generated_tokens": COUNT, "input_length": COUNT,
    "seed?": COUNT,
}  # fmt: skip
STREAM: Schema = {
    "index": COUNT, "token": TOKEN, "top_tokens?": [TOKEN], "generated_text?": TEXT,
    "details?": STREAM_DETAILS,
}  # fmt: skip
USAGE: Schema = {
    "prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT,
}  # fmt: skip
MESSAGE: Schema = {"role": TEXT, "content": TEXT}
FRAME: Schema = {
    "object": TEXT, "id": TEXT, "created": COUNT, "model": TEXT,
    "system_fingerprint": TEXT,
}  # fmt: skip
CHAT: Schema = FRAME | {
    "choices": [
        {
            "index": COUNT, "message": MESSAGE, "finish_reason": TEXT,
            "logprobs?": {"content": [{}]},
        }
    ],
    "usage": USAGE,
}  # fmt: skip
CHAT_CHUNK: Schema = FRAME | {
    "choices": [
        {
            "index": COUNT, "delta": MESSAGE, "finish_reason?": TEXT,
            "logprobs?": {"content": [{}]},
        }
    ],
    "usage?": USAGE,
}  # fmt: skip
COMPLETE: Schema = {
    "index": COUNT, "text": TEXT, "finish_reason": TEXT, "logprobs?": [NUMBER],
}  # fmt: skip
CHUNK: Schema = FRAME | {"choices": [COMPLETE]}
FINAL: Schema = FRAME | {"choices": [COMPLETE], "usage": USAGE}
ERROR: Schema = {"error": TEXT, "error_type": TEXT}
INFO: Schema = {
    "model_id": TEXT, "model_sha?": TEXT, "model_pipeline_tag?": TEXT,
    "max_concurrent_requests": COUNT, "max_best_of": COUNT,
    "max_stop_sequences": COUNT, "max_input_tokens": COUNT, "max_total_tokens": COUNT,
    "validation_workers": COUNT, "max_client_batch_size": COUNT, "router": TEXT,
    "version": TEXT, "sha?": TEXT, "docker_label?": TEXT,
}  # fmt: skip
MODELS: Schema = {
    "object": TEXT,
    "data": [{"id": TEXT, "object": TEXT, "created": COUNT, "owned_by": TEXT}],
}

TIMED = {
    "x-compute-type", "x-compute-time", "x-compute-characters", "x-total-time",
    "x-validation-time", "x-queue-time", "x-inference-time", "x-time-per-token",
    "x-prompt-tokens", "x-generated-tokens",
}  # fmt: skip
UNTIMED = {"x-compute-type", "x-compute-characters", "x-accel-buffering"}

ASKED: dict[str, Any] = {
    "inputs": "a b c", "parameters": {"max_new_tokens": 4, "details": True},
}  # fmt: skip
SAID: dict[str, Any] = {
    "model": MODEL, "messages": [{"role": "user", "content": "a b"}], "max_tokens": 4,
}  # fmt: skip
PROMPT: dict[str, Any] = {"model": MODEL, "prompt": "a b", "max_tokens": 4}
STREAMED: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


def faults(value: Any, schema: Any, at: str = "reply") -> Iterator[str]:
    """Everything in which a value departs from its schema."""
    if isinstance(schema, str):
        is_flag = isinstance(value, bool)
        if not isinstance(value, PLAIN[schema]) or is_flag != (schema == FLAG):
            yield f"{at} is {value!r}, not a {schema}"
    elif isinstance(schema, list):
        if not isinstance(value, list):
            yield f"{at} is no list"
            return
        for index, part in enumerate(value):
            yield from faults(part, schema[0], f"{at}[{index}]")
    elif not isinstance(value, dict):
        yield f"{at} is no object"
    else:
        known = {name.removesuffix("?") for name in schema}
        yield from (f"{at}.{name} is not documented" for name in set(value) - known)
        for name, kind in schema.items():
            found = value.get(name.removesuffix("?"))
            if found is None:
                if not name.endswith("?"):
                    yield f"{at}.{name} is missing"
            else:
                yield from faults(found, kind, f"{at}.{name}")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with simulating(tmp_path_factory.mktemp("tgi"), "--dialect", "tgi") as announced:
        yield str(announced["url"])


def x_headers(reply: httpx.Response) -> set[str]:
    return {name for name in reply.headers if name.startswith("x-")}


@pytest.mark.parametrize(
    ("path", "body", "schema"),
    [
        ("/generate", ASKED, GENERATE),
        ("/generate", {"inputs": "a", "parameters": {"max_new_tokens": 2}}, GENERATE),
        ("/", ASKED, [GENERATE]),
        ("/v1/chat/completions", SAID, CHAT),
        ("/v1/completions", PROMPT, FINAL),
    ],
)
def test_whole_replies_and_their_headers_are_as_documented(
    url: str, path: str, body: dict[str, Any], schema: Any
) -> None:
    reply = post(f"{url}{path}", json=body)
    assert reply.status_code == 200
    assert list(faults(reply.json(), schema)) == []
    untold = {"x-compute-time"} if path == "/v1/completions" else set()
    assert x_headers(reply) == TIMED - untold


@pytest.mark.parametrize(
    ("path", "body", "schemas"),
    [
        ("/generate_stream", ASKED, (STREAM, STREAM)),
        ("/", ASKED | {"stream": True}, (STREAM, STREAM)),
        ("/v1/chat/completions", SAID | STREAMED, (CHAT_CHUNK, CHAT_CHUNK)),
        ("/v1/chat/completions", SAID | {"stream": True}, (CHAT_CHUNK, CHAT_CHUNK)),
        ("/v1/completions", PROMPT | {"stream": True}, (CHUNK, FINAL)),
    ],
)
def test_streams_and_their_headers_are_as_documented(
    url: str, path: str, body: dict[str, Any], schemas: tuple[Schema, Schema]
) -> None:
    reply = post(f"{url}{path}", json=body)
    events = [part.removeprefix("data: ") for part in reply.text.split("\n\n") if part]
    assert ("[DONE]" in events) == path.startswith("/v1")
    *middle, last = [json.loads(event) for event in events if event != "[DONE]"]
    for event in middle:
        assert list(faults(event, schemas[0])) == []
    assert list(faults(last, schemas[1])) == []
    assert x_headers(reply) == UNTIMED


@pytest.mark.parametrize("path", ["/generate", "/", "/v1/chat/completions"])
def test_errors_are_as_documented(url: str, path: str) -> None:
    too_few = {"parameters": {"max_new_tokens": 0}, "max_tokens": 0}
    for body in (
        {"inputs": "", "messages": []},
        {"inputs": "a", "messages": [{"role": "user", "content": "a"}]},
    ):
        reply = post(f"{url}{path}", json=body | too_few)
        assert reply.status_code == 422
        assert list(faults(reply.json(), ERROR)) == []


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 422),
        (b'{"inputs":7,"messages":7,"prompt":7}', "application/json", 422),
        (b"{}", "text/plain", 415),
    ],
)
@pytest.mark.parametrize(
    "path", ["/generate_stream", "/v1/chat/completions", "/v1/completions"]
)
def test_a_body_that_cannot_be_decoded_is_plain_text_before_any_stream(
    url: str, path: str, content: bytes, kind: str, status: int
) -> None:
    reply = post(f"{url}{path}", content=content, headers={"content-type": kind})
    assert reply.status_code == status
    assert reply.headers["content-type"].startswith("text/plain")
    assert reply.text.startswith(("Failed to", "Expected request"))


def test_other_routes_are_those_of_the_cloud_platforms(url: str) -> None:
    asked = {"inputs": "a b", "parameters": {"max_new_tokens": 3}}
    (native,) = post(f"{url}/invocations", json=asked).json()
    assert native["generated_text"].startswith("a b ")  # as `/` does
    chat = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 3}
    assert "message" in post(f"{url}/invocations", json=chat).json()["choices"][0]
    predictions = post(f"{url}/vertex", json={"instances": [asked, asked]}).json()
    assert len(predictions["predictions"]) == 2


def test_pages_are_as_documented(url: str) -> None:
    assert list(faults(get(f"{url}/info").json(), INFO)) == []
    assert list(faults(get(f"{url}/v1/models").json(), MODELS)) == []
    health = get(f"{url}/health")
    assert (health.status_code, health.content) == (200, b"")


def test_the_check_itself_finds_what_is_wrong() -> None:
    assert list(faults({"error": 7, "more": 1}, ERROR)) == [
        "reply.more is not documented",
        "reply.error is 7, not a text",
        "reply.error_type is missing",
    ]
