"""vLLM's APIs beside chat and completions: what they take, and how they reply.

Responses and messages are chats in other clothes; batches are several chats at once; a
transcription writes what it heard; embeddings, scores and ranks read their prompts and
write nothing. Shapes follow vLLM's sources; no capture of them exists here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from loadgen.simulator.core.text import words_of
from loadgen.simulator.core.truth import RequestTruth
from loadgen.simulator.vllm.dialect import (
    DONE,
    VllmEvents,
    VllmGeneration,
    bad_parameter,
    check_model,
    read_fields,
    read_prompts,
    refused,
    unstreamed_reply,
)
from loadgen.simulator.wire import (
    EngineRefusal,
    Generation,
    Limits,
    TokenEvents,
    compact,
    event,
)

Fields = Mapping[str, Any]
Truths = Sequence[RequestTruth]
Replies = Sequence[Sequence[str]]


class Reader(Protocol):
    """Reads a request of one API. Raises EngineRefusal."""

    def __call__(
        self, fields: Fields, *, request_id: str, created: int, limits: Limits
    ) -> VllmGeneration:
        """The generation that the fields ask for."""


@dataclass(frozen=True, slots=True)
class Api:
    """One API that writes: how it is asked, and how it answers."""

    read: Reader
    whole: Callable[[VllmGeneration, str, Replies, Truths], Mapping[str, object]]
    events: Callable[[VllmGeneration, str], TokenEvents]
    closing: Callable[[VllmGeneration, str, Replies, Truths], bytes]
    failure: Callable[[EngineRefusal], object] = lambda refusal: refusal.body
    """The body of a refusal."""


def named_event(kind: str, **fields: object) -> bytes:
    """A server-sent event with its name, which is the type in its data too."""
    data = compact({"type": kind, **fields})
    return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"


def _as_chat(
    fields: Fields, renamed: Mapping[str, str], messages: Sequence[object]
) -> dict[str, object]:
    """The same request as a chat, with usage at its end."""
    kept = ("model", "temperature", "top_p", "seed", "stream", "min_tokens")
    shared = (*kept, "ignore_eos", "tools")
    chat = {name: fields[name] for name in shared if name in fields}
    chat |= {new: fields[old] for old, new in renamed.items() if old in fields}
    return {**chat, "messages": messages}


# -- OpenAI's responses ---------------------------------------------------------


def read_responses(
    fields: Fields, *, request_id: str, created: int, limits: Limits
) -> VllmGeneration:
    """A `/v1/responses` body: a text, or items of a conversation."""
    given = fields.get("input")
    if isinstance(given, str) and given:
        messages: list[object] = [{"role": "user", "content": given}]
    elif isinstance(given, list) and given:
        messages = [one for one in given if isinstance(one, dict) and "content" in one]
    else:
        raise bad_parameter("input must be a text or a list of items.", "input")
    instructions = fields.get("instructions")
    if isinstance(instructions, str):
        messages = [{"role": "system", "content": instructions}, *messages]
    chat = _as_chat(fields, {"max_output_tokens": "max_completion_tokens"}, messages)
    return read_fields(
        chat, is_chat=True, request_id=request_id, created=created, limits=limits
    )


def _response(
    generation: VllmGeneration,
    model: str,
    text: str | None = None,
    truths: Truths = (),
) -> dict[str, object]:
    """A response, as it begins or, with its text, as it ended."""
    is_cut = text is not None and generation.finish_reason == "length"
    status = "in_progress" if text is None else "incomplete" if is_cut else "completed"
    output = [] if text is None else [_message_item(generation, text)]
    usage = None
    if truths:
        output_tokens = sum(truth.output_tokens for truth in truths)
        usage = {
            "input_tokens": generation.prompt_tokens,
            "input_tokens_details": {"cached_tokens": truths[0].cached_tokens},
            "output_tokens": output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": generation.prompt_tokens + output_tokens,
        }
    return {
        "id": f"resp_{generation.request_id}",
        "created_at": float(generation.created),
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "instructions": None,
        "metadata": None,
        "model": model,
        "object": "response",
        "output": output,
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "status": status,
        "usage": usage,
    }


def _message_item(generation: VllmGeneration, text: str | None) -> dict[str, object]:
    content = [] if text is None else [_output_text(text)]
    return {
        "id": f"msg_{generation.request_id}",
        "content": content,
        "role": "assistant",
        "status": "in_progress" if text is None else "completed",
        "type": "message",
    }


def _output_text(text: str) -> dict[str, object]:
    return {"annotations": [], "text": text, "type": "output_text", "logprobs": None}


class ResponseEvents(TokenEvents):
    """The events of a response: named and numbered, one per token between others."""

    def __init__(self, generation: VllmGeneration, model: str) -> None:
        self._generation, self._model = generation, model
        self._place = {
            "item_id": f"msg_{generation.request_id}",
            "output_index": 0,
            "content_index": 0,
        }

    def opening(self) -> bytes:
        """The response begins, and in it a message with a text."""
        generation = self._generation
        response = _response(generation, self._model)
        kinds: list[tuple[str, dict[str, object]]] = [
            ("response.created", {"response": response}),
            ("response.in_progress", {"response": response}),
            (
                "response.output_item.added",
                {"output_index": 0, "item": _message_item(generation, None)},
            ),
            (
                "response.content_part.added",
                {**self._place, "part": _output_text("")},
            ),
        ]
        return b"".join(
            named_event(kind, sequence_number=number, **fields)
            for number, (kind, fields) in enumerate(kinds)
        )

    def token(self, word: bytes, count: int, is_last: bool) -> bytes:
        """The event of token number `count`, from 1."""
        return named_event(
            "response.output_text.delta",
            sequence_number=3 + count,
            **self._place,
            delta=word.decode(),
            logprobs=[],
        )


def close_response(
    generation: VllmGeneration, model: str, replies: Replies, truths: Truths
) -> bytes:
    """The text, its part, its item and the whole response end."""
    text = generation.reply_of(replies[0])
    place = {
        "item_id": f"msg_{generation.request_id}",
        "output_index": 0,
        "content_index": 0,
    }
    whole = _response(generation, model, text, truths)
    kinds: list[tuple[str, dict[str, object]]] = [
        ("response.output_text.done", {**place, "text": text, "logprobs": []}),
        ("response.content_part.done", {**place, "part": _output_text(text)}),
        (
            "response.output_item.done",
            {"output_index": 0, "item": _message_item(generation, text)},
        ),
        (f"response.{whole['status']}", {"response": whole}),
    ]
    first = 4 + generation.output_tokens
    return b"".join(
        named_event(kind, sequence_number=number, **fields)
        for number, (kind, fields) in enumerate(kinds, first)
    )


RESPONSES = Api(
    read_responses,
    lambda generation, model, replies, truths: _response(
        generation, model, generation.reply_of(replies[0]), truths
    ),
    ResponseEvents,
    close_response,
)

# -- Anthropic's messages ----------------------------------------------------------


def read_messages(
    fields: Fields, *, request_id: str, created: int, limits: Limits
) -> VllmGeneration:
    """A `/v1/messages` body; it must say how long its reply may be."""
    if type(fields.get("max_tokens")) is not int:
        raise bad_parameter("max_tokens must be an integer.", "max_tokens")
    messages = fields.get("messages")
    if not isinstance(messages, list):
        raise bad_parameter("messages must be a list.", "messages")
    system = fields.get("system")
    if system:
        messages = [{"role": "system", "content": system}, *messages]
    renamed = {"max_tokens": "max_completion_tokens", "stop_sequences": "stop"}
    chat = _as_chat(fields, renamed, messages)
    chat.pop("tools", None)
    return read_fields(
        chat, is_chat=True, request_id=request_id, created=created, limits=limits
    )


def _message(generation: VllmGeneration, model: str) -> dict[str, object]:
    return {
        "id": f"chatcmpl-{generation.request_id}",
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": model,
        "stop_reason": None,
        "stop_sequence": None,
    }


def _message_usage(generation: VllmGeneration, truths: Truths) -> dict[str, object]:
    """The prompt in three parts, of which the cached one is told apart."""
    cached_tokens = truths[0].cached_tokens if truths else 0
    return {
        "input_tokens": generation.prompt_tokens - cached_tokens,
        "output_tokens": sum(truth.output_tokens for truth in truths),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached_tokens,
    }


def _stop_of(generation: VllmGeneration) -> dict[str, object]:
    reason = "max_tokens" if generation.finish_reason == "length" else "end_turn"
    if generation.stop_reason is not None:
        reason = "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": generation.stop_reason}


def whole_message(
    generation: VllmGeneration, model: str, replies: Replies, truths: Truths
) -> dict[str, object]:
    """The reply to a request without `stream`."""
    text = {"type": "text", "text": generation.reply_of(replies[0])}
    return {
        **_message(generation, model),
        "content": [text],
        **_stop_of(generation),
        "usage": _message_usage(generation, truths),
    }


class MessageEvents(TokenEvents):
    """The events of a message: one block of text, a delta for each token."""

    def __init__(self, generation: VllmGeneration, model: str) -> None:
        self._generation, self._model = generation, model
        self._words = VllmEvents(generation, model, 0)

    def opening(self) -> bytes:
        """The message begins, with the prompt's count, and in it a block."""
        message = _message(self._generation, self._model)
        usage = _message_usage(self._generation, ())
        block = {"type": "text", "text": ""}
        return named_event(
            "message_start", message={**message, "usage": usage}
        ) + named_event("content_block_start", index=0, content_block=block)

    def token(self, word: bytes, count: int, is_last: bool) -> bytes:
        """The event of one token; the last one ends before a stop sequence."""
        shown = self._words.shown(word, is_last).decode()
        delta = {"type": "text_delta", "text": shown}
        return named_event("content_block_delta", index=0, delta=delta)


def close_message(
    generation: VllmGeneration, model: str, replies: Replies, truths: Truths
) -> bytes:
    """The block, the message's reason and counts, and the message end."""
    return (
        named_event("content_block_stop", index=0)
        + named_event(
            "message_delta",
            delta=_stop_of(generation),
            usage=_message_usage(generation, truths),
        )
        + named_event("message_stop")
    )


def message_failure(refusal: EngineRefusal) -> object:
    """An error in Anthropic's shape."""
    error = refusal.body["error"] if isinstance(refusal.body, dict) else {}
    told = {"type": "invalid_request_error", "message": error.get("message", "")}
    return {"type": "error", "error": told}


MESSAGES = Api(
    read_messages, whole_message, MessageEvents, close_message, message_failure
)

# -- several chats at once ------------------------------------------------------


def read_batch(
    fields: Fields, *, request_id: str, created: int, limits: Limits
) -> VllmGeneration:
    """A `/v1/chat/completions/batch` body: lists of messages, no stream."""
    conversations = fields.get("messages")
    if not isinstance(conversations, list) or not conversations:
        raise bad_parameter("messages must be a non-empty list.", "messages")
    if fields.get("stream") is True:
        raise bad_parameter("Streaming is not supported for batches.", "stream")
    return read_fields(
        fields,
        is_chat=True,
        request_id=request_id,
        created=created,
        limits=limits,
        conversations=conversations,
    )


BATCH = Api(
    read_batch,
    unstreamed_reply,
    lambda generation, model: VllmEvents(generation, model, 0),
    lambda generation, model, replies, truths: DONE,
)

# -- audio -----------------------------------------------------------------------

BYTES_PER_SECOND = 32_000
"""16-bit sound of 16 kHz; other codings are taken for it."""
TOKENS_PER_SECOND = 50
WORDS_PER_SECOND = 2.5
"""Of slow speech."""


def read_audio(
    fields: Fields, *, request_id: str, created: int, limits: Limits
) -> VllmGeneration:
    """A form with a `file`, given as its size: what is heard, at most as long."""
    size = fields.get("file")
    if not isinstance(size, int):
        raise bad_parameter("file is required.", "file")
    seconds = size / BYTES_PER_SECOND
    spoken = max(1, round(seconds * WORDS_PER_SECOND))
    sound = " ".join(["sound"] * max(1, round(seconds * TOKENS_PER_SECOND)))
    chat = {
        "model": fields.get("model"),
        "messages": [{"role": "user", "content": sound}],
        "max_tokens": spoken,
        "ignore_eos": True,
        "stream": str(fields.get("stream")).lower() in ("true", "1"),
    }
    generation = read_fields(
        chat, is_chat=True, request_id=request_id, created=created, limits=limits
    )
    return replace(
        generation,
        finish_reason="stop",
        wants_usage=str(fields.get("stream_include_usage")).lower() in ("true", "1"),
    )


def whole_transcript(
    generation: VllmGeneration, model: str, replies: Replies, truths: Truths
) -> dict[str, object]:
    """What was heard; its usage is the length of the sound."""
    seconds = max(1, round(generation.prompt_tokens / TOKENS_PER_SECOND))
    return {
        "text": generation.reply_of(replies[0]),
        "usage": {"type": "duration", "seconds": seconds},
    }


class TranscriptEvents(TokenEvents):
    """The events of a transcription: chunks as a chat has them, by another name."""

    def __init__(self, generation: VllmGeneration, model: str) -> None:
        self._generation, self._model = generation, model

    def token(self, word: bytes, count: int, is_last: bool) -> bytes:
        """The event of one token."""
        reason = self._generation.finish_reason if is_last else None
        choice = {"delta": {"content": word.decode()}, "finish_reason": reason}
        choice["stop_reason"] = None
        return event(_chunk(self._generation, self._model, [choice]))


def _chunk(
    generation: VllmGeneration, model: str, choices: Sequence[object]
) -> dict[str, object]:
    return {
        "id": f"trsc-{generation.request_id}",
        "object": "transcription.chunk",
        "created": generation.created,
        "model": model,
        "choices": choices,
    }


def close_transcript(
    generation: VllmGeneration, model: str, replies: Replies, truths: Truths
) -> bytes:
    """Usage, if asked for, and `[DONE]`."""
    if not generation.wants_usage:
        return DONE
    output_tokens = sum(truth.output_tokens for truth in truths)
    usage = {
        "prompt_tokens": generation.prompt_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": generation.prompt_tokens + output_tokens,
    }
    return event({**_chunk(generation, model, []), "usage": usage}) + DONE


AUDIO = Api(read_audio, whole_transcript, TranscriptEvents, close_transcript)

# -- what reads prompts and writes nothing ------------------------------------------

DIMENSIONS = 8
"""Of a simulated vector: a client looks at its type, and a page stays small."""


@dataclass(frozen=True, slots=True)
class PooledGeneration(Generation):
    """Prompts to be read, and what their page needs."""

    kind: str = "embeddings"
    documents: Sequence[str] = ()
    dimensions: int = DIMENSIONS
    top_n: int | None = None
    created: int = 0


def read_pooled(
    fields: Fields, kind: str, *, request_id: str, created: int, limits: Limits
) -> PooledGeneration:
    """A body of embeddings, score or rerank. Raises EngineRefusal."""
    check_model(fields, limits)
    documents: list[str] = []
    if kind == "embeddings":
        prompts = read_prompts(fields, "input")
    else:
        prompts, documents = _pairs(fields, kind)
    for words in prompts:
        if len(words) > limits.max_model_tokens:
            raise bad_parameter(
                f"This model's maximum context length is {limits.max_model_tokens} "
                f"tokens. However, your prompt contains {len(words)} input tokens.",
                "input_tokens",
                len(words),
            )
    dimensions, top_n = fields.get("dimensions"), fields.get("top_n")
    return PooledGeneration(
        request_id=request_id,
        prompt_words=prompts[0],
        more_prompts=prompts[1:],
        sequences=len(prompts),
        output_tokens=1,
        finish_reason="stop",
        is_stream=False,
        is_pooled=True,
        kind=kind,
        documents=documents,
        dimensions=dimensions if type(dimensions) is int else DIMENSIONS,
        top_n=top_n if type(top_n) is int and top_n > 0 else None,
        created=created,
    )


def _pairs(fields: Fields, kind: str) -> tuple[list[list[str]], list[str]]:
    """Query and document together, as one prompt each; one query is for all."""
    names = ("query", "documents") if kind == "rerank" else ("text_1", "text_2")
    if kind == "score" and "queries" in fields:
        names = ("queries", "documents")
    queries, documents = (_texts(fields, name) for name in names)
    if len(queries) == 1:
        queries *= len(documents)
    if len(queries) != len(documents):
        raise bad_parameter("Input lengths must be either 1:1, 1:N or N:N", names[0])
    pairs = zip(queries, documents, strict=True)
    return [words_of(query) + words_of(one) for query, one in pairs], documents


def _texts(fields: Fields, name: str) -> list[str]:
    given = fields.get(name)
    texts = [given] if isinstance(given, str) else given
    is_texts = isinstance(texts, list) and all(isinstance(one, str) for one in texts)
    if not is_texts or not texts:
        raise bad_parameter(f"{name} must be a text or a list of them.", name)
    return list(texts)


def pooled_page(generation: PooledGeneration, model: str) -> dict[str, object]:
    """The reply: numbers of no meaning, and the prompts' tokens."""
    tokens = generation.prompt_tokens
    usage: dict[str, object] = {"prompt_tokens": tokens, "total_tokens": tokens}
    if generation.kind == "rerank":
        ranked = [
            {"index": at, "document": {"text": text}, "relevance_score": _score(at)}
            for at, text in enumerate(generation.documents)
        ]
        ranked.sort(key=lambda one: -float(str(one["relevance_score"])))
        page: dict[str, object] = {"id": f"rerank-{generation.request_id}"}
        page |= {"model": model, "usage": usage}
        return {**page, "results": ranked[: generation.top_n]}
    usage |= {"completion_tokens": 0, "prompt_tokens_details": None}
    numbers = range(generation.sequences)
    if generation.kind == "score":
        prefix = "score"
        data = [{"index": n, "object": "score", "score": _score(n)} for n in numbers]
    else:
        prefix, vector = "embd", [0.5] * generation.dimensions
        data = [
            {"index": n, "object": "embedding", "embedding": vector} for n in numbers
        ]
    return {
        "id": f"{prefix}-{generation.request_id}",
        "object": "list",
        "created": generation.created,
        "model": model,
        "data": data,
        "usage": usage,
    }


def _score(number: int) -> float:
    return 1.0 / (1 + number)


def invoked(fields: Fields) -> str:
    """The API that SageMaker's route stands for, by its fields; or EngineRefusal."""
    for name, kind in (
        ("messages", "chat"), ("prompt", "completions"), ("documents", "rerank"),
        ("text_1", "score"), ("input", "embeddings"),
    ):  # fmt: skip
        if name in fields:
            return kind
    raise refused(400, "Cannot find suitable handler for request.")
