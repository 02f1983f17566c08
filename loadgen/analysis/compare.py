"""Runs against a baseline: which differences are real, and what else differs.

A difference is called real where its 95 % interval (`resampling`) leaves out no
change. Of twenty figures without a difference one is called real by chance.
Joules of different boundaries are never compared: a node's hold its GPUs'.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import msgspec
import numpy as np

from loadgen.analysis.resampling import (
    Column,
    Estimate,
    Quantile,
    Ratio,
    Sample,
    Statistic,
    blocks_of,
    change,
    estimate,
)
from loadgen.analysis.schema import Summary
from loadgen.analysis.tally import RunWindow
from loadgen.errors import UsageError
from loadgen.results import measures
from loadgen.results.results import Result

_COLUMNS: dict[str, Callable[[Result], float | None]] = {
    "joules": measures.energy_joules,
    "active_joules": measures.active_joules,
    "output_tokens": lambda r: r.output_tokens,
    "all_tokens": lambda r: (
        None
        if r.output_tokens is None or r.prompt_tokens is None
        else r.prompt_tokens + r.output_tokens
    ),
    "ttft": measures.ttft_seconds,
    "tpot": measures.tpot_seconds,
    "e2el": measures.e2el_seconds,
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of a comparison."""

    label: str
    unit: str
    statistic: Statistic
    is_energy: bool = False


FIGURES = {
    "joules_per_request": Figure(
        "energy per request, mean", "J", Ratio("joules"), is_energy=True
    ),
    "active_joules_per_request": Figure(
        "without idle share, mean", "J", Ratio("active_joules"), is_energy=True
    ),
    "p50_joules_per_request": Figure(
        "energy per request, p50", "J", Quantile("joules", 0.5), is_energy=True
    ),
    "joules_per_output_token": Figure(
        "energy per output token", "J", Ratio("joules", "output_tokens"), is_energy=True
    ),
    "joules_per_token": Figure(
        "energy per token, in and out", "J", Ratio("joules", "all_tokens"),
        is_energy=True,
    ),
    "p50_ttft_seconds": Figure("TTFT p50", "s", Quantile("ttft", 0.5)),
    "p99_ttft_seconds": Figure("TTFT p99", "s", Quantile("ttft", 0.99)),
    "p50_tpot_seconds": Figure("TPOT p50", "s", Quantile("tpot", 0.5)),
    "p50_e2el_seconds": Figure("E2E p50", "s", Quantile("e2el", 0.5)),
    "p99_e2el_seconds": Figure("E2E p99", "s", Quantile("e2el", 0.99)),
    "output_tokens_per_request": Figure(
        "output tokens per request", "", Ratio("output_tokens")
    ),
}  # fmt: skip
"""What is compared, by the name that `--fail-if` and the files use."""


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """A run as it is compared: its summary, and columns of its answered requests."""

    name: str
    summary: Summary
    sample: Sample


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of one run beside the baseline's; fractions, 0.05 for 5 % more."""

    figure: str
    unit: str
    baseline: float | None
    baseline_low: float | None = None
    baseline_high: float | None = None
    value: float | None
    low: float | None = None
    high: float | None = None
    change: float | None = None
    change_low: float | None = None
    change_high: float | None = None
    is_real: bool | None = None
    """Whether the interval of the change leaves out 0; None without an interval."""
    reason: str | None = None
    """Why there is no change to tell."""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A setting, a package or a piece of hardware that is not the same."""

    name: str
    baseline: str
    value: str


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """One run against the baseline."""

    baseline: str
    run: str
    is_paired: bool
    """Both ran the same sessions of one trace in one order, compared one by one."""
    simulated: bool
    verdicts: tuple[str, str]
    """Of the baseline and of the run: `valid`, `degraded` or `invalid`."""
    changes: tuple[Change, ...]
    differences: tuple[Difference, ...]


def compared_run(name: str, summary: Summary, results: Iterable[Result]) -> ComparedRun:
    """A run's answered requests inside its window, in blocks of sessions by start."""
    window = RunWindow(summary.window.start_seconds, summary.window.end_seconds)
    starts: dict[str, float] = {}
    sessions: list[str] = []
    values: dict[str, array[float]] = {column: array("d") for column in _COLUMNS}
    for result in results:
        if not window.holds(result):
            continue
        session = result.session_id
        starts[session] = min(
            result.planned_seconds, starts.get(session, result.planned_seconds)
        )
        if measures.is_ok(result):
            sessions.append(session)
            for column, of in _COLUMNS.items():
                value = of(result)
                values[column].append(math.nan if value is None else value)
    order = sorted(starts, key=lambda session: (starts[session], session))
    count = blocks_of(len(order))
    placed = {session: at * count // len(order) for at, session in enumerate(order)}
    blocks = np.array([placed[session] for session in sessions], np.int64)
    columns = {
        column: Column(np.asarray(found), blocks) for column, found in values.items()
    }
    return ComparedRun(name, summary, Sample(columns, count, placed))


def pooled(runs: Sequence[ComparedRun]) -> ComparedRun:
    """Repeats of one run as one sample, named and summarised as the first of them."""
    first = runs[0]
    if len(runs) == 1:
        return first
    columns = {
        name: Column(
            np.concatenate([run.sample.columns[name].values for run in runs]),
            np.concatenate(
                [
                    run.sample.columns[name].blocks + before
                    for run, before in zip(runs, _blocks_before(runs), strict=True)
                ]
            ),
        )
        for name in _COLUMNS
    }
    placed = {
        f"{number} {session}": block + before
        for number, (run, before) in enumerate(
            zip(runs, _blocks_before(runs), strict=True)
        )
        for session, block in run.sample.session_blocks.items()
    }
    blocks = sum(run.sample.blocks for run in runs)
    return ComparedRun(first.name, first.summary, Sample(columns, blocks, placed))


def _blocks_before(runs: Sequence[ComparedRun]) -> list[int]:
    return list(accumulate((run.sample.blocks for run in runs[:-1]), initial=0))


def compare(base: ComparedRun, run: ComparedRun) -> Comparison:
    """Every figure of a run beside the baseline's, and the settings that differ."""
    paired = (
        base.summary.trace is not None
        and base.summary.trace == run.summary.trace
        and base.sample.session_blocks == run.sample.session_blocks
    )
    inside = base.summary.energy.boundary, run.summary.energy.boundary
    return Comparison(
        baseline=base.name,
        run=run.name,
        is_paired=paired,
        simulated=base.summary.simulated or run.summary.simulated,
        verdicts=(base.summary.verdict.status, run.summary.verdict.status),
        changes=tuple(
            _change(name, figure, base.sample, run.sample, inside, is_paired=paired)
            for name, figure in FIGURES.items()
        ),
        differences=tuple(_differences(base.summary, run.summary)),
    )


def _change(
    name: str,
    figure: Figure,
    base: Sample,
    run: Sample,
    boundaries: tuple[str | None, str | None],
    *,
    is_paired: bool,
) -> Change:
    before = estimate(base, figure.statistic)
    after = estimate(run, figure.statistic)
    found = Change(
        figure=name,
        unit=figure.unit,
        baseline=None if before is None else before.value,
        baseline_low=None if before is None else before.low,
        baseline_high=None if before is None else before.high,
        value=None if after is None else after.value,
        low=None if after is None else after.low,
        high=None if after is None else after.high,
    )
    if before is None or after is None:
        who = "the baseline" if before is None else "the run"
        return msgspec.structs.replace(found, reason=f"not known of {who}")
    if figure.is_energy and boundaries[0] != boundaries[1]:
        reason = f"joules inside {boundaries[0]} against joules inside {boundaries[1]}"
        return msgspec.structs.replace(found, reason=reason)
    moved = change(base, run, figure.statistic, is_paired=is_paired)
    if moved is None:
        return msgspec.structs.replace(found, reason="nothing to compare")
    return msgspec.structs.replace(
        found,
        change=moved.value,
        change_low=moved.low,
        change_high=moved.high,
        is_real=_is_real(moved),
        reason=None if moved.low is not None else "too few sessions for an interval",
    )


def _is_real(moved: Estimate) -> bool | None:
    if moved.low is None or moved.high is None:
        return None
    return moved.low > 0 or moved.high < 0


_SETTINGS: Mapping[str, Callable[[Summary], Any]] = {
    "trace": lambda s: s.trace,
    "plan": lambda s: (s.plan_sha256 or "")[:12] or None,
    "arrival": lambda s: s.arrival,
    "asked rate": lambda s: s.request_rate,
    "burstiness": lambda s: s.burstiness,
    "max concurrency": lambda s: s.max_concurrency,
    "seed": lambda s: s.seed,
    "output lengths": lambda s: s.output_length_rule,
    "backend": lambda s: s.backend,
    "model": lambda s: s.model,
    "boundary": lambda s: s.energy.boundary,
    "power source": lambda s: s.energy.source,
    "policy": lambda s: s.energy.policy,
    "idle watts from": lambda s: s.energy.idle_source,
    "simulated engine": lambda s: s.simulated_engine,
    "simulated joules": lambda s: s.energy.simulated,
}


def settings_of(summary: Summary) -> dict[str, str]:
    """All that was chosen or given for a run, by name; what is not known is absent."""
    found = {name: of(summary) for name, of in _SETTINGS.items()}
    found |= {f"environment {k}": v for k, v in summary.environment.items()}
    found |= {f"metadata {k}": v for k, v in summary.metadata.items()}
    return {
        name: ("yes" if value else "no") if isinstance(value, bool) else str(value)
        for name, value in found.items()
        if value is not None
    }


def _differences(base: Summary, run: Summary) -> Iterable[Difference]:
    before, after = settings_of(base), settings_of(run)
    for name in dict.fromkeys((*before, *after)):
        old, new = before.get(name, "unknown"), after.get(name, "unknown")
        if old != new:
            yield Difference(name=name, baseline=old, value=new)


_LIMIT = re.compile(r"\s*(\w+)\s*([<>])\s*([+-]?\d+(?:\.\d+)?)\s*%\s*")


@dataclass(frozen=True, slots=True)
class Limit:
    """A change that is not accepted: `joules_per_output_token>+5%`."""

    text: str
    figure: str
    is_upper: bool
    fraction: float

    def broken_by(self, comparison: Comparison) -> str | None:
        """Why a comparison fails it; None where it passes.

        A change fails when it is beyond the limit and real. One that cannot be told
        fails too: a check that nothing can fail is none.
        """
        found = next(c for c in comparison.changes if c.figure == self.figure)
        if found.change is None or found.is_real is None:
            return f"{comparison.run}: {self.text} cannot be told: {found.reason}"
        is_beyond = (
            found.change > self.fraction
            if self.is_upper
            else found.change < self.fraction
        )
        if is_beyond and found.is_real:
            return f"{comparison.run}: {self.figure} {found.change:+.1%} ({self.text})"
        return None


def parse_limit(text: str) -> Limit:
    """A `--fail-if`. Raises UsageError for an unknown figure or another form."""
    matched = _LIMIT.fullmatch(text)
    if matched is None:
        raise UsageError(
            f"--fail-if {text}: expected a figure, < or > and percents, such as "
            "'joules_per_output_token>+5%'"
        )
    figure, sign, percents = matched.groups()
    if figure not in FIGURES:
        known = ", ".join(FIGURES)
        raise UsageError(f"--fail-if {text}: unknown figure {figure!r}; known: {known}")
    return Limit(text, figure, sign == ">", float(percents) / 100)


def broken_limits(
    limits: Sequence[Limit], comparisons: Sequence[Comparison]
) -> list[str]:
    """A line for each limit that a run fails."""
    found = (limit.broken_by(c) for c in comparisons for limit in limits)
    return [line for line in found if line is not None]
