"""RAPL: the processor's own microjoule counters, packages and their memory.

Linux shows them under /sys/class/powercap, for AMD under the same `intel-rapl`
names. Package zones contain their core and uncore subzones, so only packages
and `dram` (outside the package) are read. `psys`, the platform as its maker
wired it, overlaps both by an unknown amount and is left out; so are the
`intel-rapl-mmio` zones, which show a package a second time. A name that appears
twice (a mirror, a link) is one zone, counted once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from proxy.errors import ConfigError, SensorError
from proxy.power.argument import parse_argument
from proxy.power.energy_source import EnergySource, SourceOptions
from proxy.wire.facts import Reading

log = logging.getLogger("servewatt.power")

MAX_DIGITS = 20
"""64 bits."""

SYSFS = Path("/sys/class/powercap")


@dataclass(slots=True)
class _Zone:
    """One counter; `wrapped_microjoules` is the energy of its wraparounds."""

    device: str
    path: Path
    range_microjoules: int
    last_microjoules: int = 0
    wrapped_microjoules: int = 0

    def joules(self) -> float:
        """Energy since the counter's start, wraparounds included."""
        value = _number(self.path / "energy_uj")
        missed = value + self.range_microjoules - self.last_microjoules
        # A wrap is noticed within a few joules of it. A fall by more is another
        # start of the counter, which the curve must see as a fall.
        if value < self.last_microjoules and missed < self.range_microjoules / 2:
            self.wrapped_microjoules += self.range_microjoules
        self.last_microjoules = value
        return (self.wrapped_microjoules + value) / 1_000_000


class RaplSource:
    """Packages and memory of this host."""

    name = "rapl"
    boundary = "host"
    is_simulated = False

    def __init__(self, sysfs: Path = SYSFS) -> None:
        self._zones = _find_zones(sysfs)

    def read(self) -> Sequence[Reading]:
        """Every zone. Raises SensorError when one cannot be read."""
        return [Reading(zone.device, zone.joules()) for zone in self._zones]

    def close(self) -> None:
        """Nothing is kept open."""


def _find_zones(sysfs: Path) -> list[_Zone]:
    zones: dict[str, _Zone] = {}
    for path in sorted(sysfs.glob("intel-rapl:*"), key=_order):
        name = _text(path / "name")
        if not name.startswith(("package", "dram")):
            continue
        if name == "dram" and path.name.count(":") > 1:
            # `intel-rapl:0:1` is the memory of `intel-rapl:0`
            parent = path.with_name(path.name.rpartition(":")[0])
            name = f"{_text(parent / 'name')}-dram"
        if name in zones:
            log.warning(
                "rapl: %s shows %s a second time, after %s: counted once",
                path, name, zones[name].path,
            )  # fmt: skip
            continue
        zones[name] = _Zone(name, path, _number(path / "max_energy_range_uj"))
    if not zones:
        raise SensorError(
            f"rapl: no package zone under {sysfs}; load the kernel module "
            "intel_rapl_msr (virtual machines and many containers have none)"
        )
    return list(zones.values())


def _order(path: Path) -> list[int | str]:
    """Packages by number, each before its parts: 10 comes after 2."""
    return [int(p) if p.isdigit() else p for p in path.name.split(":")]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except PermissionError:
        raise SensorError(
            f"rapl: {path} may be read by root only; run as root, or allow it with "
            f"`sudo chmod a+r {path}` after every boot"
        ) from None
    except OSError as error:
        raise SensorError(f"rapl: {path}: {error.strerror or error}") from None


def _number(path: Path) -> int:
    text = _text(path)
    if not text.isdigit() or len(text) > MAX_DIGITS:
        raise SensorError(f"rapl: {path} holds {text[:20]!r}, expected microjoules")
    return int(text)


def open_rapl(options: SourceOptions) -> EnergySource:
    """Raises SensorError without RAPL or without the right to read it."""
    if options.gpus:
        raise ConfigError("--power rapl measures processors; --gpus is not for it")
    argument = parse_argument("rapl", options.argument)
    return RaplSource(Path(argument.address) if argument.address else SYSFS)
