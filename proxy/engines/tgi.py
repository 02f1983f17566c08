"""Text Generation Inference: its native routes and its OpenAI flavour.

Native streams have one event per token and end with the event that carries
`generated_text`, without `[DONE]`. Source: the router of TGI 3.3 (engines.md
section 2 of the project's notes); no capture of a running server exists here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from proxy.engines.openai import (
    DONE,
    ROUTES,
    Flavour,
    read_openai_reply,
    read_openai_request,
    update_of_event,
)
from proxy.engines.wire import (
    MAX_COUNT,
    UNREADABLE,
    Body,
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


class Details(msgspec.Struct, gc=False):
    """Counts at the end of a stream or in a reply, if asked for."""

    finish_reason: str | None = None
    generated_tokens: Count | None = None
    input_length: Count | None = None


class Event(Body, gc=False):
    """A stream event of either kind; only native ones have `token`."""

    token: Token | None = None
    generated_text: str | None = None
    details: Details | None = None


class NativeReply(msgspec.Struct, gc=False):
    """An unstreamed reply of `/generate`, or the element of the list that `/` sends."""

    generated_text: str | None = None
    details: Details | None = None


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
            return with_true(body, "parameters", "details")
        return with_true(body, "stream_options", "include_usage")

    def read_event(self, data: bytes) -> Update:
        """The facts in one event's data; strange JSON has none."""
        if data == b"[DONE]":
            return DONE
        try:
            event = _decode_event(data)
        except UNREADABLE:
            return Update(error=error_in(data))
        if event.token is None:
            return update_of_event(event, TGI_OPENAI)
        return update_of_native_event(event, event.token)

    def read_reply(
        self, status: int, headers: Mapping[str, str], body: bytes
    ) -> Update:
        """The facts in an unstreamed reply; counts and times come from the headers."""
        update = read_openai_reply(status, body)
        if update.error is not None:
            return update
        native = read_native_reply(body)
        details = native.details or Details()
        usage = update.usage or Usage()
        prompt_tokens = _first(usage.prompt_tokens, _count(headers, "x-prompt-tokens"))
        output_tokens = _first(
            usage.output_tokens,
            details.generated_tokens,
            _count(headers, "x-generated-tokens"),
        )
        has_counts = prompt_tokens is not None or output_tokens is not None
        text = update.text or native.generated_text or ""
        return Update(
            carries_token=bool(text or output_tokens),
            is_visible=bool(text),
            usage=Usage(prompt_tokens, output_tokens) if has_counts else None,
            phases=phases_in(headers),
            finish_reason=update.finish_reason or details.finish_reason,
            is_end=True,
            text=text,
        )


_decode_event = msgspec.json.Decoder(Event).decode
_decode_native_request = msgspec.json.Decoder(NativeRequest).decode
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
    if event.error is not None:
        return Update(error=error_text(event.error))
    details = event.details
    text = "" if token.special else token.text
    return Update(
        carries_token=True,
        is_visible=bool(text),
        tokens=1,
        usage=None
        if details is None
        else Usage(details.input_length, details.generated_tokens),
        finish_reason=None if details is None else details.finish_reason,
        is_end=event.generated_text is not None,
        text=text,
    )


def read_native_reply(body: bytes) -> NativeReply:
    """The first reply of a body, empty for any other JSON."""
    try:
        replies = _decode_native_replies(body if body[:1] == b"[" else b"[%s]" % body)
    except UNREADABLE:
        return NativeReply()
    return replies[0] if replies else NativeReply()


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
