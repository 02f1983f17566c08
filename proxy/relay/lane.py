"""The way to one upstream: where it is, what it speaks, and who meters it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from proxy.engines.dialect import Engine
from proxy.meter import MeterProtocol
from proxy.relay.config import RelayConfig, Upstream, parse_upstream
from proxy.relay.counters import RelayCounters
from proxy.relay.energy_note import Provenance
from proxy.relay.pool import UpstreamPool
from proxy.relay.tap import MeterGuard


@dataclass(slots=True, eq=False)
class Lane:
    """One upstream as exchanges see it; made by `open_lane`."""

    name: str
    upstream: Upstream
    engine: Engine
    guard: MeterGuard
    counters: RelayCounters
    pool: UpstreamPool
    provenance: Callable[[], Provenance]
    """Which joules its meter counts, now."""


def open_lane(
    name: str,
    config: RelayConfig,
    meter: MeterProtocol,
    engine: Engine,
    clock: Callable[[], float],
    *,
    provenance: Callable[[], Provenance] = Provenance,
) -> Lane:
    """The lane to `config.upstream_url`. Raises ConfigError for a bad URL."""
    upstream = parse_upstream(config.upstream_url)
    counters = RelayCounters()
    return Lane(
        name=name,
        upstream=upstream,
        engine=engine,
        guard=MeterGuard(meter, counters),
        counters=counters,
        pool=UpstreamPool(config, upstream, counters, clock),
        provenance=provenance,
    )
