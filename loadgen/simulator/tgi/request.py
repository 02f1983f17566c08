"""What TGI accepts and refuses, on its native routes and on its OpenAI ones.

Rules follow the router of TGI 3.3. TGI cannot be told to ignore the end of text:
the length of a reply is a seeded draw, at most `max_new_tokens`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loadgen.simulator.core.text import drawn_tokens, words_of
from loadgen.simulator.wire import EngineRefusal, Generation, Limits

DEFAULT_NEW_TOKENS = 1024
DEFAULT_COMPLETION_TOKENS = 100
NATIVE, CHAT, COMPLETIONS = "native", "chat", "completions"


@dataclass(frozen=True, slots=True)
class TgiGeneration(Generation):
    """A request with what its reply must show."""

    kind: str = NATIVE
    wants_details: bool = False
    wants_usage: bool = False
    created: int = 0


def refused(status: int, error_type: str, message: str) -> EngineRefusal:
    """An error in TGI's shape."""
    return EngineRefusal(status, {"error": message, "error_type": error_type})


def invalid(message: str) -> EngineRefusal:
    """A request that fails validation."""
    return refused(422, "validation", f"Input validation error: {message}")


def overloaded() -> EngineRefusal:
    """What a full queue answers."""
    return refused(429, "overloaded", "Model is overloaded")


def broken() -> EngineRefusal:
    """What a failing generation answers."""
    return refused(424, "generation", "Request failed during generation: SIMULATED")


def read_json(body: bytes) -> Mapping[str, Any]:
    """The fields of a body. Raises Refusal for what is not a JSON object."""
    try:
        fields = json.loads(body)
    except ValueError as error:
        raise refused(422, "validation", f"Failed to parse the body: {error}") from None
    if not isinstance(fields, dict):
        raise refused(422, "validation", "Failed to parse the body: not an object")
    return fields


def read_native(
    fields: Mapping[str, Any], *, is_stream: bool, request_id: str, limits: Limits
) -> TgiGeneration:
    """A `/generate` or `/generate_stream` body. Raises Refusal."""
    inputs = fields.get("inputs")
    parameters = fields.get("parameters")
    parameters = parameters if isinstance(parameters, dict) else {}
    if not isinstance(inputs, str) or not inputs:
        raise invalid("`inputs` cannot be empty")
    words = words_of(inputs)
    output_tokens, finish_reason = _output_tokens(
        parameters.get("max_new_tokens"), max(1, len(words)), request_id, limits
    )
    return TgiGeneration(
        request_id=request_id,
        prompt_words=words,
        output_tokens=output_tokens,
        finish_reason=finish_reason,
        is_stream=is_stream,
        wants_details=parameters.get("details") is True,
    )


def read_chat(
    fields: Mapping[str, Any], *, request_id: str, created: int, limits: Limits
) -> TgiGeneration:
    """A `/v1/chat/completions` body; TGI serves whatever `model` says."""
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise invalid("`messages` cannot be empty")
    words = [
        word
        for message in messages
        if isinstance(message, dict)
        for word in words_of(str(message.get("content") or ""))
    ]
    output_tokens, finish_reason = _output_tokens(
        fields.get("max_tokens"), max(1, len(words)), request_id, limits
    )
    options = fields.get("stream_options")
    options = options if isinstance(options, dict) else {}
    return TgiGeneration(
        request_id=request_id,
        prompt_words=words,
        output_tokens=output_tokens,
        finish_reason=finish_reason,
        is_stream=fields.get("stream") is True,
        kind=CHAT,
        wants_usage=options.get("include_usage") is True,
        created=created,
    )


def read_completions(
    fields: Mapping[str, Any], *, request_id: str, created: int, limits: Limits
) -> TgiGeneration:
    """A `/v1/completions` body: one prompt, which is the batch size it announces."""
    prompts = fields.get("prompt")
    prompts = prompts if isinstance(prompts, list) else [prompts]
    if len(prompts) > 1:
        message = "Number of prompts exceeds the maximum allowed batch size of 1"
        raise refused(422, "batch size exceeded", message)
    if fields.get("suffix") is not None:
        raise refused(422, "suffix not supported", "Suffix is not supported.")
    if not prompts or not isinstance(prompts[0], str) or not prompts[0]:
        raise invalid("`inputs` cannot be empty")
    words = words_of(prompts[0])
    asked = fields.get("max_tokens")
    output_tokens, finish_reason = _output_tokens(
        DEFAULT_COMPLETION_TOKENS if asked is None else asked,
        max(1, len(words)), request_id, limits,
    )  # fmt: skip
    return TgiGeneration(
        request_id=request_id,
        prompt_words=words,
        output_tokens=output_tokens,
        finish_reason=finish_reason,
        is_stream=fields.get("stream") is True,
        kind=COMPLETIONS,
        created=created,
    )


def _output_tokens(
    asked: object, prompt_tokens: int, key: str, limits: Limits
) -> tuple[int, str]:
    total = limits.max_model_tokens
    if asked is None:
        asked = min(DEFAULT_NEW_TOKENS, total - prompt_tokens)
    if type(asked) is not int or asked < 1:
        raise invalid("`max_new_tokens` must be strictly positive")
    if prompt_tokens + asked > total:
        raise invalid(
            f"`inputs` tokens + `max_new_tokens` must be <= {total}. Given: "
            f"{prompt_tokens} `inputs` tokens and {asked} `max_new_tokens`"
        )
    drawn = drawn_tokens(limits.seed, key, 1, asked)
    return drawn, "length" if drawn == asked else "eos_token"
