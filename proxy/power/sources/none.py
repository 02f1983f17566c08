"""No sensor at all: requests are relayed and timed, their energy is unknown."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.errors import ConfigError
from proxy.power.energy_source import EnergySource, SourceOptions
from proxy.wire.facts import Reading


class NoSource:
    """Reads nothing, so every joule is null."""

    name = "none"
    boundary = "none"
    is_simulated = False

    def read(self) -> Sequence[Reading]:
        """No devices."""
        return ()

    def close(self) -> None:
        """Nothing to release."""


def open_none(options: SourceOptions) -> EnergySource:
    """Raises ConfigError when given something to read."""
    if options.argument is not None or options.gpus:
        raise ConfigError("--power none takes neither an address nor --gpus")
    return NoSource()
