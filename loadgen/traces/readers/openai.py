"""Chats of the OpenAI layout: `{"messages": [{"role", "content"}, ...]}`, or the list.

As fine-tuning files, request logs and chat exports have them. Each assistant message
that answers something ends a turn, and its text gives the turn's length, estimated as
ShareGPT's. What is left after the last one is a turn of the engine's own length.

Plain conversations send the replies the engine really gave. Where tools were called
the recorded messages are sent instead: the result of a call needs that call before it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from loadgen.traces.readers.line import (
    MAX_SESSION_CHARACTERS,
    Line,
    dropped,
    json_rows,
    portable,
    text_of,
    too_long,
    warn_once,
)
from loadgen.traces.readers.sharegpt import ESTIMATED, estimated_tokens
from loadgen.traces.trace import Session, TraceInfo, Turn

_ID_FIELDS = ("id", "conversation_id", "request_id")
_MAX_ID = 200
_TOOLS = "conversations with tools are sent as recorded, each turn with its history"

Message = Mapping[str, Any]


def recognises(row: dict[str, Any]) -> bool:
    """Whether the first object is a chat, or a message of one."""
    is_message = isinstance(row.get("role"), str) and "content" in row
    return is_message or isinstance(row.get("messages"), list)


def read(pieces: Iterable[str], info: TraceInfo) -> Iterator[Session]:
    """One session per chat; without times, so driven by a rate."""
    for line in json_rows(pieces, info):
        if line.values.get("messages", "") in ([], None):
            dropped(info, "empty")
            continue
        turns = list(_turns(line, info))
        if not turns:
            dropped(info, "nothing_to_answer")
            continue
        info.kept += 1
        yield Session(_session_id(line), tuple(turns))


def _turns(line: Line, info: TraceInfo) -> Iterator[Turn]:
    messages = line.messages("messages", info)
    has_tools = any(_uses_tools(message) for message in messages)
    if has_tools:
        warn_once(info, _TOOLS)
    sizes = [len(text_of(message.get("content"))) for message in messages]
    extra = line.others({"messages", *_ID_FIELDS})
    start = planned = 0
    for end, message in enumerate(messages):
        if message["role"] != "assistant" or not _asks(messages[start:end]):
            continue
        warn_once(info, ESTIMATED)
        reply = text_of(message.get("content")) or _calls(message)
        first = 0 if has_tools else start
        planned += sum(sizes[first:end])
        if planned > MAX_SESSION_CHARACTERS:
            line.fail("messages", f"fewer turns: {too_long('chat')} as it is sent")
        yield _turn(messages[first:end], has_tools, estimated_tokens(reply), extra)
        start = end + 1
    if _asks(messages[start:]):
        yield _turn(messages[0 if has_tools else start :], has_tools, None, extra)


def _asks(messages: tuple[Message, ...]) -> bool:
    """Whether there is something to answer: more than instructions and replies."""
    return any(m["role"] not in ("assistant", "system", "developer") for m in messages)


def _turn(
    messages: tuple[Message, ...],
    has_tools: bool,
    output_tokens: int | None,
    extra: dict[str, Any],
) -> Turn:
    only = messages[0] if len(messages) == 1 else {}
    text = only.get("content")
    is_prompt = only.keys() == {"role", "content"} and only["role"] == "user"
    is_prompt = is_prompt and isinstance(text, str)
    if output_tokens is not None:
        extra = extra | {"output_length_estimated": True}
    return Turn(
        kind="conversation",
        prompt=text if is_prompt else None,
        messages=None if is_prompt else messages,
        output_tokens=output_tokens,
        history="total" if has_tools else "append",
        extra=extra,
    )


def _uses_tools(message: Message) -> bool:
    is_result = message["role"] in ("tool", "function")
    return is_result or bool(message.get("tool_calls") or message.get("function_call"))


def _calls(message: Message) -> str:
    """The calls of a message as the text that a model writes for them."""
    calls = message.get("tool_calls") or message.get("function_call")
    return json.dumps(calls) if calls else ""


def _session_id(line: Line) -> str:
    for field in _ID_FIELDS:
        if line.has(field):
            return str(portable(line.values[field]))[:_MAX_ID]
    return str(line.element or line.number)
