"""A whole reply made from a stream: vLLM's chat and completions.

A request without `stream` tells nothing before its end; the same request as a stream
tells when each token came. `as_stream` writes it so, and `WholeReply` puts together
what comes as the engine itself would have written it. What a stream does not show, the
keys and their order, is learnt from a whole reply of the same kind (`pattern_of`), so
a version of the engine brings its own. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import msgspec

from proxy.engines.openai import is_done
from proxy.engines.wire import UNREADABLE
from proxy.wire.sse import SseDecoder

STREAMABLE = frozenset(
    [
        "model", "messages", "prompt", "stream", "max_tokens", "max_completion_tokens",
        "min_tokens", "ignore_eos", "temperature", "top_p", "top_k", "min_p", "n",
        "seed", "stop", "stop_token_ids", "presence_penalty", "frequency_penalty",
        "repetition_penalty", "length_penalty", "logit_bias", "logprobs",
        "top_logprobs", "tools", "tool_choice", "parallel_tool_calls",
        "response_format", "structured_outputs", "user", "skip_special_tokens",
        "spaces_between_special_tokens", "include_stop_str_in_output",
        "add_generation_prompt", "continue_final_message", "add_special_tokens",
        "chat_template", "chat_template_kwargs", "return_token_ids",
        "return_tokens_as_token_ids", "priority", "truncate_prompt_tokens",
        "reasoning_effort", "include_reasoning", "metadata", "store", "cache_salt",
        "prompt_cache_key", "request_id", "service_tier",
    ]
)  # fmt: skip
"""Fields that do the same to a stream; a request with any other goes as it is."""

Pattern = Mapping[str, Any]
"""A whole reply of the engine, as its JSON."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Requests whose whole replies have the same keys."""

    route: str
    has_tools: bool
    has_logprobs: bool


@dataclass(frozen=True, slots=True)
class Streamed:
    """A request as a stream, with usage on every event."""

    body: bytes
    kind: Kind


_ABSENT = (b"null", b"false", b"[]")
_OPTIONS = msgspec.Raw(b'{"include_usage":true,"continuous_usage_stats":true}')


def as_stream(route: str, body: bytes) -> Streamed | None:
    """The same request as a stream; None where its reply would be another one."""
    try:
        body.decode()
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except UNREADABLE:
        return None
    present = {name for name, value in fields.items() if bytes(value) not in _ABSENT}
    if not present <= STREAMABLE or "stream" in present:
        return None
    kind = Kind(route, "tools" in present, "logprobs" in present)
    fields |= {"stream": msgspec.Raw(b"true"), "stream_options": _OPTIONS}
    return Streamed(msgspec.json.encode(fields), kind)


def pattern_of(body: bytes) -> Pattern | None:
    """A whole reply to learn from; None for anything else, such as an error."""
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(reply, dict) or not isinstance(reply.get("usage"), dict):
        return None
    choices = reply.get("choices")
    is_whole = isinstance(choices, list) and choices and isinstance(choices[0], dict)
    return reply if is_whole else None


REFUSALS = frozenset(status for status in HTTPStatus if status >= 400)
"""What the code of an error inside a stream may be."""
CONSTANT = frozenset(["object", "service_tier", "system_fingerprint"])
"""Keys of a reply whose values are the engine's and not the request's."""
TOOL_CALLS_AFTER = "function_call"
GROWING = frozenset(["text", "logprobs", "token_ids"])
"""Fields of a choice that come in parts; others come once."""


@dataclass(slots=True)
class _Choice:
    """One choice so far: its own fields, and those of its message."""

    fields: dict[str, Any] = field(default_factory=dict)
    message: dict[str, Any] = field(default_factory=dict)
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)


class WholeReply:
    """One reply in the making; `feed` every read of the stream, then `finish`."""

    def __init__(self, pattern: Pattern) -> None:
        self._pattern = pattern
        self._decoder = SseDecoder()
        self._fields: dict[str, Any] = {}
        self._choices: dict[int, _Choice] = {}
        self._error: Any = None
        self._is_done = False

    def feed(self, data: bytes) -> None:
        """One read. Raises SseError, or ValueError for an event that is no JSON."""
        for event in self._decoder.feed(data):
            if is_done(event):
                self._is_done = True
                continue
            found = json.loads(event)
            if isinstance(found, dict):
                self._take(found)

    def finish(self) -> tuple[int, bytes] | None:
        """Status and body; None where the stream ended before its end marker."""
        if self._error is not None:
            code = self._error.get("code") if isinstance(self._error, dict) else None
            status = 500
            if isinstance(code, int) and code in REFUSALS:
                status = code
            return status, _written({"error": self._error})
        if not self._is_done or not self._choices:
            return None
        return 200, _written(self._reply())

    def _take(self, event: dict[str, Any]) -> None:
        if event.get("error"):
            self._error = self._error or event["error"]
        for name, value in event.items():
            if name != "choices" and value is not None:
                self._fields[name] = value
        for part in event.get("choices") or []:
            choice = self._choices.setdefault(part.get("index", 0), _Choice())
            for name, value in part.items():
                if name == "delta":
                    self._take_delta(choice, value or {})
                elif value is not None:
                    grown = choice.fields.get(name) if name in GROWING else None
                    choice.fields[name] = _joined(grown, value)

    def _take_delta(self, choice: _Choice, delta: Mapping[str, Any]) -> None:
        for name, value in delta.items():
            if name == "role":
                choice.message[name] = value
            elif name == "tool_calls":
                for part in value or []:
                    call = choice.calls.setdefault(part.get("index", 0), {})
                    _take_call(call, part)
            else:
                choice.message[name] = _joined(choice.message.get(name), value)

    def _reply(self) -> dict[str, Any]:
        pattern, fields = self._pattern, self._fields
        kept = {name: pattern[name] for name in CONSTANT if name in pattern}
        told = {**fields, **{name: kept[name] for name in ("object",) if name in kept}}
        told["choices"] = [
            self._whole(self._choices[index]) for index in sorted(self._choices)
        ]
        told["usage"] = fields.get("usage") or {}
        return _like(pattern, {**kept, **told})

    def _whole(self, choice: _Choice) -> dict[str, Any]:
        pattern = self._pattern["choices"][0]
        told = dict(choice.fields)
        if "message" in pattern:
            told["message"] = self._message(pattern["message"], choice)
            pattern = {**pattern, "message": None}  # it has its keys already
        return _like(pattern, told)

    def _message(self, pattern: Mapping[str, Any], choice: _Choice) -> dict[str, Any]:
        told = dict(choice.message)
        names = [name for name in pattern if name != "tool_calls" or choice.calls]
        if choice.calls:
            calls = [choice.calls[index] for index in sorted(choice.calls)]
            told["tool_calls"] = calls
            is_silent = not (told.get("content") or pattern.get("content"))
            if is_silent and pattern.get("tool_calls"):  # null or empty, as it does
                told["content"] = pattern.get("content")
            if "tool_calls" not in names:
                at = len(names)
                if TOOL_CALLS_AFTER in names:
                    at = names.index(TOOL_CALLS_AFTER) + 1
                names.insert(at, "tool_calls")
        elif isinstance(pattern.get("tool_calls"), list) and not pattern["tool_calls"]:
            names, told = list(pattern), told | {"tool_calls": []}
        return _like(dict.fromkeys(names), told)


def _like(pattern: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """What was told, in the pattern's order, inside objects too; else null."""
    found = {}
    for name, model in pattern.items():
        value = told.get(name)
        if isinstance(model, dict) and isinstance(value, dict):
            value = _like(model, value)
        found[name] = value
    more = {n: v for n, v in told.items() if n not in found and v is not None}
    return found | more


def _joined(earlier: Any, part: Any) -> Any:
    """A value that comes in parts: texts and lists grow, objects by key."""
    if part is None:
        return earlier
    if isinstance(earlier, str) and isinstance(part, str):
        return earlier + part
    if isinstance(earlier, list) and isinstance(part, list):
        return earlier + part
    if isinstance(earlier, dict) and isinstance(part, dict):
        return earlier | {n: _joined(earlier.get(n), v) for n, v in part.items()}
    return part


def _take_call(call: dict[str, Any], part: Mapping[str, Any]) -> None:
    """A tool call's next part: its arguments grow, the rest comes once."""
    for name in ("id", "type"):
        if part.get(name) is not None:
            call[name] = part[name]
    function = part.get("function") or {}
    whole = call.setdefault("function", {})
    for name, value in function.items():
        if name == "arguments":
            whole[name] = whole.get(name, "") + (value or "")
        elif value is not None:
            whole[name] = value


def _written(value: Any) -> bytes:
    """JSON as the engine's framework writes it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
