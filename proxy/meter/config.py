"""How the meter settles: policies, idle watts, widths and waits of windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from proxy.errors import ConfigError
from proxy.meter.attribution.fit import FitRules, Sums
from proxy.meter.attribution.policies import POLICIES, Policy


@dataclass(frozen=True, slots=True)
class MeterConfig:
    """How the meter settles. Raises ConfigError for an unknown policy."""

    policy: str = "phase"
    """The headline; all of `policies` run side by side."""
    policies: Mapping[str, Policy] = field(default_factory=lambda: dict(POLICIES))
    boundaries: tuple[str, ...] = ("gpu",)
    """What is metered, one sensor each; the first is the headline."""
    idle_watts: float | None = None
    """Loaded idle of the headline; None: measured whenever nothing runs."""
    last_idle_watts: Mapping[str, float] = field(default_factory=dict)
    """By boundary, as measured just before by a process that ended; used until it is
    measured anew."""
    has_sensor: bool = True
    """False: no energy will ever be known, and records do not wait for it."""
    window_seconds: float = 0.5
    """Five updates of a 100 ms counter, some twenty steps of an 8B model: shorter
    windows charge the counter's and the stamps' jitter to requests."""
    wait_seconds: float = 10.0
    """How long a window waits for the facts of its requests."""
    fit_rules: FitRules = field(default_factory=FitRules)
    """When the constants of `calibrated` are trusted."""
    calibrations: Mapping[str, Sums] = field(default_factory=dict)
    """What earlier runs of this engine saw at the headline, by model."""
    stale_models: frozenset[str] = frozenset()
    """Models of which an earlier version saw what this one cannot use."""
    sensor_fraction: Callable[[str], float] = lambda boundary: 0.0
    """What the readings of a boundary may be off by, all alike; see `interval`."""
    engine: str = ""
    """Whose meter it is, as records say."""

    def __post_init__(self) -> None:
        if self.policy not in self.policies:
            known = ", ".join(sorted(self.policies))
            raise ConfigError(f"unknown policy {self.policy!r}; known: {known}")
