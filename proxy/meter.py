"""Joins timeline, energy, attribution and ledger: events in, settled records out.

Pure: time enters by argument. The relay calls `opened`, `received`, `closed`;
the sampler calls `sampled`, `sensor_gap`; a beat calls `settle`. All calls come
from one thread (the event loop's); instants are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from proxy.engines.dialect import RequestFacts, Update
from proxy.ledger import Books, RequestRecord
from proxy.power.reading import Reading


@dataclass(frozen=True, slots=True)
class Labels:
    """Bounded labels of a request, for books by class and for metrics."""

    model: str = "unknown"
    kind: str = "other"
    tenant: str = "none"


@dataclass(frozen=True, slots=True)
class MeterState:
    """Everything the metrics and the admin API show, taken at one moment."""

    books: Books
    idle_watts: float | None
    idle_source: str
    """`given`, `measured` or `unknown`."""
    open_requests: int
    unsettled_seconds: float
    """How far settlement lags behind the newest reading."""
    device_joules: Mapping[str, float]
    """Measured since start, by device."""
    device_watts: Mapping[str, float]
    """Mean power over the last interval, by device."""
    counter_period_seconds: float | None
    counter_power_ratio: float | None
    samples_total: int
    gaps_total: int
    policy: str


class MeterProtocol(Protocol):
    """What the edges may ask of the meter."""

    def opened(
        self,
        key: int,
        request_id: str,
        at_seconds: float,
        facts: RequestFacts,
        labels: Labels,
    ) -> None:
        """A metered request was forwarded upstream."""

    def received(self, key: int, at_seconds: float, updates: Sequence[Update]) -> None:
        """Events of one read (one stamp) of the request's reply, in order."""

    def closed(
        self,
        key: int,
        at_seconds: float,
        outcome: str,
        *,
        status: int | None = None,
        error: str | None = None,
    ) -> None:
        """No more bytes will come; what it consumed stays its own."""

    def sampled(self, at_seconds: float, readings: Sequence[Reading]) -> None:
        """All devices of the group, read at one moment."""

    def sensor_gap(self, at_seconds: float, reason: str) -> None:
        """A read failed: energy until the next reading is unattributed or unknown."""

    def settle(self, now_seconds: float) -> list[RequestRecord]:
        """Close every interval whose facts are known; the records now final."""

    def books_at(self, at_seconds: float | None = None) -> Books:
        """Accounts up to an instant (None: all that is settled); no side effects."""

    def state(self) -> MeterState:
        """One consistent picture; no side effects."""
