"""A file for node_exporter's textfile collector: every user's jobs on one machine.

One file for each user and name, which only that user writes, so nobody's series
can collide with another's. Totals run on: the file's former values are read and
added to, under a lock, and the new file takes the old one's place at once. No
file: the totals begin anew, as after any counter's reset.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

from proxy.errors import ConfigError, ProxyError
from proxy.measure.report import CommandReport
from proxy.process.files import whole_file

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
LABEL = re.compile(r"[a-zA-Z][a-zA-Z0-9_]{0,63}")
MAX_SERIES = 500
"""In one file: someone puts a job number into a label, and Prometheus suffers."""

COUNTERS = {
    "servewatt_command_runs_total": "Metered commands that ended.",
    "servewatt_command_seconds_total": "Running time of metered commands.",
    "servewatt_command_energy_joules_total":
        "Measured energy of metered commands; where a part was not measured, at least.",
    "servewatt_command_unmeasured_seconds_total":
        "Running time of metered commands whose energy is not known.",
}  # fmt: skip
GAUGES = {
    "servewatt_command_last_end_timestamp_seconds":
        "When the last metered command of this name ended.",
}  # fmt: skip
RESERVED = (
    "user", "command", "source", "boundary", "device", "simulated", "outcome",
)  # fmt: skip

Series = tuple[str, tuple[tuple[str, str], ...]]
"""A metric's name and its labels, sorted."""


def check_textfile(folder: Path, name: str, labels: Mapping[str, str]) -> None:
    """Before the command runs. Raises ConfigError for what could not be written."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"--name is {name!r}, expected up to 64 letters, digits, dots, dashes or "
            "underscores: it names a file and a series"
        )
    for label in labels:
        if not LABEL.fullmatch(label) or label in RESERVED:
            raise ConfigError(
                f"--label {label!r} cannot be a label of Prometheus here: letters, "
                f"digits and underscores, and none of {', '.join(RESERVED)}"
            )
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(
            f"--textfile {folder} is not a folder that you may write to; make it, with "
            "the sticky bit if several users share it (chmod 1777)"
        )


def update_textfile(folder: Path, user: str, report: CommandReport) -> Path:
    """Add one run to this user's file of this name; returns its path.

    Raises ProxyError when the file is not ours to read or cannot be replaced; it
    is then left as it was.
    """
    # Neither part can hold an @, so no two pairs of them name one file.
    path = folder / f"servewatt-{_safe(user)}@{report.name}.prom"
    try:
        with _locked(path.with_suffix(".lock")):
            totals = parse_totals(path.read_text()) if path.exists() else {}
            added = add_run(totals, series_of(report, user))
            # node_exporter is another user
            with whole_file(path, mode=0o644, is_durable=True) as file:
                file.write(render_totals(added))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise ProxyError(f"{path} was not updated: {why or error}") from None
    return path


def series_of(report: CommandReport, user: str) -> dict[Series, float]:
    """What one run adds to each counter, and the gauges' values."""
    common = {**report.labels, "user": user, "command": report.name}
    ended = report.started_unix_seconds + report.duration_seconds
    outcome = "ok" if report.exit_code == 0 else "failed"
    found = {
        _series("servewatt_command_runs_total", common, outcome=outcome): 1.0,
        _series("servewatt_command_seconds_total", common): report.duration_seconds,
        _series("servewatt_command_last_end_timestamp_seconds", common): ended,
    }
    for source in report.sources:
        own = {
            **common,
            "source": source.source,
            "boundary": source.boundary,
            "simulated": str(source.is_simulated).lower(),
        }
        name = "servewatt_command_unmeasured_seconds_total"
        found[_series(name, own)] = source.total.unmeasured_seconds
        for energy in source.devices:
            name = "servewatt_command_energy_joules_total"
            joules = energy.joules
            found[_series(name, own, device=energy.device)] = (
                energy.at_least_joules if joules is None else joules
            )
    return found


def add_run(
    totals: Mapping[Series, float], run: Mapping[Series, float]
) -> dict[Series, float]:
    """Former totals and one run. Raises ValueError when there are too many series."""
    added = dict(totals)
    for series, value in run.items():
        is_counter = series[0] in COUNTERS
        added[series] = value + (added.get(series, 0.0) if is_counter else 0.0)
    if len(added) > MAX_SERIES:
        raise ValueError(
            f"it would hold {len(added)} series, over {MAX_SERIES}; use fewer "
            "different --label values, or remove the file"
        )
    return added


def render_totals(totals: Mapping[Series, float]) -> bytes:
    """Prometheus text."""
    registry = CollectorRegistry()
    registry.register(_Collected(totals))
    return generate_latest(registry)


def parse_totals(text: str) -> dict[Series, float]:
    """What `render_totals` wrote. Raises ValueError for anything else."""
    found: dict[Series, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name not in COUNTERS and sample.name not in GAUGES:
                raise ValueError(f"it holds {sample.name}, which is not ours")
            found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


class _Collected:
    """Totals as prometheus_client wants to be given them."""

    def __init__(self, totals: Mapping[Series, float]) -> None:
        self._totals = totals

    def collect(self) -> Iterator[Metric]:
        """One family for each name."""
        for name, text in {**COUNTERS, **GAUGES}.items():
            make = CounterMetricFamily if name in COUNTERS else GaugeMetricFamily
            family = make(name, text)
            for (own, labels), value in sorted(self._totals.items()):
                if own == name:
                    family.add_sample(name, dict(labels), value)
            yield family


def _series(name: str, common: Mapping[str, str], **labels: str) -> Series:
    return name, tuple(sorted({**common, **labels}.items()))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two runs that end together are both counted."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)
