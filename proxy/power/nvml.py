"""NVML: the board's millijoule counter and its instantaneous power.

The counter (Volta and newer) is the truth; power is for the cross-check and
for older boards. `nvmlDeviceGetPowerUsage` is a 1 s average on Ampere and
newer, so the instant field is asked first and the call is the fallback.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pynvml

from proxy.errors import ConfigError, SensorError
from proxy.power.reading import EnergySource, Reading, SourceOptions

UNSUPPORTED = (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_INVALID_ARGUMENT)


class NvmlSource:
    """A group of GPUs of this host, read back to back."""

    name = "nvml"
    boundary = "gpu"
    is_simulated = False

    def __init__(self, gpus: Sequence[str] = ()) -> None:
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise SensorError(
                f"nvml cannot start: {error}; is an NVIDIA driver installed, and "
                "in a container the `utility` capability given?"
            ) from None
        self._is_open = True
        try:
            self._devices = _choose(gpus)
        except Exception:
            self.close()
            raise

    def read(self) -> Sequence[Reading]:
        """Every device, or SensorError if one of them cannot be read."""
        return [
            Reading(name, _joules(name, handle), _watts(name, handle))
            for name, handle in self._devices
        ]

    def close(self) -> None:
        """Shut NVML down; a second call does nothing."""
        if self._is_open:
            self._is_open = False
            pynvml.nvmlShutdown()


def _choose(gpus: Sequence[str]) -> list[tuple[str, Any]]:
    """Name and handle of the chosen GPUs; all visible ones when none is named."""
    wanted = list(gpus) or _visible()
    try:
        count = pynvml.nvmlDeviceGetCount()
        names = wanted or [str(index) for index in range(count)]
        devices = [_open(name, count) for name in names]
    except pynvml.NVMLError as error:
        raise SensorError(f"nvml cannot list GPUs: {error}") from None
    if not devices:
        raise SensorError("nvml sees no GPU on this host")
    return devices


def _visible() -> list[str]:
    """What CUDA_VISIBLE_DEVICES names: the engine's GPUs, and so the meter's."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [part.strip() for part in value.split(",") if part.strip()]


def _open(name: str, count: int) -> tuple[str, Any]:
    if name.startswith("MIG-"):
        raise ConfigError(
            f"GPU {name} is a MIG instance: energy is only known for the whole board, "
            "give the board's index or GPU-... UUID when one engine owns all of it"
        )
    try:
        if name.startswith("GPU-"):
            handle = pynvml.nvmlDeviceGetHandleByUUID(name)
        elif name.isdigit() and int(name) < count:
            handle = pynvml.nvmlDeviceGetHandleByIndex(int(name))
        else:
            raise ConfigError(
                f"GPU {name!r} is not here; expected an index below {count} "
                "or a GPU-... UUID"
            )
    except pynvml.NVMLError as error:
        raise ConfigError(f"GPU {name!r} cannot be opened: {error}") from None
    return f"gpu{name}" if name.isdigit() else name, handle


def _joules(name: str, handle: Any) -> float | None:
    try:
        millijoules = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as error:
        if error.value in UNSUPPORTED:  # boards before Volta
            return None
        raise SensorError(f"nvml energy of {name}: {error}") from None
    return float(millijoules) / 1000  # NVML counts millijoules


def _watts(name: str, handle: Any) -> float | None:
    try:
        (value,) = pynvml.nvmlDeviceGetFieldValues(
            handle, [pynvml.NVML_FI_DEV_POWER_INSTANT]
        )
        if value.nvmlReturn == pynvml.NVML_SUCCESS:
            return float(value.value.uiVal) / 1000  # NVML gives milliwatts
        return float(pynvml.nvmlDeviceGetPowerUsage(handle)) / 1000
    except pynvml.NVMLError as error:
        if error.value in UNSUPPORTED:
            return None
        raise SensorError(f"nvml power of {name}: {error}") from None


def open_nvml(options: SourceOptions) -> EnergySource:
    """Raises SensorError without a driver, ConfigError for a GPU that is not here."""
    if options.argument is not None:
        raise ConfigError("--power nvml takes no address; choose GPUs with --gpus")
    return NvmlSource(options.gpus)
