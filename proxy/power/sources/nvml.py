"""NVML: the board's millijoule counter and its instantaneous power.

The counter (Volta and newer) is the truth; power is for the cross-check and
for older boards. `nvmlDeviceGetPowerUsage` is a 1 s average on Ampere and
newer, so the instant field is asked first and the call is the fallback.

After a lost GPU or a reloaded driver every handle is void: the failed read is a
gap, the sampler opens the source anew, and a counter that then starts lower is
taken by the curve as a reset.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pynvml

from proxy.errors import ConfigError, SensorError
from proxy.power.argument import visible_gpus
from proxy.power.blanks import NVML, figure
from proxy.power.energy_source import EnergySource, SourceOptions
from proxy.power.hardware import (
    board_text,
    celsius,
    clock_hertz,
    error_count,
    limit_watts,
    throttle_reasons,
)
from proxy.wire.facts import HardwareState, Reading

UNSUPPORTED = (
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_INVALID_ARGUMENT,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
)
VOID = (
    pynvml.NVML_ERROR_UNINITIALIZED,
    pynvml.NVML_ERROR_GPU_IS_LOST,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
)
"""After these every handle is void; any other error is of one figure alone."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
OUTSIDE_SECONDS = 1.0
"""Interval of reading boards that the engine does not use: they are not attributed."""


class NvmlSource:
    """A group of GPUs of this host, read back to back."""

    name = "nvml"
    boundary = "gpu"
    is_simulated = False

    def __init__(
        self, gpus: Sequence[str] = (), *, shows_outside: bool = False
    ) -> None:
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise SensorError(
                f"nvml cannot start: {error}; is an NVIDIA driver installed, and "
                "in a container the `utility` capability given?"
            ) from None
        self._is_open = True
        self._others_due_seconds = 0.0
        try:
            self._devices = _choose(gpus)
            self._others = _others(self._devices) if shows_outside else []
        except Exception:
            self.close()
            raise

    def read(self) -> Sequence[Reading]:
        """Every device, or SensorError if one of them cannot be read."""
        own = [
            Reading(name, _joules(name, handle), _watts(name, handle))
            for name, handle in self._devices
        ]
        return [*own, *self._read_others()]

    def limit_watts(self) -> float | None:
        """The power limits set for these boards, which an administrator may lower."""
        try:
            milliwatts = [
                pynvml.nvmlDeviceGetPowerManagementLimit(handle)
                for _, handle in self._devices
            ]
        except pynvml.NVMLError:  # laptops and virtual GPUs have none
            return None
        return float(sum(milliwatts)) / 1000

    def uuids(self) -> tuple[str, ...]:
        """Those of the chosen boards. Raises SensorError for one that is lost."""
        try:
            return tuple(
                pynvml.nvmlDeviceGetUUID(handle) for _, handle in self._devices
            )
        except pynvml.NVMLError as error:
            raise SensorError(f"nvml cannot name its boards: {error}") from None

    def max_watts(self) -> dict[str, float]:
        """The highest limit that each board can be set to, or has, where it tells."""
        found = {}
        for name, handle in [*self._devices, *self._others]:
            with suppress(pynvml.NVMLError):  # laptops and virtual GPUs have none
                limit = _thousandth(pynvml.nvmlDeviceGetPowerManagementLimit(handle))
                with suppress(pynvml.NVMLError):
                    ends = pynvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)
                    limit = max(limit or 0.0, _thousandth(ends[1]) or 0.0)
                if limit:
                    found[name] = limit
        return found

    def hardware(self) -> Sequence[HardwareState]:
        """Clocks, temperature and the like of every chosen board."""
        return [_state(name, handle) for name, handle in self._devices]

    def _read_others(self) -> list[Reading]:
        """Boards of the host that the engine does not use, at their own interval."""
        now = time.monotonic()
        if not self._others or now < self._others_due_seconds:
            return []
        self._others_due_seconds = now + OUTSIDE_SECONDS
        found = []
        for name, handle in self._others:
            with suppress(SensorError):  # another board's fault is not ours
                joules, watts = _joules(name, handle), _watts(name, handle)
                found.append(Reading(name, joules, watts, is_outside=True))
        return found

    def close(self) -> None:
        """Shut NVML down; a second call does nothing."""
        if self._is_open:
            self._is_open = False
            with suppress(pynvml.NVMLError):  # the driver may be gone already
                pynvml.nvmlShutdown()


def _choose(gpus: Sequence[str]) -> list[tuple[str, Any]]:
    """Name and handle of the chosen GPUs; all visible ones when none is named."""
    shown = None if gpus else visible_gpus(VISIBLE)
    try:
        count = pynvml.nvmlDeviceGetCount()
        if shown and any(name.isdigit() for name in shown):
            _check_order(count)
        names = gpus or shown or [str(index) for index in range(count)]
        devices = [_open(name, count) for name in names]
        uuids = [pynvml.nvmlDeviceGetUUID(handle) for _, handle in devices]
    except pynvml.NVMLError as error:
        raise SensorError(f"nvml cannot list GPUs: {error}") from None
    if not devices:
        raise SensorError("nvml sees no GPU on this host")
    if len(set(uuids)) < len(uuids):
        raise ConfigError(
            f"GPUs {', '.join(names)} name one board twice: its joules would count "
            "double, name each board once"
        )
    return devices


def _others(chosen: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Name and handle of every board of the host that is not chosen."""
    found: list[tuple[str, Any]] = []
    with suppress(pynvml.NVMLError):
        own = {pynvml.nvmlDeviceGetUUID(handle) for _, handle in chosen}
        for index in range(pynvml.nvmlDeviceGetCount()):
            with suppress(pynvml.NVMLError):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                if pynvml.nvmlDeviceGetUUID(handle) not in own:
                    found.append((f"gpu{index}", handle))
    return found


def _check_order(count: int) -> None:
    """CUDA numbers the fastest GPU 0 unless told to count as NVML does, by slot.

    Raises ConfigError where that makes a difference.
    """
    if os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
    models = {pynvml.nvmlDeviceGetName(handle) for handle in handles}
    if len(models) > 1:
        raise ConfigError(
            f"{VISIBLE} has indices, and this host has {' and '.join(sorted(models))}: "
            "set CUDA_DEVICE_ORDER=PCI_BUS_ID for engine and proxy, or use UUIDs"
        )


def _open(name: str, count: int) -> tuple[str, Any]:
    if name.startswith("MIG-"):
        raise _mig_error(name, "is a MIG instance")
    try:
        if name.startswith("GPU-"):
            name, handle = _by_uuid(name, count)
        elif name.isdigit() and int(name) < count:
            handle = pynvml.nvmlDeviceGetHandleByIndex(int(name))
        else:
            raise ConfigError(
                f"GPU {name!r} is not here; expected an index below {count} "
                "or a GPU-... UUID"
            )
        is_split = _is_mig(handle)
    except pynvml.NVMLError as error:
        raise SensorError(f"GPU {name!r} cannot be opened: {error}") from None
    if is_split:
        raise _mig_error(name, "has MIG mode on")
    return f"gpu{name}" if name.isdigit() else name, handle


def _mig_error(name: str, reason: str) -> ConfigError:
    return ConfigError(
        f"GPU {name} {reason}: energy is only known for the whole board, which its "
        "instances share; switch MIG off (nvidia-smi -mig 0) to meter it"
    )


def _by_uuid(start: str, count: int) -> tuple[str, Any]:
    """The one board whose UUID begins so: CUDA allows the first digits."""
    found: list[tuple[str, Any]] = []
    for index in range(count):
        with suppress(pynvml.NVMLError):  # another board's fault is not ours
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            uuid = pynvml.nvmlDeviceGetUUID(handle)
            if uuid.startswith(start):
                found.append((uuid, handle))
    if len(found) != 1:
        raise ConfigError(
            f"GPU {start!r} names {len(found)} boards of this host, expected one; "
            "`nvidia-smi -L` lists UUIDs"
        )
    return found[0]


def _is_mig(handle: Any) -> bool:
    try:
        current, _pending = pynvml.nvmlDeviceGetMigMode(handle)
    except pynvml.NVMLError as error:
        if error.value in UNSUPPORTED:  # boards before Ampere, old drivers
            return False
        raise
    return bool(current)


def _joules(name: str, handle: Any) -> float | None:
    try:
        millijoules = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as error:
        if error.value in UNSUPPORTED:  # boards before Volta
            return None
        raise SensorError(f"nvml energy of {name}: {error}") from None
    return _thousandth(millijoules)  # NVML counts millijoules


def _watts(name: str, handle: Any) -> float | None:
    try:
        with suppress(pynvml.NVMLError_FunctionNotFound):  # drivers before 2018
            (value,) = pynvml.nvmlDeviceGetFieldValues(
                handle, [pynvml.NVML_FI_DEV_POWER_INSTANT]
            )
            if value.nvmlReturn == pynvml.NVML_SUCCESS:
                return _thousandth(value.value.uiVal)  # NVML gives milliwatts
        return _thousandth(pynvml.nvmlDeviceGetPowerUsage(handle))
    except pynvml.NVMLError as error:
        if error.value in UNSUPPORTED:
            return None
        raise SensorError(f"nvml power of {name}: {error}") from None


def _state(name: str, handle: Any) -> HardwareState:
    def told(function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(handle, *arguments)
        except pynvml.NVMLError as error:
            if error.value in VOID:
                raise SensorError(f"nvml state of {name}: {error}") from None
            return None  # boards and drivers differ in what they tell

    def ecc_errors(kind: int) -> int | None:
        since_driver = pynvml.NVML_VOLATILE_ECC
        return error_count(told(pynvml.nvmlDeviceGetTotalEccErrors, kind, since_driver))

    mask = told(pynvml.nvmlDeviceGetCurrentClocksEventReasons)
    if mask is None:  # its name in drivers before 2023
        mask = told(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons)
    watts = _thousandth(told(pynvml.nvmlDeviceGetEnforcedPowerLimit))
    if watts is None:
        watts = _thousandth(told(pynvml.nvmlDeviceGetPowerManagementLimit))
    # by its version: without one, an old driver is no NVMLError
    processes = told(pynvml.nvmlDeviceGetComputeRunningProcesses_v3)
    clock, heat = pynvml.nvmlDeviceGetClockInfo, pynvml.nvmlDeviceGetTemperature
    return HardwareState(
        name,
        sm_clock_hertz=clock_hertz(told(clock, pynvml.NVML_CLOCK_SM)),
        memory_clock_hertz=clock_hertz(told(clock, pynvml.NVML_CLOCK_MEM)),
        temperature_celsius=celsius(told(heat, pynvml.NVML_TEMPERATURE_GPU)),
        throttle_reasons=throttle_reasons(mask),
        power_limit_watts=limit_watts(watts),
        corrected_ecc_errors=ecc_errors(pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
        uncorrected_ecc_errors=ecc_errors(pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
        process_ids=None
        if processes is None
        else tuple(sorted({int(process.pid) for process in processes})),
        model=board_text(told(pynvml.nvmlDeviceGetName)),
        driver=board_text(_driver()),
    )


def _driver() -> object:
    with suppress(pynvml.NVMLError):
        return pynvml.nvmlSystemGetDriverVersion()
    return None


def _thousandth(value: object) -> float | None:
    number = figure(value, NVML)
    return None if number is None else number / 1000


def open_nvml(options: SourceOptions) -> EnergySource:
    """Raises SensorError without a driver, ConfigError for a GPU not to be metered."""
    if options.argument is not None:
        raise ConfigError("--power nvml takes no address; choose GPUs with --gpus")
    return NvmlSource(options.gpus, shows_outside=options.shows_outside)
