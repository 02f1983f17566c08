"""What TGI 3.3 sends, by its published OpenAPI page and its router: no server of it can
be installed as a package, so these are documented shapes, not captures."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from proxy.wire.facts import Usage

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b":\n\n"
"""axum sends a bare comment when nothing came for about 15 s."""


def event(value: Any) -> bytes:
    """One server-sent event, as axum writes it."""
    return b"data: %s\n\n" % json.dumps(value, separators=(",", ":")).encode()


def token(index: int, text: str, *, special: bool = False, **end: Any) -> bytes:
    """A native event."""
    found = {"id": index + 40, "text": text, "logprob": -0.5, "special": special}
    last = {"generated_text": None, "details": None}
    return event({"index": index, "token": found, **(last | end)})


def details(tokens: int, reason: str = "eos_token", prompt: int = 4) -> dict[str, Any]:
    return {
        "finish_reason": reason, "generated_tokens": tokens, "seed": None,
        "input_length": prompt,
    }  # fmt: skip


def refusal(error_type: str, message: str = "no") -> dict[str, str]:
    return {"error": message, "error_type": error_type}


def openai_error(message: str = "no") -> bytes:
    """An error in a stream of an OpenAI route: 422, whatever it was."""
    return event({"error": {"message": message, "http_status_code": 422}}) + DONE


def _part(name: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "object": name, "id": "", "created": 1706270835, "model": "org/model",
        "system_fingerprint": "3.3.7-native", "choices": choices, **more,
    }  # fmt: skip


def usage(prompt: int, output: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt, "completion_tokens": output,
        "total_tokens": prompt + output,
    }  # fmt: skip


def chat(delta: dict[str, Any], reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"role": "assistant", **delta}}
    choice |= {"logprobs": None, "finish_reason": reason}
    return event(_part("chat.completion.chunk", [choice], usage=None))


def chat_usage(prompt: int, output: int) -> bytes:
    counts = usage(prompt, output)
    return event(_part("chat.completion.chunk", [], usage=counts))


def called(arguments: str, name: str | None = None) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    call = {"index": 0, "id": "0", "type": "function", "function": function}
    return {"tool_calls": [call]}


def completion(
    text: str, index: int = 0, reason: str = "", counts: dict[str, int] | None = None
) -> bytes:
    choice = {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
    more = {} if counts is None else {"usage": counts}
    return event(_part("text_completion", [choice], **more))


@dataclass(frozen=True)
class Stream:
    """A streamed reply and what it must be understood as."""

    path: str
    body: bytes
    request: dict[str, Any]
    tokens: int
    """That its events carry."""
    text: str = ""
    usage: Usage | None = None
    finish_reason: str | None = None
    error: str | None = None


NATIVE: dict[str, Any] = {"inputs": "a b c d"}
COUNTED: dict[str, Any] = {"inputs": "a b c d", "parameters": {"details": True}}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
PROMPT: dict[str, Any] = {"prompt": "a b", "stream": True}
HEAD = token(1, " one") + KEEP_ALIVE + token(2, " two")
CHAT_HEAD = chat({"content": " one"}) + chat({"content": " two"})

STREAMS = {
    "native": Stream(
        "/generate_stream",
        HEAD + token(3, "</s>", special=True, generated_text=" one two",
                     details=details(3)),
        COUNTED, 3, " one two", Usage(4, 3), "eos_token",
    ),
    "native, no details": Stream(
        "/generate_stream", HEAD + token(3, " six", generated_text=" one two six"),
        NATIVE, 3, " one two six",
    ),
    "root, an index left out": Stream(
        "/", token(1, " one") + token(3, " two", generated_text=" one two",
                                      details=details(2, "length")),
        COUNTED | {"stream": True}, 2, " one two", Usage(4, 2), "length",
    ),
    "chat": Stream(
        "/v1/chat/completions", CHAT_HEAD + chat({"content": ""}, "stop") + DONE,
        CHAT, 2, " one two", None, "stop",
    ),
    "chat with usage": Stream(
        "/v1/chat/completions",
        CHAT_HEAD + chat({"content": ""}, "stop") + chat_usage(4, 3) + DONE,
        CHAT | {"stream_options": {"include_usage": True}}, 2, " one two",
        Usage(4, 3), "stop",
    ),
    "chat calling a tool": Stream(
        "/v1/chat/completions",
        chat(called("{", "weather")) + chat(called('"city": "Oslo"'))
        + chat(called("}"), "stop") + chat_usage(9, 12) + DONE,
        CHAT | {"stream_options": {"include_usage": True}}, 3, "", Usage(9, 12), "stop",
    ),
    "completions": Stream(
        "/v1/completions",
        completion(" one") + completion(" two")
        + completion("", reason="eos_token", counts=usage(2, 3)) + DONE,
        PROMPT, 3, " one two", Usage(2, 3), "eos_token",
    ),
}  # fmt: skip
TWO_PROMPTS = Stream(
    "/v1/completions",
    completion("a") + completion("b", 1) + completion("c", 0, "length", usage(2, 2))
    + completion("d", 1) + completion("e", 1, "eos_token", usage(5, 3)) + DONE,
    {"prompt": ["a b", "c d e f g"], "stream": True}, 5, "ac",
)  # fmt: skip
"""Interleaved by index; each prompt ends with usage of its own."""

NATIVE_ERRORS = {
    "validation": "Input validation error: `inputs` cannot be empty",
    "overloaded": "Model is overloaded",
    "generation": "Request failed during generation: out of memory",
    "incomplete_generation_stream": "Stream ended before generation finished",
    "stream_serialization_error": "Stream serialization error",
}
FAILED_STREAMS = {
    **{
        f"native {name}, {when}": Stream(
            "/generate_stream", head + event(refusal(name, message)), COUNTED,
            2 if head else 0, " one two" if head else "", error=message,
        )
        for name, message in NATIVE_ERRORS.items()
        for when, head in (("at once", b""), ("after tokens", HEAD))
    },
    **{
        f"{path}, {when}": Stream(
            path, head + openai_error("Model is overloaded"), request,
            2 if head else 0, " one two" if head else "",
            error="Model is overloaded",
        )
        for path, request, tokens in (
            ("/v1/chat/completions", CHAT, CHAT_HEAD),
            ("/v1/completions", PROMPT, completion(" one") + completion(" two")),
        )
        for when, head in (("at once", b""), ("after tokens", tokens))
    },
}  # fmt: skip


@dataclass(frozen=True)
class Whole:
    """A reply in one piece."""

    path: str
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


FAILED = {
    f"{path} {status} {body[:60]!r}": Whole(path, status, body)
    for path in ("/generate", "/", "/v1/chat/completions", "/v1/completions")
    for status, body in (
        (422, _json(refusal("validation", "`inputs` cannot be empty"))),
        (422, _json(refusal("template_error", "Template error: undefined value"))),
        (422, _json(refusal("missing_template_variable", "Missing variable"))),
        (422, _json(refusal("tool_error", "Tool error: not JSON"))),
        (422, b"Failed to deserialize the JSON body into the target type: inputs"),
        (400, b"Failed to parse the request body as JSON: EOF while parsing"),
        (401, b""),
        (424, _json(refusal("generation", "Request failed during generation"))),
        (429, _json(refusal("overloaded", "Model is overloaded"))),
        (500, _json(refusal("incomplete_generation", "Incomplete generation"))),
    )
}
