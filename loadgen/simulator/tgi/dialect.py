"""The dialect of TGI: the requests it accepts, its replies and errors.

On its native routes and on its OpenAI ones, after the router of TGI 3.3. TGI cannot be
told to ignore the end of text: the length of a reply is a seeded draw, at most
`max_new_tokens`, which is computed in parts of at most 1,024 tokens, each queued anew.
Streams have one event per token; native ones end with the event that carries
`generated_text`, those of the OpenAI routes with `[DONE]`. A reply that ends by itself
ends with a special token, which is counted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    text_key,
)

VERSION = "3.3.7"
FINGERPRINT = f"{VERSION}-simulated"
DONE = b"data: [DONE]\n\n"
TOKEN_IDS = {word: index for index, word in enumerate(WORDS)}
END_TOKEN = "</s>"
END_TOKEN_ID = 2
PART_TOKENS = 1024
MAX_BATCH = 4
MAX_BEST_OF = 2
NATIVE, CHAT, COMPLETIONS = "native", "chat", "completions"
UNNAMED_TOKENS, CLOSING_TOKENS = 6, 2
"""Tokens of a tool call before its name is known, and after its arguments."""


@dataclass(frozen=True, slots=True)
class TgiGeneration(Generation):
    """A request, and the options that shape its reply."""

    kind: str = NATIVE
    wants_details: bool = False
    wants_usage: bool = False
    created: int = 0
    prepended: str = ""
    """The prompt, where the whole text is asked for."""
    sampling_seed: int | None = None
    """Reported where the reply was sampled."""
    tool: str | None = None
    """The function that is called instead of a text."""

    @property
    def is_length(self) -> bool:
        """Whether the reply was cut by its bound."""
        return self.finish_reason == "length"


@dataclass(frozen=True, slots=True)
class _Length:
    output_tokens: int
    finish_reason: str
    parts: Sequence[int] = field(default_factory=tuple)

    @property
    def end_token(self) -> str | None:
        """A reply that ends by itself says so in a token of its own."""
        return None if self.finish_reason == "length" else END_TOKEN


def refused(status: int, error_type: str, message: str) -> EngineRefusal:
    """An error in TGI's shape."""
    return EngineRefusal(status, {"error": message, "error_type": error_type})


class BeforeStream(EngineRefusal):
    """A refusal that is a status line even where a stream was asked for."""


def at_once(status: int, error_type: str, message: str) -> BeforeStream:
    """An error in TGI's shape, before any stream begins."""
    return BeforeStream(status, {"error": message, "error_type": error_type})


def undecodable(reason: str, status: int = 422) -> BeforeStream:
    """The plain text of the web framework, for a body of the wrong shape."""
    starts = {
        400: "Failed to parse the request body as JSON: ",
        415: "Expected request with `Content-Type: application/json`",
        422: "Failed to deserialize the JSON body into the target type: ",
    }
    return BeforeStream(status, starts[status] + reason)


def invalid(message: str) -> EngineRefusal:
    """A request that fails validation."""
    return refused(422, "validation", f"Input validation error: {message}")


def overloaded() -> EngineRefusal:
    """The error of a full router."""
    return refused(429, "overloaded", "Model is overloaded")


def broken() -> EngineRefusal:
    """The error of a failed generation."""
    return refused(424, "generation", "Request failed during generation: SIMULATED")


def read_json(body: bytes) -> Mapping[str, Any]:
    """The fields of a body. Raises EngineRefusal unless it is a JSON object."""
    try:
        fields = json.loads(body)
    except ValueError as error:
        raise undecodable(str(error), 400) from None
    if not isinstance(fields, dict):
        raise undecodable("invalid type, expected a map")
    return fields


def _typed(fields: Mapping[str, Any], name: str, kind: type, what: str) -> Any:
    """A field as it must be, None where it is absent or null."""
    value = fields.get(name)
    if value is None:
        return None
    is_flag = isinstance(value, bool) and kind is not bool
    if not isinstance(value, kind) or is_flag:
        raise undecodable(f"{name}: invalid type, expected {what}")
    return value


def _count(fields: Mapping[str, Any], name: str) -> int | None:
    value: int | None = _typed(fields, name, int, "u32")
    if value is not None and value < 0:
        raise undecodable(f"{name}: invalid value: integer `{value}`, expected u32")
    return value


SAMPLED_BY = ("temperature", "top_k", "top_p", "typical_p")
SHAPES_TEXT = (
    *SAMPLED_BY, "repetition_penalty", "frequency_penalty", "do_sample", "stop",
    "watermark", "grammar", "adapter_id", "truncate", "presence_penalty", "logit_bias",
    "response_format", "tools", "tool_choice", "tool_prompt",
)  # fmt: skip


def _check_sampling(fields: Mapping[str, Any]) -> None:
    for name in ("temperature", "repetition_penalty"):
        value = fields.get(name)
        if value is not None and not value > 0:
            raise invalid(f"`{name}` must be strictly positive")
    for name in ("top_p", "typical_p"):
        value = fields.get(name)
        if value is not None and not 0 < value < 1:
            raise invalid(f"`{name}` must be > 0.0 and < 1.0")
    stop = fields.get("stop")
    if isinstance(stop, list) and len(stop) > 4:
        message = f"`stop` supports up to 4 stop sequences. Given: {len(stop)}"
        raise invalid(message)


def read_native(
    fields: Mapping[str, Any],
    *,
    is_stream: bool,
    request_id: str,
    limits: Limits,
    returns_prompt: bool = False,
) -> TgiGeneration:
    """A body of a native route; `returns_prompt` is what `/` does if not told.

    Without `parameters` the reply is sampled; with them, if they ask for it.
    """
    if "inputs" not in fields:
        raise undecodable("missing field `inputs` at line 1 column 7")
    inputs = _typed(fields, "inputs", str, "a string") or ""
    if "parameters" in fields and fields["parameters"] is None:
        raise undecodable("parameters: invalid type: null, expected a map")
    told = _typed(fields, "parameters", dict, "a map")
    parameters: Mapping[str, Any] = {"do_sample": True} if told is None else told
    seed = _count(parameters, "seed")
    if not inputs:
        raise invalid("`inputs` cannot be empty")
    is_sampled = bool(_typed(parameters, "do_sample", bool, "a boolean")) or any(
        parameters.get(name) is not None for name in SAMPLED_BY
    )
    best_of = _count(parameters, "best_of")
    best_of = 1 if best_of is None else best_of
    if not 1 <= best_of <= MAX_BEST_OF:
        raise invalid(f"`best_of` must be > 0 and <= {MAX_BEST_OF}. Given: {best_of}")
    if best_of > 1 and is_stream:
        raise invalid("`best_of` != 1 is not supported when streaming tokens")
    if best_of > 1 and not is_sampled:
        raise invalid("you must use sampling when `best_of` is > 1")
    if best_of > 1 and seed is not None:
        raise invalid("`seed` must not be set when `best_of` > 1")
    if is_stream and parameters.get("decoder_input_details") is True:
        raise invalid("`decoder_input_details` is not supported when streaming tokens")
    _check_sampling(parameters)
    words = words_of(inputs)
    key = _text_key(request_id, is_sampled, seed, [words], parameters)
    asked = _count(parameters, "max_new_tokens")
    length = _length(asked, max(1, len(words)), key, limits)
    wants_prompt = _typed(parameters, "return_full_text", bool, "a boolean")
    if wants_prompt is None:
        wants_prompt = returns_prompt
    return TgiGeneration(
        request_id=request_id,
        prompt_words=words,
        output_tokens=length.output_tokens,
        finish_reason=length.finish_reason,
        is_stream=is_stream,
        sequences=best_of,
        text_key=key,
        end_token=length.end_token,
        parts=length.parts,
        wants_details=_typed(parameters, "details", bool, "a boolean") is True,
        prepended=f"{inputs} " if wants_prompt else "",
        sampling_seed=_sampling_seed(key, seed) if is_sampled else None,
    )


def read_chat(
    fields: Mapping[str, Any], *, request_id: str, created: int, limits: Limits
) -> TgiGeneration:
    """A `/v1/chat/completions` body; TGI serves whatever `model` says."""
    if "messages" not in fields:
        raise undecodable("missing field `messages` at line 1 column 2")
    messages = _typed(fields, "messages", list, "a sequence")
    if "max_tokens" in fields and "max_completion_tokens" in fields:
        raise undecodable("duplicate field `max_tokens`")
    options = _stream_options(fields)
    tool = _tool(fields)
    if not messages:
        raise invalid("`inputs` cannot be empty")
    words = [word for message in messages for word in words_of(_content(message))]
    asked = _count(fields, "max_tokens")
    asked = _count(fields, "max_completion_tokens") if asked is None else asked
    if fields.get("temperature") == 0:  # the router takes it for greedy decoding
        fields = {name: v for name, v in fields.items() if name != "temperature"}
    _check_sampling(fields)
    seed = _count(fields, "seed")
    key = _text_key(request_id, True, seed, [words], fields)
    length = _length(asked, max(1, len(words)), key, limits)
    if tool is not None:
        least = UNNAMED_TOKENS + CLOSING_TOKENS + 1
        length = _Length(max(least, length.output_tokens), "eos_token")
    return TgiGeneration(
        request_id=request_id,
        prompt_words=words,
        output_tokens=length.output_tokens,
        finish_reason=length.finish_reason,
        is_stream=fields.get("stream") is True,
        text_key=key,
        end_token=length.end_token,
        parts=length.parts,
        kind=CHAT,
        wants_usage=options.get("include_usage") is True,
        created=created,
        tool=tool,
    )


def _content(message: object) -> str:
    """The text of a message: a string, or parts of which those of text count."""
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return " ".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _stream_options(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    if "stream_options" in fields and fields["stream_options"] is None:
        raise undecodable("stream_options: invalid type: null, expected a map")
    options: Mapping[str, Any] | None = _typed(fields, "stream_options", dict, "a map")
    if options is not None and "include_usage" not in options:
        raise undecodable("stream_options: missing field `include_usage`")
    return options or {}


def _tool(fields: Mapping[str, Any]) -> str | None:
    """The function that a chat calls: the chosen one, or the first."""
    tools = _typed(fields, "tools", list, "a sequence")
    choice = fields.get("tool_choice")
    if not tools or choice == "none":
        return None
    names = [
        str((tool.get("function") or {}).get("name"))
        for tool in tools
        if isinstance(tool, dict)
    ]
    if isinstance(choice, dict):
        name = str((choice.get("function") or choice).get("name"))
        if name not in names:
            message = f"Tool error: Tool with name {name} not found"
            raise at_once(422, "tool_error", message)
        return name
    return names[0]


def read_completions(
    fields: Mapping[str, Any], *, request_id: str, created: int, limits: Limits
) -> TgiGeneration:
    """A `/v1/completions` body: up to four prompts, each with a reply of its own."""
    if "prompt" not in fields:
        raise undecodable("missing field `prompt` at line 1 column 2")
    given = fields["prompt"]
    prompts = given if isinstance(given, list) else [given]
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise undecodable("data did not match any variant of untagged enum Prompt")
    _stream_options(fields)
    if fields.get("suffix") is not None:
        message = (
            "Suffix is not supported and can be achieved by preprocessing the prompt."
        )
        raise at_once(422, "suffix not supported", message)
    if len(prompts) > MAX_BATCH:
        message = (
            f"Number of prompts exceeds the maximum allowed batch size of {MAX_BATCH}"
        )
        raise at_once(422, "batch size exceeded", message)
    if not prompts or not all(prompts):
        raise invalid("`inputs` cannot be empty")
    words = [words_of(prompt) for prompt in prompts]
    _check_sampling(fields)
    seed = _count(fields, "seed")
    key = _text_key(request_id, True, seed, words, fields)
    longest = max(1, *map(len, words))
    length = _length(_count(fields, "max_tokens"), longest, key, limits)
    return TgiGeneration(
        request_id=request_id,
        prompt_words=words[0],
        more_prompts=words[1:],
        sequences=len(words),
        output_tokens=length.output_tokens,
        finish_reason=length.finish_reason,
        is_stream=fields.get("stream") is True,
        text_key=key,
        end_token=length.end_token,
        parts=length.parts,
        kind=COMPLETIONS,
        created=created,
        # whole completions ask for the prompt's log probabilities
        skips_cache=fields.get("stream") is not True,
    )


def _text_key(
    request_id: str,
    is_sampled: bool,
    seed: int | None,
    prompts: Sequence[Sequence[str]],
    fields: Mapping[str, Any],
) -> str:
    if not is_sampled:
        return f"{request_id}/greedy"  # a seed changes nothing
    shaping = {name: fields[name] for name in SHAPES_TEXT if name in fields}
    return text_key(request_id, seed, prompts, shaping)


def _sampling_seed(key: str, seed: int | None) -> int:
    return seed if seed is not None else sum(key.encode())


def _length(asked: int | None, prompt_tokens: int, key: str, limits: Limits) -> _Length:
    """The length of a reply, and the parts that it is computed in.

    The bound is held to part by part: 1,100 tokens are two parts of 1,024, and a
    part that would not fit behind the one before ends the reply.
    """
    total = limits.max_model_tokens
    most_input = total - 1
    if prompt_tokens > most_input:
        raise invalid(
            f"`inputs` must have less than {most_input} tokens. Given: {prompt_tokens}"
        )
    if asked == 0:
        raise invalid("`max_new_tokens` must be strictly positive")
    bound = total - prompt_tokens if asked is None else asked
    part = min(bound, PART_TOKENS)
    if prompt_tokens + part > total:
        raise invalid(
            f"`inputs` tokens + `max_new_tokens` must be <= {total}. Given: "
            f"{prompt_tokens} `inputs` tokens and {part} `max_new_tokens`"
        )
    parts = [part]
    while sum(parts) < bound:
        if asked is None:
            part = min(PART_TOKENS, bound - sum(parts))
        if prompt_tokens + sum(parts) + part > total:
            break
        parts.append(part)
    most = sum(parts)
    drawn = drawn_tokens(limits.seed, key, 1, most)
    while sum(parts) - parts[-1] >= drawn:
        parts.pop()
    parts[-1] -= sum(parts) - drawn
    return _Length(drawn, "length" if drawn == most else "eos_token", tuple(parts))


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
        generation = self._generation
        is_special = is_last and generation.end_token is not None
        if not is_last:
            self._spoken.append(word)
            return _NATIVE % (count, TOKEN_IDS[word.strip().decode()], word)
        if not is_special:
            self._spoken.append(word)
        details = {
            "finish_reason": generation.finish_reason,
            "generated_tokens": count,
            "seed": generation.sampling_seed,
            "input_length": generation.prompt_tokens,
        }
        body = {
            "index": count,
            "token": _token(word.decode()),
            "generated_text": generation.prepended + b"".join(self._spoken).decode(),
            "details": details if generation.wants_details else None,
        }
        return event(body)


class ChatEvents(TokenEvents):
    """The events of TGI's chat flavour: role and content in each of them."""

    def __init__(self, generation: TgiGeneration, model: str) -> None:
        self._end_token = generation.end_token
        self._middle = template(_chat_event(generation, model, WORD, None))
        reason = chat_reason(generation)
        self._last = template(_chat_event(generation, model, WORD, reason))

    def token(self, word: bytes, count: int, is_last: bool) -> bytes:
        """The event of one token; a special one has no text."""
        if is_last and self._end_token is not None:
            word = b""
        return (self._last if is_last else self._middle) % word


class ToolEvents(TokenEvents):
    """The events of a tool call: nothing before its name is known, nothing after its
    arguments, and a reason to end in none of them."""

    def __init__(self, generation: TgiGeneration, model: str) -> None:
        self._generation, self._model = generation, model
        self._last_shown = generation.output_tokens - CLOSING_TOKENS

    def token(self, word: bytes, count: int, is_last: bool) -> bytes:
        """The event of one token of the arguments."""
        if not UNNAMED_TOKENS < count <= self._last_shown:
            return b""
        pieces = arguments_of(
            word.decode().strip(),
            is_first=count == UNNAMED_TOKENS + 1,
            is_last=count == self._last_shown,
        )
        function = {"name": self._generation.tool, "arguments": pieces}
        call = {"index": 0, "id": "0", "type": "function", "function": function}
        body = _chat_event(self._generation, self._model, "", None)
        choice = {
            "index": 0,
            "delta": {"role": "assistant", "tool_calls": [call]},
            "logprobs": None,
            "finish_reason": None,
        }
        return event({**body, "choices": [choice]})


def arguments_of(word: str, *, is_first: bool, is_last: bool) -> str:
    """A word's part of the arguments of a call, which are JSON together."""
    start = '{"text":"' if is_first else " "
    return f"{start}{word}" + ('"}' if is_last else "")


class CompletionEvents(TokenEvents):
    """The events of one prompt of `/v1/completions`: its usage in the last, whether
    asked for or not, and there the text of the special token too."""

    def __init__(self, generation: TgiGeneration, model: str, index: int = 0) -> None:
        self._generation, self._model, self._index = generation, model, index
        self._middle = template(_completion(generation, model, WORD, "", index))

    def token(self, word: bytes, count: int, is_last: bool) -> bytes:
        """The event of one token; only streams keep the router's own `eos_token`."""
        if not is_last:
            return self._middle % word
        generation, text = self._generation, word.decode()
        reason = generation.finish_reason
        last = _completion(generation, self._model, text, reason, self._index)
        prompt_tokens = max(1, len(generation.words_of(self._index)))
        return event({**last, "usage": _counts(prompt_tokens, count)})


def events_of(generation: TgiGeneration, model: str) -> list[TokenEvents]:
    """The events of each sequence, by the route it was asked for on."""
    if generation.kind == NATIVE:
        return [NativeEvents(generation)]
    if generation.tool is not None:
        return [ToolEvents(generation, model)]
    if generation.kind == CHAT:
        return [ChatEvents(generation, model)]
    indexes = range(generation.sequences)
    return [CompletionEvents(generation, model, index) for index in indexes]


def closing(generation: TgiGeneration, model: str) -> bytes:
    """Events after the last token: usage, if asked for, and `[DONE]`."""
    if generation.kind == NATIVE:
        return b""
    if not generation.wants_usage:
        return DONE
    body = _chat_event(generation, model, "", None)
    return event({**body, "choices": [], "usage": _usage(generation)}) + DONE


def native_reply(
    generation: TgiGeneration, replies: Sequence[Sequence[str]]
) -> dict[str, object]:
    """The reply of `/generate`; the first of several is the best one."""
    texts = [generation.prepended + generation.reply_of(words) for words in replies]
    if not generation.wants_details:
        return {"generated_text": texts[0]}
    best, *others = [
        {
            "finish_reason": generation.finish_reason,
            "generated_tokens": len(words),
            "seed": generation.sampling_seed,
            "prefill": [],
            "tokens": [
                _token(word if word == END_TOKEN else f" {word}") for word in words
            ],
        }
        for words in replies
    ]
    if others:
        best["best_of_sequences"] = [
            {"generated_text": text, **other}
            for text, other in zip(texts[1:], others, strict=True)
        ]
    return {"generated_text": texts[0], "details": best}


def chat_reply(
    generation: TgiGeneration, model: str, words: Sequence[str]
) -> dict[str, object]:
    """The reply of `/v1/chat/completions` without `stream`."""
    message: dict[str, object] = {"role": "assistant"}
    if generation.tool is None:
        message["content"] = generation.reply_of(words)
    else:
        told = words[UNNAMED_TOKENS : generation.output_tokens - CLOSING_TOKENS]
        arguments = json.dumps({"text": " ".join(told)}, separators=(",", ":"))
        function = {
            "description": None, "name": generation.tool, "arguments": arguments,
        }  # fmt: skip
        call = {"id": "0", "type": "function", "function": function}
        message["tool_calls"] = [call]
    choice = {
        "index": 0,
        "message": message,
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
        "usage": _usage(generation),
    }


def completion_reply(
    generation: TgiGeneration, model: str, replies: Sequence[Sequence[str]]
) -> dict[str, object]:
    """The reply of `/v1/completions` without `stream`; usage adds the prompts up."""
    reason = chat_reason(generation)
    bodies = [
        _completion(generation, model, generation.reply_of(words), reason, index)
        for index, words in enumerate(replies)
    ]
    choices = [choice for body in bodies for choice in _choices(body)]
    return {**bodies[0], "choices": choices, "usage": _usage(generation)}


def _choices(body: Mapping[str, object]) -> list[object]:
    found = body["choices"]
    return found if isinstance(found, list) else []


def timing_headers(truths: Sequence[RequestTruth], characters: int) -> dict[str, str]:
    """The headers of replies without `stream`: milliseconds, cut to integers.

    Of several generations they are sums, though those ran side by side.
    """
    total_ms = queue_ms = inference_ms = 0
    for truth in truths:
        arrived, last = truth.arrived_seconds, truth.last_token_seconds or 0.0
        scheduled = truth.scheduled_seconds or arrived
        total_ms += int((last - arrived) * 1000)
        queue_ms += int((scheduled - arrived) * 1000)
        inference_ms += int((last - scheduled) * 1000)
    output_tokens = sum(truth.output_tokens for truth in truths)
    return {
        "x-compute-type": "simulated-gpu",
        "x-compute-time": f"{total_ms / 1000:.9f}",
        "x-compute-characters": str(characters),
        "x-total-time": str(total_ms),
        "x-validation-time": "0",
        "x-queue-time": str(queue_ms),
        "x-inference-time": str(inference_ms),
        "x-time-per-token": str(int(inference_ms / max(1, output_tokens))),
        "x-prompt-tokens": str(sum(truth.prompt_tokens for truth in truths)),
        "x-generated-tokens": str(output_tokens),
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
        "max_best_of": MAX_BEST_OF,
        "max_stop_sequences": 4,
        "max_input_tokens": limits.max_model_tokens - 1,
        "max_total_tokens": limits.max_model_tokens,
        "validation_workers": 1,
        "max_client_batch_size": MAX_BATCH,
        "router": "servewatt-simulator",
        "version": VERSION,
        "sha": None,
        "docker_label": "simulated",
    }


def chat_reason(generation: TgiGeneration) -> str:
    """`stop`, where the native routes say `eos_token`."""
    return "length" if generation.finish_reason == "length" else "stop"


def _token(text: str) -> dict[str, object]:
    is_special = text == END_TOKEN
    token_id = END_TOKEN_ID if is_special else TOKEN_IDS[text.strip()]
    return {"id": token_id, "text": text, "logprob": -1.0, "special": is_special}


def _usage(generation: TgiGeneration) -> dict[str, int]:
    output_tokens = generation.output_tokens * generation.sequences
    return _counts(generation.prompt_tokens, output_tokens)


def _counts(prompt_tokens: int, output_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": prompt_tokens + output_tokens,
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
    generation: TgiGeneration, model: str, text: str, reason: str, index: int
) -> dict[str, object]:
    choice = {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
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
