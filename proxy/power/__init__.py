"""The power sources: `SOURCES` maps `--power` names to factories."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from proxy.errors import ConfigError
from proxy.power.dcgm import open_dcgm
from proxy.power.none import open_none
from proxy.power.nvml import open_nvml
from proxy.power.reading import EnergySource, SourceOptions

SOURCES: dict[str, Callable[[SourceOptions], EnergySource]] = {
    "nvml": open_nvml,
    "dcgm": open_dcgm,
    "none": open_none,
}


def source_opener(text: str, gpus: tuple[str, ...]) -> Callable[[], EnergySource]:
    """How to open what `--power NAME` or `NAME=ADDRESS` means; may fail when called.

    Raises ConfigError for an unknown name.
    """
    name, _, argument = text.partition("=")
    if name not in SOURCES:
        raise ConfigError(
            f"unknown power source {name!r}; known: {', '.join(sorted(SOURCES))}"
        )
    return partial(SOURCES[name], SourceOptions(argument or None, gpus))
