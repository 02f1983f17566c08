"""Sensors of this host: each source opened, read for a second, described.

Nothing here can fail the command: any error of a source becomes the reason
why it is missing. Resolution is measured, because no vendor documents it.
"""

from __future__ import annotations

import logging
import re
import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from proxy.errors import ConfigError, ProxyError
from proxy.power.argument import stated_max_watts
from proxy.power.energy_source import BoundedSource, EnergySource, RemoteSource
from proxy.power.gate import MAX_WATTS, ReadingGate
from proxy.power.sources import SOURCES, source_opener
from proxy.wire.facts import Reading

log = logging.getLogger("servewatt.sources")

MIN_SECONDS = 1.0
MAX_SECONDS = 3.0
"""Sensors slower than a second are watched longer, until three changes are seen."""
ENOUGH_CHANGES = 3
PAUSE_SECONDS = 0.002

MEASURES = {
    "nvml": ("gpu", "NVIDIA boards: millijoule counter, watts"),
    "amdsmi": ("gpu", "AMD boards: energy accumulator, watts"),
    "dcgm": ("gpu", "NVIDIA boards through dcgm-exporter, here or remote"),
    "zeusd": ("gpu", "NVIDIA or AMD boards through the Zeus daemon, here or remote"),
    "rapl": ("host", "processor packages and memory: microjoule counters"),
    "redfish": ("node", "the whole node at its power supplies, by its BMC"),
    "ipmi": ("node", "the whole node at its power supplies, by ipmitool"),
    "prometheus": ("stated", "any Prometheus text: PDU, exporter, /federate"),
    "csv": ("stated", "a recording, played again at its own pace"),
    "none": ("none", "nothing: requests are timed, their energy is unknown"),
}
"""Boundary and meaning of each source, in the order shown."""


@dataclass(frozen=True, slots=True)
class Device:
    """One device, as observed over a moment."""

    name: str
    kind: str
    """`counter` where there are joules, else `power`."""
    watts: float | None
    changes: int
    """Changes of the figure while it was observed."""
    period_seconds: float | None
    """Median time between two changes; None with fewer than two."""
    step_joules: float | None
    """The smallest rise of the counter that was seen."""


@dataclass(frozen=True, slots=True)
class Found:
    """One source on this host."""

    name: str
    boundary: str
    measures: str
    is_available: bool
    needs_address: bool
    missing: str | None
    """Reason why it cannot be used, and the remedy; None when it can."""
    devices: Sequence[Device] = ()
    watched_seconds: float = 0.0
    read_seconds: float | None = None
    """Median time that one read takes."""
    is_simulated: bool = False
    clock_offset_seconds: float | None = None
    rejected: Sequence[str] = ()
    """Figures that are not believed: device, value, reason; each kind once."""


def gpus_for(text: str, texts: Sequence[str], gpus: tuple[str, ...]) -> tuple[str, ...]:
    """The part of `--gpus` for one source among several: only GPU sources get it.

    Where none of them is one, the source gets it, and refuses it.
    """

    def is_of_gpus(source: str) -> bool:
        return MEASURES.get(source.partition("=")[0], ("",))[0] == "gpu"

    has_other = any(is_of_gpus(source) for source in texts)
    return gpus if is_of_gpus(text) or not has_other else ()


def find_sources(asked: Sequence[str], gpus: tuple[str, ...]) -> list[Found]:
    """The sources asked for as in `--power`, or all of them.

    Raises ConfigError for an unknown name.
    """
    if not asked:
        return [probe(name, ()) for name in MEASURES]
    unknown = [text for text in asked if text.partition("=")[0] not in SOURCES]
    if unknown:
        source_opener(unknown[0], gpus)
    return [probe(text, gpus) for text in asked]


def probe(text: str, gpus: tuple[str, ...]) -> Found:
    """Open, observe and close one source; an error becomes its `missing`."""
    name = text.partition("=")[0]
    boundary, measures = MEASURES[name]
    if name == "none":
        return Found(name, boundary, measures, True, False, None)
    needs_address = False
    try:
        source = source_opener(text, gpus)()
        try:
            return _watch(source, measures, stated_max_watts(text))
        finally:
            source.close()
    except ConfigError as error:
        needs_address = "=" not in text and "needs" in str(error)
        missing = str(error)
    except ProxyError as error:
        missing = str(error)
    except Exception as error:  # the outermost loop: a host may surprise any library
        log.debug("%s", text, exc_info=True)
        missing = f"{name} failed: {type(error).__name__}: {error}"
    return Found(name, boundary, measures, False, needs_address, missing)


def _watch(source: EnergySource, measures: str, max_watts: float | None) -> Found:
    """Read a source without pause, for a second or until three changes."""
    history: dict[str, list[tuple[float, Reading]]] = {}
    took: list[float] = []
    gate = ReadingGate(max_watts or MAX_WATTS[source.boundary])
    rejected: dict[tuple[str, ...], str] = {}
    begin = time.monotonic()
    while True:
        start = time.monotonic()
        found = source.read()
        end = time.monotonic()
        limits = source.max_watts() if isinstance(source, BoundedSource) else None
        readings, faults = gate.checked(end, found, limits)
        for fault in faults:
            rejected.setdefault((fault.device, fault.figure, fault.reason), str(fault))
        took.append(end - start)
        for reading in readings:
            at = reading.at_seconds or (start + end) / 2
            history.setdefault(reading.device, []).append((at, reading))
        devices = [describe(name, rows) for name, rows in history.items()]
        slowest = min((device.changes for device in devices), default=0)
        if end - begin >= (MIN_SECONDS if slowest >= ENOUGH_CHANGES else MAX_SECONDS):
            break
        time.sleep(PAUSE_SECONDS)
    offset = source.clock_offset_seconds if isinstance(source, RemoteSource) else None
    return Found(
        source.name, source.boundary, measures,
        is_available=bool(devices), needs_address=False,
        missing=None if devices else f"{source.name} shows no device",
        devices=devices, watched_seconds=end - begin, read_seconds=median(took),
        is_simulated=source.is_simulated,
        clock_offset_seconds=offset,
        rejected=tuple(rejected.values()),
    )  # fmt: skip


def describe(name: str, rows: Sequence[tuple[float, Reading]]) -> Device:
    """Resolution of one device's sensor, from its readings and their instants."""
    newest = rows[-1][1]
    is_counter = newest.joules is not None
    shown = [
        (at, figure)
        for at, reading in rows
        if (figure := reading.joules if is_counter else reading.watts) is not None
    ]
    edges = [
        (at, figure - before)
        for (_, before), (at, figure) in pairwise(shown)
        if figure != before
    ]
    apart = [b[0] - a[0] for a, b in pairwise(edges)]
    rises = [rise for _, rise in edges if rise > 0]
    return Device(
        name, "counter" if is_counter else "power", newest.watts, len(edges),
        period_seconds=median(apart) if apart else None,
        step_joules=min(rises, default=None) if is_counter else None,
    )  # fmt: skip


def as_json(found: Sequence[Found]) -> list[dict[str, Any]]:
    """One object per source, in base units."""
    return [asdict(source) for source in found]


def describe_sources(found: Sequence[Found], columns: int) -> str:
    """A table for the terminal: usable sources first, then the remedy of the others."""
    lines = [_row("source", "boundary", "here", "what it measures")]
    for source in sorted(found, key=_rank):
        lines.append(_row(source.name, source.boundary, _here(source), source.measures))
        for detail in _details(source):
            # An address must stay in one piece, to be copied.
            lines += textwrap.wrap(
                detail, columns, initial_indent=INDENT, subsequent_indent=INDENT,
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip
    return "\n".join(lines)


INDENT = " " * 12


def _row(name: str, boundary: str, here: str, measures: str) -> str:
    return f"{name:<{len(INDENT)}}{boundary:<10}{here:<12}{measures}"


def _rank(source: Found) -> tuple[bool, bool, bool]:
    return source.name == "none", not source.is_available, source.needs_address


def _here(source: Found) -> str:
    if source.is_available:
        return "SIMULATED" if source.is_simulated else "yes"
    return "by address" if source.needs_address else "no"


def _details(source: Found) -> list[str]:
    if source.missing is not None:
        return [re.sub(rf"^(--power )?{source.name}:? ", "", source.missing)]
    alike: dict[str, list[str]] = {}
    for device in source.devices:
        alike.setdefault(_resolution(device, source), []).append(device.name)
    lines = [f"{', '.join(names)}: {said}" for said, names in alike.items()]
    if source.read_seconds is not None:
        lines.append(f"one read takes {_seconds(source.read_seconds)}")
    if source.clock_offset_seconds is not None:
        lines.append(f"its clock is {source.clock_offset_seconds:+.3f} s from ours")
    lines += [f"not believed: {fault}" for fault in source.rejected]
    return lines


def _resolution(device: Device, source: Found) -> str:
    watched = _seconds(source.watched_seconds)
    if device.period_seconds is None:
        changed = "changed once" if device.changes else "did not change"
        return f"{device.kind}, {changed} in {watched}"
    every = f"every {_seconds(device.period_seconds)}"
    # A sensor cannot be seen to change more often than it is read.
    if device.period_seconds <= 1.5 * ((source.read_seconds or 0.0) + PAUSE_SECONDS):
        every = f"at every read, {_seconds(device.period_seconds)} or less"
    step = f", steps from {device.step_joules:.3g} J" if device.step_joules else ""
    return f"{device.kind} new {every}{step}"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
