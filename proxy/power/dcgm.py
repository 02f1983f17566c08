"""dcgm-exporter's text over HTTP: GPU watts and millijoules of a local or remote host.

dcgm-exporter refreshes every 30 s unless `DCGM_EXPORTER_INTERVAL` says
otherwise: attribution needs 100 ms or less. The simulator speaks the same
text and adds `servewatt_simulated 1`, which marks everything after it.
"""

from __future__ import annotations

from collections.abc import Sequence

import httpx
from prometheus_client.parser import text_string_to_metric_families

from proxy.errors import ConfigError, SensorError
from proxy.power.reading import EnergySource, Reading, SourceOptions

ENERGY = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
POWER = "DCGM_FI_DEV_POWER_USAGE"
SIMULATED = "servewatt_simulated"
READ_TIMEOUT_SECONDS = 2.0


class DcgmSource:
    """GPUs as a dcgm-exporter shows them, all or those chosen by index or UUID."""

    name = "dcgm"
    boundary = "gpu"

    def __init__(self, url: str, gpus: Sequence[str] = ()) -> None:
        self._url = url
        self._gpus = frozenset(gpus)
        self._client = httpx.Client(timeout=READ_TIMEOUT_SECONDS, trust_env=False)
        self.is_simulated = False

    def read(self) -> Sequence[Reading]:
        """One scrape. Raises SensorError with the address and what was wrong."""
        try:
            reply = self._client.get(self._url)
            reply.raise_for_status()
        except httpx.HTTPStatusError as error:
            raise SensorError(
                f"dcgm at {self._url} answered {error.response.status_code}, "
                "expected the text of a dcgm-exporter (usually port 9400, /metrics)"
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise SensorError(f"dcgm at {self._url}: {reason}") from None
        readings, simulated = parse_dcgm(reply.text, self._gpus)
        if not readings:
            wanted = f" for GPU {', '.join(sorted(self._gpus))}" if self._gpus else ""
            raise SensorError(
                f"dcgm at {self._url} shows neither {POWER} nor {ENERGY}{wanted}"
            )
        self.is_simulated = simulated
        return readings

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def parse_dcgm(text: str, gpus: frozenset[str]) -> tuple[list[Reading], bool]:
    """Readings by device, and whether a simulator made them.

    `gpus` are indices or UUIDs; empty means all. Raises SensorError on text
    that is not in Prometheus' format.
    """
    # A real exporter shows dozens of families per GPU: parse the two we need.
    wanted = "\n".join(
        line
        for line in text.splitlines()
        if line.startswith((ENERGY, POWER, SIMULATED))
    )
    joules: dict[str, float] = {}
    watts: dict[str, float] = {}
    simulated = False
    try:
        for family in text_string_to_metric_families(wanted + "\n"):
            for sample in family.samples:
                if sample.name == SIMULATED:
                    simulated = sample.value == 1
                    continue
                if gpus and not gpus & {
                    sample.labels.get("gpu", ""),
                    sample.labels.get("UUID", ""),
                }:
                    continue
                device = f"gpu{sample.labels.get('gpu', '?')}"
                if sample.name == ENERGY:
                    joules[device] = sample.value / 1000  # DCGM counts millijoules
                elif sample.name == POWER:
                    watts[device] = sample.value
    except ValueError as error:
        raise SensorError(f"not Prometheus text: {error}") from None
    devices = sorted(joules.keys() | watts.keys())
    return [Reading(d, joules.get(d), watts.get(d)) for d in devices], simulated


def open_dcgm(options: SourceOptions) -> EnergySource:
    """Raises ConfigError without an address."""
    if not options.argument:
        raise ConfigError(
            "--power dcgm needs the exporter's address: dcgm=http://host:9400/metrics"
        )
    return DcgmSource(options.argument, options.gpus)
