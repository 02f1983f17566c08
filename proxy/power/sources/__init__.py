"""The power sources: `SOURCES` maps `--power` names to factories."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from proxy.errors import ConfigError
from proxy.power.energy_source import EnergySource, SourceOptions
from proxy.power.sources.amdsmi import open_amdsmi
from proxy.power.sources.csv import open_csv
from proxy.power.sources.dcgm import open_dcgm
from proxy.power.sources.ipmi import open_ipmi
from proxy.power.sources.none import open_none
from proxy.power.sources.nvml import open_nvml
from proxy.power.sources.prometheus import open_prometheus
from proxy.power.sources.rapl import open_rapl
from proxy.power.sources.redfish import open_redfish
from proxy.power.sources.zeusd import open_zeusd

SOURCES: dict[str, Callable[[SourceOptions], EnergySource]] = {
    "nvml": open_nvml,
    "amdsmi": open_amdsmi,
    "dcgm": open_dcgm,
    "zeusd": open_zeusd,
    "rapl": open_rapl,
    "redfish": open_redfish,
    "ipmi": open_ipmi,
    "prometheus": open_prometheus,
    "csv": open_csv,
    "none": open_none,
}


def split_sources(text: str) -> list[str]:
    """`nvml,rapl,redfish=URL` one by one; commas inside an address stay.

    A comma separates only where the name of a source follows it, alone or
    with `=`: selectors such as `{gpu="0",host="a"}` hold commas of their own.
    """
    names = "|".join(SOURCES)
    parts = re.split(rf",\s*(?=(?:{names})(?:=|,|\s*$))", text)
    return [part.strip() for part in parts if part.strip()]


def source_opener(
    text: str, gpus: tuple[str, ...], *, shows_outside: bool = False
) -> Callable[[], EnergySource]:
    """How to open what `--power NAME` or `NAME=ADDRESS` means; may fail when called.

    With `shows_outside` it also reads the GPUs that `gpus` leaves out.
    Raises ConfigError for an unknown name.
    """
    name, _, argument = text.partition("=")
    if name not in SOURCES:
        raise ConfigError(
            f"unknown power source {name!r}; known: {', '.join(sorted(SOURCES))}"
        )
    options = SourceOptions(argument or None, gpus, shows_outside)
    return partial(SOURCES[name], options)
