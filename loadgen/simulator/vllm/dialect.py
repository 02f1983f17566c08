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

from loadgen.simulator.core.text import drawn_tokens, reply_words, words_of
from loadgen.simulator.core.truth import RequestTruth
from loadgen.simulator.vllm.transfer import remote_tokens_of, wants_remote_decode
from loadgen.simulator.wire import (
    NUMBERS,
    WORD,
    EngineRefusal,
    Generation,
    Limits,
    TokenEvents,
    event,
    template,
    text_key,
)

VERSION = "0.32.0+simulated"
FINGERPRINT = "vllm-0.32.0-simulated"
DONE = b"data: [DONE]\n\n"
DEFAULT_COMPLETION_TOKENS = 16
DETAILS = ("cached_tokens", "created_cache_tokens", "multimodal_tokens")
"""Whole replies have them all; streams, those that are not null."""
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
    top_logprobs: int | None = None
    """Alternatives shown beside each token's log probability; None: none is shown."""
    tool: str | None = None
    """The function that is called instead of a text."""
    is_json: bool = False
    """The text is a JSON document."""
    stop_reason: str | None = None
    """The stop sequence that ended the reply."""
    wants_running_usage: bool = False
    created: int = 0
    hands_over: bool = False
    """Another engine writes the reply: this one tells where its KV blocks are."""

    @property
    def is_plain(self) -> bool:
        """Whether an event is its token's text and nothing else."""
        return self.top_logprobs is None and self.tool is None and not self.is_json

    def piece(self, word: str, count: int) -> str:
        """What token number `count`, from 1, adds to the text or to the arguments."""
        if self.tool is None and not self.is_json:
            return word
        start = '{"text":"' if count == 1 else ""
        return f"{start}{word}" + ('"}' if count == self.output_tokens else "")

    def reply_of(self, words: Sequence[str]) -> str:
        """The text of a reply of these tokens, or the arguments of its call."""
        text = " ".join(words)
        if self.stop_reason is not None:
            text = text[: text.find(self.stop_reason)]
        is_text = self.tool is None and not self.is_json
        return text if is_text else f'{{"text":"{text}"}}'

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
    return read_fields(
        read_object(body),
        is_chat=is_chat,
        request_id=request_id,
        created=created,
        limits=limits,
    )


def check_model(fields: Mapping[str, Any], limits: Limits) -> None:
    """Raises EngineRefusal for a model that is not served."""
    model = fields.get("model")
    if model is not None and model != limits.model:
        message = f"The model `{model}` does not exist. Valid aliases: {limits.model}."
        raise refused(404, message, "model")


def read_fields(
    fields: Mapping[str, Any],
    *,
    is_chat: bool,
    request_id: str,
    created: int,
    limits: Limits,
    conversations: Sequence[object] | None = None,
) -> VllmGeneration:
    """A request as its fields; `conversations` are the message lists of a batch."""
    check_model(fields, limits)
    if conversations is not None:
        prompts = [_chat_words({"messages": one}) for one in conversations]
    else:
        prompts = [_chat_words(fields)] if is_chat else read_prompts(fields, "prompt")
    words = max(prompts, key=len)
    transfer = _transfer_params(fields)
    stream = fields.get("stream") is True
    options = fields.get("stream_options")
    if options is not None and not stream:
        raise bad_parameter(
            "Stream options can only be defined when `stream=True`.", "stream_options"
        )
    options = options if isinstance(options, dict) else {}
    _check_sampling(fields)
    shaping = {name: fields[name] for name in SHAPES_TEXT if name in fields}
    key = text_key(request_id, fields.get("seed"), prompts, shaping)
    output_tokens, finish_reason = _output_tokens(
        fields, max(1, len(words)), is_chat=is_chat, key=key, limits=limits
    )
    sequences = len(prompts) * (_integer(fields, "n") or 1)
    tool = _tool(fields) if is_chat else None
    if tool is not None:
        finish_reason = "tool_calls"
    stop_reason = None
    if sequences == 1 and tool is None:
        reply = reply_words(limits.seed, key, 0, output_tokens)
        stopped = _stopped(fields, reply)
        if stopped is not None:
            output_tokens, stop_reason = stopped
            finish_reason = "stop"
    wants_usage = options.get("include_usage") is True
    return VllmGeneration(
        request_id=request_id,
        prompt_words=prompts[0],
        more_prompts=prompts[1:],
        output_tokens=output_tokens,
        finish_reason=finish_reason,
        is_stream=stream,
        sequences=sequences,
        text_key=key,
        is_chat=is_chat,
        top_logprobs=_logprobs(fields, is_chat=is_chat),
        tool=tool,
        is_json=_is_json(fields),
        stop_reason=stop_reason,
        wants_usage=wants_usage,
        wants_running_usage=wants_usage and bool(options.get("continuous_usage_stats")),
        created=created,
        hands_over=limits.role == "prefill" and wants_remote_decode(transfer),
        remote_tokens=remote_tokens_of(transfer) if limits.role == "decode" else 0,
    )


def _transfer_params(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """`kv_transfer_params`, empty where there are none."""
    given = fields.get("kv_transfer_params")
    if given is not None and not isinstance(given, dict):
        raise bad_parameter("Input should be a valid dictionary", "kv_transfer_params")
    return given or {}


SHAPES_TEXT = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "logit_bias", "stop", "stop_token_ids", "tools",
    "tool_choice", "response_format", "structured_outputs", "chat_template",
    "min_tokens", "ignore_eos",
)  # fmt: skip
MAX_LOGPROBS = 20


def _tool(fields: Mapping[str, Any]) -> str | None:
    """The function that is called: the chosen one, or where one is required the first.

    Left to itself (`auto`) the simulated model writes text.
    """
    tools, choice = fields.get("tools"), fields.get("tool_choice")
    if choice in (None, "auto", "none"):
        return None
    if not isinstance(tools, list) or not tools:
        raise bad_parameter("When using `tool_choice`, `tools` must be set.", "tools")
    functions = [tool.get("function") for tool in tools if isinstance(tool, dict)]
    names = [str(one.get("name")) for one in functions if isinstance(one, dict)]
    if choice == "required":
        return names[0]
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if name not in names:
        raise bad_parameter(
            "The tool specified in `tool_choice` does not match any of the specified "
            "`tools`",
            "tool_choice",
        )
    return str(name)


def _logprobs(fields: Mapping[str, Any], *, is_chat: bool) -> int | None:
    if not is_chat:
        wanted = _integer(fields, "logprobs")
    elif fields.get("logprobs") is not True:
        return None
    else:
        wanted = _integer(fields, "top_logprobs") or 0
    if wanted is not None and not 0 <= wanted <= MAX_LOGPROBS:
        message = f"Requested sample logprobs of {wanted}, which is greater than max "
        raise bad_parameter(f"{message}allowed: {MAX_LOGPROBS}", "logprobs", wanted)
    return wanted


def _is_json(fields: Mapping[str, Any]) -> bool:
    wanted = fields.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind not in (None, "text", "json_object", "json_schema", "structural_tag"):
        raise bad_parameter(f"unknown type {kind!r}", "response_format")
    return kind in ("json_object", "json_schema")


def _stopped(fields: Mapping[str, Any], words: Sequence[str]) -> tuple[int, str] | None:
    """Tokens until the first stop sequence is there, and that sequence."""
    stops = fields.get("stop")
    stops = [stops] if isinstance(stops, str) else stops
    if stops is None:
        return None
    if not isinstance(stops, list) or not all(isinstance(one, str) for one in stops):
        raise bad_parameter("stop must be a string or a list of them.", "stop")
    text = ""
    for count, word in enumerate(words, 1):
        text += word if count == 1 else f" {word}"
        for stop in stops:
            if stop and stop in text:
                return count, stop
    return None


def read_object(body: bytes) -> Mapping[str, Any]:
    """The fields of a body. Raises EngineRefusal unless it is a JSON object."""
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


def read_prompts(fields: Mapping[str, Any], name: str) -> list[list[str]]:
    """The words of a field: one prompt, as text or token ids, or a list of such."""
    prompt = fields.get(name)
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
    """The events of one sequence; a plain token costs one `%` of a prepared event."""

    def __init__(self, generation: VllmGeneration, model: str, index: int) -> None:
        self._generation = generation
        self._model = model
        self._index = index
        self._prompt_tokens = max(1, len(generation.words_of(index)))
        self._counts = generation.wants_running_usage
        self._text = ""
        """Tokens so far, for the places of log probabilities."""
        self._before = ""
        self._middle = template(self._token_event(WORD, None))
        self._last = template(self._token_event(WORD, generation.finish_reason))

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
        generation, shown = self._generation, self.shown(word, is_last)
        if generation.is_plain:
            prepared = self._last if is_last else self._middle
            counts = (self._prompt_tokens + count, count) if self._counts else ()
            data = prepared % (shown, *counts)
        else:
            data = self._shaped(word.decode(), shown.decode(), count, is_last)
        if not generation.is_plain:
            self._text += word.decode()
        return data

    def shown(self, word: bytes, is_last: bool) -> bytes:
        """What a token adds to the text, which ends before a stop sequence.

        Where an earlier token began the sequence, its part has been sent: a sequence
        of several words is held back by vLLM, and not here.
        """
        stop = self._generation.stop_reason
        if stop is None:
            return word
        before, self._before = self._before, self._before + word.decode()
        if not is_last:
            return word
        return self._before[: self._before.find(stop)][len(before) :].encode()

    def _shaped(self, word: str, shown: str, count: int, is_last: bool) -> bytes:
        """An event that is more than its token's text."""
        generation = self._generation
        logprobs = None
        if generation.top_logprobs is not None:
            logprobs = _logprobs_of(generation, [word], len(self._text))
        reason = generation.finish_reason if is_last else None
        body = self._token_event(
            generation.piece(shown, count), reason, logprobs, is_first=count == 1
        )
        if self._counts:
            body["usage"] = self._running_usage(self._prompt_tokens + count, count)
        return event(body)

    def _envelope(self, choice: dict[str, object]) -> dict[str, object]:
        return {**_envelope(self._generation, self._model), "choices": [choice]}

    def _running_usage(self, total: object, count: object) -> dict[str, object]:
        return {
            "prompt_tokens": self._prompt_tokens,
            "total_tokens": total,
            "completion_tokens": count,
            "completion_tokens_details": None,
        }

    def _token_event(
        self,
        piece: str,
        finish_reason: str | None,
        logprobs: dict[str, object] | None = None,
        *,
        is_first: bool = False,
    ) -> dict[str, object]:
        generation = self._generation
        stop_reason = None if finish_reason is None else generation.stop_reason
        choice: dict[str, object] = {"index": self._index}
        if generation.is_chat:
            delta: dict[str, object] = {"content": piece}
            if generation.tool is not None:
                delta = {"tool_calls": [_call_part(generation, piece, is_first)]}
            choice |= {"delta": delta, "logprobs": logprobs}
            choice["finish_reason"] = finish_reason
            if finish_reason is not None:
                choice["stop_reason"] = stop_reason
        else:
            choice |= {"text": piece, "logprobs": logprobs}
            choice["finish_reason"] = finish_reason
            choice |= {"stop_reason": stop_reason, "prompt_token_ids": None}
        choice["token_ids"] = None
        body = self._envelope(choice)
        if self._counts:
            body["usage"] = self._running_usage(*NUMBERS)
        if finish_reason is not None and not generation.wants_usage:
            body["system_fingerprint"] = FINGERPRINT
        return body


def _call_part(generation: VllmGeneration, piece: str, count: int) -> dict[str, object]:
    """One event's part of a tool call: its name with the first."""
    if count != 1:
        return {"index": 0, "function": {"arguments": piece}}
    return {
        "id": _call_id(generation),
        "type": "function",
        "index": 0,
        "function": {"name": generation.tool, "arguments": piece},
    }


def _call_id(generation: VllmGeneration) -> str:
    return f"chatcmpl-tool-{generation.request_id}"


def _logprobs_of(
    generation: VllmGeneration, tokens: Sequence[str], offset: int = 0
) -> dict[str, object]:
    """Log probabilities of tokens, in the form of the route; all alike here."""
    most = generation.top_logprobs or 0
    if generation.is_chat:
        content = []
        for token in tokens:
            one = {"token": token, "logprob": -1.0, "bytes": list(token.encode())}
            content.append({**one, "top_logprobs": [one] * most})
        return {"content": content}
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return {
        "text_offset": offsets,
        "token_logprobs": [-1.0] * len(tokens),
        "tokens": list(tokens),
        "top_logprobs": [{token: -1.0} for token in tokens],
    }


def unstreamed_reply(
    generation: VllmGeneration,
    model: str,
    replies: Sequence[Sequence[str]],
    truths: Sequence[RequestTruth],
    kv_transfer_params: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """The reply to a request without `stream`; its cached tokens are of the last
    prompt."""
    output_tokens = sum(truth.output_tokens for truth in truths)
    choices = [_choice(index, words, generation) for index, words in enumerate(replies)]
    copies = len(truths) // (1 + len(generation.more_prompts))
    details = cached_details(generation, truths[-copies])
    return {
        **_envelope(generation, model),
        "object": "chat.completion" if generation.is_chat else "text_completion",
        "choices": choices,
        "service_tier": None,
        "system_fingerprint": FINGERPRINT,
        "usage": usage(
            generation,
            output_tokens,
            prompt_tokens_details={**dict.fromkeys(DETAILS), **details},
            completion_tokens_details=None,
        ),
        **(dict.fromkeys(CHAT_ONLY) if generation.is_chat else {}),
        "kv_transfer_params": kv_transfer_params,
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


def _choice(
    index: int, words: Sequence[str], generation: VllmGeneration
) -> dict[str, object]:
    text = generation.reply_of(words)
    absent = ("refusal", "annotations", "audio", "function_call")
    message: dict[str, object] = {"role": "assistant", "content": text}
    message |= dict.fromkeys(absent)
    if generation.tool is not None:
        function = {"name": generation.tool, "arguments": text}
        call = {"id": _call_id(generation), "type": "function", "function": function}
        message |= {"content": "", "tool_calls": [call]}
    message["reasoning"] = None
    logprobs = None
    if generation.top_logprobs is not None:
        tokens = [word if at == 0 else f" {word}" for at, word in enumerate(words)]
        logprobs = _logprobs_of(generation, tokens)
    return {
        "index": index,
        **({"message": message} if generation.is_chat else {"text": text}),
        "logprobs": logprobs,
        "finish_reason": generation.finish_reason,
        "stop_reason": generation.stop_reason,
        "token_ids": None,
        **({} if generation.is_chat else dict.fromkeys(CHAT_ONLY[:2])),
        "routed_experts": None,
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
