"""Recordings, replayed at their own pace: any sensor that can write lines.

    # boundary=node simulated=no
    seconds,device,joules,watts
    0,psu0,,812.5

`unix_seconds` may stand for `seconds`; `device`, `joules` or `watts` may be left
out, an empty field is unknown. Time counts from the first line on, and a
recording is played once per process: opened again, it goes on where it was.
"""

from __future__ import annotations

import csv
import math
import time
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from proxy.errors import ConfigError, SensorError
from proxy.power.argument import BOUNDARIES, parse_argument
from proxy.power.energy_source import EnergySource, SourceOptions
from proxy.wire.facts import Reading

EXAMPLE = "csv=recorded.csv#boundary=node"

_STARTED: dict[Path, float] = {}
"""Start of each recording. The sampler reopens a source after an error, and the end
of a recording is one: without this it would play for ever."""


@dataclass(frozen=True, slots=True)
class Recording:
    """Rows of each device in order of time, counted from the first row."""

    seconds: dict[str, list[float]]
    readings: dict[str, list[Reading]]
    end_seconds: float
    boundary: str | None
    is_simulated: bool


class CsvSource:
    """Readings as recorded, each at its time after `start_seconds` (monotonic)."""

    name = "csv"

    def __init__(
        self, recording: Recording, boundary: str, start_seconds: float
    ) -> None:
        self.boundary = boundary
        self.is_simulated = recording.is_simulated
        self._recording = recording
        self._start_seconds = start_seconds

    def read(self) -> Sequence[Reading]:
        """The last row of each device that is due. Raises SensorError at the end."""
        elapsed = time.monotonic() - self._start_seconds
        if elapsed > self._recording.end_seconds:
            raise SensorError(
                f"csv: recording ended after {self._recording.end_seconds:g} s"
            )
        found: list[Reading] = []
        for device, seconds in self._recording.seconds.items():
            due = bisect_right(seconds, elapsed)
            if due:
                row = self._recording.readings[device][due - 1]
                at = self._start_seconds + seconds[due - 1]
                found.append(Reading(device, row.joules, row.watts, at))
        return found

    def close(self) -> None:
        """Nothing to release: the recording was read when it was opened."""


def parse_recording(path: str, lines: Iterable[str]) -> Recording:
    """Raises ConfigError naming file and line: a bad recording never gets better."""
    header: dict[str, str] = {}
    rows: list[tuple[float, Reading]] = []
    columns: list[str] = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text.startswith("#"):
            header |= dict(p.split("=", 1) for p in text[1:].split() if "=" in p)
        elif text and not columns:
            columns = [name.strip() for name in text.split(",")]
            _check_columns(path, number, columns)
        elif text:
            rows.append(_row(path, number, columns, next(csv.reader([text]))))
    if not rows:
        raise ConfigError(f"csv: {path} holds no samples")
    boundary = header.get("boundary")
    if boundary is not None and boundary not in BOUNDARIES:
        raise ConfigError(
            f"csv: {path} has boundary {boundary!r}, "
            f"expected one of {', '.join(BOUNDARIES)}"
        )
    first = rows[0][0]
    seconds: dict[str, list[float]] = {}
    readings: dict[str, list[Reading]] = {}
    for at, reading in rows:
        seconds.setdefault(reading.device, []).append(at - first)
        readings.setdefault(reading.device, []).append(reading)
    for device, stamps in seconds.items():
        if stamps != sorted(stamps):
            raise ConfigError(f"csv: {path}: the rows of {device} are not in order")
    end = max(at for at, _ in rows) - first
    is_simulated = header.get("simulated", "no") != "no"
    return Recording(seconds, readings, end, boundary, is_simulated)


def _check_columns(path: str, number: int, columns: list[str]) -> None:
    known = {"seconds", "unix_seconds", "device", "joules", "watts"}
    has_time = len({"seconds", "unix_seconds"} & set(columns)) == 1
    if not has_time or not {"joules", "watts"} & set(columns) or set(columns) - known:
        raise ConfigError(
            f"csv: {path}:{number}: columns are {','.join(columns)!r}, expected "
            "seconds (or unix_seconds), device, joules, watts"
        )


def _row(
    path: str, number: int, columns: list[str], fields: list[str]
) -> tuple[float, Reading]:
    row = dict(zip(columns, (field.strip() for field in fields), strict=False))
    try:
        at = float(row.get("seconds") or row.get("unix_seconds") or "")
        joules = float(row["joules"]) if row.get("joules") else None
        watts = float(row["watts"]) if row.get("watts") else None
    except ValueError:
        at, joules, watts = math.nan, None, None
    figures = [at, *(figure for figure in (joules, watts) if figure is not None)]
    if len(fields) != len(columns) or not all(map(math.isfinite, figures)):
        raise ConfigError(
            f"csv: {path}:{number}: {','.join(fields)!r} is not a row of "
            f"{','.join(columns)}"
        )
    return at, Reading(row.get("device") or "all", joules, watts)


def open_csv(options: SourceOptions) -> EnergySource:
    """Raises ConfigError without a file, or for one that is not a recording."""
    argument = parse_argument("csv", options.argument, ("boundary",))
    if not argument.address:
        raise ConfigError(f"--power csv needs a recording: {EXAMPLE}")
    if options.gpus:
        raise ConfigError("--power csv plays every device; --gpus is not for it")
    path = Path(argument.address)
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as lines:
            recording = parse_recording(str(path), lines)
    except OSError as error:
        raise ConfigError(f"csv: {path}: {error.strerror or error}") from None
    boundary = argument.options.get("boundary", recording.boundary)
    if boundary is None:
        raise ConfigError(f"csv: {path} does not say its boundary: {EXAMPLE}")
    chosen = argument.choice("boundary", BOUNDARIES, boundary)
    start = _STARTED.setdefault(path.resolve(), time.monotonic())
    return CsvSource(recording, chosen, start)
