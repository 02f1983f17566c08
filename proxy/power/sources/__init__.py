"""The power sources: `SOURCES` maps `--power` names to factories."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from importlib import import_module

from proxy.errors import ConfigError
from proxy.power.energy_source import EnergySource, SourceOptions

NAMES = (
    "nvml", "amdsmi", "dcgm", "zeusd", "rapl", "redfish", "ipmi", "prometheus", "csv",
    "none",
)  # fmt: skip


def _opener(name: str) -> Callable[[SourceOptions], EnergySource]:
    """`open_NAME` of the module NAME, which brings its library in when it is opened."""

    def open_source(options: SourceOptions) -> EnergySource:
        module = import_module(f"proxy.power.sources.{name}")
        source: EnergySource = getattr(module, f"open_{name}")(options)
        return source

    return open_source


SOURCES = {name: _opener(name) for name in NAMES}
"""A module in this folder each; in the order shown."""


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
