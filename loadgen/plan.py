"""The plan: who is sent when, decided and written before the run.

A plan is a JSON Lines file: a `PlanHeader` line, then one `PlannedSession` per
line in order of start. Its sha256 is in every result, and
`loadgen replay plan.jsonl` runs it again exactly.
"""

from __future__ import annotations

from typing import Any

import msgspec


class PlanHeader(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """First line of a plan: where it came from and what it promises."""

    plan: str = "plan/1"
    trace: str
    trace_format: str
    arrival: str
    """The process that was really used, never `auto`."""
    rate_per_second: float | None
    """Requests per second over all turns; None for the trace's own, or inf."""
    burstiness: float | None
    seed: int
    sessions: int
    requests: int
    span_seconds: float
    """Start of the last session."""
    hash_block_size: int | None = None
    dejittered_grid_seconds: float | None = None
    speed: float | None = None
    dropped: dict[str, int] = {}
    notes: list[str] = []


class PlannedTurn(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request to send."""

    request_id: str
    kind: str = "other"
    at_seconds: float | None = None
    """Earliest start of a later turn, from run start, where the trace has it."""
    think_seconds: float = 0.0
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    hash_ids: list[int] = []
    history: str = "total"
    tenant: str | None = None


class PlannedSession(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Turns that follow each other; the first starts at `start_seconds`."""

    session_id: str
    start_seconds: float
    turns: list[PlannedTurn]
