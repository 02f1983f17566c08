"""What every engine dialect answers: the types of the wire, in the field's words.

A dialect is pure: bytes in, facts out. It decides what is metered, how many
tokens an event carries, and whether a reply that says 200 is an error. The
relay uses it on copies; `loadgen` uses it after the last byte. `Usage` and
`Update` are made for every event, so they are msgspec structs: one costs 0.2 us
where a frozen dataclass of ten fields costs 1.9 us.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Token counts from the engine, cumulative over all choices of a request."""

    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class PhaseSeconds:
    """Durations on the engine's own clock; anchor them on the caller's stamps."""

    queue_seconds: float | None = None
    prefill_seconds: float | None = None
    """From scheduled to first token."""
    decode_seconds: float | None = None
    inference_seconds: float | None = None
    """Prefill and decode together, where the engine tells only their sum."""


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What a request body says before the engine has seen it."""

    route: str
    """`chat`, `completions` or `generate`: bounded, fit for a metric label."""
    model: str | None = None
    is_stream: bool = False
    sequences: int = 1
    """Outputs asked for: prompts x n (or best_of)."""
    max_output_tokens: int | None = None
    wants_usage: bool = False
    """The client itself asked for the usage event."""
    has_running_usage: bool = False
    """The client asked for usage on every event: counts are exact as they come."""


class Update(msgspec.Struct, frozen=True, gc=False):
    """What one stream event, or one whole reply, says.

    `tokens` is what this event alone carries where the event says so (one per
    TGI event, the length of `token_ids`), else None: then the count comes from
    `usage`, which is cumulative. An error inside a 200 is an error.
    """

    carries_token: bool = False
    is_visible: bool = False
    """It has text a person would see (not a reasoning channel, not empty)."""
    tokens: int | None = None
    usage: Usage | None = None
    phases: PhaseSeconds | None = None
    finish_reason: str | None = None
    error: str | None = None
    is_usage_only: bool = False
    is_end: bool = False
    text: str = ""
    has_own_usage: bool = False
    """`usage` is of one sequence of the request; the request's is their sum."""


class Dialect(Protocol):
    """One wire dialect, stateless; see `ENGINES` for those known."""

    @property
    def name(self) -> str:
        """The dialect's name, as in `--engine`."""

    @property
    def requires_end(self) -> bool:
        """A stream without its `is_end` event was cut short, whatever HTTP says."""

    def read_request(self, method: str, path: str, body: bytes) -> RequestFacts | None:
        """Facts of a metered request; None for any other route.

        A metered route with a body that cannot be read still returns facts
        (the engine will refuse it, and the refusal is metered as an error).
        """

    def with_usage(self, body: bytes) -> bytes:
        """The same request, asking for usage at the end of the stream."""

    def read_event(self, data: bytes) -> Update:
        """What one SSE event's data says; never raises on strange JSON."""

    def read_reply(
        self, status: int, headers: Mapping[str, str], body: bytes
    ) -> Update:
        """What a whole (non-stream) reply says; `headers` has lower-case keys."""
