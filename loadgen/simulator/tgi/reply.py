"""What TGI answers: one event per token, whole replies, timing in headers.

Shapes follow the router of TGI 3.3; native streams end with the event that
carries `generated_text`, those of the OpenAI routes with `[DONE]`.
"""

from __future__ import annotations

from collections.abc import Sequence

from loadgen.simulator.core.text import WORDS
from loadgen.simulator.core.truth import RequestTruth
from loadgen.simulator.tgi.request import CHAT, NATIVE, TgiGeneration
from loadgen.simulator.wire import (
    WORD,
    EngineRefusal,
    Limits,
    TokenEvents,
    event,
    template,
)

VERSION = "3.3.7"
FINGERPRINT = f"{VERSION}-simulated"
DONE = b"data: [DONE]\n\n"
TOKEN_IDS = {word: index for index, word in enumerate(WORDS)}


def error_event(refusal: EngineRefusal, kind: str) -> bytes:
    """An error inside a 200 stream; the OpenAI routes always say 422."""
    if kind == NATIVE:
        return event(refusal.body)
    message = refusal.body["error"] if isinstance(refusal.body, dict) else ""
    error = {"message": message, "http_status_code": 422}
    return event({"error": error}) + DONE


class NativeEvents:
    """The events of `/generate_stream`: one per token, the last with the text."""

    def __init__(self, generation: TgiGeneration) -> None:
        self._generation = generation
        self._spoken: list[bytes] = []

    def opening(self) -> bytes:
        """Nothing comes before the first token."""
        return b""

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


class ChatEvents:
    """The events of TGI's chat flavour: role and content in each of them."""

    def __init__(self, generation: TgiGeneration, model: str) -> None:
        self._middle = template(_chat_event(generation, model, WORD, None))
        reason = chat_reason(generation)
        self._last = template(_chat_event(generation, model, WORD, reason))

    def opening(self) -> bytes:
        """Nothing comes before the first token."""
        return b""

    def token(self, word: bytes, count: int, is_last: bool) -> bytes:
        """The event of one token."""
        return (self._last if is_last else self._middle) % word


class CompletionEvents:
    """The events of `/v1/completions`: usage in the last, whether asked for or not."""

    def __init__(self, generation: TgiGeneration, model: str) -> None:
        self._generation, self._model = generation, model
        self._middle = template(_completion(generation, model, WORD, ""))

    def opening(self) -> bytes:
        """Nothing comes before the first token."""
        return b""

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
    """What follows the last token: the usage event, if asked for, and `[DONE]`."""
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
    """Streams say nothing about time."""
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
