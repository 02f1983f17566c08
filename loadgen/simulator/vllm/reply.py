"""What vLLM's OpenAI server answers: stream events, whole replies, `[DONE]`.

Key order follows captures of vLLM 0.32, started with
`--enable-per-request-metrics --enable-prompt-tokens-details`. Reply texts and
token counts of several sequences are told apart by `index`; usage sums them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from loadgen.simulator.core.truth import RequestTruth
from loadgen.simulator.vllm.request import VllmGeneration
from loadgen.simulator.wire import NUMBERS, WORD, Generation, event, template

VERSION = "0.32.0+simulated"
FINGERPRINT = "vllm-0.32.0-simulated"
DONE = b"data: [DONE]\n\n"


class VllmEvents:
    """The events of one sequence; a token costs one `%` of a prepared event."""

    def __init__(self, generation: VllmGeneration, model: str, index: int) -> None:
        self._generation = generation
        self._model = model
        self._index = index
        self._prompt_tokens = generation.prompt_tokens
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
    choice = _chat_choice if generation.is_chat else _text_choice
    choices = [
        choice(index, text, generation.finish_reason)
        for index, text in enumerate(texts)
    ]
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
        **({"prompt_logprobs": None} if generation.is_chat else {}),
        **({"prompt_token_ids": None} if generation.is_chat else {}),
        **({"prompt_text": None} if generation.is_chat else {}),
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


def _chat_choice(index: int, text: str, finish_reason: str) -> dict[str, object]:
    message = {
        "role": "assistant",
        "content": text,
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "reasoning": None,
    }
    return {
        "index": index,
        "message": message,
        "logprobs": None,
        "finish_reason": finish_reason,
        "stop_reason": None,
        "token_ids": None,
        "routed_experts": None,
    }


def _text_choice(index: int, text: str, finish_reason: str) -> dict[str, object]:
    return {
        "index": index,
        "text": text,
        "logprobs": None,
        "finish_reason": finish_reason,
        "stop_reason": None,
        "token_ids": None,
        "routed_experts": None,
        "prompt_logprobs": None,
        "prompt_token_ids": None,
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
