"""The dialect of vLLM's OpenAI server: the requests it accepts, its replies and errors.

Error texts and key order follow captures of vLLM 0.32, started with
`--enable-per-request-metrics --enable-prompt-tokens-details`. Without `ignore_eos` the
length of a reply is a seeded draw, from `min_tokens` to `max_tokens`. Texts and token
counts of several sequences are told apart by `index`; usage sums them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loadgen.simulator.core.text import drawn_tokens, words_of
from loadgen.simulator.core.truth import RequestTruth
from loadgen.simulator.wire import (
    NUMBERS,
    WORD,
    EngineRefusal,
    Generation,
    Limits,
    TokenEvents,
    event,
    template,
)

VERSION = "0.32.0+simulated"
FINGERPRINT = "vllm-0.32.0-simulated"
DONE = b"data: [DONE]\n\n"
DEFAULT_COMPLETION_TOKENS = 16
CHAT_ONLY = ("prompt_logprobs", "prompt_token_ids", "prompt_text")
BUSY = (
    "The engine is currently busy and cannot accept new requests. "
    "Please try again later or on a different instance."
)


@dataclass(frozen=True, slots=True)
class VllmGeneration(Generation):
    """A request, and the options that shape its reply."""

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
    """The error of a full queue."""
    return refused(503, BUSY, kind="Service Unavailable")


def read_request(
    body: bytes, *, is_chat: bool, request_id: str, created: int, limits: Limits
) -> VllmGeneration:
    """A request body. Raises EngineRefusal where vLLM does."""
    fields = _object(body)
    model = fields.get("model")
    if model is not None and model != limits.model:
        message = f"The model `{model}` does not exist. Valid aliases: {limits.model}."
        raise refused(404, message, "model")
    prompts = [_chat_words(fields)] if is_chat else _prompts(fields)
    words = max(prompts, key=len)
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
        prompt_words=prompts[0],
        more_prompts=prompts[1:],
        output_tokens=output_tokens,
        finish_reason=finish_reason,
        is_stream=stream,
        sequences=len(prompts) * (_integer(fields, "n") or 1),
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
        content = message.get("content") if isinstance(message, dict) else 0
        if content is None and message.get("role") == "assistant":
            content = ""  # beside tool calls, or in a history without text
        if isinstance(content, list):
            parts = [part for part in content if isinstance(part, dict)]
            content = " ".join(str(part.get("text", "")) for part in parts)
        if not isinstance(content, str):
            raise bad_parameter("each message needs a text content.", "messages")
        words.extend(words_of(content))
    return words


def _prompts(fields: Mapping[str, Any]) -> list[list[str]]:
    """One prompt, as text or token ids, or a list of such."""
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and prompt and type(prompt[0]) is not int:
        return [_prompt_words(one) for one in prompt]
    return [_prompt_words(prompt)]


def _prompt_words(prompt: object) -> list[str]:
    if isinstance(prompt, list) and prompt and all(type(id_) is int for id_ in prompt):
        return [str(token) for token in prompt]
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
    """Length of the reply, and its finish reason."""
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


class VllmEvents(TokenEvents):
    """The events of one sequence; a token costs one `%` of a prepared event."""

    def __init__(self, generation: VllmGeneration, model: str, index: int) -> None:
        self._generation = generation
        self._model = model
        self._index = index
        self._prompt_tokens = max(1, len(generation.words_of(index)))
        self._counts = generation.wants_running_usage
        self._middle = template(self._token_event(None))
        self._last = template(self._token_event(generation.finish_reason))

    def opening(self) -> bytes:
        """Chat names the role first, together with the first token."""
        if not self._generation.is_chat:
            return b""
        choice = {
            "index": self._index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        body = self._envelope(choice)
        if self._counts:
            body["usage"] = usage(self._generation, 0, completion_tokens_details=None)
        return event({**body, "prompt_token_ids": None, "prompt_text": None})

    def token(self, word: bytes, count: int, is_last: bool) -> bytes:
        """The event of token number `count`, from 1."""
        prepared = self._last if is_last else self._middle
        if self._counts:
            return prepared % (word, self._prompt_tokens + count, count)
        return prepared % word

    def _envelope(self, choice: dict[str, object]) -> dict[str, object]:
        return {**_envelope(self._generation, self._model), "choices": [choice]}

    def _token_event(self, finish_reason: str | None) -> dict[str, object]:
        choice: dict[str, object] = {"index": self._index}
        if self._generation.is_chat:
            choice |= {"delta": {"content": WORD}, "logprobs": None}
            choice["finish_reason"] = finish_reason
            if finish_reason is not None:
                choice["stop_reason"] = None
        else:
            choice |= {"text": WORD, "logprobs": None, "finish_reason": finish_reason}
            choice |= {"stop_reason": None, "prompt_token_ids": None}
        choice["token_ids"] = None
        body = self._envelope(choice)
        if self._counts:
            total, count = NUMBERS
            body["usage"] = {
                "prompt_tokens": self._prompt_tokens,
                "total_tokens": total,
                "completion_tokens": count,
                "completion_tokens_details": None,
            }
        if finish_reason is not None and not self._generation.wants_usage:
            body["system_fingerprint"] = FINGERPRINT
        return body


def unstreamed_reply(
    generation: VllmGeneration,
    model: str,
    texts: Sequence[str],
    truths: Sequence[RequestTruth],
) -> dict[str, object]:
    """The reply to a request without `stream`."""
    output_tokens = sum(truth.output_tokens for truth in truths)
    choices = [_choice(index, text, generation) for index, text in enumerate(texts)]
    details = cached_details(generation, truths[0])
    return {
        **_envelope(generation, model),
        "object": "chat.completion" if generation.is_chat else "text_completion",
        "choices": choices,
        "service_tier": None,
        "system_fingerprint": FINGERPRINT,
        "usage": usage(
            generation,
            output_tokens,
            prompt_tokens_details=details,
            completion_tokens_details=None,
        ),
        **(dict.fromkeys(CHAT_ONLY) if generation.is_chat else {}),
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": timing(generation, truths[0]),
    }


def models_page(model: str, max_model_tokens: int, created: int) -> dict[str, object]:
    """`GET /v1/models`."""
    entry = {
        "id": model,
        "object": "model",
        "created": created,
        "owned_by": "servewatt-simulator",
        "root": model,
        "parent": None,
        "max_model_len": max_model_tokens,
        "permission": [],
    }
    return {"object": "list", "data": [entry]}


def _envelope(generation: VllmGeneration, model: str) -> dict[str, object]:
    return {
        "id": generation.reply_id,
        "object": "chat.completion.chunk" if generation.is_chat else "text_completion",
        "created": generation.created,
        "model": model,
    }


def _choice(index: int, text: str, generation: VllmGeneration) -> dict[str, object]:
    absent = ("refusal", "annotations", "audio", "function_call", "reasoning")
    message = {"role": "assistant", "content": text} | dict.fromkeys(absent)
    return {
        "index": index,
        **({"message": message} if generation.is_chat else {"text": text}),
        "logprobs": None,
        "finish_reason": generation.finish_reason,
        **dict.fromkeys(("stop_reason", "token_ids", "routed_experts")),
        **({} if generation.is_chat else dict.fromkeys(CHAT_ONLY[:2])),
    }


def error_event(body: object) -> bytes:
    """An error inside a 200 stream: JSON with spaces, unlike every other event."""
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def usage(
    generation: Generation, output_tokens: int, **details: object
) -> dict[str, object]:
    """Counts over all sequences; the prompt counts once."""
    return {
        "prompt_tokens": generation.prompt_tokens,
        "total_tokens": generation.prompt_tokens + output_tokens,
        "completion_tokens": output_tokens,
        **details,
    }


def cached_details(generation: VllmGeneration, truth: RequestTruth) -> dict[str, int]:
    """Completions replies had only the first key in the captures."""
    if not generation.is_chat:
        return {"cached_tokens": truth.cached_tokens}
    created = generation.prompt_tokens - truth.cached_tokens
    return {"cached_tokens": truth.cached_tokens, "created_cache_tokens": created}


def timing(generation: Generation, truth: RequestTruth) -> dict[str, object] | None:
    """The per-request `metrics`; absent for several sequences, as in vLLM."""
    scheduled, first = truth.scheduled_seconds, truth.first_token_seconds
    last = truth.last_token_seconds
    if generation.sequences > 1 or scheduled is None or first is None or last is None:
        return None
    tokens = truth.output_tokens
    between_ms = (last - first) * 1000
    return {
        "time_to_first_token_ms": (first - scheduled) * 1000,
        "generation_time_ms": between_ms,
        "queue_time_ms": (scheduled - truth.arrived_seconds) * 1000,
        "mean_itl_ms": between_ms / (tokens - 1) if tokens > 1 else None,
        "tokens_per_second": tokens / (last - scheduled),
    }


def closing_events(
    generation: VllmGeneration, model: str, truths: Sequence[RequestTruth]
) -> bytes:
    """The usage event, if asked for, and `[DONE]`."""
    if not generation.wants_usage:
        return DONE
    output_tokens = sum(truth.output_tokens for truth in truths)
    details = cached_details(generation, truths[0])
    body: dict[str, object] = {
        **_envelope(generation, model),
        "choices": [],
        "usage": usage(generation, output_tokens, prompt_tokens_details=details),
        "system_fingerprint": FINGERPRINT,
    }
    metrics = timing(generation, truths[0])
    if metrics is not None:
        body["metrics"] = metrics
    return event(body) + DONE
