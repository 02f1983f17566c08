"""AMD SMI: the accumulator of Instinct and Radeon boards, through AMD's own module.

The `amdsmi` package comes with ROCm (or `pip install servewatt[amd]`). Counter
times resolution is microjoules. The accumulator is known to stand still on some
drivers (ROCm/amdsmi#38), so it is compared with power x time before it is
trusted; a board that fails has watts only, with a warning.
"""

from __future__ import annotations

import importlib
import io
import logging
import time
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from typing import Any

from proxy.errors import ConfigError, SensorError
from proxy.power.argument import visible_gpus
from proxy.power.blanks import AMD, figure
from proxy.power.energy_source import EnergySource, SourceOptions
from proxy.wire.facts import Reading

log = logging.getLogger("servewatt.power")

VALIDATION_SECONDS = 0.5
VALIDATION_READS = 10
TRUSTED_RATIO = (0.5, 2.0)
"""Bounds of counter over integrated power: wide, because power is averaged and lags,
narrow enough for a frozen accumulator or a wrong unit."""

POWER_KEYS = ("current_socket_power", "socket_power", "average_socket_power")
"""Newer boards fill the first, older ones the last; the rest holds "N/A" or 0."""

MICROWATTS_ABOVE = 100_000
"""A power cap above this many is in microwatts: releases differ in the unit."""

VISIBLE = ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


class AmdSmiSource:
    """A group of AMD GPUs of this host, read back to back."""

    name = "amdsmi"
    boundary = "gpu"
    is_simulated = False

    def __init__(
        self,
        gpus: Sequence[str] = (),
        *,
        validation_seconds: float = VALIDATION_SECONDS,
    ) -> None:
        self._smi = _import()
        try:
            self._smi.amdsmi_init()
        except self._smi.AmdSmiException as error:
            raise SensorError(
                f"amdsmi cannot start: {_line(error)}; is the amdgpu driver loaded?"
            ) from None
        self._is_open = True
        try:
            self._devices = self._choose(gpus)
            self._trusted = self._validate(validation_seconds)
        except Exception:
            self.close()
            raise

    def read(self) -> Sequence[Reading]:
        """Every device, or SensorError if one of them cannot be read."""
        readings = self._read_all()
        for reading in readings:
            if reading.joules is None and reading.watts is None:
                raise SensorError(
                    f"amdsmi: {reading.device} shows neither energy nor power"
                )
        return readings

    def max_watts(self) -> dict[str, float]:
        """The highest cap that each board can be set to, where it tells."""
        found = {}
        for device, handle in self._devices.items():
            with suppress(SensorError, AttributeError, TypeError):  # older releases
                caps = self._call("amdsmi_get_power_cap_info", device, handle)
                cap = _number(caps.get("max_power_cap")) or 0.0
                watts = cap / 1e6 if cap > MICROWATTS_ABOVE else cap
                if watts > 0:
                    found[device] = watts
        return found

    def close(self) -> None:
        """Shut AMD SMI down; a second call does nothing."""
        if self._is_open:
            self._is_open = False
            try:
                self._smi.amdsmi_shut_down()
            except self._smi.AmdSmiException as error:
                log.warning("amdsmi did not shut down: %s", _line(error))

    def _choose(self, gpus: Sequence[str]) -> dict[str, Any]:
        """Handle by device name; all visible ones when none is named."""
        try:
            handles = list(self._smi.amdsmi_get_processor_handles())
        except self._smi.AmdSmiException as error:
            raise SensorError(f"amdsmi cannot list GPUs: {_line(error)}") from None
        names = gpus or _visible() or [str(index) for index in range(len(handles))]
        if not names:
            raise SensorError("amdsmi sees no GPU on this host")
        for name in names:
            if not name.isdigit() or int(name) >= len(handles):
                raise ConfigError(
                    f"GPU {name!r} is not here; expected an index below {len(handles)}"
                )
        return {f"gpu{int(name)}": handles[int(name)] for name in names}

    def _validate(self, over_seconds: float) -> frozenset[str]:
        """Devices whose counter agrees with their power; watts only for the others."""
        self._trusted = frozenset(self._devices)
        before = at = time.monotonic()
        first = last = self._read_all()
        integrated = dict.fromkeys(self._devices, 0.0)
        for number in range(1, VALIDATION_READS + 1):
            due = before + over_seconds * number / VALIDATION_READS
            time.sleep(max(0.0, due - time.monotonic()))
            last, previous, then = self._read_all(), at, last
            at = time.monotonic()
            for old, new in zip(then, last, strict=True):
                mean_watts = ((old.watts or 0.0) + (new.watts or 0.0)) / 2
                integrated[new.device] += mean_watts * (at - previous)
        trusted = set()
        for start, end in zip(first, last, strict=True):
            if start.joules is None or end.joules is None:
                continue
            counted = end.joules - start.joules
            expected = integrated[start.device]
            low, high = TRUSTED_RATIO
            if expected > 0 and low <= counted / expected <= high:
                trusted.add(start.device)
            else:
                log.warning(
                    "amdsmi: the energy counter of %s gave %.3g J where its power "
                    "gives %.3g J; using its power only",
                    start.device, counted, expected,
                )  # fmt: skip
        return frozenset(trusted)

    def _read_all(self) -> list[Reading]:
        return [
            Reading(
                device,
                self._joules(device, handle) if device in self._trusted else None,
                self._watts(device, handle),
            )
            for device, handle in self._devices.items()
        ]

    def _joules(self, device: str, handle: Any) -> float | None:
        found = self._call("amdsmi_get_energy_count", device, handle)
        # releases before 6.0 call the accumulator `power`
        count = _number(found.get("energy_accumulator", found.get("power")))
        resolution = _number(found.get("counter_resolution"))
        if count is None or resolution is None:
            return None
        return count * resolution / 1_000_000  # counts of `resolution` microjoules

    def _watts(self, device: str, handle: Any) -> float | None:
        found = self._call("amdsmi_get_power_info", device, handle)
        figures = [_number(found.get(key)) for key in POWER_KEYS]
        known = [watts for watts in figures if watts is not None]
        filled = [watts for watts in known if watts > 0]
        return filled[0] if filled else 0.0 if 0.0 in known else None

    def _call(self, function: str, device: str, handle: Any) -> dict[str, Any]:
        """The module's answer; empty where the board does not support the call."""
        try:
            found: dict[str, Any] = getattr(self._smi, function)(handle)
        except self._smi.AmdSmiException as error:
            if "NOT_SUPPORTED" in str(error):
                return {}
            raise SensorError(f"amdsmi: {device}: {_line(error)}") from None
        return found


def _import() -> Any:
    try:
        # the module loads libamd_smi.so as it is imported, and prints to stdout
        with redirect_stdout(io.StringIO()):
            return importlib.import_module("amdsmi")
    except ModuleNotFoundError:
        raise SensorError(
            "amdsmi needs AMD's Python package: pip install servewatt[amd] "
            "in the release of the installed ROCm"
        ) from None
    except (ImportError, OSError, KeyError, RuntimeError, AttributeError):
        raise SensorError(
            "amdsmi cannot load libamd_smi.so: install ROCm or the package "
            "amd-smi-lib, in the release of the Python package"
        ) from None


def _visible() -> list[str] | None:
    """GPUs that ROCm shows the engine. Raises ConfigError where both lists are set."""
    lists = [shown for name in VISIBLE if (shown := visible_gpus(name)) is not None]
    if len(lists) > 1:
        raise ConfigError(f"{' and '.join(VISIBLE)} are both set; give --gpus")
    return lists[0] if lists else None


def _number(value: object) -> float | None:
    return figure(value, AMD)


def _line(error: Exception) -> str:
    """AMD's errors span several lines."""
    return " ".join(str(error).split()) or type(error).__name__


def open_amdsmi(options: SourceOptions) -> EnergySource:
    """Raises SensorError without AMD's package or driver."""
    if options.argument is not None:
        raise ConfigError("--power amdsmi takes no address; choose GPUs with --gpus")
    return AmdSmiSource(options.gpus)
