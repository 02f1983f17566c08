"""ShareGPT conversations, all turns: a JSON array of any layout, or JSON Lines.

The array is decoded one conversation at a time from pieces of text, so a file
that is one long line needs no more memory than its longest conversation. Lengths
of replies are estimated from their text (a token is about four bytes of UTF-8)
and marked so; the run's own tokenizer gives the real ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from loadgen.traces.readers.line import Line, dropped, objects, warn_once
from loadgen.traces.trace import Session, TraceInfo, Turn

BYTES_PER_TOKEN = 4

_HUMAN = ("human", "user")
_MODEL = ("gpt", "chatgpt", "assistant", "model", "bing", "bard")
_ESTIMATED = "output lengths are estimated from the text, four bytes a token"


def recognises(row: dict[str, Any]) -> bool:
    """Whether the first object is a conversation of ShareGPT's layout."""
    return isinstance(row.get("conversations"), list)


def read(pieces: Iterable[str], info: TraceInfo) -> Iterator[Session]:
    """One session per conversation; earlier turns are sent again with each."""
    for line in objects(pieces, info):
        messages = _messages(line)
        system = [text for who, text in messages[:1] if who == "system"]
        reason, pairs = _pairs(messages[len(system) :])
        if not pairs:
            dropped(info, reason or "empty")
            continue
        if reason:
            info.shortened[reason] = info.shortened.get(reason, 0) + 1
        warn_once(info, _ESTIMATED)
        info.kept += 1
        session_id = str(line.values.get("id") or info.kept)
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
    tokens = max(1, round(len(reply.encode("utf-8", "replace")) / BYTES_PER_TOKEN))
    return Turn(
        kind="conversation",
        prompt=question,
        output_tokens=tokens,
        history="append",
        extra={"output_length_estimated": True},
    )


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
    if not isinstance(found, list):
        line.fail("conversations", 'a list of {"from", "value"} objects')
    messages = []
    for message in found:
        who = message.get("from") if isinstance(message, dict) else None
        text = message.get("value") if isinstance(message, dict) else None
        if not isinstance(who, str) or not isinstance(text, str):
            line.fail("conversations", '{"from": text, "value": text} in each place')
        known = "human" if who in _HUMAN else "model" if who in _MODEL else who
        messages.append((known, text))
    return messages
