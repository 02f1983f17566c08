"""The OpenAI-style dialect: vLLM, `transformers serve`, and who speaks like them.

What differs between servers is a `Flavour`, plain data. Facts and captures:
tests/captures, vLLM 0.32 and transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from proxy.engines.lenient import decode_leniently
from proxy.engines.wire import (
    ERROR_CHARACTERS,
    MAX_COUNT,
    UNREADABLE,
    Body,
    Choice,
    Delta,
    RequestBody,
    as_count,
    count_prompts,
    error_in,
    error_text,
    leg_of,
    with_true,
)
from proxy.wire.facts import RequestFacts, Update, Usage

ROUTES = {"/v1/chat/completions": "chat", "/v1/completions": "completions"}

DONE = Update(is_end=True)
MAX_DONE_BYTES = 32
FAILED = frozenset(["abort", "aborted", "cancelled", "error"])
"""Finish reasons of replies that did not succeed."""
NO_DELTA = Delta()


@dataclass(frozen=True, slots=True, kw_only=True)
class Flavour:
    """Differences of one OpenAI-style server from the others on the wire."""

    name: str
    empty_text_is_token: bool = False
    """vLLM sends an event only when there was a token, even one that decoded to
    nothing; others send bare events too."""
    sends_done: bool = True
    """Streams end with `[DONE]`; else with the event that has usage."""
    usage_on_request: bool = True
    """Streams have usage only where `stream_options.include_usage` asks for it."""
    requires_end: bool = False
    honours_copies: bool = True
    """`n` and `best_of` make more outputs; else they are ignored."""
    text_event_is_token: bool = False
    """TGI's completions: one event per token, and usage at the end of each prompt
    for that prompt alone."""


VLLM = Flavour(name="vllm", empty_text_is_token=True, requires_end=True)
OPENAI = Flavour(name="openai")
TRANSFORMERS = Flavour(
    name="transformers",
    sends_done=False,
    usage_on_request=False,
    requires_end=True,
    honours_copies=False,
)


class OpenAIDialect:
    """Chat and completions, streamed or not, in one flavour."""

    def __init__(self, flavour: Flavour) -> None:
        self._flavour = flavour

    @property
    def name(self) -> str:
        """The flavour's name."""
        return self._flavour.name

    @property
    def requires_end(self) -> bool:
        """True for servers whose streams always have an end event."""
        return self._flavour.requires_end

    def read_request(self, method: str, path: str, body: bytes) -> RequestFacts | None:
        """Facts of a chat or completions request, None for any other route."""
        route = ROUTES.get(path) if method == "POST" else None
        if route is None:
            return None
        facts = read_openai_request(route, body)
        return (
            facts
            if self._flavour.honours_copies
            else msgspec.structs.replace(facts, sequences=1)
        )

    def with_usage(self, body: bytes) -> bytes:
        """The body with `stream_options.include_usage`; every other value kept.

        As it is where its options ask for running usage, which vLLM would then send.
        """
        if not self._flavour.usage_on_request or _wants_running_usage(body):
            return body
        return with_true(body, "stream_options", "include_usage")

    def read_event(self, data: bytes) -> Update:
        """The facts in one event's data; of strange JSON, what can be read."""
        if len(data) < MAX_DONE_BYTES and is_done(data):
            return DONE
        try:
            event: Body | None = _decode_body(data)
        except UNREADABLE:
            event = decode_leniently(data, Body)
        if event is None:
            return Update(error=error_in(data))
        return update_of_event(event, self._flavour, data)

    def read_reply(
        self, status: int, headers: Mapping[str, str], body: bytes
    ) -> Update:
        """The facts in an unstreamed reply: usage, text and phases, or the error."""
        return read_openai_reply(status, body)


_decode_body = msgspec.json.Decoder(Body).decode
_decode_request = msgspec.json.Decoder(RequestBody).decode


def read_openai_request(
    route: str, body: bytes, *, honours_copies: bool = True
) -> RequestFacts:
    """Facts of a body sent to `route`; of a broken one, only that."""
    try:
        request = _decode_request(body)
    except UNREADABLE:
        return RequestFacts(route)
    options = request.stream_options
    options = options if isinstance(options, dict) else {}
    wants_usage = options.get("include_usage") is True
    copies = 1
    if honours_copies:
        copies = max(as_count(request.n) or 1, as_count(request.best_of) or 1)
    limit = as_count(request.max_completion_tokens)
    prompts = count_prompts(request.prompt)
    return RequestFacts(
        route=route,
        model=request.model if isinstance(request.model, str) else None,
        is_stream=request.stream is True,
        sequences=min(copies * prompts, MAX_COUNT),
        prompts=prompts,
        max_output_tokens=as_count(request.max_tokens) if limit is None else limit,
        wants_usage=wants_usage,
        has_running_usage=wants_usage and options.get("continuous_usage_stats") is True,
        leg=leg_of(request.kv_transfer_params),
    )


def _wants_running_usage(body: bytes) -> bool:
    """Whether a body asks for usage on every event, if only it had usage at all."""
    if b"continuous_usage_stats" not in body:
        return False
    try:
        options = _decode_request(body).stream_options
    except UNREADABLE:
        return False
    return isinstance(options, dict) and bool(options.get("continuous_usage_stats"))


def is_done(data: bytes) -> bool:
    """Whether an event's data is OpenAI's end of a stream, blanks around it or not."""
    return data.strip() == b"[DONE]"


def update_of_event(event: Body, flavour: Flavour, data: bytes) -> Update:
    """The facts in a stream event of this flavour; `data` are its bytes."""
    usage = None if event.usage is None else event.usage.read()
    phases = None if event.metrics is None else event.metrics.read()
    choices = event.choices or []
    error = error_of(event, data) if event.error or not choices else None
    if not choices:
        is_usage_only = event.usage is not None and error is None
        return Update(
            usage=usage, phases=phases, error=error, is_usage_only=is_usage_only
        )
    text = ""
    is_visible = False
    tokens: int | None = None
    finish_reason: str | None = None
    for choice in choices:
        delta = choice.message if choice.delta is None else choice.delta
        part = choice.text if delta is None else delta.content
        if part and not (flavour.text_event_is_token and is_end_of_text(choice)):
            is_visible = True
            text += part if choice.index == 0 else ""
        if choice.token_ids is not None:
            tokens = (tokens or 0) + len(choice.token_ids)
        elif delta is None and flavour.text_event_is_token:
            tokens = (tokens or 0) + 1
        finish_reason = choice.finish_reason or finish_reason
    is_usage_only = (
        event.usage is not None
        and not (is_visible or finish_reason or error)
        and all(map(is_bare, choices))
    )
    if is_usage_only:
        carries_token, tokens = False, None
    elif tokens is None:
        carries_token = is_visible or has_token(choices, usage, flavour)
    else:
        carries_token = tokens > 0
    if finish_reason is not None and finish_reason in FAILED:
        error = error or failure_by(finish_reason)
    is_last = finish_reason is not None and usage is not None
    return Update(
        carries_token,
        is_visible,
        tokens,
        usage,
        phases,
        finish_reason,
        error,
        is_usage_only,
        is_last and not flavour.sends_done,
        text=text,
        has_own_usage=usage is not None
        and flavour.text_event_is_token
        and not is_usage_only,
    )


def is_bare(choice: Choice) -> bool:
    """A choice that says nothing: some servers put one beside the usage."""
    delta = choice.delta
    return (
        (delta is None or delta == NO_DELTA)
        and choice.finish_reason is None
        and choice.text is None
        and choice.message is None
        and choice.token_ids is None
    )


def is_end_of_text(choice: Choice) -> bool:
    """TGI's completions end with the text of the special token that ended them."""
    return choice.delta is None and choice.finish_reason == "eos_token"


def error_of(body: Body, data: bytes) -> str | None:
    """The error of an event or a reply, in whichever form it comes."""
    if body.error:
        return error_text(body.error)
    if body.choices is None and body.usage is None:
        return error_in(data)
    return None


def failure_by(finish_reason: str) -> str:
    """The error of a reply that the engine gave up, as its reason says."""
    return f"the engine gave the reply up: finish_reason {finish_reason!r}"


def has_token(choices: list[Choice], usage: Usage | None, flavour: Flavour) -> bool:
    """Whether choices without visible text stand for a token all the same."""
    deltas = [choice.delta for choice in choices if choice.delta is not None]
    if any(delta.has_hidden() for delta in deltas):
        return True
    if not flavour.empty_text_is_token:
        return False
    if usage is not None and usage.output_tokens is not None:
        return usage.output_tokens > 0  # running usage: 0 on the role event only
    return not any(delta.role is not None for delta in deltas)


def read_openai_reply(status: int, body: bytes) -> Update:
    """The facts in an unstreamed reply; a status other than 2xx is always an error."""
    if not 200 <= status < 300:
        text = " ".join(body[:ERROR_CHARACTERS].decode(errors="replace").split())
        return Update(error=error_in(body) or text or f"status {status}", is_end=True)
    try:
        reply: Body | None = _decode_body(body)
    except UNREADABLE:
        reply = decode_leniently(body, Body)
    if reply is None:
        return Update(error=error_in(body), is_end=True)
    usage = None if reply.usage is None else reply.usage.read()
    choices = reply.choices or []
    # A conversation goes on with choice 0; so does the text of stream events.
    text = "".join(reply_text(part) for part in choices if part.index == 0)
    has_hidden = any(part.message and part.message.has_hidden() for part in choices)
    failed = next((c.finish_reason for c in choices if c.finish_reason in FAILED), None)
    return Update(
        carries_token=bool(text or has_hidden or (usage and usage.output_tokens)),
        is_visible=bool(text),
        usage=usage,
        phases=None if reply.metrics is None else reply.metrics.read(),
        finish_reason=choices[0].finish_reason if choices else None,
        error=error_of(reply, body) or (failure_by(failed) if failed else None),
        is_end=True,
        text=text,
    )


def reply_text(choice: Choice) -> str:
    """The visible text of an unstreamed reply."""
    message = choice.message
    return (choice.text if message is None else message.content) or ""
