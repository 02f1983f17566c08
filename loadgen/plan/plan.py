"""The plan: every request with its send time, written before the run.

A plan is a JSON Lines file: a `PlanHeader` line, then one `PlannedSession` per
line in order of start. Its sha256 is in every result, and
`loadgen replay plan.jsonl` runs it again exactly.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import msgspec

from loadgen.errors import PlanError
from loadgen.plan.load import (
    ArrivalPlan,
    Load,
    Survey,
    arrival_plan,
    scheduled,
    surveyed,
)
from loadgen.plan.shards import Deal, Shard
from loadgen.traces.readers.line import MAX_TOKENS
from loadgen.traces.readers.open import open_trace, sha256_of
from loadgen.traces.readers.text import MAX_DEPTH, end_of
from loadgen.traces.trace import Session, TraceInfo, Turn
from proxy.process.files import PRIVATE, whole_file
from proxy.wire.facts import KINDS

VERSION = "plan/1"
MAX_LINE_BYTES = 2**30
"""Bytes of a line: a session at its bound, four bytes a character."""

Kind = Annotated[str, msgspec.Meta(pattern=rf"^(?:{'|'.join(KINDS)})\Z")]
"""A field of HTTP too, so no other text."""
Tokens = Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e15)]
"""Instants of a plan, whose rate may be tiny."""


Line = TypeVar("Line")


class PlanHeader(msgspec.Struct, frozen=True, kw_only=True):
    """First line of a plan: its origin, its arrivals and its counts."""

    plan: str = "plan/1"
    trace: str
    trace_format: str
    arrival: str
    """The arrival process used, never `auto`."""
    rate_per_second: float | None
    """Requests per second over all turns; None for the trace's own, or inf."""
    burstiness: float | None
    seed: int
    sessions: Count
    requests: Count
    span_seconds: Seconds
    """Start of the last session."""
    hash_block_size: Tokens | None = None
    dejittered_grid_seconds: float | None = None
    speed: float | None = None
    dropped: dict[str, int] = {}
    notes: list[str] = []


class PlannedTurn(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request to send."""

    request_id: str
    kind: Kind = "other"
    at_seconds: Seconds | None = None
    """Earliest start of a later turn, from run start, where the trace has it."""
    think_seconds: Seconds = 0.0
    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    hash_ids: list[int] = []
    history: Literal["total", "append"] = "total"
    tenant: str | None = None


class PlannedSession(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Turns that follow each other; the first starts at `start_seconds`."""

    session_id: str
    start_seconds: Seconds
    turns: list[PlannedTurn]


def make_plan(
    path: Path | str, load: Load, out: Path | str, format: str | None = None
) -> tuple[PlanHeader, str]:
    """Plan a trace, write the plan to `out`, return its header and sha256.

    The same trace and load give the same bytes. Written beside `out` first and
    then renamed, so a plan that exists is complete. Raises `TraceError`, `PlanError`
    and `UsageError`.
    """
    return plan_of(lambda: open_trace(path, format), str(path), load, Path(out))


def plan_of(
    opened: Callable[[], tuple[TraceInfo, Iterator[Session]]],
    name: str,
    load: Load,
    out: Path,
) -> tuple[PlanHeader, str]:
    """`make_plan` of sessions from anywhere, `opened` anew for each of its passes.

    `name` is the trace's in messages.
    """
    info, sessions = opened()
    survey = surveyed(sessions, load)
    if not survey.sessions:
        raise PlanError(f"{name}: no request fits --max-model-len {load.max_model_len}")
    chosen = arrival_plan(load, survey, name)
    info, sessions = opened()
    try:
        with tempfile.TemporaryFile(dir=out.parent) as body:
            tally = _Tally()
            for session in _planned(scheduled(sessions, load, chosen), info, tally):
                body.write(msgspec.json.encode(session) + b"\n")
            header = _header(info, load, survey, chosen, tally)
            body.seek(0)
            with whole_file(out, mode=PRIVATE) as plan:
                plan.write(msgspec.json.encode(header) + b"\n")
                shutil.copyfileobj(body, plan)
        return header, sha256_of(out)
    except OSError as error:
        raise PlanError(f"{out}: cannot be written: {error.strerror}") from None


def is_plan(path: Path | str) -> bool:
    """Whether a file is a plan and no trace, by its first bytes."""
    try:
        with Path(path).open("rb") as file:
            return file.read(64).lstrip().startswith(b'{"plan":')
    except OSError:
        return False


def read_plan(
    path: Path | str, shard: Shard | None = None
) -> tuple[PlanHeader, Iterator[PlannedSession]]:
    """The header, and the sessions as they are taken; `PlanError` names the line.

    Of all sessions, or of one shard of them.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            first = file.readline(MAX_LINE_BYTES)
    except OSError as error:
        raise PlanError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        header = _decoded(first, _header_decoder)
    except ValueError as error:
        raise PlanError(f"{path}, line 1: not a plan's header: {error}") from None
    if header.plan != VERSION:
        raise PlanError(
            f"{path}, line 1: plan is {header.plan!r}, expected {VERSION!r}"
        )
    return header, _read_sessions(path, header, shard)


def requests_of_shards(path: Path, weights: tuple[int, ...]) -> list[int]:
    """How many requests of a plan each shard has. Raises PlanError."""
    deal = Deal(weights)
    for number, line in _lines(path):
        deal.owner(_requests(path, number, line))
    return deal.requests


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Every line but the first, with its number in the file."""
    with path.open("rb") as file:
        file.readline(MAX_LINE_BYTES)
        yield from enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), 2)


def _read_sessions(
    path: Path, header: PlanHeader, shard: Shard | None
) -> Iterator[PlannedSession]:
    decoder = msgspec.json.Decoder(PlannedSession)
    deal = None if shard is None else Deal(shard.weights)
    sessions, before = 0, 0.0
    for number, line in _lines(path):
        if deal is not None and shard is not None:
            owner = deal.owner(_requests(path, number, line))
            if owner != shard.number:
                sessions += 1
                continue
        try:
            session = _decoded(line, decoder)
        except ValueError as error:
            raise PlanError(f"{path}, line {number}: {error}") from None
        if session.start_seconds < before or not session.turns:
            raise PlanError(
                f"{path}, line {number}: start_seconds is "
                f"{session.start_seconds}, expected >= {before} and a turn"
            )
        before = session.start_seconds
        sessions += 1
        yield session
    if sessions != header.sessions:
        raise PlanError(
            f"{path}: {sessions} sessions, the header says {header.sessions}: "
            "file cut short?"
        )


class _Size(msgspec.Struct):
    """As much of a session as it takes to deal it."""

    turns: list[msgspec.Raw]


def _requests(path: Path, number: int, line: bytes) -> int:
    try:
        return len(_decoded(line, _size_decoder).turns)
    except ValueError as error:
        raise PlanError(f"{path}, line {number}: {error}") from None


_size_decoder = msgspec.json.Decoder(_Size)
_header_decoder = msgspec.json.Decoder(PlanHeader)


def _decoded(line: bytes, decoder: msgspec.json.Decoder[Line]) -> Line:
    """A line of a plan; ValueError for one that this program would not write."""
    if len(line) >= MAX_LINE_BYTES:
        raise ValueError(f"longer than {MAX_LINE_BYTES:,} bytes")
    if line.count(b"[") + line.count(b"{") > MAX_DEPTH:
        end_of(line.decode().lstrip() or "0", 0)
    return decoder.decode(line)


class _Tally:
    """Counts of what was planned, and which request ids are taken."""

    __slots__ = ("_seen", "renamed", "requests", "sessions", "span_seconds")

    _BITS = 26  # 8 MiB whatever the trace's length; false hits 1e-7 at a million ids

    def __init__(self) -> None:
        self.sessions = 0
        self.requests = 0
        self.renamed = 0
        self.span_seconds = 0.0
        self._seen = bytearray(1 << (self._BITS - 3))

    def unique(self, wanted: str | None, name: str) -> str:
        """The id wanted, or one with the request's number if it may be taken.

        A Bloom filter, so memory does not grow with the trace: it may rename an id
        that was free, it never lets one through twice.
        """
        request_id = wanted or f"{name}-{self.requests}"
        while self._is_taken(request_id):
            self.renamed += 1
            request_id = f"{request_id}-{self.requests}"
        return request_id

    def _is_taken(self, request_id: str) -> bool:
        digest = hashlib.blake2b(request_id.encode(), digest_size=32).digest()
        is_taken = True
        for start in range(0, 32, 4):
            bit = int.from_bytes(digest[start : start + 4], "big") >> (32 - self._BITS)
            if not self._seen[bit >> 3] & (1 << (bit & 7)):
                is_taken = False
                self._seen[bit >> 3] |= 1 << (bit & 7)
        return is_taken


def _planned(
    schedule: Iterator[tuple[float, Session]], info: TraceInfo, tally: _Tally
) -> Iterator[PlannedSession]:
    name = _header_safe(info.name) or "trace"
    for start, session in schedule:
        turns: list[PlannedTurn] = []
        for turn in session.turns:
            tally.requests += 1
            wanted = _header_safe(turn.request_id) if turn.request_id else None
            request_id = tally.unique(wanted, name)
            turns.append(_planned_turn(turn, request_id, is_first=not turns))
        tally.sessions += 1
        tally.span_seconds = round(start, 6)
        yield PlannedSession(
            session_id=session.session_id,
            start_seconds=tally.span_seconds,
            turns=turns,
        )


def _planned_turn(turn: Turn, request_id: str, *, is_first: bool) -> PlannedTurn:
    at_seconds = None if is_first else turn.at_seconds
    return PlannedTurn(
        request_id=request_id,
        kind=turn.kind,
        at_seconds=None if at_seconds is None else round(at_seconds, 6),
        think_seconds=0.0 if is_first else round(turn.think_seconds, 6),
        input_tokens=turn.input_tokens,
        output_tokens=turn.output_tokens,
        prompt=turn.prompt,
        messages=[dict(m) for m in turn.messages] if turn.messages else None,
        hash_ids=list(turn.hash_ids),
        history=cast(Literal["total", "append"], turn.history),
        tenant=turn.tenant,
    )


def _stage_notes(load: Load, survey: Survey) -> list[str]:
    asked = sum(seconds * rate for seconds, rate in load.stages)
    steps = ", ".join(f"{seconds:g} s at {rate:g}/s" for seconds, rate in load.stages)
    notes = [f"stages: {steps}"]
    if survey.turns < asked:
        notes.append(
            f"the stages ask for about {asked:.0f} requests, there are {survey.turns}: "
            "the load ends early"
        )
    return notes


def _header_safe(text: str) -> str:
    """A text reduced to what an HTTP header and a URL's path may hold."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")[:96]


def _header(
    info: TraceInfo, load: Load, survey: Survey, chosen: ArrivalPlan, tally: _Tally
) -> PlanHeader:
    notes = list(info.warnings)
    notes += [f"{n} sessions cut: {reason}" for reason, n in info.shortened.items()]
    if survey.truncated:
        notes.append(
            f"{survey.truncated} prompts cut to --max-model-len {load.max_model_len}"
        )
    if load.num_prompts is not None and survey.turns < load.num_prompts:
        notes.append(
            f"the trace has {survey.turns} requests, {load.num_prompts} were asked for"
        )
    if load.stages:
        notes += _stage_notes(load, survey)
    if tally.renamed:
        notes.append(f"{tally.renamed} request ids were taken and got a suffix")
    if chosen.grid is not None:
        notes.append(
            f"timestamps lie on a grid of {chosen.grid:g} s: ties are spread over it"
        )
    return PlanHeader(
        trace=info.name,
        trace_format=info.format,
        arrival=chosen.arrival,
        rate_per_second=chosen.rate_per_second,
        burstiness=load.burstiness if chosen.arrival == "gamma" else None,
        seed=load.seed,
        sessions=tally.sessions,
        requests=tally.requests,
        span_seconds=tally.span_seconds,
        hash_block_size=info.hash_block_size,
        dejittered_grid_seconds=chosen.grid,
        speed=load.speed,
        dropped=info.dropped | survey.dropped,
        notes=notes,
    )
