"""What the meter shows of itself: one picture for the metrics and the admin API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from proxy.meter.attribution.fit import CalibrationState
from proxy.meter.ledger.accounts import Books
from proxy.wire.facts import Labels


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
    class_joules: Mapping[Labels, tuple[float, float, float]] = field(
        default_factory=dict
    )
    """Settled prefill, decode and idle share joules, headline policy, by class."""
    class_tokens: Mapping[Labels, tuple[int, int, int]] = field(default_factory=dict)
    """Prompt, cached and output tokens of settled requests, by class."""
    policy_joules: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Settled prefill and decode joules of all requests, under every policy."""
    window_seconds: float = 0.5
    """How wide windows are made; wider than asked for where the sensor is slow."""
    quality_requests: Mapping[str, int] = field(default_factory=dict)
    """Settled requests by quality."""
    unsettled_requests: int = 0
    """In flight, or finished without a record yet."""
    late_reads_total: int = 0
    """Reads with tokens that came for time already settled; counted as later."""
    counter_resets_total: int = 0
    external_requests: int | None = None
    """Running in the engine, by its last scrape, and not the proxy's; None: no scrape
    that is new enough."""
    calibration: CalibrationState | None = None
    """The constants of the policy `calibrated`, and whether they are in use."""
