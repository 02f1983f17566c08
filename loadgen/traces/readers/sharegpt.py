"""ShareGPT conversations, all turns: a JSON array of any layout, or JSON Lines.

Lengths of replies are estimated from their text (a token is about four bytes of UTF-8)
and marked so; the run's own tokenizer gives the real ones. A message may be spelled
with `role` and `content` too; one that is null is an empty text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from loadgen.traces.readers.line import (
    Line,
    dropped,
    json_rows,
    portable,
    text_of,
    warn_once,
)
from loadgen.traces.trace import Session, TraceInfo, Turn

BYTES_PER_TOKEN = 4

_HUMAN = ("human", "user")
_MODEL = ("gpt", "chatgpt", "assistant", "model", "bing", "bard")
_MAX_ID = 200
ESTIMATED = "output lengths are estimated from the text, four bytes a token"


def recognises(row: dict[str, Any]) -> bool:
    """Whether the first object is a conversation of ShareGPT's layout."""
    return "conversations" in row and isinstance(row["conversations"], list | None)


def read(pieces: Iterable[str], info: TraceInfo) -> Iterator[Session]:
    """One session per conversation; earlier turns are sent again with each."""
    for line in json_rows(pieces, info):
        messages = _messages(line)
        system = [text for who, text in messages[:1] if who == "system"]
        reason, pairs = _pairs(messages[len(system) :])
        if not pairs:
            dropped(info, reason or "empty")
            continue
        if reason:
            info.shortened[reason] = info.shortened.get(reason, 0) + 1
        warn_once(info, ESTIMATED)
        info.kept += 1
        session_id = str(portable(line.values.get("id")) or info.kept)[:_MAX_ID]
        turns = [_turn(question, reply) for question, reply in pairs]
        if system:
            turns[0] = _with_system(turns[0], system[0])
        yield Session(session_id, tuple(turns))


def _pairs(messages: list[tuple[str, str]]) -> tuple[str | None, list[tuple[str, str]]]:
    """Questions with their replies up to the first that does not fit, and why."""
    if messages and messages[0][0] != "human":
        return "first_turn_not_human", []
    pairs: list[tuple[str, str]] = []
    for place in range(0, len(messages), 2):
        pair = messages[place : place + 2]
        if len(pair) == 1:
            return "no_reply", pairs
        if [who for who, _ in pair] != ["human", "model"]:
            return "turns_do_not_alternate", pairs
        if not all(text.strip() for _, text in pair):
            return "empty_text", pairs
        pairs.append((pair[0][1], pair[1][1]))
    return None, pairs


def _turn(question: str, reply: str) -> Turn:
    return Turn(
        kind="conversation",
        prompt=question,
        output_tokens=estimated_tokens(reply),
        history="append",
        extra={"output_length_estimated": True},
    )


def estimated_tokens(reply: str) -> int:
    """Tokens of a reply whose tokenizer is not known, at least one."""
    return max(1, round(len(reply.encode()) / BYTES_PER_TOKEN))


def _with_system(turn: Turn, system: str) -> Turn:
    messages = (
        {"role": "system", "content": system},
        {"role": "user", "content": turn.prompt or ""},
    )
    return Turn(
        kind=turn.kind,
        messages=messages,
        output_tokens=turn.output_tokens,
        history=turn.history,
        extra=turn.extra,
    )


def _messages(line: Line) -> list[tuple[str, str]]:
    """Role and text of each message, in order, roles as `human` and `model`."""
    found = line.values.get("conversations")
    if found is None and "conversations" in line.values:
        return []
    if not isinstance(found, list):
        line.fail("conversations", 'a list of {"from", "value"} objects')
    messages = []
    for message in found:
        if not isinstance(message, dict):
            line.fail("conversations", '{"from": text, "value": text} in each place')
        who = message.get("from", message.get("role"))
        text = message.get("value", message.get("content"))
        is_there = bool(message.keys() & {"value", "content"})
        if (
            not isinstance(who, str)
            or not is_there
            or not isinstance(text, str | list | None)
        ):
            line.fail("conversations", '{"from": text, "value": text} in each place')
        known = "human" if who in _HUMAN else "model" if who in _MODEL else who
        messages.append((known, text_of(text)))
    return messages
