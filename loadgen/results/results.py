"""The record of one request: its plan, its stamps and its reply.

Instants are seconds from the run's zero on one monotonic clock. None means
that it did not happen or is not known, never 0. One record is one line of
`requests.jsonl`, appended as requests finish.
"""

from __future__ import annotations

import msgspec


class BoundaryPart(msgspec.Struct, frozen=True, kw_only=True):
    """Energy of the request at another boundary than the headline's."""

    prefill_joules: float | None
    decode_joules: float | None
    idle_share_joules: float | None
    energy_joules: float | None
    quality: str


class EnergyPart(msgspec.Struct, frozen=True, kw_only=True):
    """Energy of the request by the proxy's record, joined by request id."""

    prefill_joules: float | None
    decode_joules: float | None
    idle_share_joules: float | None
    energy_joules: float | None
    policy: str
    quality: str
    policy_joules: dict[str, float] = {}
    boundaries: dict[str, BoundaryPart] = {}
    """At the other boundaries metered; never added, for they overlap."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One finished request, whatever its outcome."""

    request_id: str
    session_id: str
    turn: int
    """Number within the session, from 0."""
    kind: str
    planned_seconds: float
    """Intended start: the plan's, or the previous turn's end + think time."""
    sent_seconds: float | None
    first_token_seconds: float | None = None
    first_visible_seconds: float | None = None
    last_token_seconds: float | None = None
    finished_seconds: float
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    requested_input_tokens: int | None = None
    """New prompt tokens of this turn alone."""
    requested_prompt_tokens: int | None = None
    """The full prompt; in a live conversation with the trace's earlier replies."""
    requested_output_tokens: int | None = None
    chunk_seconds: list[float] = []
    """Stamp of every read that bore tokens."""
    chunk_tokens: list[int] = []
    """Tokens of that read, summing to `output_tokens` where usage is known."""
    outcome: str
    """`ok`, `error`, `timeout`, `aborted` (we stopped) or `dropped` (never sent)."""
    status: int | None = None
    error: str | None = None
    connection_reused: bool | None = None
    energy: EnergyPart | None = None
