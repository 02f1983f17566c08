"""Routes of an engine beside chat, completions and its own, and how they are read.

They are the same on every server that has them, so a dialect knows them all by this
table. Where the reply has a shape of its own, it is read by the route (`API_READERS`)
and not by the dialect: OpenAI's responses, Anthropic's messages, audio, and what only
reads a prompt and writes nothing (embeddings, scores, classes).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from proxy.engines.dialect import ReplyReader
from proxy.engines.lenient import decode_leniently
from proxy.engines.openai import (
    VLLM,
    OpenAIDialect,
    read_openai_reply,
)
from proxy.engines.wire import (
    MAX_COUNT,
    UNREADABLE,
    Count,
    PromptDetails,
    UsageBody,
    as_count,
    count_prompts,
    error_in,
    error_text,
)
from proxy.wire.facts import RequestFacts, Update, Usage

S = TypeVar("S", bound=msgspec.Struct)

API_ROUTES = {
    "/v1/responses": "responses",
    "/v1/messages": "messages",
    "/v1/chat/completions/batch": "chat_batch",
    "/inference/v1/generate": "tokens",
    "/invocations": "invocations",
    "/vertex": "invocations",
    "/v1/embeddings": "embeddings",
    "/v2/embed": "embeddings",
    "/embed": "embeddings",
    "/embed_all": "embeddings",
    "/embed_sparse": "embeddings",
    "/pooling": "pooling",
    "/classify": "classify",
    "/predict": "classify",
    "/score": "score",
    "/v1/score": "score",
    "/similarity": "score",
    "/rerank": "rerank",
    "/v1/rerank": "rerank",
    "/v2/rerank": "rerank",
    "/v1/audio/transcriptions": "audio",
    "/v1/audio/translations": "audio",
}
"""POST: the route of each path, as records and metrics have it."""

LISTS = ("input", "inputs", "documents", "texts", "text_2", "queries")
"""Fields that hold the prompts of a request that writes nothing."""
MAX_FIELD_BYTES = 200


class ApiRequest(msgspec.Struct, gc=False):
    """A request of any of these; any type anywhere, the engine is to refuse it."""

    model: Any = None
    stream: Any = None
    n: Any = None
    best_of: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    stream_options: Any = None
    prompt: msgspec.Raw = msgspec.Raw()
    messages: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    inputs: msgspec.Raw = msgspec.Raw()
    documents: msgspec.Raw = msgspec.Raw()
    texts: msgspec.Raw = msgspec.Raw()
    text_2: msgspec.Raw = msgspec.Raw()
    queries: msgspec.Raw = msgspec.Raw()


_decode_request = msgspec.json.Decoder(ApiRequest).decode


def read_api_request(path: str, body: bytes) -> RequestFacts | None:
    """Facts of a request to one of these routes, None for any other path."""
    route = API_ROUTES.get(path)
    if route is None:
        return None
    if route == "audio":
        return read_form(route, body)
    try:
        request = _decode_request(body)
    except UNREADABLE:
        return RequestFacts(route)
    options = request.stream_options
    options = options if isinstance(options, dict) else {}
    limits = (
        as_count(request.max_output_tokens),
        as_count(request.max_completion_tokens),
        as_count(request.max_tokens),
    )
    return RequestFacts(
        route=route,
        model=request.model if isinstance(request.model, str) else None,
        is_stream=request.stream is True,
        sequences=min(_sequences(route, request), MAX_COUNT),
        max_output_tokens=next((one for one in limits if one is not None), None),
        # these replies have their usage, whoever asks
        wants_usage=route != "invocations" or options.get("include_usage") is True,
    )


def _sequences(route: str, request: ApiRequest) -> int:
    if route in ("responses", "messages"):
        return 1
    copies = max(as_count(request.n) or 1, as_count(request.best_of) or 1)
    if route == "chat_batch":
        return copies * count_prompts(request.messages)
    if route in ("invocations", "tokens") and request.prompt:
        return copies * count_prompts(request.prompt)
    if route in ("invocations", "tokens") and request.messages:
        return copies
    return max(count_prompts(getattr(request, name)) for name in LISTS)


def read_form(route: str, body: bytes) -> RequestFacts:
    """Facts of a body in parts: the fields beside the file."""
    return RequestFacts(
        route=route,
        model=_field(body, b"model"),
        is_stream=(_field(body, b"stream") or "").lower() in ("true", "1"),
        wants_usage=True,
    )


def _field(body: bytes, name: bytes) -> str | None:
    """The value of a short field of a form."""
    start = body.find(b'name="%s"' % name)
    begin = body.find(b"\r\n\r\n", start, start + MAX_FIELD_BYTES) if start >= 0 else -1
    if begin < 0:
        return None
    value, end, _ = body[begin + 4 : begin + 4 + MAX_FIELD_BYTES].partition(b"\r\n")
    return value.decode(errors="replace") if end else None


# -- OpenAI's responses, and other streams of typed events -------------------------


class ResponsePart(msgspec.Struct, gc=False):
    """A part of an output item's content."""

    type: str | None = None
    text: str | None = None


class ResponseItem(msgspec.Struct, gc=False):
    """One item of the output: a message, reasoning, a call."""

    type: str | None = None
    content: list[ResponsePart] | None = None


class Incomplete(msgspec.Struct, gc=False):
    """Why a response stopped short."""

    reason: str | None = None


class ResponseBody(msgspec.Struct, gc=False):
    """A response, whole or so far."""

    status: str | None = None
    output: list[ResponseItem] | None = None
    usage: UsageBody | None = None
    incomplete_details: Incomplete | None = None
    error: Any = None


class ResponseEvent(msgspec.Struct, gc=False):
    """An event of a stream; the last one holds the whole response."""

    type: str | None = None
    delta: Any = None
    response: ResponseBody | None = None
    usage: UsageBody | None = None
    """Usage of a transcription, which has no response."""


TEXT_DELTAS = ("response.output_text.delta", "transcript.text.delta")
ENDS = ("response.completed", "response.incomplete", "transcript.text.done")
FAILURES = ("response.failed", "response.cancelled", "error")


class Responses:
    """OpenAI's `/v1/responses`: named events, the usage in the last of them."""

    requires_end = True

    def read_event(self, data: bytes) -> Update:
        """The facts in one event's data."""
        event = _decoded(data, ResponseEvent)
        if event is None or event.type is None or event.type in FAILURES:
            return Update(error=error_in(data) or _failure(event))
        if event.type in ENDS:
            whole = event.response or ResponseBody(usage=event.usage)
            return Update(
                usage=None if whole.usage is None else whole.usage.read(),
                finish_reason=_reason(whole),
                is_end=True,
            )
        has_delta = event.type.endswith(".delta") and bool(event.delta)
        text = event.delta if event.type in TEXT_DELTAS else ""
        text = text if isinstance(text, str) else ""
        return Update(has_delta, bool(text), text=text)

    def read_reply(
        self, status: int, headers: Mapping[str, str], body: bytes
    ) -> Update:
        """The facts in a whole response, or its error."""
        if not 200 <= status < 300:
            return read_openai_reply(status, body)
        whole = _decoded(body, ResponseBody) or ResponseBody()
        parts = [part for item in whole.output or [] for part in item.content or []]
        text = "".join(part.text or "" for part in parts if part.type == "output_text")
        usage = None if whole.usage is None else whole.usage.read()
        failed = whole.status in ("failed", "cancelled")
        return Update(
            carries_token=bool(text or (usage and usage.output_tokens)),
            is_visible=bool(text),
            usage=usage,
            finish_reason=_reason(whole),
            error=error_text(whole.error)
            or (f"response {whole.status}" if failed else None),
            is_end=True,
            text=text,
        )


def _reason(whole: ResponseBody) -> str | None:
    """Why it ended: the detail where it stopped short, else its status."""
    details = whole.incomplete_details
    return (details and details.reason) or whole.status


def _failure(event: ResponseEvent | None) -> str | None:
    """The error of an event that says it failed; None of one that says nothing."""
    if event is None or event.type is None:
        return None
    inner = None if event.response is None else error_text(event.response.error)
    return inner or event.type


# -- Anthropic's messages ------------------------------------------------------


class MessageUsage(msgspec.Struct, gc=False):
    """Counts of a message; the cached and the newly cached prompt are apart."""

    input_tokens: Count | None = None
    cache_read_input_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None
    output_tokens: Count | None = None

    def read(self, *, is_final: bool) -> Usage | None:
        """The same as `Usage`: the prompt is all three together."""
        prompt = [
            self.input_tokens,
            self.cache_read_input_tokens,
            self.cache_creation_input_tokens,
        ]
        prompt_tokens = sum(filter(None, prompt)) or None
        output_tokens = self.output_tokens if is_final else None
        if not (prompt_tokens or output_tokens):
            return None
        return Usage(prompt_tokens, output_tokens, self.cache_read_input_tokens)


class MessagePart(msgspec.Struct, gc=False):
    """A block of a message, or what an event adds to one."""

    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None


class MessageBody(msgspec.Struct, gc=False):
    """A message, whole or as it begins; or an error in its place."""

    type: str | None = None
    content: list[MessagePart] | None = None
    stop_reason: str | None = None
    usage: MessageUsage | None = None


class MessageEvent(msgspec.Struct, gc=False):
    """An event of a message's stream."""

    type: str | None = None
    message: MessageBody | None = None
    delta: MessagePart | None = None
    usage: MessageUsage | None = None


class Messages:
    """Anthropic's `/v1/messages`, as vLLM and gateways speak it."""

    requires_end = True

    def read_event(self, data: bytes) -> Update:
        """The facts in one event's data."""
        event = _decoded(data, MessageEvent)
        kind = None if event is None else event.type
        if event is None or kind is None or kind == "error":
            return Update(error=error_in(data) or kind)
        if kind == "message_stop":
            return Update(is_end=True)
        if kind == "message_start":
            found = event.message and event.message.usage
            usage = found.read(is_final=False) if found else None
            return Update(usage=usage, is_usage_only=True)
        delta = event.delta or MessagePart()
        if kind == "message_delta":
            return Update(
                usage=event.usage.read(is_final=True) if event.usage else None,
                finish_reason=delta.stop_reason,
                is_usage_only=True,
            )
        text = delta.text or ""
        hidden = delta.thinking or delta.partial_json
        return Update(bool(text or hidden), bool(text), text=text)

    def read_reply(
        self, status: int, headers: Mapping[str, str], body: bytes
    ) -> Update:
        """The facts in a whole message, or its error."""
        if not 200 <= status < 300:
            return read_openai_reply(status, body)
        message = _decoded(body, MessageBody) or MessageBody()
        text = "".join(part.text or "" for part in message.content or [])
        usage = message.usage.read(is_final=True) if message.usage else None
        return Update(
            carries_token=bool(text or (usage and usage.output_tokens)),
            is_visible=bool(text),
            usage=usage,
            finish_reason=message.stop_reason,
            error=error_in(body) if message.content is None else None,
            is_end=True,
            text=text,
        )


# -- what reads a prompt and writes nothing ---------------------------------------


class PromptUsage(msgspec.Struct, gc=False):
    """Counts where all tokens are the prompt's."""

    prompt_tokens: Count | None = None
    input_tokens: Count | None = None
    total_tokens: Count | None = None
    prompt_tokens_details: PromptDetails | None = None


class PromptReply(msgspec.Struct, gc=False):
    """A reply without text; its numbers are skipped."""

    usage: PromptUsage | None = None
    error: Any = None


class Prompts:
    """Embeddings, scores, ranks, classes: a whole reply, no output tokens."""

    requires_end = False

    def read_event(self, data: bytes) -> Update:
        """These have no streams."""
        return Update(error=error_in(data))

    def read_reply(
        self, status: int, headers: Mapping[str, str], body: bytes
    ) -> Update:
        """The prompt's tokens, or the error."""
        if not 200 <= status < 300:
            return read_openai_reply(status, body)
        is_object = body[:64].lstrip()[:1] == b"{"
        reply = (_decoded(body, PromptReply) if is_object else None) or PromptReply()
        usage = reply.usage or PromptUsage()
        details = usage.prompt_tokens_details or PromptDetails()
        tokens = usage.prompt_tokens or usage.input_tokens or usage.total_tokens
        return Update(
            usage=Usage(tokens, 0, details.cached_tokens) if tokens else None,
            error=error_text(reply.error),
            is_end=True,
        )


# -- audio ---------------------------------------------------------------------


class Transcript(msgspec.Struct, gc=False):
    """A whole transcription; its usage may be seconds of sound instead of tokens."""

    text: str | None = None
    usage: UsageBody | None = None
    error: Any = None


class Audio:
    """Transcriptions: OpenAI's typed events, or vLLM's, which are those of chat."""

    requires_end = False

    def __init__(self) -> None:
        self._typed = Responses()
        self._chat = OpenAIDialect(VLLM)

    def read_event(self, data: bytes) -> Update:
        """The facts in one event's data."""
        is_typed = b'"transcript.' in data[:200]
        return (self._typed if is_typed else self._chat).read_event(data)

    def read_reply(
        self, status: int, headers: Mapping[str, str], body: bytes
    ) -> Update:
        """The text and, where they are told, the tokens of a transcription."""
        if not 200 <= status < 300:
            return read_openai_reply(status, body)
        reply = _decoded(body, Transcript) or Transcript()
        return Update(
            carries_token=bool(reply.text),
            is_visible=bool(reply.text),
            usage=reply.usage.read() if reply.usage else None,
            error=error_text(reply.error),
            is_end=True,
            text=reply.text or "",
        )


_DECODERS: dict[type, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind)
    for kind in (
        ResponseBody, ResponseEvent, MessageBody, MessageEvent, PromptReply, Transcript,
    )
}  # fmt: skip


def _decoded(data: bytes, kind: type[S]) -> S | None:
    """A JSON object as a `kind`, an odd field left out; None where it is none."""
    try:
        found: S = _DECODERS[kind].decode(data)
    except UNREADABLE:
        return decode_leniently(data, kind)
    return found


API_READERS: dict[str, ReplyReader] = {
    "responses": Responses(),
    "messages": Messages(),
    "audio": Audio(),
    **dict.fromkeys(
        ("embeddings", "pooling", "classify", "score", "rerank"), Prompts()
    ),
}
"""By route; a route that is not here is read by the dialect."""
