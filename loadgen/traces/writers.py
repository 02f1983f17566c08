"""Writers: sessions in, lines of another tool's format out; `WRITERS` lists them.

Content that a format cannot hold is refused with a reason or warned of, never left
out silently: most have no conversations, some need a timestamp on every request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import msgspec

from loadgen.errors import UsageError
from loadgen.traces.readers import loadtrace as own
from loadgen.traces.readers.line import text_of, warn_once
from loadgen.traces.readers.mooncake import BLOCK_TOKENS
from loadgen.traces.trace import Session, TraceInfo, Turn

_EPOCH = datetime(2000, 1, 1)
_FLAT = "conversations become single requests with their whole history as prompt"

Write = Callable[[Iterable[Session], TraceInfo], Iterator[str]]


@dataclass(frozen=True, slots=True)
class Writer:
    """A format to convert to."""

    write: Write
    about: str
    """One line for the help."""
    title_lines: int = 0
    """Lines before the first request."""


def loadtrace_header(
    info: TraceInfo, *, count: int, span_seconds: float, **more: Any
) -> dict[str, Any]:
    """The `loadtrace/1` header of a trace that has been read."""
    kept = ("name", "tokenizer", "source", "synthetic", "kind")
    header: dict[str, Any] = {"loadtrace": own.VERSION, "name": info.name}
    header |= {key: info.header[key] for key in kept if key in info.header}
    if info.hash_block_size is not None:
        header["hash_block_size"] = info.hash_block_size
    header |= {"time_unit": "ms", "length_semantics": "total", "count": count}
    if span_seconds:
        header["span_ms"] = _milliseconds(span_seconds)
    return header | {"dropped": dict(info.dropped)} | more


def loadtrace(sessions: Iterable[Session], info: TraceInfo) -> Iterator[str]:
    """`loadtrace/1` lines without their header."""
    for session in sessions:
        for number, turn in enumerate(session.turns, 1):
            row = _row(turn)
            if len(session.turns) > 1:
                row = {"session_id": session.session_id, "turn": number} | row
            yield msgspec.json.encode(row).decode()


def mooncake(sessions: Iterable[Session], info: TraceInfo) -> Iterator[str]:
    """Mooncake's four fields, whole milliseconds, block ids as in the trace."""
    if info.hash_block_size not in (None, BLOCK_TOKENS):
        warn_once(
            info, f"blocks are {info.hash_block_size} tokens, Mooncake's have 512"
        )
    for number, turn in enumerate(_flat(sessions, info)):
        input_tokens, output_tokens, at_seconds = _needed(turn)
        row = {
            "timestamp": round(at_seconds * 1000),
            "input_length": input_tokens,
            "output_length": output_tokens,
            "hash_ids": list(turn.hash_ids) or _own_ids(number, input_tokens),
        }
        yield msgspec.json.encode(row).decode()


def azure_csv(sessions: Iterable[Session], info: TraceInfo) -> Iterator[str]:
    """Azure's three columns; the date is invented, the seven digits are not."""
    yield "TIMESTAMP,ContextTokens,GeneratedTokens"
    for turn in _flat(sessions, info):
        input_tokens, output_tokens, at_seconds = _needed(turn)
        ticks = round(at_seconds * 10_000_000)
        second = _EPOCH + timedelta(seconds=ticks // 10_000_000)
        stamp = f"{second:%Y-%m-%d %H:%M:%S}.{ticks % 10_000_000:07d}"
        yield f"{stamp},{input_tokens},{output_tokens}"


def vllm(sessions: Iterable[Session], info: TraceInfo) -> Iterator[str]:
    """vLLM's timed trace in seconds, or its custom data set where there is text."""
    flat = enumerate(_flat(_first_turns_of_text(sessions, info), info))
    for number, turn in flat:
        text = _text(turn, info)
        if text is not None:
            row: dict[str, Any] = {"prompt": text}
            if turn.output_tokens is not None:
                row["output_tokens"] = turn.output_tokens
        else:
            input_tokens, output_tokens, at_seconds = _needed(turn)
            row = {
                "timestamp": round(at_seconds, 6),
                "input_length": input_tokens,
                "output_length": output_tokens,
                "hash_ids": list(turn.hash_ids) or _own_ids(number, input_tokens),
            }
        yield msgspec.json.encode(row).decode()


WRITERS: dict[str, Writer] = {
    "loadtrace": Writer(loadtrace, "this project's own, loses nothing"),
    "mooncake": Writer(mooncake, "lengths, milliseconds, prefix blocks"),
    "azure-csv": Writer(azure_csv, "arrival, prompt and output tokens", title_lines=1),
    "vllm": Writer(vllm, "timed trace in seconds, or prompts with text"),
}


def _row(turn: Turn) -> dict[str, Any]:
    """The fields a turn has, in the order of the schema."""
    delay = _milliseconds(turn.think_seconds) if turn.think_seconds else None
    at_seconds = turn.at_seconds
    row = {
        "id": turn.request_id,
        "timestamp": None if at_seconds is None else _milliseconds(at_seconds),
        "delay": delay,
        "messages": turn.messages,
        "prompt": turn.prompt,
        "input_length": turn.input_tokens,
        "output_length": turn.output_tokens,
        "hash_ids": list(turn.hash_ids) or None,
        "kind": None if turn.kind == "other" else turn.kind,
        "tenant": turn.tenant,
        "slo": turn.slo,
        "history": None if turn.history == "total" else turn.history,
        "x": dict(turn.extra) or None,
    }
    return {name: value for name, value in row.items() if value is not None}


def _flat(sessions: Iterable[Session], info: TraceInfo) -> Iterator[Turn]:
    """Every turn as a request of its own, with its whole history as prompt."""
    for session in sessions:
        if len(session.turns) > 1:
            warn_once(info, _FLAT)
        history = 0
        for turn in session.turns:
            prompt = turn.input_tokens
            if prompt is not None and turn.history == "append":
                prompt += history
            history = (prompt or 0) + (turn.output_tokens or 0)
            yield replace(turn, input_tokens=prompt)


def _first_turns_of_text(
    sessions: Iterable[Session], info: TraceInfo
) -> Iterator[Session]:
    """Sessions of text cut to the first exchange, all vLLM's data set can hold."""
    for session in sessions:
        first = session.turns[0]
        has_text = first.prompt is not None or first.messages is not None
        if len(session.turns) > 1 and has_text:
            warn_once(info, "vllm's data set has no conversations: first turns only")
            session = Session(session.session_id, session.turns[:1])
        yield session


def _text(turn: Turn, info: TraceInfo) -> str | None:
    """A turn's text as one prompt, if it has text."""
    if turn.messages is None:
        return turn.prompt
    warn_once(info, "vllm's data set has no roles: messages are joined to one prompt")
    return "\n\n".join(text_of(message.get("content")) for message in turn.messages)


def _needed(turn: Turn) -> tuple[int, int, float]:
    """Lengths and instant of a request; UsageError where the format cannot hold it."""
    if turn.input_tokens is None or turn.output_tokens is None:
        raise UsageError(
            "the trace has text without token counts, this format needs lengths: "
            "convert to loadtrace instead"
        )
    if turn.at_seconds is None:
        raise UsageError(
            "the trace has requests without timestamps, this format needs them: "
            "convert to loadtrace instead"
        )
    return turn.input_tokens, turn.output_tokens, turn.at_seconds


def _own_ids(number: int, input_tokens: int) -> list[int]:
    """Unshared block ids: readers take a request without ids for empty."""
    blocks = -(-input_tokens // BLOCK_TOKENS)
    return [number * 2**20 + block for block in range(blocks)]


def _milliseconds(seconds: float) -> float | int:
    """To four decimals, as exact as Azure's stamps; whole ones as integers."""
    value = round(seconds * 1000, 4)
    return int(value) if value == int(value) else value
