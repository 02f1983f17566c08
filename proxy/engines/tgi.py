"""Text Generation Inference: its native routes and its OpenAI flavour.

Native streams have one event per token and end with the event that carries
`generated_text`, without `[DONE]`. Source: the router of TGI 3.3 (engines.md
section 2 of the project's notes); no capture of a running server exists here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from proxy.engines.lenient import decode_leniently
from proxy.engines.openai import (
    DONE,
    MAX_DONE_BYTES,
    ROUTES,
    Flavour,
    is_done,
    read_openai_reply,
    read_openai_request,
    update_of_event,
)
from proxy.engines.wire import (
    MAX_COUNT,
    UNREADABLE,
    Body,
    Choice,
    Count,
    as_count,
    error_in,
    error_text,
    seconds,
    with_true,
)
from proxy.wire.facts import PhaseSeconds, RequestFacts, Update, Usage

TGI_OPENAI = Flavour(name="tgi", requires_end=True, text_event_is_token=True)
NATIVE_ROUTES = ("/", "/generate", "/generate_stream")
COUNT_DIGITS = len(str(MAX_COUNT))


class Token(msgspec.Struct, gc=False):
    """One generated token; a special one (end of text) shows nothing."""

    text: str = ""
    special: bool = False


class BestOf(msgspec.Struct, gc=False):
    """A reply that was made and not chosen."""

    generated_tokens: Count | None = None


class Details(msgspec.Struct, gc=False):
    """Counts at the end of a stream or in a reply, if asked for."""

    finish_reason: str | None = None
    generated_tokens: Count | None = None
    input_length: Count | None = None
    best_of_sequences: list[BestOf] | None = None
    """The replies that `best_of` made and did not choose."""

    def all_tokens(self) -> int | None:
        """Tokens of every reply made for the request; None where they are not told."""
        others = [one.generated_tokens for one in self.best_of_sequences or []]
        if self.generated_tokens is None or None in others:
            return None
        return self.generated_tokens + sum(filter(None, others))


class Event(Body, gc=False):
    """A stream event of either kind; only native ones have `token`."""

    token: Token | None = None
    generated_text: str | None = None
    details: Details | None = None


class NativeReply(msgspec.Struct, gc=False):
    """An unstreamed reply of `/generate`, or the element of the list that `/` sends."""

    generated_text: str | None = None
    details: Details | None = None
    choices: list[Choice] | None = None
    """Choices of the OpenAI routes."""


class NativeRequest(msgspec.Struct, gc=False):
    """A native request; any type anywhere, the router is the one to refuse it."""

    stream: Any = None
    parameters: Any = None


class TgiDialect:
    """The router's native and OpenAI routes; the bodies say which is which."""

    @property
    def name(self) -> str:
        """As in `--engine`."""
        return "tgi"

    @property
    def requires_end(self) -> bool:
        """Native streams end with `generated_text`, the others with `[DONE]`."""
        return True

    def read_request(self, method: str, path: str, body: bytes) -> RequestFacts | None:
        """Facts of a generating request, None for any other route."""
        if method != "POST":
            return None
        if path in NATIVE_ROUTES:
            return read_native_request(path, body)
        route = ROUTES.get(path)
        if route is None:
            return None
        return read_openai_request(route, body, honours_copies=False)

    def with_usage(self, body: bytes) -> bytes:
        """The body asking for counts: `details` (native) or the usage event.

        A native client then sees `details` filled in the last event, which the
        router would have sent as null: that event cannot be dropped.
        """
        try:
            fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        except UNREADABLE:
            return body
        if "inputs" in fields:
            # Without parameters TGI samples; with them only if they say so.
            return with_true(
                body, "parameters", "details", takes_null=False, absent=("do_sample",)
            )
        return with_true(body, "stream_options", "include_usage", takes_null=False)

    def read_event(self, data: bytes) -> Update:
        """The facts in one event's data; of strange JSON, what can be read."""
        if len(data) < MAX_DONE_BYTES and is_done(data):
            return DONE
        try:
            event: Event | None = _decode_event(data)
        except UNREADABLE:
            event = decode_leniently(data, Event)
        if event is None:
            return Update(error=error_in(data))
        if event.token is None:
            return update_of_event(event, TGI_OPENAI, data)
        return update_of_native_event(event, event.token)

    def read_reply(
        self, status: int, headers: Mapping[str, str], body: bytes
    ) -> Update:
        """The facts in an unstreamed reply; counts and times come from the headers.

        Times are taken where they are of this one generation: the headers add up
        those of several prompts, which ran side by side, and where no tool fitted
        they are of the second generation only.
        """
        update = read_openai_reply(status, body)
        if not 200 <= status < 300:
            return msgspec.structs.replace(
                update, was_computed=comes_late(status, body)
            )
        reply = read_native_reply(body)
        details = reply.details or Details()
        usage = update.usage or Usage()
        told = _count(headers, "x-generated-tokens")
        prompt_tokens = _first(usage.prompt_tokens, _count(headers, "x-prompt-tokens"))
        output_tokens = _first(usage.output_tokens, details.all_tokens(), told)
        phases = phases_in(headers)
        choices = reply.choices or []
        if len(choices) > 1:
            phases = None
        elif wrote_twice(choices, usage.output_tokens, told):
            output_tokens = (usage.output_tokens or 0) + (told or 0)
            phases = None
        has_counts = prompt_tokens is not None or output_tokens is not None
        text = update.text or reply.generated_text or ""
        return Update(
            carries_token=bool(text or output_tokens or update.carries_token),
            is_visible=bool(text),
            usage=Usage(prompt_tokens, output_tokens) if has_counts else None,
            phases=phases,
            finish_reason=update.finish_reason or details.finish_reason,
            error=update.error,
            is_end=True,
            text=text,
            # Without details of the others a count is that of the best reply alone.
            has_own_usage=not choices and details.best_of_sequences is None,
        )


_decode_event = msgspec.json.Decoder(Event).decode
_decode_native_request = msgspec.json.Decoder(NativeRequest).decode
_decode_native_reply = msgspec.json.Decoder(NativeReply).decode
_decode_native_replies = msgspec.json.Decoder(list[NativeReply]).decode


def read_native_request(path: str, body: bytes) -> RequestFacts:
    """Facts of a `/`, `/generate` or `/generate_stream` body."""
    is_stream = path == "/generate_stream"
    try:
        request = _decode_native_request(body)
    except UNREADABLE:
        return RequestFacts("generate", is_stream=is_stream)
    parameters = request.parameters
    parameters = parameters if isinstance(parameters, dict) else {}
    return RequestFacts(
        route="generate",
        is_stream=is_stream or (path == "/" and request.stream is True),
        sequences=max(1, as_count(parameters.get("best_of")) or 1),
        max_output_tokens=as_count(parameters.get("max_new_tokens")),
        wants_usage=parameters.get("details") is True,
        has_running_usage=True,  # one event per token, whatever was asked
    )


def update_of_native_event(event: Event, token: Token) -> Update:
    """One token, and at the end the counts."""
    details = event.details
    text = "" if token.special else token.text
    return Update(
        carries_token=True,
        is_visible=bool(text),
        tokens=1,
        usage=None
        if details is None
        else Usage(details.input_length, details.all_tokens()),
        finish_reason=None if details is None else details.finish_reason,
        error=error_text(event.error) if event.error else None,
        is_end=event.generated_text is not None,
        text=text,
    )


def read_native_reply(body: bytes) -> NativeReply:
    """The first reply of a body, empty for any other JSON."""
    try:
        if body[:1] != b"[":
            return _decode_native_reply(body)
        replies = _decode_native_replies(body)
        return replies[0] if replies else NativeReply()
    except UNREADABLE:
        if body[:1] == b"[":
            body = body.strip()[1:-1]
        return decode_leniently(body, NativeReply) or NativeReply()


def wrote_twice(choices: list[Choice], counted: int | None, told: int | None) -> bool:
    """Whether no tool fitted a chat: usage is of the first generation then, and the
    headers are of the second, which wrote the text."""
    is_chat = bool(choices) and choices[0].message is not None
    return is_chat and bool(counted and told) and counted != told


def comes_late(status: int, body: bytes) -> bool:
    """Whether an error by status comes after work: a generation or a tool that failed.

    424 is sent once a generation has begun, and 422 `tool_error` after all of it.
    """
    return status == 424 or (status == 422 and b'"tool_error"' in body)


def phases_in(headers: Mapping[str, str]) -> PhaseSeconds | None:
    """Durations of a non-stream reply; the headers count whole milliseconds.

    Validation comes before scheduling, so it is waiting as much as the queue is.
    """
    queue = _count(headers, "x-queue-time")
    inference = _count(headers, "x-inference-time")
    if queue is None and inference is None:
        return None
    validation = _count(headers, "x-validation-time") or 0
    return PhaseSeconds(
        queue_seconds=None if queue is None else seconds(queue + validation),
        inference_seconds=seconds(inference),
    )


def _count(headers: Mapping[str, str], name: str) -> int | None:
    value = headers.get(name, "")
    is_number = value.isascii() and value.isdigit() and len(value) <= COUNT_DIGITS
    return as_count(int(value)) if is_number else None


def _first(*counts: int | None) -> int | None:
    return next((count for count in counts if count is not None), None)
