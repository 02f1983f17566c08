"""zeusd: GPU counters of another host (or of this one, without NVML's rights).

The Zeus daemon answers over TCP or a unix socket with millijoules by GPU index
and milliwatts stamped by its own clock, whose offset from ours is estimated.
Wire: https://ml.energy/zeus/zeusd/ (`/gpu/get_cumulative_energy`,
`/gpu/get_power`, `/time`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from proxy.errors import ConfigError, SensorError
from proxy.power.argument import base_url, parse_argument
from proxy.power.blanks import figure
from proxy.power.energy_source import EnergySource, SourceOptions
from proxy.power.http import HttpSensor, RemoteClock
from proxy.wire.facts import Reading

EXAMPLE = "zeusd=http://host:4938 or zeusd=/run/zeusd/zeusd.sock"
STAMP_SECONDS = 0.001
"""zeusd's stamps are whole milliseconds."""
CLOCK_EXCHANGES = 8


class ZeusdSource:
    """GPUs as a Zeus daemon shows them, all or those chosen by index."""

    name = "zeusd"
    boundary = "gpu"
    follows_updates = True
    is_simulated = False

    def __init__(
        self,
        url: str,
        *,
        unix_socket: str | None = None,
        token: str | None = None,
        gpus: Sequence[str] = (),
    ) -> None:
        self._url = url
        self._query = f"?gpu_ids={','.join(gpus)}" if gpus else ""
        self._clock = RemoteClock(time.time() - time.monotonic())
        self._http = HttpSensor(
            self.name,
            unix_socket=unix_socket,
            headers={"authorization": f"Bearer {token}"} if token else None,
            expected="a zeusd with the API group gpu-read (and a token if it asks)",
        )
        try:
            for _ in range(CLOCK_EXCHANGES):
                self._ask("/time")
            self._has_counter = self._probe_counter()
        except SensorError:
            self.close()
            raise

    @property
    def clock_offset_seconds(self) -> float | None:
        """zeusd's clock minus ours, from the stamps of all its answers."""
        return self._clock.offset_seconds

    def read(self) -> Sequence[Reading]:
        """Counters, then power. Raises SensorError when either does not answer."""
        joules: dict[str, float] = {}
        at: float | None = None
        if self._has_counter:
            found, at = self._ask("/gpu/get_cumulative_energy")
            joules = self._figures(found, "energy_mj")
        found, stamp = self._ask("/gpu/get_power")
        watts = self._figures(found.get("power_mw"), None)
        # The counter has no stamp of its own: it was read in the middle of its call.
        at = stamp if at is None else at
        devices = sorted(joules.keys() | watts.keys())
        if not devices:
            raise SensorError(f"zeusd at {self._url} shows no GPU")
        return [Reading(d, joules.get(d), watts.get(d), at) for d in devices]

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _probe_counter(self) -> bool:
        """Boards before Volta have power only, and zeusd answers with an error."""
        self._ask("/gpu/get_power")
        try:
            self._ask("/gpu/get_cumulative_energy")
        except SensorError:
            return False
        return True

    def _ask(self, path: str) -> tuple[dict[str, Any], float]:
        """The answer, and when it was measured on our monotonic clock."""
        query = self._query if path.startswith("/gpu/") else ""
        found, reply = self._http.get_json(f"{self._url}{path}{query}")
        stamp = found.get("timestamp_ms")
        milliseconds = figure(stamp)
        if milliseconds is None or not math.isfinite(milliseconds):
            return found, reply.at_seconds
        unix_seconds = milliseconds / 1000
        self._clock.observe(
            reply.begin_seconds, reply.end_seconds, unix_seconds, STAMP_SECONDS
        )
        return found, self._clock.local_seconds(unix_seconds)

    def _figures(self, found: object, key: str | None) -> dict[str, float]:
        """Units by device, from thousandths: `{"0": 5}` or `{"0": {key: 5}}`."""
        if not isinstance(found, dict):
            raise SensorError(f"zeusd at {self._url} answered without figures by GPU")
        figures: dict[str, float] = {}
        for index, value in found.items():
            given = value.get(key) if key and isinstance(value, dict) else value
            if isinstance(given, bool) or not isinstance(given, int | float):
                raise SensorError(
                    f"zeusd at {self._url}: GPU {index} has {value!r}, "
                    "expected a number of millijoules or milliwatts"
                )
            if (number := figure(given)) is not None:
                figures[f"gpu{index}"] = number / 1000
        return figures


def open_zeusd(options: SourceOptions) -> EnergySource:
    """Raises ConfigError without an address, SensorError without an answer."""
    argument = parse_argument("zeusd", options.argument, ("token-env",))
    if any(not gpu.isdigit() for gpu in options.gpus):
        raise ConfigError("--power zeusd knows GPUs by index only; give --gpus 0,1")
    is_socket = argument.address.startswith("/")
    url = "http://zeusd" if is_socket else argument.address
    return ZeusdSource(
        base_url("zeusd", url, EXAMPLE),
        unix_socket=argument.address if is_socket else None,
        token=argument.secret("token-env"),
        gpus=options.gpus,
    )
