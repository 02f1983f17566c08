"""Lines of a recording, from what arrives and what ends. Pure.

A line is written when its request has ended and everything of it is known, so lines
stand in the order of ends (`"order": "end"` in the header); whoever reads them puts
them in order. One that is in flight for long gets a line before that too, which the
later one replaces: so a kill loses only what arrived or ended within the last moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from proxy.meter.ledger import RequestRecord
from proxy.recording.blocks import BLOCK_TOKENS, Blocks
from proxy.recording.conversations import Conversations, Place
from proxy.recording.prompts import Prompt, PromptReader
from proxy.wire.events import RequestOpened
from proxy.wire.facts import Labels, well_formed

VERSION = "loadtrace/1"
OPEN_SECONDS = 0.4
"""A request that is in flight for longer has a line before its end."""
FIRST_TOKENS_PER_WORD = 1.0
"""Where no engine has counted a prompt of the model yet."""
WITHOUT_OUTPUT = frozenset(["embeddings", "pooling", "classify", "score", "rerank"])
"""Routes that read a prompt and write nothing."""
MAX_MODELS = 1000
MAX_TOKENS = 2**22
"""Of a prompt or a reply, four times the longest context: more is a mistake, and its
blocks would fill the memory."""

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that an engine is about to get."""

    opened: RequestOpened
    session: bytes | None
    """Value of the header that names its session."""
    body: bytes | bytearray
    texts: list[str]
    """Gets the reply's visible text, piece by piece."""


@dataclass(slots=True, eq=False)
class _Pending:
    opened: RequestOpened
    prompt: Prompt
    place: Place
    texts: list[str]
    has_line: bool = False


class Traffic:
    """The requests in flight, and what later ones may share with earlier ones."""

    def __init__(
        self, key: bytes, run: str, zero_seconds: float, zero_unix_seconds: float
    ) -> None:
        """`zero_seconds` on the clock of events is the recording's zero."""
        self._reader = PromptReader(key)
        self._run = run
        self._zero_seconds = zero_seconds
        self._zero_unix_seconds = zero_unix_seconds
        self._blocks = Blocks()
        self._conversations = Conversations()
        self._tokens_per_word: dict[str | None, float] = {}
        self._pending: dict[int, _Pending] = {}

    def header(self) -> bytes:
        """The first line of every file."""
        header = {
            "loadtrace": VERSION,
            "name": "recording",
            "order": "end",
            "run": self._run,
            "zero_unix_ms": round(self._zero_unix_seconds * 1000, 3),
            "hash_block_size": BLOCK_TOKENS,
            "time_unit": "ms",
        }
        return _encode(header) + b"\n"

    def __len__(self) -> int:
        return len(self._pending)

    def arrive(self, arrival: Arrival) -> None:
        """A request is on its way to an engine."""
        opened, reader = arrival.opened, self._reader
        prompt = reader.read(opened.facts.model or "", arrival.body)
        session = arrival.session
        if session is None and prompt.session_key is not None:
            session = prompt.session_key.encode("utf-8", "replace")
        header = None if session is None else reader.digest(b"session", session)
        name = f"{self._run}/{opened.key}".encode()
        if header is not None and not self._conversations.knows(header):
            new_id = header
        else:
            new_id = reader.digest(b"request", name)
        place = self._conversations.arrive(
            f"{new_id:014x}", header, prompt.beginnings, opened.at_seconds
        )
        self._pending[opened.key] = _Pending(opened, prompt, place, arrival.texts)

    def still_open(self, now_seconds: float) -> list[bytes]:
        """A line for each request that is in flight for long and has none yet."""
        lines: list[bytes] = []
        for pending in self._pending.values():
            if pending.opened.at_seconds + OPEN_SECONDS > now_seconds:
                break  # in the order of arrival
            if not pending.has_line:
                pending.has_line = True
                lines.append(self._open_line(pending))
        return lines

    def end(
        self, key: int, at_seconds: float, record: RequestRecord | None
    ) -> bytes | None:
        """The line of a request that ended; None for one that never arrived here.

        `record` is what the meter knows; None where it failed.
        """
        pending = self._pending.pop(key, None)
        if pending is None:
            return None
        prompt, place, facts = pending.prompt, pending.place, pending.opened.facts
        reply = "".join(pending.texts)
        estimated: list[str] = []
        prompt_tokens = None if record is None else record.prompt_tokens
        if prompt_tokens and prompt_tokens <= MAX_TOKENS:
            self._learn(facts.model, prompt_tokens, prompt)
        else:
            prompt_tokens = self._estimate(facts.model, prompt)
            estimated.append("input_length")
        output_tokens = None if record is None else record.output_tokens
        seen = sum(map(bool, pending.texts))
        if output_tokens is None or output_tokens > MAX_TOKENS:
            estimated.append("output_length")
            output_tokens = min(seen, MAX_TOKENS)
        elif record is None or record.is_output_lower_bound:
            estimated.append("output_length")
            output_tokens = min(max(output_tokens, seen), MAX_TOKENS)
        refused = _is_refused(record, output_tokens)
        tokens = None if estimated else prompt_tokens + output_tokens
        ended_seconds = at_seconds if record is None else record.finished_seconds
        digest = None if refused else self._reader.with_reply(prompt, reply)
        self._conversations.end(place, ended_seconds, tokens, digest)
        x: dict[str, Any] = {"outcome": "refused" if refused else "ok"}
        if record is not None and not refused:
            x["outcome"] = record.outcome
        if record is not None and record.cached_tokens is not None:
            x["cached_tokens"] = record.cached_tokens
        if estimated and not refused:
            x["estimated"] = estimated
        labels = pending.opened.labels
        if record is not None:
            labels = Labels(record.model, record.kind, record.tenant)
        if facts.route in WITHOUT_OUTPUT or refused:
            output_tokens = None
        else:
            output_tokens = max(1, output_tokens)
        return self._line(pending, prompt_tokens, output_tokens, labels, x)

    def _open_line(self, pending: _Pending) -> bytes:
        facts = pending.opened.facts
        tokens = self._estimate(facts.model, pending.prompt)
        x = {"outcome": "open", "estimated": ["input_length", "output_length"]}
        return self._line(
            pending, tokens, facts.max_output_tokens or None, pending.opened.labels, x
        )

    def _line(
        self,
        pending: _Pending,
        prompt_tokens: int,
        output_tokens: int | None,
        labels: Labels,
        x: dict[str, Any],
    ) -> bytes:
        opened, place, prompt = pending.opened, pending.place, pending.prompt
        facts = opened.facts
        is_final, is_refused = x["outcome"] != "open", x["outcome"] == "refused"
        before = place.continues_tokens
        is_appended = before is not None and prompt_tokens > before
        ids, shared = list[int](), 0.0
        if not is_refused:  # no engine has its beginning, and nobody replays it
            ids, shared = self._blocks.ids(prompt, prompt_tokens, remembers=is_final)
        kind = labels.kind
        if kind == "other" and facts.route in WITHOUT_OUTPUT:
            kind = "embedding"
        row: dict[str, Any] = {
            "session_id": place.session.session_id,
            "turn": place.turn,
            "timestamp": _milliseconds(opened.at_seconds - self._zero_seconds),
        }
        if place.turn > 1:
            row["delay"] = _milliseconds(place.think_seconds)
        if is_appended:
            assert before is not None
            shared = max(shared, before)
            row["input_length"] = prompt_tokens - before
            x["prompt_tokens"] = prompt_tokens
        else:
            row["input_length"] = prompt_tokens
        if output_tokens is not None:
            row["output_length"] = output_tokens
        if is_appended:
            row["history"] = "append"
        elif not is_refused:
            row["hash_ids"] = ids
        if kind != "other":
            row["kind"] = kind
        if labels.tenant != "none":
            row["tenant"] = well_formed(labels.tenant)
        x |= {"key": opened.key, "request_id": opened.request_id, "route": facts.route}
        x["model"] = well_formed(labels.model)
        x["shared_tokens"] = round(shared)
        if facts.sequences > 1:
            x["sequences"] = facts.sequences
        row["x"] = x
        return _encode(row) + b"\n"

    def _learn(self, model: str | None, tokens: int, prompt: Prompt) -> None:
        known = self._tokens_per_word
        rate = tokens / max(1, prompt.words)
        if model in known:
            known[model] += (rate - known[model]) / 10
        elif len(known) < MAX_MODELS:
            known[model] = rate

    def _estimate(self, model: str | None, prompt: Prompt) -> int:
        rate = self._tokens_per_word.get(model, FIRST_TOKENS_PER_WORD)
        return min(max(1, round(rate * prompt.words)), MAX_TOKENS)


def _is_refused(record: RequestRecord | None, output_tokens: int) -> bool:
    """The engine did not take it: it computed nothing."""
    if record is None or record.status is None or output_tokens:
        return False
    return 400 <= record.status < 500


def _milliseconds(seconds: float) -> float | int:
    """To the microsecond; whole ones as integers."""
    value = round(max(0.0, seconds) * 1000, 3)
    return int(value) if value == int(value) else value
