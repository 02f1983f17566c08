"""The interface of a wire dialect.

A dialect is pure: bytes in, facts out. It decides what is metered, how many
tokens an event carries, and whether a reply that says 200 is an error. The
relay uses it on copies; `loadgen` uses it after the last byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from proxy.wire.facts import RequestFacts, Update


class ReplyReader(Protocol):
    """Who reads replies, stateless: a dialect, or one API of it."""

    @property
    def requires_end(self) -> bool:
        """A stream without its `is_end` event was cut short, whatever HTTP says."""

    def read_event(self, data: bytes) -> Update:
        """The facts in one SSE event's data; never raises on strange JSON."""

    def read_reply(
        self, status: int, headers: Mapping[str, str], body: bytes
    ) -> Update:
        """The facts in an unstreamed reply; `headers` has lower-case keys."""


class Dialect(ReplyReader, Protocol):
    """One wire dialect, stateless; see `DIALECTS` for those known."""

    @property
    def name(self) -> str:
        """The dialect's name, as in `--engine`."""

    def read_request(self, method: str, path: str, body: bytes) -> RequestFacts | None:
        """Facts of a metered request; None for any other route.

        A metered route with a body that cannot be read still returns facts
        (the engine will refuse it, and the refusal is metered as an error).
        """

    def with_usage(self, body: bytes) -> bytes:
        """The same request, asking for usage at the end of the stream."""
