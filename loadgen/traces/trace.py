"""Sessions of turns: a trace in memory, with the fields of `loadtrace/1`.

Times are seconds from the start of the trace. A turn carries text, or lengths
only: then its prompt is made at replay time (`loadgen.plan.prompts`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Turn:
    """One request of a session."""

    kind: str = "other"
    at_seconds: float | None = None
    """Arrival in the trace; None in a trace without timestamps."""
    think_seconds: float = 0.0
    """Pause after the previous turn's end; turns after the first."""
    input_tokens: int | None = None
    """Whole prompt, or only the new part when `history` is "append"."""
    output_tokens: int | None = None
    prompt: str | None = None
    """The user's text of this turn, if the trace has text."""
    messages: tuple[Mapping[str, Any], ...] | None = None
    """A whole chat instead of one prompt: roles, contents (text or parts), calls."""
    hash_ids: tuple[int, ...] = ()
    """Prefix blocks: equal leading ids mean an equal leading prompt."""
    history: str = "total"
    """"append": the client sends earlier turns and the real replies before it."""
    request_id: str | None = None
    tenant: str | None = None
    slo: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Session:
    """Turns that follow each other; most traces have one turn per session."""

    session_id: str
    turns: tuple[Turn, ...]


@dataclass(slots=True)
class TraceInfo:
    """Facts known of a trace before it is read, and counts kept while it is."""

    name: str
    format: str
    path: str = ""
    """The file, for messages."""
    kind: str = "other"
    """Kind of the rows that state none themselves."""
    header: Mapping[str, Any] = field(default_factory=dict)
    """The `loadtrace/1` header, from the file or its sidecar."""
    hash_block_size: int | None = None
    synthetic: bool = False
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    """Rows left out, by stated reason; rows read = kept + dropped."""
    shortened: dict[str, int] = field(default_factory=dict)
    """Rows kept in part (a conversation up to a turn that does not fit)."""
    warnings: list[str] = field(default_factory=list)
