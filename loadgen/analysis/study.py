"""The table of a study: each configuration, and its change to the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from loadgen.analysis.compare import (
    FIGURES,
    Change,
    ComparedRun,
    compare,
    pooled,
)
from loadgen.analysis.naive import measured_over_naive
from loadgen.analysis.resampling import estimate

WORST = ("invalid", "degraded", "valid")


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """A figure with its 95 % interval; null where it is not known."""

    value: float | None
    low: float | None = None
    high: float | None = None


class StudyRow(msgspec.Struct, frozen=True, kw_only=True):
    """One configuration: a combination of the matrix, its repeats together."""

    names: dict[str, str]
    """The entry of each axis."""
    status: str
    """`finished`, `partly` (not all repeats), `failed`, or `missing`: not run yet."""
    reason: str | None = None
    """Why it failed."""
    runs: list[str]
    """Folders of its finished runs, inside the study's."""
    is_baseline: bool = False
    baseline: dict[str, str] | None = None
    """The combination it is compared with; null where that has no run."""
    verdict: str | None = None
    """The worst of its runs."""
    doubts: list[str] = []
    """Why its runs are not valid."""
    output_length_rule: str | None = None
    """`forced` or `cap`, as of a run."""
    simulated: bool = False
    not_simulated: list[str] = []
    """What of the configuration the simulator does not know: it shows nothing of it."""
    completed: int = 0
    failed: int = 0
    """Requests of all its runs."""
    boundary: str | None = None
    request_throughput: float | None = None
    output_throughput: float | None = None
    mean_watts: float | None = None
    measured_joules_per_request: float | None = None
    """All measured joules by answered requests: idle time and failures included."""
    idle_accelerators_joules_per_request: float | None = None
    """Of the host's boards that are not the engine's; in no other figure."""
    measured_over_naive: dict[str, float | None] = {}
    """By name of the estimate (`NaiveEstimate`), idle time included."""
    figures: dict[str, Value] = {}
    changes: list[Change] = []
    """Against the baseline; empty for the baseline itself."""


class StudyTable(msgspec.Struct, frozen=True, kw_only=True):
    """All rows of a study, in the order of its file."""

    servewatt: str = "study-table/1"
    study: str
    about: str | None
    simulated: bool
    axes: list[str]
    """Those that tell the rows apart."""
    baseline: dict[str, str]
    rows: list[StudyRow]


@dataclass(frozen=True, slots=True)
class Combination:
    """One combination of the matrix as it was run."""

    names: Mapping[str, str]
    baseline: Mapping[str, str]
    """The combination that it is compared with: itself where it is the baseline."""
    runs: Sequence[ComparedRun]
    asked_runs: int
    reason: str | None = None
    """Why runs are lacking, where that is known."""
    not_simulated: Sequence[str] = ()


def study_rows(
    combinations: Sequence[Combination], has_baseline: bool
) -> list[StudyRow]:
    """A row for each combination, compared where its baseline has a run."""
    together = {
        _key(each.names): pooled(each.runs) for each in combinations if each.runs
    }
    return [_row(each, together, has_baseline) for each in combinations]


def _key(names: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(names.values())


def _row(
    each: Combination,
    together: Mapping[tuple[str, ...], ComparedRun],
    has_baseline: bool,
) -> StudyRow:
    is_baseline = has_baseline and dict(each.names) == dict(each.baseline)
    if not each.runs:
        return StudyRow(
            names=dict(each.names),
            status="missing" if each.reason is None else "failed",
            reason=each.reason,
            runs=[],
            is_baseline=is_baseline,
            not_simulated=list(each.not_simulated),
        )
    run = together[_key(each.names)]
    base = together.get(_key(each.baseline)) if has_baseline else None
    changes = () if base is None or is_baseline else compare(base, run).changes
    summaries = [one.summary for one in each.runs]
    completed = sum(one.completed for one in summaries)
    figures = {}
    for name, figure in FIGURES.items():
        found = estimate(run.sample, figure.statistic)
        figures[name] = (
            Value(value=None)
            if found is None
            else Value(value=found.value, low=found.low, high=found.high)
        )
    return StudyRow(
        names=dict(each.names),
        status="finished" if len(each.runs) == each.asked_runs else "partly",
        reason=each.reason,
        runs=[one.name for one in each.runs],
        is_baseline=is_baseline,
        baseline=None if base is None or is_baseline else dict(each.baseline),
        verdict=min((one.verdict.status for one in summaries), key=WORST.index),
        doubts=list(dict.fromkeys(r for one in summaries for r in one.verdict.reasons)),
        output_length_rule=summaries[0].output_length_rule,
        simulated=any(one.simulated for one in summaries),
        not_simulated=list(each.not_simulated),
        completed=completed,
        failed=sum(one.failed for one in summaries),
        boundary=summaries[0].energy.boundary,
        request_throughput=_mean([one.request_throughput for one in summaries]),
        output_throughput=_mean([one.output_throughput for one in summaries]),
        mean_watts=_mean([one.energy.mean_watts for one in summaries]),
        measured_joules_per_request=_per_request(
            [one.energy.measured_joules for one in summaries], completed
        ),
        idle_accelerators_joules_per_request=_per_request(
            [one.energy.idle_accelerators_joules for one in summaries], completed
        ),
        measured_over_naive=measured_over_naive([one.naive for one in summaries]),
        figures=figures,
        changes=list(changes),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) and known else None


def _per_request(values: Sequence[float | None], completed: int) -> float | None:
    known = [value for value in values if value is not None]
    if len(known) != len(values) or not completed:
        return None
    return sum(known) / completed
