"""After how long idle a model is better unloaded, and what a wrong guess costs.

Rule: of a model in memory every idle second costs what loaded idle is above bare idle,
and to bring it back costs what loading takes above bare idle. Whoever unloads after
just as much silence as pays for one load never spends over twice what somebody would
who knew the next arrival; no fixed time does better (the ski rental problem, Karlin et
al., Algorithmica 3, 1988). Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from proxy.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Breakeven:
    """What keeping a model and what loading it costs, of all its boards together.

    Raises ConfigError for figures that cannot be.
    """

    loaded_watts: float
    """Idle with the weights resident, long after work."""
    bare_watts: float
    """Idle with no weights loaded."""
    load_joules: float
    """To load it again, above what the bare boards draw meanwhile."""
    load_seconds: float | None = None
    is_simulated: bool = False
    """Some of it comes from a model and not from a device."""

    def __post_init__(self) -> None:
        for name in ("loaded_watts", "bare_watts", "load_joules"):
            if not math.isfinite(value := getattr(self, name)):
                raise ConfigError(f"{name} is {value:g}, expected a finite number")
        if self.bare_watts < 0 or self.loaded_watts <= self.bare_watts:
            raise ConfigError(
                f"loaded idle is {self.loaded_watts:g} W and bare idle "
                f"{self.bare_watts:g} W, expected more than bare and bare from 0: a "
                "model that draws nothing is never worth unloading"
            )
        if self.load_joules <= 0:
            raise ConfigError(
                f"loading takes {self.load_joules:g} J, expected more than 0"
            )

    @property
    def model_watts(self) -> float:
        """Drawn by resident weights alone."""
        return self.loaded_watts - self.bare_watts

    @property
    def idle_seconds(self) -> float:
        """Silence that costs as much as one load: unload after it."""
        return self.load_joules / self.model_watts

    def saved_joules(self, silence_seconds: float) -> float:
        """By unloading at the break-even instead of never, in one such silence.

        Negative where work came back too soon.
        """
        beyond = silence_seconds - self.idle_seconds
        return self.model_watts * beyond - self.load_joules if beyond > 0 else 0.0


def as_text(found: Breakeven) -> str:
    """For a terminal."""
    at = found.idle_seconds
    hour = found.model_watts * 3600.0
    lines = ["SIMULATED: these joules come from a model"] if found.is_simulated else []
    lines += [
        f"loaded idle {found.loaded_watts:.1f} W, bare idle {found.bare_watts:.1f} W: "
        f"the resident model draws {found.model_watts:.1f} W, {hour / 1000:.1f} kJ/h",
        f"loading it takes {found.load_joules / 1000:.2f} kJ above bare idle"
        + (
            ""
            if found.load_seconds is None
            else f" and {found.load_seconds:.0f} s, for which the next request waits"
        ),
        f"break-even: {at:.0f} s ({at / 60:.1f} min) idle cost as much as one load",
        f"unload after {at:.0f} s idle: never over twice the least possible; an hour "
        f"of silence saves {found.saved_joules(3600.0) / 1000:.1f} kJ, one that ends "
        f"right then loses {found.load_joules / 1000:.2f} kJ",
    ]
    return "\n".join(lines)
