"""The six messages of which all metering is made.

The relay, the sensors and the scrape of the engine's gauges tell a meter what they
saw in these and in nothing else. Instants are monotonic seconds, energy is in joules,
counts are tokens. Each is tagged with its name, so a list of `Event` can be written
by msgspec (JSON, MessagePack) and read back; a meter that is fed it again gives the
same records to the last bit.
"""

from __future__ import annotations

import msgspec

from proxy.wire.facts import (
    EngineGauges,
    HardwareState,
    Labels,
    Reading,
    RequestFacts,
    Update,
)


class RequestOpened(msgspec.Struct, frozen=True, tag=True, gc=False):
    """A request was forwarded upstream.

    Of one whose facts have the route `unmetered` only the time is booked, until it is
    closed; it gets no record.
    """

    key: int
    """Its identity from here on: rises with every request of one engine."""
    at_seconds: float
    request_id: str
    facts: RequestFacts
    labels: Labels = Labels()


class TokensReceived(msgspec.Struct, frozen=True, tag=True, gc=False):
    """The events of one read of a request's reply, in order; they share its stamp."""

    key: int
    at_seconds: float
    updates: tuple[Update, ...]


class RequestClosed(msgspec.Struct, frozen=True, tag=True, gc=False):
    """No more bytes of a reply will come; what the request consumed stays its own."""

    key: int
    at_seconds: float
    outcome: str
    """`ok`, `error`, `upstream_error`, `aborted` (client left) or `timeout`."""
    status: int | None = None
    error: str | None = None
    labels: Labels | None = None
    """Those of the request, where they were provisional when it was opened."""
    was_computed: bool = False
    """It failed by its status, but after work; else such a request was refused."""
    is_partly_unseen: bool = False
    """Some of its reply never reached the meter: what it consumed is unknown."""


class PowerSampled(msgspec.Struct, frozen=True, tag=True, gc=False):
    """All devices of one source, read at one moment, or why that failed."""

    boundary: str
    """What is inside its joules: `gpu`, `host`, `node`."""
    at_seconds: float
    readings: tuple[Reading, ...] = ()
    gap_reason: str | None = None
    """Why the read failed: from the last reading to the next one nothing is known.
    None where it did not."""


class EngineObserved(msgspec.Struct, frozen=True, tag=True, gc=False):
    """The engine's own count of who runs and waits, scraped at one moment."""

    at_seconds: float
    gauges: EngineGauges
    spread_seconds: float = 0.0
    """The engine wrote it down within so much of `at_seconds`."""


class HardwareObserved(msgspec.Struct, frozen=True, tag=True, gc=False):
    """How the boards of one source work, asked about once a second beside its power."""

    boundary: str
    at_seconds: float
    states: tuple[HardwareState, ...] = ()
    """Empty where the source tells nothing, or tells nothing any more."""

    @property
    def shared_because(self) -> str | None:
        """Why the boards' joules are not the engine's alone; None: nothing says so."""
        shared = [
            f"{state.other_processes} on {state.device}"
            for state in self.states
            if state.other_processes
        ]
        return f"processes beside the engine: {', '.join(shared)}" if shared else None


Event = (
    RequestOpened
    | TokensReceived
    | RequestClosed
    | PowerSampled
    | EngineObserved
    | HardwareObserved
)
