"""Jobs metered whole by `metering-proxy meter`, such as training: no requests in them.

Kept apart from runs: a job has joules and seconds, a run joules for each request, and
no figure of one is a figure of the other (Caspart et al. 2022 treat training and
inference apart for the same reason). Jobs are compared with jobs, inside one boundary.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import field

from loadgen.errors import RunError
from proxy.process.files import os_reason

MAX_BYTES = 64_000_000


class _Runtime(msgspec.Struct, frozen=True):
    joules: float
    watts: float


class _Source(msgspec.Struct, frozen=True):
    source: str
    boundary: str
    simulated: bool
    joules: float | None
    at_least_joules: float
    at_most_joules: float | None
    mean_watts: float | None
    baseline_watts: float | None
    above_baseline_joules: float | None
    unknown_because: str | None
    runtime_times_power: _Runtime | None = None


class _Report(msgspec.Struct, frozen=True):
    command: list[str]
    name: str
    duration_seconds: float
    exit_code: int
    simulated: bool
    sources: list[_Source]
    labels: dict[str, str] = field(default_factory=dict)


class JobRow(msgspec.Struct, frozen=True, kw_only=True):
    """One job inside one boundary, beside the first job inside the same."""

    job: str
    """The file's name."""
    name: str
    labels: dict[str, str]
    boundary: str
    source: str
    simulated: bool
    exit_code: int
    duration_seconds: float
    joules: float | None
    low_joules: float
    """What was certainly spent; the sensor's own bounds, not a statistical interval."""
    high_joules: float | None
    mean_watts: float | None
    above_baseline_joules: float | None
    """More than the same devices drew before it began."""
    runtime_times_power_over_measured: float | None
    """The estimate from running time alone, by what was measured."""
    unknown_because: str | None = None
    change: float | None = None
    """Joules against the first job with this boundary; 0.05 is 5 % more."""
    change_low: float | None = None
    change_high: float | None = None
    """By the bounds of both: where they leave out 0 the change is no error of the
    sensors. What another run of the same job would differ by is not in them."""


def read_job(path: Path) -> list[JobRow]:
    """A row per boundary of a report of `metering-proxy meter --json`.

    Raises RunError for anything else.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise RunError(f"{path}: over {MAX_BYTES:,} bytes, no report of a job")
        found = msgspec.json.decode(content, type=_Report)
    except OSError as error:
        reason = os_reason(error)
        raise RunError(f"cannot read {path}: {reason}") from None
    except (ValueError, RecursionError) as error:
        raise RunError(
            f"{path} is neither a run's folder nor a report of `metering-proxy meter "
            f"--json`: {error}"
        ) from None
    return [
        JobRow(
            job=path.name,
            name=found.name,
            labels=found.labels,
            boundary=each.boundary,
            source=each.source,
            simulated=each.simulated,
            exit_code=found.exit_code,
            duration_seconds=found.duration_seconds,
            joules=each.joules,
            low_joules=each.at_least_joules,
            high_joules=each.at_most_joules,
            mean_watts=each.mean_watts,
            above_baseline_joules=each.above_baseline_joules,
            runtime_times_power_over_measured=(
                each.runtime_times_power.joules / each.joules
                if each.runtime_times_power is not None and each.joules
                else None
            ),
            unknown_because=each.unknown_because,
        )
        for each in found.sources
    ]


def compared_jobs(rows: list[JobRow]) -> list[JobRow]:
    """Each job against the first one inside its boundary, with the sensors' bounds."""
    first: dict[str, JobRow] = {}
    found = []
    for row in rows:
        base = first.setdefault(row.boundary, row)
        if base is not row and base.joules and row.joules is not None:
            row = msgspec.structs.replace(
                row,
                change=row.joules / base.joules - 1,
                change_low=_ratio(row.low_joules, base.high_joules),
                change_high=_ratio(row.high_joules, base.low_joules),
            )
        found.append(row)
    return found


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below - 1 if above is not None and below else None
