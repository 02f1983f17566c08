"""The record of one request and the books of a whole run.

Instants are seconds from the run's zero on one monotonic clock. None means
that it did not happen or is not known, never 0. One record is one line of
`requests.jsonl`, appended as requests finish.
"""

from __future__ import annotations

import msgspec

from proxy.wire.api import (
    BooksReply,
    EnergyReply,
    HardwareReply,
    SavedCalibration,
)


class EnergyPart(EnergyReply, frozen=True, kw_only=True, omit_defaults=False):
    """The joules of a request by the proxy; joined by request id, never by time.

    Every key is written, also where it is empty.
    """

    policy_joules: dict[str, float] = msgspec.field(default_factory=dict)


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
    connect_seconds: float | None = None
    """Time for a connection of its own; 0 where one was ready, as is usual."""
    send_seconds: float | None = None
    """Time to hand the request to the kernel."""
    wait_seconds: float | None = None
    """From the send to the first byte of the reply's head."""
    reply_id: str | None = None
    """Id of the request by the reply, where that is another: a router on the way made
    its own, which is the one that proxies and engines behind it know."""
    energy: EnergyPart | None = None


class Metering(msgspec.Struct, frozen=True, kw_only=True):
    """The books of a run, read from the proxy; `reason` stands for what is missing."""

    opening: BooksReply | None = None
    """At the window's start."""
    closing: BooksReply | None = None
    """At the window's end."""
    begun: BooksReply | None = None
    """As the run began: a standing proxy has counted since long before."""
    ended: BooksReply | None = None
    """As the run ended, before anything was waited for."""
    window_seconds: float | None = None
    curve: list[BooksReply] = []
    """At `edges_seconds` of the run, for its power over time."""
    edges_seconds: list[float] = []
    hardware: HardwareReply | None = None
    """How the boards worked in the window; None where the proxy does not tell."""
    constants: tuple[SavedCalibration, ...] = ()
    """The fitted constants of the cost model after the run, and any doubt of them."""
    is_restarted: bool = False
    """The proxy was restarted: its books do not span the window."""
    reason: str | None = None


def title(number: int, total: int, worker: str | None) -> str:
    """Which process or worker of how many, in words."""
    if worker is None:
        return f"process {number} of {total}"
    return f"worker {worker} ({number} of {total})"
