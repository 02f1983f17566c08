"""One upstream: its address, dialect, meter, connections and state."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from proxy.engines.dialect import Dialect
from proxy.relay.config import RelayConfig, UpstreamAddress, parse_upstream
from proxy.relay.counters import RelayCounters
from proxy.relay.energy_trailer import Provenance
from proxy.relay.tap import MeterGuard, RequestMeter
from proxy.relay.upstream.connection import UpstreamPool

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Upstream:
    """One upstream as exchanges see it; made by `open_upstream`."""

    name: str
    address: UpstreamAddress
    dialect: Dialect
    guard: MeterGuard
    counters: RelayCounters
    pool: UpstreamPool
    provenance: Callable[[], Provenance]
    """The boundary of the joules that its meter counts, now."""
    clock: Callable[[], float]
    models: tuple[str, ...] | None = None
    """Those it serves; None while that is not known."""
    cards: Mapping[str, msgspec.Raw] = field(default_factory=dict)
    """The engine's own descriptions of its models, by name."""
    takes_stream_options: bool = True
    """Until it refuses a request for them: then it is asked for usage no more."""
    in_flight: int = 0
    is_draining: bool = False
    is_up: bool = True
    """Until it cannot be reached: the first request finds out."""
    down_reason: str | None = None
    since_seconds: float = 0.0
    """When it went up, down, or into draining."""

    def mark_up(self) -> None:
        """It answered."""
        if not self.is_up:
            self.is_up, self.down_reason = True, None
            self.since_seconds = self.clock()

    def mark_down(self, reason: str) -> None:
        """It cannot be reached: nothing new goes there until it answers."""
        if self.is_up:
            self.is_up = False
            self.since_seconds = self.clock()
        self.down_reason = reason

    def refuse_stream_options(self) -> None:
        """It takes requests only without: their usage is not asked for any more."""
        if self.takes_stream_options:
            self.takes_stream_options = False
            log.warning(
                "upstream %s refuses stream_options: its streams are not asked for "
                "usage, and their token counts are unknown",
                self.name,
            )

    def drain(self, is_draining: bool) -> None:
        """Give it nothing new, or again; what it has goes on."""
        if is_draining != self.is_draining:
            self.is_draining = is_draining
            self.since_seconds = self.clock()


def open_upstream(
    name: str,
    config: RelayConfig,
    meter: RequestMeter,
    dialect: Dialect,
    clock: Callable[[], float],
    *,
    provenance: Callable[[], Provenance] = Provenance,
) -> Upstream:
    """The upstream at `config.upstream_url`. Raises ConfigError for a bad URL."""
    address = parse_upstream(config.upstream_url)
    counters = RelayCounters()
    return Upstream(
        name=name,
        address=address,
        dialect=dialect,
        guard=MeterGuard(meter, counters),
        counters=counters,
        pool=UpstreamPool(config, address, counters, clock),
        provenance=provenance,
        clock=clock,
        since_seconds=clock(),
    )
