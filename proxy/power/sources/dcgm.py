"""dcgm-exporter's text over HTTP: GPU watts and millijoules of a local or remote host.

dcgm-exporter refreshes every 30 s unless `DCGM_EXPORTER_INTERVAL` says
otherwise: attribution needs 100 ms or less. The simulator speaks the same
text and adds `servewatt_simulated 1`, which marks everything after it.
"""

from __future__ import annotations

from collections.abc import Sequence

from proxy.errors import ConfigError, SensorError
from proxy.power.argument import base_url, parse_argument
from proxy.power.energy_source import EnergySource, SourceOptions
from proxy.power.http import HttpSensor, read_samples
from proxy.wire.facts import Reading

ENERGY = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
POWER = "DCGM_FI_DEV_POWER_USAGE"
EXAMPLE = "dcgm=http://host:9400/metrics"


class DcgmSource:
    """GPUs as a dcgm-exporter shows them, all or those chosen by index or UUID."""

    name = "dcgm"
    boundary = "gpu"

    def __init__(
        self, url: str, gpus: Sequence[str] = (), *, shows_outside: bool = False
    ) -> None:
        self._url = url
        self._shows_outside = shows_outside
        self._gpus = frozenset(gpus)
        self._http = HttpSensor(
            self.name,
            expected="the text of a dcgm-exporter (usually port 9400, /metrics)",
        )
        self.is_simulated = False

    def read(self) -> Sequence[Reading]:
        """One scrape. Raises SensorError with the address and what was wrong."""
        reply = self._http.get(self._url)
        readings, self.is_simulated = parse_dcgm(reply.text, self._gpus)
        if all(reading.is_outside for reading in readings):
            wanted = f" for GPU {', '.join(sorted(self._gpus))}" if self._gpus else ""
            raise SensorError(
                f"dcgm at {self._url} shows neither {POWER} nor {ENERGY}{wanted}"
            )
        if self._shows_outside:
            return readings
        return [reading for reading in readings if not reading.is_outside]

    def close(self) -> None:
        """Close the connection."""
        self._http.close()


def parse_dcgm(text: str, gpus: frozenset[str]) -> tuple[list[Reading], bool]:
    """Readings by device, and whether a simulator made them.

    `gpus` are indices or UUIDs, all others are outside; empty means all.
    Raises SensorError on text that is not in Prometheus' format.
    """
    samples, is_simulated = read_samples(text, (ENERGY, POWER))
    joules: dict[str, float] = {}
    watts: dict[str, float] = {}
    outside: set[str] = set()
    for sample in samples:
        index = sample.labels.get("gpu", "?")
        if gpus and not gpus & {index, sample.labels.get("UUID", "")}:
            outside.add(f"gpu{index}")
        if sample.name == ENERGY:
            joules[f"gpu{index}"] = sample.value / 1000  # DCGM counts millijoules
        else:
            watts[f"gpu{index}"] = sample.value
    devices = sorted(joules.keys() | watts.keys())
    readings = [
        Reading(device, joules.get(device), watts.get(device), None, device in outside)
        for device in devices
    ]
    return readings, is_simulated


def open_dcgm(options: SourceOptions) -> EnergySource:
    """Raises ConfigError without an address."""
    argument = parse_argument("dcgm", options.argument)
    if not argument.address:
        raise ConfigError(f"--power dcgm needs the exporter's address: {EXAMPLE}")
    url = base_url("dcgm", argument.address, EXAMPLE)
    return DcgmSource(url, options.gpus, shows_outside=options.shows_outside)
