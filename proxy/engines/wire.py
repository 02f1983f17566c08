"""Bodies of the OpenAI-style wire, decoded by msgspec; unknown fields are skipped.

Only what the meter needs is named. A value whose type varies between servers is
`Any`, or `Raw` (kept as bytes) where it may be large: it never fails the decoding.
Nothing here can be part of a cycle, so the collector need not look (`gc=False`).
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import msgspec

from proxy.wire.facts import PhaseSeconds, Usage, well_formed

MAX_DIGITS = 400
"""Longer numbers are no counts, and turning them into integers is slow."""
MAX_ERROR_DEPTH = 8
"""An error's message may be an object that has one in turn."""
ERROR_CHARACTERS = 300
"""An engine may echo a whole prompt in its message; a record needs its gist."""

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""Errors of decoding strange bytes: not JSON, not UTF-8, nested too deep."""

MAX_COUNT = 2**31 - 1
"""A larger count is a mistake, not a length: no context comes near it."""

Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]


class PromptDetails(msgspec.Struct, gc=False):
    """Part of usage; vLLM sends it with `--enable-prompt-tokens-details`."""

    cached_tokens: Count | None = None


class UsageBody(msgspec.Struct, gc=False):
    """`usage`, cumulative over all choices, in OpenAI's older and newer spelling."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    prompt_tokens_details: PromptDetails | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    input_tokens_details: PromptDetails | None = None

    def read(self) -> Usage | None:
        """The same counts as `Usage`; None where it counts nothing."""
        prompt_tokens, output_tokens = self.prompt_tokens, self.completion_tokens
        if prompt_tokens is None:
            prompt_tokens = self.input_tokens
        if output_tokens is None:
            output_tokens = self.output_tokens
        details = self.prompt_tokens_details or self.input_tokens_details
        cached_tokens = None if details is None else details.cached_tokens
        if not (prompt_tokens or output_tokens):
            return None  # a placeholder: no request has neither
        return Usage(prompt_tokens, output_tokens, cached_tokens)


class MetricsBody(msgspec.Struct, gc=False):
    """vLLM's `metrics` (`--enable-per-request-metrics`), in milliseconds."""

    queue_time_ms: float | None = None
    time_to_first_token_ms: float | None = None
    """From scheduled, not from arrival: the prefill."""
    generation_time_ms: float | None = None

    def read(self) -> PhaseSeconds:
        """The same durations in seconds."""
        return PhaseSeconds(
            queue_seconds=seconds(self.queue_time_ms),
            prefill_seconds=seconds(self.time_to_first_token_ms),
            decode_seconds=seconds(self.generation_time_ms),
        )


class Delta(msgspec.Struct, gc=False):
    """The part that a chat event adds, also the `message` of an unstreamed reply."""

    role: str | None = None
    content: str | None = None
    reasoning: Any = None
    reasoning_content: Any = None
    thinking: Any = None
    tool_calls: Any = None
    function_call: Any = None
    refusal: Any = None

    def has_hidden(self) -> bool:
        """Tokens that are not the answer's text: reasoning, tool calls, refusal."""
        return bool(
            self.reasoning
            or self.reasoning_content
            or self.thinking
            or self.tool_calls
            or self.function_call
            or self.refusal
        )


class Choice(msgspec.Struct, gc=False):
    """One choice of one event or reply; chat has delta or message, the rest text."""

    index: int = 0
    delta: Delta | None = None
    message: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class Body(msgspec.Struct, gc=False):
    """A stream event or an unstreamed reply."""

    choices: list[Choice] | None = None
    usage: UsageBody | None = None
    metrics: MetricsBody | None = None
    error: Any = None


class RequestBody(msgspec.Struct, gc=False):
    """A request; any type anywhere, the engine is the one to refuse it."""

    model: Any = None
    stream: Any = None
    stream_options: Any = None
    n: Any = None
    best_of: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    prompt: msgspec.Raw = msgspec.Raw()
    kv_transfer_params: msgspec.Raw = msgspec.Raw()


def seconds(milliseconds: float | None) -> float | None:
    """Milliseconds in seconds; nothing stays nothing, and so does a negative time."""
    return None if milliseconds is None or milliseconds < 0 else milliseconds / 1000


def as_count(value: object) -> int | None:
    """An integer from 0 to MAX_COUNT, None for everything else (also for True)."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value <= MAX_COUNT else None


def count_prompts(prompt: msgspec.Raw) -> int:
    """Number of prompts in a completions request: text, token ids, or lists of them."""
    if bytes(memoryview(prompt)[:1]) != b"[":
        return 1
    try:
        prompts = msgspec.json.decode(prompt, type=list[msgspec.Raw])
    except UNREADABLE:
        return 1
    is_token_ids = bool(prompts) and bytes(prompts[0])[:1] not in (b'"', b"[")
    return 1 if is_token_ids else max(1, len(prompts))


class TransferBody(msgspec.Struct, gc=False):
    """`kv_transfer_params`, by which vLLM's connectors split a request in two."""

    do_remote_decode: Any = None
    do_remote_prefill: Any = None


def leg_of(params: msgspec.Raw) -> str | None:
    """The half of a request that an engine is asked for; None: all of it."""
    if bytes(memoryview(params)[:1]) != b"{":
        return None
    try:
        found = msgspec.json.decode(params, type=TransferBody)
    except UNREADABLE:
        return None
    if found.do_remote_decode is True:
        return "prefill"
    return "decode" if found.do_remote_prefill is True else None


def with_true(
    body: bytes,
    section: str,
    field: str,
    *,
    takes_null: bool = True,
    absent: tuple[str, ...] = (),
) -> bytes:
    """`body` with `section.field` set to true, or as it is where that has no place.

    Every other value keeps its very bytes: numbers are not read and rewritten. A null
    in the section's place stays where the server would refuse it (`takes_null`).
    `absent` are fields that are true while there is no section.
    """
    try:
        body.decode()  # values are kept unread: only this finds what is not UTF-8
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        old = fields.get(section)
        if old is None:
            inner = dict.fromkeys(absent, _TRUE)
        elif bytes(old) == b"null":
            if not takes_null:
                return body
            inner = {}
        else:
            inner = msgspec.json.decode(old, type=dict[str, msgspec.Raw])
    except UNREADABLE:
        return body
    inner[field] = _TRUE
    fields[section] = msgspec.Raw(msgspec.json.encode(inner))
    return msgspec.json.encode(fields)


_TRUE = msgspec.Raw(b"true")


def error_in(body: bytes) -> str | None:
    """The text of the error that a JSON object is or holds, None without one."""
    try:
        fields = msgspec.json.decode(body)
    except UNREADABLE:
        fields = json_of(body)
        if not isinstance(fields, dict):
            return _broken_error_in(body)
    if not isinstance(fields, dict):
        return None
    for name in ("error", "detail", "errors"):
        if fields.get(name) is not None:
            return error_text(fields[name])
    if "error" in (fields.get("object"), fields.get("type")):
        return error_text(fields.get("message") or fields)
    return None


def _broken_error_in(body: bytes) -> str | None:
    """The text of an error whose quotes or line breaks are not escaped.

    `transformers serve` puts an exception's text into its last event as it is.
    """
    start = b'{"error":'
    if not body.startswith(start):
        return None
    text = body[len(start) :].decode(errors="replace")
    return error_text(text.strip(' "}'))


def error_text(found: object) -> str | None:
    """One line of at most 300 characters from an error of whatever shape."""
    if found is None or found is False:
        return None
    for _ in range(MAX_ERROR_DEPTH):
        if isinstance(found, dict):
            names = ("message", "msg", "error", "detail", "type", "code")
            inner = next((found[name] for name in names if found.get(name)), None)
        elif isinstance(found, list):
            inner = found[0] if found else None
        else:
            break
        if inner is None:
            break
        found = inner
    text = found if isinstance(found, str) else json.dumps(found)
    shown = " ".join(well_formed(text).split())[:ERROR_CHARACTERS]
    return shown or "error without a message"


def json_of(data: bytes) -> Any:
    """JSON read with every allowance, None where it is none."""
    try:
        return json.loads(
            data.decode("utf-8-sig", errors="replace"),
            strict=False,
            parse_int=_integer,
            parse_constant=lambda _: None,
        )
    except (ValueError, RecursionError):
        return None


def _integer(digits: str) -> int | None:
    return int(digits) if len(digits) <= MAX_DIGITS else None
