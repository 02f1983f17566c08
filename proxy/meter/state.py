"""What the metrics and the admin API show of a boundary, taken at one moment."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from proxy.meter.activity.speculation import Speculation
from proxy.meter.attribution.fit import CalibrationState
from proxy.meter.attribution.interval import GRADE_REASONS, GRADES
from proxy.meter.ledger import Books, RequestEnergy
from proxy.wire.facts import Labels

NEWEST_RECORDS = 512
"""So many make the mean half width that is shown."""


@dataclass(frozen=True, slots=True)
class MeterState:
    """One consistent picture."""

    books: Books
    idle_watts: float | None
    idle_source: str
    """`given`, `measured` or `unknown`."""
    rest_watts: float | None
    """Idle long after work, where a board draws less than right after it."""
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
    """Settled requests by quality, the older name of `timing`."""
    timing_requests: Mapping[str, int] = field(default_factory=dict)
    """Settled requests by timing."""
    grade_requests: Mapping[str, int] = field(default_factory=dict)
    """Settled requests by grade."""
    doubted_requests: Mapping[str, int] = field(default_factory=dict)
    """Settled requests that are not `good`, by each of `GRADE_REASONS`."""
    half_width_fraction: float | None = None
    """Mean half width of the newest records' intervals by their joules."""
    unsettled_requests: int = 0
    """In flight, or finished without a record yet."""
    late_reads_total: int = 0
    """Reads with tokens that came for time already settled; counted as later."""
    counter_resets_total: int = 0
    devices_joined_total: int = 0
    """Devices that came after the first reading."""
    devices_left_total: int = 0
    external_requests: int | None = None
    """Running in the engine, by its last scrape, and not the proxy's; None: no scrape
    that is new enough."""
    speculation: Speculation | None = None
    """Tokens drafted and accepted; None where the engine tells of none."""
    calibration: CalibrationState | None = None
    """The constants of the policy `calibrated`, and whether they are in use."""


class RecordCounts:
    """Settled requests, by what is known of their energy."""

    def __init__(self) -> None:
        self.timing = {"timed": 0, "estimated": 0, "unknown": 0}
        self.grade = dict.fromkeys(GRADES, 0)
        self.doubted = dict.fromkeys(GRADE_REASONS, 0)
        self._half_widths: deque[float] = deque(maxlen=NEWEST_RECORDS)

    def add(self, energy: RequestEnergy) -> None:
        """A request is settled."""
        self.timing[energy.timing] += 1
        self.grade[energy.grade] += 1
        for reason in energy.grade_reasons:
            self.doubted[reason] += 1
        if energy.energy_joules and energy.high_joules is not None:
            assert energy.low_joules is not None
            width = energy.high_joules - energy.low_joules
            self._half_widths.append(width / 2 / energy.energy_joules)

    @property
    def half_width_fraction(self) -> float | None:
        """Mean of the newest records' intervals, by their joules."""
        if not self._half_widths:
            return None
        return sum(self._half_widths) / len(self._half_widths)
