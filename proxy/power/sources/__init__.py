"""The power sources: `SOURCES` maps `--power` names to factories."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from importlib import import_module

from proxy.errors import ConfigError
from proxy.power.energy_source import EnergySource, SourceOptions
from proxy.power.group import open_group

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

GROUPED = ("dcgm", "zeusd", "redfish")
"""Sources of one host that may be several hosts' together."""


def split_sources(text: str) -> list[str]:
    """`nvml,rapl,redfish=URL` one by one; commas inside an address stay.

    A comma separates only where the name of a source follows it, alone or
    with `=`: selectors such as `{gpu="0",host="a"}` hold commas of their own.
    """
    names = "|".join(SOURCES)
    parts = re.split(rf",\s*(?=(?:{names})(?:=|,|\s*$))", text)
    return [part.strip() for part in parts if part.strip()]


def members_of(text: str) -> dict[str, str]:
    """`dcgm=A+B#options` host by host: `dcgm=A#options`, ... by where each is.

    A `+` separates only where another address follows it, `http://`, `https://` or
    `/`. A source that is one host's is itself, by its address.
    Raises ConfigError for an address that is named twice.
    """
    name, _, argument = text.partition("=")
    address, mark, options = argument.partition("#")
    is_group = name in GROUPED
    addresses = re.split(r"\+(?=https?://|/)", address) if is_group else [address]
    if len(addresses) > 1:
        addresses = [one.rstrip("/") for one in addresses]
    hosts = [re.sub(r"^https?://", "", one).partition("/") for one in addresses]
    short = [host or slash + path for host, slash, path in hosts]
    is_clear = len(set(short)) == len(short)
    members: dict[str, str] = {}
    for place, one in zip(short if is_clear else addresses, addresses, strict=True):
        if place in members:
            raise ConfigError(f"--power {name} names {one} twice")
        members[place] = f"{name}={one}{mark}{options}" if argument else name
    return members


def source_opener(
    text: str, gpus: tuple[str, ...], *, shows_outside: bool = False
) -> Callable[[], EnergySource]:
    """How to open what `--power NAME` or `NAME=ADDRESS` means; may fail when called.

    Several hosts, `NAME=ADDRESS+ADDRESS`, are opened as one source. With
    `shows_outside` it also reads the GPUs that `gpus` leaves out.
    Raises ConfigError for an unknown name.
    """
    name, _, argument = text.partition("=")
    if name not in SOURCES:
        raise ConfigError(
            f"unknown power source {name!r}; known: {', '.join(sorted(SOURCES))}"
        )
    members = members_of(text)
    if len(members) > 1:
        openers = {
            place: source_opener(one, gpus, shows_outside=shows_outside)
            for place, one in members.items()
        }
        return partial(open_group, openers)
    options = SourceOptions(argument or None, gpus, shows_outside)
    return partial(SOURCES[name], options)
