"""How far a sensor's readings may be off, all alike, as its maker states it.

Rule: no figure without a source; where none is stated there is none here, which does
not mean that the sensor is exact. It is a part of every interval by itself, see
`proxy.meter.attribution.interval`.
"""

from __future__ import annotations

ACCURACY_FRACTION = {"nvml": 0.05, "dcgm": 0.05, "zeusd": 0.05}
"""Half width by reading. NVML's reference of `nvmlDeviceGetPowerUsage`: "accurate to
within +/- 5% of current power draw" (said of Fermi and Kepler, of newer boards nothing
better). DCGM and zeusd read NVML."""


def accuracy_of(source: str, *, is_simulated: bool) -> float | None:
    """As stated for a source; 0 where its joules are a model's, None: nobody states."""
    return 0.0 if is_simulated else ACCURACY_FRACTION.get(source)
