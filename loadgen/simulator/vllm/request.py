"""What vLLM's OpenAI server accepts and refuses, and in which words.

Refusals follow captures of vLLM 0.32. Without `ignore_eos` a reply stops where a
seeded draw says, after `min_tokens` and at the latest at `max_tokens`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loadgen.simulator.core.text import drawn_tokens, words_of
from loadgen.simulator.wire import EngineRefusal, Generation, Limits

DEFAULT_COMPLETION_TOKENS = 16
BUSY = (
    "The engine is currently busy and cannot accept new requests. "
    "Please try again later or on a different instance."
)


@dataclass(frozen=True, slots=True)
class VllmGeneration(Generation):
    """A request with what its reply must show."""

    is_chat: bool = True
    wants_usage: bool = False
    wants_running_usage: bool = False
    created: int = 0

    @property
    def reply_id(self) -> str:
        """vLLM puts the caller's `X-Request-Id` behind the kind of reply."""
        return ("chatcmpl-" if self.is_chat else "cmpl-") + self.request_id


def refused(
    status: int, message: str, param: str | None = None, kind: str | None = None
) -> EngineRefusal:
    """An error in vLLM's shape; `kind` defaults to the one of the status."""
    kinds = {400: "BadRequestError", 404: "NotFoundError", 500: "InternalServerError"}
    error = {
        "message": message,
        "type": kind or kinds[status],
        "param": param,
        "code": status,
    }
    return EngineRefusal(status, {"error": error})


def bad_parameter(message: str, param: str, value: object = None) -> EngineRefusal:
    """A 400 that names the parameter as vLLM does."""
    shown = f", value={value}" if value is not None else ""
    return refused(400, f"{message} (parameter={param}{shown})", param)


def overloaded() -> EngineRefusal:
    """What a full queue answers."""
    return refused(503, BUSY, kind="Service Unavailable")


def read_request(
    body: bytes, *, is_chat: bool, request_id: str, created: int, limits: Limits
) -> VllmGeneration:
    """A request body. Raises Refusal for what vLLM refuses, and for list prompts."""
    fields = _object(body)
    model = fields.get("model")
    if model is not None and model != limits.model:
        message = f"The model `{model}` does not exist. Valid aliases: {limits.model}."
        raise refused(404, message, "model")
    words = _chat_words(fields) if is_chat else _prompt_words(fields)
    stream = fields.get("stream") is True
    options = fields.get("stream_options")
    if options is not None and not stream:
        raise bad_parameter(
            "Stream options can only be defined when `stream=True`.", "stream_options"
        )
    options = options if isinstance(options, dict) else {}
    _check_sampling(fields)
    output_tokens, finish_reason = _output_tokens(
        fields, max(1, len(words)), is_chat=is_chat, key=request_id, limits=limits
    )
    wants_usage = options.get("include_usage") is True
    return VllmGeneration(
        request_id=request_id,
        prompt_words=words,
        output_tokens=output_tokens,
        finish_reason=finish_reason,
        is_stream=stream,
        sequences=_integer(fields, "n") or 1,
        is_chat=is_chat,
        wants_usage=wants_usage,
        wants_running_usage=wants_usage and bool(options.get("continuous_usage_stats")),
        created=created,
    )


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        fields = json.loads(body)
    except ValueError as error:
        # UnicodeDecodeError has a start, JSONDecodeError a pos.
        where = f"body.{getattr(error, 'pos', getattr(error, 'start', 0))}"
        detail = {
            "type": "json_invalid",
            "loc": where,
            "msg": "JSON decode error",
            "input": "<dict of 0 items>",
            "ctx": {"error": getattr(error, "msg", "invalid text")},
        }
        message = f"1 validation error:\n  {detail}"
        raise refused(400, message, where, "Bad Request") from None
    if not isinstance(fields, dict):
        message = "1 validation error:\n  Input should be a valid dictionary"
        raise refused(400, message, "body", "Bad Request")
    return fields


def _chat_words(fields: Mapping[str, Any]) -> list[str]:
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad_parameter("messages must be a non-empty list.", "messages")
    words: list[str] = []
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            parts = [part for part in content if isinstance(part, dict)]
            content = " ".join(str(part.get("text", "")) for part in parts)
        if not isinstance(content, str):
            raise bad_parameter("each message needs a text content.", "messages")
        words.extend(words_of(content))
    return words


def _prompt_words(fields: Mapping[str, Any]) -> list[str]:
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, list) and prompt and type(prompt[0]) is int:
        return [str(token) for token in prompt]
    if isinstance(prompt, list) and len(prompt) > 1:
        raise bad_parameter(
            "the SIMULATED engine takes one prompt per request, not a list of them.",
            "prompt",
            len(prompt),
        )
    if not isinstance(prompt, str) or not prompt:
        raise bad_parameter(
            "Either prompt or prompt_embeds must be provided and non-empty.", "prompt"
        )
    return words_of(prompt)


def _check_sampling(fields: Mapping[str, Any]) -> None:
    temperature = fields.get("temperature")
    if isinstance(temperature, int | float) and temperature < 0:
        raise bad_parameter(
            f"temperature must be non-negative, got {float(temperature)}.",
            "temperature",
            float(temperature),
        )
    copies = _integer(fields, "n")
    if copies is not None and copies < 1:
        raise bad_parameter(f"n must be at least 1, got {copies}.", "n", copies)
    if copies is not None and copies > 1 and temperature == 0:
        message = f"n must be 1 when using greedy sampling, got {copies}."
        raise bad_parameter(message, "n", copies)


def _integer(fields: Mapping[str, Any], name: str) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if type(value) is not int:
        raise bad_parameter(f"{name} must be an integer, got {value!r}.", name)
    return value


def _output_tokens(
    fields: Mapping[str, Any],
    prompt_tokens: int,
    *,
    is_chat: bool,
    key: str,
    limits: Limits,
) -> tuple[int, str]:
    """How long the reply becomes, and why it ends there."""
    room = limits.max_model_tokens - prompt_tokens
    if room < 1:
        raise bad_parameter(
            f"This model's maximum context length is {limits.max_model_tokens} tokens. "
            f"However, your prompt contains {prompt_tokens} input tokens, which "
            "exceeds this limit even without any output tokens. "
            "Please reduce the length of the input prompt.",
            "input_tokens",
            prompt_tokens,
        )
    asked = _integer(fields, "max_completion_tokens") if is_chat else None
    asked = _integer(fields, "max_tokens") if asked is None else asked
    if asked is None:
        asked = room if is_chat else min(room, DEFAULT_COMPLETION_TOKENS)
    if asked < 1:
        message = f"max_tokens must be at least 1, got {asked}."
        raise bad_parameter(message, "max_tokens", asked)
    if asked > room:
        raise bad_parameter(
            f"max_tokens={asked} cannot be greater than max_model_len="
            f"{limits.max_model_tokens} minus the {prompt_tokens} input tokens. "
            "Please request fewer output tokens.",
            "max_tokens",
            asked,
        )
    least = _integer(fields, "min_tokens") or 0
    if least > asked:
        message = f"min_tokens must be at most max_tokens={asked}, got {least}."
        raise bad_parameter(message, "min_tokens", least)
    if fields.get("ignore_eos") is True:
        return asked, "length"
    drawn = drawn_tokens(limits.seed, key, max(1, least), asked)
    return drawn, "length" if drawn == asked else "stop"
