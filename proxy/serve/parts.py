"""The processes of a proxy with several relays: what each is told when it starts.

A process reads its job from standard input, which is its lease: when that closes it
stops as at SIGTERM, so none outlives the process that watches over them.
"""

from __future__ import annotations

from dataclasses import dataclass

from proxy.serve.config import ServeConfig
from proxy.serve.orders import Use


@dataclass(frozen=True, slots=True)
class MeterPart:
    """The process that meters, stores and answers the admin API."""

    path: str
    """Socket on which it awaits the relays."""
    port: int
    """On which the relays listen."""
    restarts: int
    """Times that it was started again."""
    orders: int
    """Handle of the socket on which it is told what changes."""
    use: Use
    """The upstreams that it starts with."""


@dataclass(frozen=True, slots=True)
class RelayPart:
    """A process that relays, and tells the meter."""

    path: str
    """Socket of the meter's process."""
    port: int
    """On which it listens beside the others."""
    number: int
    """From 1."""
    starts: int
    """Processes that had this number, itself included."""
    orders: int
    """Handle of the socket on which it is told what changes."""
    use: Use
    """The upstreams that it starts with."""


@dataclass(frozen=True, slots=True)
class Job:
    """What one process has to do."""

    config: ServeConfig
    part: MeterPart | RelayPart


STOP_SECONDS = 30.0
"""After the time that requests have: for the last records to be settled and stored."""
HUNG_SECONDS = 300.0
"""The same where nobody is left who would kill one that hangs."""
