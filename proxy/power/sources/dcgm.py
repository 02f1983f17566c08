"""dcgm-exporter's text over HTTP: GPU watts and millijoules of a local or remote host.

dcgm-exporter refreshes every 30 s unless `DCGM_EXPORTER_INTERVAL` says
otherwise: attribution needs 100 ms or less. The simulator speaks the same
text and adds `servewatt_simulated 1`, which marks everything after it.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from prometheus_client.samples import Sample

from proxy.errors import ConfigError, SensorError
from proxy.power.argument import base_url, parse_argument
from proxy.power.blanks import figure
from proxy.power.energy_source import EnergySource, SourceOptions
from proxy.power.hardware import (
    board_text,
    celsius,
    clock_hertz,
    error_count,
    limit_watts,
    throttle_reasons,
    xid_number,
)
from proxy.power.http import HttpSensor, read_samples
from proxy.wire.facts import HardwareState, Reading

log = logging.getLogger("servewatt.power")

ENERGY = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
POWER = "DCGM_FI_DEV_POWER_USAGE"
LIMITS = ("DCGM_FI_DEV_POWER_MGMT_LIMIT_MAX", "DCGM_FI_DEV_POWER_MGMT_LIMIT")
"""Not in the exporter's default list."""
SM_CLOCK, MEMORY_CLOCK = "DCGM_FI_DEV_SM_CLOCK", "DCGM_FI_DEV_MEM_CLOCK"
TEMPERATURE, XID = "DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_XID_ERRORS"
REASONS = (
    "DCGM_FI_DEV_CLOCKS_EVENT_REASONS",
    "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS",
)
"""The new name of a field, and the old one."""
CORRECTED = "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL"
UNCORRECTED = "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL"
MEASURED = (ENERGY, POWER, *LIMITS)
SHOWN = (
    *MEASURED, SM_CLOCK, MEMORY_CLOCK, TEMPERATURE, XID, *REASONS,
    CORRECTED, UNCORRECTED,
)  # fmt: skip
MODEL, DRIVER = "modelName", "DCGM_FI_DRIVER_VERSION"
"""Labels of every row."""
MIG_LABELS = ("GPU_I_ID", "GPU_I_PROFILE")
EXAMPLE = "dcgm=http://host:9400/metrics"


class DcgmSource:
    """GPUs as a dcgm-exporter shows them, all or those chosen by index or UUID."""

    name = "dcgm"
    boundary = "gpu"
    follows_updates = True

    def __init__(
        self, url: str, gpus: Sequence[str] = (), *, shows_outside: bool = False
    ) -> None:
        self._url = url
        self._shows_outside = shows_outside
        self._gpus = frozenset(gpus)
        self._http = HttpSensor(
            self.name,
            expected="the text of a dcgm-exporter (usually port 9400, /metrics)",
        )
        self._text = ""
        self._readings: list[Reading] = []
        self._uuids: tuple[str, ...] = ()
        self._states: tuple[HardwareState, ...] = ()
        self._limits: dict[str, float] = {}
        self._said: frozenset[str] = frozenset()
        self.is_simulated = False

    def read(self) -> Sequence[Reading]:
        """One scrape. Raises SensorError with the address and what was wrong.

        Raises ConfigError for a page whose boards cannot be told apart, or metered.
        """
        text = self._http.get(self._url).text
        if text == self._text:  # four reads of five, at 10 updates a second
            return self._readings
        self._text = ""
        try:
            page = parse_dcgm(text, self._gpus)
        except ConfigError as error:
            raise ConfigError(f"dcgm at {self._url}: {error}") from None
        self._uuids = page.uuids
        self.is_simulated, self._limits = page.is_simulated, page.limits
        for name in sorted(page.repeated - self._said):
            log.warning(
                "dcgm at %s shows %s more than once: counted once", self._url, name
            )
        self._said |= page.repeated
        if all(reading.is_outside for reading in page.readings):
            wanted = f" for GPU {', '.join(sorted(self._gpus))}" if self._gpus else ""
            raise SensorError(
                f"dcgm at {self._url} shows neither {POWER} nor {ENERGY}{wanted}"
            )
        shown = self._shows_outside
        self._readings = [r for r in page.readings if shown or not r.is_outside]
        self._text = text
        return self._readings

    def uuids(self) -> tuple[str, ...]:
        """Those of the chosen boards on the page as it is now."""
        self.read()
        return self._uuids

    def hardware(self) -> Sequence[HardwareState]:
        """The chosen boards on the page that was read last; it has no processes."""
        text = self._text  # the sampler's thread may be reading the next one
        if text:
            self._states = parse_dcgm(text, self._gpus, SHOWN).states
        return self._states

    def max_watts(self) -> dict[str, float]:
        """The highest limit of each board, where the exporter shows it."""
        return self._limits

    def close(self) -> None:
        """Close the connection."""
        self._http.close()


@dataclass(frozen=True, slots=True)
class DcgmPage:
    """What one scrape says."""

    readings: list[Reading]
    limits: dict[str, float]
    """Watts that a board can be limited to at most, by device."""
    repeated: frozenset[str]
    """Boards with more than one row for one figure: several exporters, or pods."""
    uuids: tuple[str, ...]
    """Those of the chosen boards."""
    states: tuple[HardwareState, ...]
    """How the chosen boards work, as far as the page has it."""
    is_simulated: bool


@dataclass(slots=True)
class _Board:
    """One board, whatever rows it has."""

    index: str
    uuid: str
    hosts: set[str] = field(default_factory=set)
    is_mig: bool = False
    figures: dict[str, float | None] = field(default_factory=dict)
    is_repeated: bool = False
    texts: dict[str, str] = field(default_factory=dict)
    """Labels that name the board and its driver."""

    def see(self, sample: Sample) -> None:
        """One row; of several the newest counter and the first power are taken."""
        self.hosts.add(sample.labels.get("Hostname", ""))
        for label in (MODEL, DRIVER):
            if label not in self.texts and sample.labels.get(label):
                self.texts[label] = sample.labels[label]
        self.is_mig |= any(sample.labels.get(label) for label in MIG_LABELS)
        value, before = figure(sample.value), self.figures.get(sample.name)
        self.is_repeated |= sample.name in self.figures
        if before is not None:
            is_newer = value is not None and value > before
            if sample.name != ENERGY or not is_newer:
                return
        self.figures[sample.name] = value

    def thousandth(self, name: str) -> float | None:
        """A figure that DCGM counts in thousandths."""
        value = self.figures.get(name)
        return None if value is None else value / 1000

    def state(self, device: str) -> HardwareState:
        """How it works, as far as the page has it."""
        shown = self.figures.get
        masks = [value for name in REASONS if (value := shown(name)) is not None]
        return HardwareState(
            device,
            sm_clock_hertz=clock_hertz(shown(SM_CLOCK)),
            memory_clock_hertz=clock_hertz(shown(MEMORY_CLOCK)),
            temperature_celsius=celsius(shown(TEMPERATURE)),
            throttle_reasons=throttle_reasons(masks[0]) if masks else None,
            power_limit_watts=limit_watts(shown(LIMITS[1])),
            corrected_ecc_errors=error_count(shown(CORRECTED)),
            uncorrected_ecc_errors=error_count(shown(UNCORRECTED)),
            last_xid=xid_number(shown(XID)),
            model=board_text(self.texts.get(MODEL)),
            driver=board_text(self.texts.get(DRIVER)),
        )


def parse_dcgm(
    text: str, gpus: frozenset[str], names: Sequence[str] = MEASURED
) -> DcgmPage:
    """Readings by board; `gpus` are indices or UUIDs, all others are outside.

    `names` are the fields that are looked at: `SHOWN` for the boards' states too,
    which costs three times as much.

    A board is its UUID, else its host and index: however many rows, hosts or
    exporters show it, it counts once. Raises SensorError on text that is not in
    Prometheus' format; ConfigError for a MIG board, whose joules its instances
    share, and where an index (or no choice) would mix the boards of two hosts.
    """
    samples, is_simulated = read_samples(text, names)
    boards: dict[tuple[str, ...], _Board] = {}
    for sample in samples:
        uuid, index = sample.labels.get("UUID", ""), sample.labels.get("gpu", "?")
        host = sample.labels.get("Hostname", "")
        key = (uuid,) if uuid else (host, index)
        boards.setdefault(key, _Board(index, uuid)).see(sample)
    shown = [b for b in boards.values() if b.figures.keys() & {ENERGY, POWER}]
    chosen = [b for b in shown if not gpus or gpus & {b.index, b.uuid}]
    _check_apart(chosen, gpus)
    for board in chosen:
        if board.is_mig:
            raise ConfigError(
                f"GPU {board.index} shows MIG instances: energy is only known for the "
                "whole board, which its instances share; switch MIG off "
                "(nvidia-smi -mig 0) to meter it, or choose other boards with --gpus"
            )
    indices = Counter(board.index for board in shown)
    readings: list[Reading] = []
    states: list[HardwareState] = []
    limits: dict[str, float] = {}
    for board in shown:
        is_alone = indices[board.index] == 1
        device = f"gpu{board.index}" if is_alone else board.uuid or _place(board)
        readings.append(
            Reading(
                device, board.thousandth(ENERGY), board.figures.get(POWER), None,
                all(board is not one for one in chosen),
            )
        )  # fmt: skip
        if not readings[-1].is_outside:
            states.append(board.state(device))
        known = [board.figures.get(name) for name in LIMITS]
        limits[device] = max((watts for watts in known if watts), default=0.0)
    return DcgmPage(
        sorted(readings, key=lambda reading: reading.device),
        {device: watts for device, watts in limits.items() if 0 < watts < math.inf},
        frozenset(
            f"GPU {board.uuid or board.index}" for board in chosen if board.is_repeated
        ),
        tuple(board.uuid for board in chosen if board.uuid),
        tuple(sorted(states, key=lambda state: state.device)),
        is_simulated,
    )


def _check_apart(chosen: Sequence[_Board], gpus: frozenset[str]) -> None:
    """Raises ConfigError where the boards of several hosts would be mixed unasked."""
    by_index = [board for board in chosen if board.uuid not in gpus]
    hosts = {host for board in by_index for host in board.hosts if host}
    # a board that two hosts show is one board; boards of different hosts are not
    is_mixed = len(hosts) > 1 and not set.intersection(*(b.hosts for b in by_index))
    repeated = [i for i, n in Counter(b.index for b in by_index).items() if n > 1]
    if is_mixed or repeated:
        said = (
            f"boards of {len(hosts)} hosts ({', '.join(sorted(hosts))})"
            if is_mixed
            else f"several boards as GPU {', '.join(repeated)}"
        )
        there = ", ".join(board.uuid or _place(board) for board in by_index[:8])
        raise ConfigError(
            f"the page shows {said}; choose the engine's by UUID, --gpus GPU-...: "
            f"it has {there}"
        )


def _place(board: _Board) -> str:
    return f"{'/'.join(sorted(board.hosts))}/gpu{board.index}".lstrip("/")


def open_dcgm(options: SourceOptions) -> EnergySource:
    """Raises ConfigError without an address."""
    argument = parse_argument("dcgm", options.argument)
    if not argument.address:
        raise ConfigError(f"--power dcgm needs the exporter's address: {EXAMPLE}")
    url = base_url("dcgm", argument.address, EXAMPLE)
    return DcgmSource(url, options.gpus, shows_outside=options.shows_outside)
