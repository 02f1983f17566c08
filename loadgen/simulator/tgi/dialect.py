"""The dialect of TGI: the requests it accepts, its replies and errors.

On its native routes and on its OpenAI ones, after the router of TGI 3.3. TGI cannot be
told to ignore the end of text: the length of a reply is a seeded draw, at most
`max_new_tokens`. Streams have one event per token; native ones end with the event that
carries `generated_text`, those of the OpenAI routes with `[DONE]`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loadgen.simulator.core.text import WORDS, drawn_tokens, words_of
from loadgen.simulator.core.truth import RequestTruth
from loadgen.simulator.wire import (
    WORD,
    EngineRefusal,
    Generation,
    Limits,
    TokenEvents,
    event,
    template,
)

VERSION = "3.3.7"
FINGERPRINT = f"{VERSION}-simulated"
DONE = b"data: [DONE]\n\n"
TOKEN_IDS = {word: index for index, word in enumerate(WORDS)}
DEFAULT_NEW_TOKENS = 1024
DEFAULT_COMPLETION_TOKENS = 100
NATIVE, CHAT, COMPLETIONS = "native", "chat", "completions"


@dataclass(frozen=True, slots=True)
class TgiGeneration(Generation):
    """A request, and the options that shape its reply."""

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
    """The error of a full queue."""
    return refused(429, "overloaded", "Model is overloaded")


def broken() -> EngineRefusal:
    """The error of a failed generation."""
    return refused(424, "generation", "Request failed during generation: SIMULATED")


def read_json(body: bytes) -> Mapping[str, Any]:
    """The fields of a body. Raises EngineRefusal unless it is a JSON object."""
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
    """A `/generate` or `/generate_stream` body. Raises EngineRefusal."""
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


def error_event(refusal: EngineRefusal, kind: str) -> bytes:
    """An error inside a 200 stream; the OpenAI routes always say 422."""
    if kind == NATIVE:
        return event(refusal.body)
    message = refusal.body["error"] if isinstance(refusal.body, dict) else ""
    error = {"message": message, "http_status_code": 422}
    return event({"error": error}) + DONE


class NativeEvents(TokenEvents):
    """The events of `/generate_stream`: one per token, the last with the text."""

    def __init__(self, generation: TgiGeneration) -> None:
        self._generation = generation
        self._spoken: list[bytes] = []

    def token(self, word: bytes, count: int, is_last: bool) -> bytes:
        """The event of token number `count`, from 1."""
        token_id = TOKEN_IDS[word.strip().decode()]
        self._spoken.append(word)
        if not is_last:
            return _NATIVE % (count, token_id, word)
        details = {
            "finish_reason": self._generation.finish_reason,
            "generated_tokens": count,
            "seed": None,
            "input_length": self._generation.prompt_tokens,
        }
        body = {
            "index": count,
            "token": _token(token_id, word.decode()),
            "generated_text": b"".join(self._spoken).decode(),
            "details": details if self._generation.wants_details else None,
        }
        return event(body)


class ChatEvents(TokenEvents):
    """The events of TGI's chat flavour: role and content in each of them."""

    def __init__(self, generation: TgiGeneration, model: str) -> None:
        self._middle = template(_chat_event(generation, model, WORD, None))
        reason = chat_reason(generation)
        self._last = template(_chat_event(generation, model, WORD, reason))

    def token(self, word: bytes, count: int, is_last: bool) -> bytes:
        """The event of one token."""
        return (self._last if is_last else self._middle) % word


class CompletionEvents(TokenEvents):
    """The events of `/v1/completions`: usage in the last, whether asked for or not."""

    def __init__(self, generation: TgiGeneration, model: str) -> None:
        self._generation, self._model = generation, model
        self._middle = template(_completion(generation, model, WORD, ""))

    def token(self, word: bytes, count: int, is_last: bool) -> bytes:
        """The event of one token; only streams keep the router's own `eos_token`."""
        if not is_last:
            return self._middle % word
        generation, text = self._generation, word.decode()
        last = _completion(generation, self._model, text, generation.finish_reason)
        return event({**last, "usage": _usage(generation, count)})


def events_of(generation: TgiGeneration, model: str) -> TokenEvents:
    """The events of one stream, by the route it was asked for on."""
    if generation.kind == NATIVE:
        return NativeEvents(generation)
    if generation.kind == CHAT:
        return ChatEvents(generation, model)
    return CompletionEvents(generation, model)


def closing(generation: TgiGeneration, model: str, output_tokens: int) -> bytes:
    """Events after the last token: usage, if asked for, and `[DONE]`."""
    if generation.kind == NATIVE:
        return b""
    if not generation.wants_usage:
        return DONE
    body = _chat_event(generation, model, "", None)
    usage = _usage(generation, output_tokens)
    return event({**body, "choices": [], "usage": usage}) + DONE


def native_reply(
    generation: TgiGeneration, words: Sequence[str], text: str
) -> dict[str, object]:
    """The reply of `/generate`."""
    if not generation.wants_details:
        return {"generated_text": text}
    details = {
        "finish_reason": generation.finish_reason,
        "generated_tokens": len(words),
        "seed": None,
        "prefill": [],
        "tokens": [_token(TOKEN_IDS[word], f" {word}") for word in words],
    }
    return {"generated_text": text, "details": details}


def chat_reply(
    generation: TgiGeneration, model: str, text: str, output_tokens: int
) -> dict[str, object]:
    """The reply of `/v1/chat/completions` without `stream`."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "logprobs": None,
        "finish_reason": chat_reason(generation),
    }
    return {
        "object": "chat.completion",
        "id": "",
        "created": generation.created,
        "model": model,
        "system_fingerprint": FINGERPRINT,
        "choices": [choice],
        "usage": _usage(generation, output_tokens),
    }


def completion_reply(
    generation: TgiGeneration, model: str, text: str, output_tokens: int
) -> dict[str, object]:
    """The reply of `/v1/completions` without `stream`."""
    body = _completion(generation, model, text, chat_reason(generation))
    return {**body, "usage": _usage(generation, output_tokens)}


def timing_headers(truth: RequestTruth, characters: int) -> dict[str, str]:
    """The headers of replies without `stream`: milliseconds, cut to integers."""
    arrived, last = truth.arrived_seconds, truth.last_token_seconds or 0.0
    scheduled = truth.scheduled_seconds or arrived
    inference_ms = (last - scheduled) * 1000
    return {
        "x-compute-type": "simulated-gpu",
        "x-compute-time": f"{last - arrived:.9f}",
        "x-compute-characters": str(characters),
        "x-total-time": str(int((last - arrived) * 1000)),
        "x-validation-time": "0",
        "x-queue-time": str(int((scheduled - arrived) * 1000)),
        "x-inference-time": str(int(inference_ms)),
        "x-time-per-token": str(int(inference_ms / max(1, truth.output_tokens))),
        "x-prompt-tokens": str(truth.prompt_tokens),
        "x-generated-tokens": str(truth.output_tokens),
    }


def stream_headers(characters: int) -> dict[str, str]:
    """The headers of a stream, which carry no times."""
    return {
        "x-compute-type": "simulated-gpu",
        "x-compute-characters": str(characters),
        "x-accel-buffering": "no",
    }


def info_page(model: str, limits: Limits, max_batch: int) -> dict[str, object]:
    """`GET /info`."""
    return {
        "model_id": model,
        "model_sha": None,
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": max_batch,
        "max_best_of": 1,
        "max_stop_sequences": 4,
        "max_input_tokens": limits.max_model_tokens - 1,
        "max_total_tokens": limits.max_model_tokens,
        "validation_workers": 1,
        "max_client_batch_size": 1,
        "router": "servewatt-simulator",
        "version": VERSION,
        "sha": None,
        "docker_label": "simulated",
    }


def chat_reason(generation: TgiGeneration) -> str:
    """`stop`, where the native routes say `eos_token`."""
    return "length" if generation.finish_reason == "length" else "stop"


def _token(token_id: int, text: str) -> dict[str, object]:
    return {"id": token_id, "text": text, "logprob": -1.0, "special": False}


def _usage(generation: TgiGeneration, output_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": generation.prompt_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": generation.prompt_tokens + output_tokens,
    }


def _chat_event(
    generation: TgiGeneration, model: str, content: str, reason: str | None
) -> dict[str, object]:
    choice = {
        "index": 0,
        "delta": {"role": "assistant", "content": content},
        "logprobs": None,
        "finish_reason": reason,
    }
    return {
        "object": "chat.completion.chunk",
        "id": "",
        "created": generation.created,
        "model": model,
        "system_fingerprint": FINGERPRINT,
        "choices": [choice],
        "usage": None,
    }


def _completion(
    generation: TgiGeneration, model: str, text: str, reason: str
) -> dict[str, object]:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
    return {
        "object": "text_completion",
        "id": "",
        "created": generation.created,
        "model": model,
        "system_fingerprint": FINGERPRINT,
        "choices": [choice],
    }


_NATIVE = (
    b'data: {"index":%d,"token":{"id":%d,"text":"%b","logprob":-1.0,'
    b'"special":false},"generated_text":null,"details":null}\n\n'
)
