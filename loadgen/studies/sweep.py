"""`loadgen sweep`: runs of one trace over axes of options, one after the other.

The lists of values are planned first and can be resumed; then the rate with the least
joules per good request is searched, each further rate a cell of the same plan.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadgen.analysis.sweep import (
    Optimum,
    Point,
    SweepResult,
    next_rate,
    optimum,
    pareto_front,
    point,
    saturation,
    tried,
    windowed,
)
from loadgen.errors import LoadgenError, UsageError
from loadgen.plan.plan import is_plan
from loadgen.run.config import ReplayConfig
from loadgen.run.environment import check_settings
from loadgen.run.finish import load_run
from loadgen.run.load import load_of
from loadgen.run.record import SETTINGS, trace_sha256
from loadgen.run.records import records_of
from loadgen.studies.cells import Cell, cell, plain
from loadgen.studies.launch import Command, Study, replay_command
from loadgen.traces.fixed import NAME as SYNTHETIC
from loadgen.traces.readers.open import files_of, open_trace
from proxy.errors import ConfigError
from proxy.process.document import decode_settings
from proxy.process.options import Setting, configured

AXIS_MAX = 1000
"""Cells of a plan: more is a mistake of a list."""
NO_AXIS = (
    "metadata", "goodput", "ledger-token-file", "api-key-env", "format", "seed",
)  # fmt: skip
"""Options of every point alike: they change no figure, or are the sweep's own."""
NOT_OF_A_SWEEP = ("out", "quiet", "metrics-port", "metrics-targets", "header")
"""Of the sweep as a whole, or (headers may be secrets) kept nowhere."""
SETTLE_SECONDS = 10.0
"""An engine that was loaded draws its queue and cools down."""


@dataclass(frozen=True, slots=True)
class Axis:
    """An option with the values that it takes, as they were written."""

    name: str
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """What a sweep is asked to do."""

    trace: str
    trace_sha256: str | None
    fixed: dict[str, Any]
    axes: tuple[Axis, ...]
    repeats: int = 1
    search_runs: int = 0
    stops: bool = True
    seed: int = 0
    headers: tuple[str, ...] = ()
    """Given to every run, and kept nowhere."""

    @property
    def asked(self) -> dict[str, Any]:
        """The options that must be the same to go on with the same folder.

        How long the search may take is not among them: it may go on.
        """
        return {
            "trace": self.trace,
            "trace-sha256": self.trace_sha256,
            "repeat": self.repeats,
            "seed": self.seed,
            **self.fixed,
            **{axis.name: list(axis.values) for axis in self.axes},
        }


def parse_axes(
    written: Mapping[str, Sequence[str]], known: Sequence[Setting] = SETTINGS
) -> tuple[tuple[Axis, ...], dict[str, Any]]:
    """Options as they were written: those of several values, and the others.

    A comma separates values of numbers and names; of other options each further
    giving is a value. Raises UsageError for a value that the option refuses.
    """
    axes, fixed = [], {}
    for setting in known:
        texts = written.get(setting.variable)
        if not texts:
            continue
        values = _values(setting, texts)
        _check_values(setting, values)
        if setting.key in NO_AXIS or len(values) == 1:
            if (
                setting.key in NO_AXIS
                and len(values) > 1
                and not setting.option.multiple
            ):
                raise UsageError(
                    f"--{setting.name} is no axis of a sweep, and {len(values)} values "
                    "were given: give one"
                )
            fixed[setting.key] = values[0] if len(values) == 1 else list(values)
        else:
            if len(set(map(str, values))) < len(values):
                raise UsageError(
                    f"--{setting.name} has a value twice: {','.join(texts)}"
                )
            axes.append(Axis(setting.key, tuple(values)))
    return tuple(axes), fixed


def check_points(plan: SweepPlan) -> None:
    """Raises UsageError or TraceError where a point is a run that could not begin."""
    if math.prod(len(axis.values) for axis in plan.axes) * plan.repeats > AXIS_MAX:
        raise UsageError(f"these axes make more than {AXIS_MAX:,} runs")
    trace = Path(plan.trace)
    for axes in combinations(plan.axes):
        config = _config(plan, axes)
        try:
            load_of(config)
        except UsageError as error:
            raise UsageError(f"at {name_of(axes) or 'every point'}: {error}") from None
    if str(trace) == SYNTHETIC:
        return
    if not any(each.is_file() for each in files_of(trace)):
        raise UsageError(f"{trace}: no such trace")
    if is_plan(trace):
        raise UsageError(
            f"{trace} is a plan, whose load is fixed: give the trace it was made from"
        )
    open_trace(trace, plan.fixed.get("format"))  # its first session


def check_target(plan: SweepPlan) -> None:
    """Raises UsageError and StackError where the first point's target is not there."""
    check_settings(_config(plan, next(combinations(plan.axes))))


def combinations(axes: Sequence[Axis]) -> Iterator[dict[str, Any]]:
    """Every setting: the first axis slowest, rates from low to high."""
    ordered = [
        sorted(axis.values, key=float) if axis.name == "rate" else axis.values
        for axis in axes
    ]
    names = [axis.name for axis in axes]
    # the rate last, so that a stop rule ends one row of rates
    order = sorted(range(len(names)), key=lambda place: names[place] == "rate")
    for values in itertools.product(*(ordered[place] for place in order)):
        found = dict(zip((names[place] for place in order), values, strict=True))
        yield {name: found[name] for name in names}


def name_of(axes: Mapping[str, Any]) -> str:
    """`rate=4, n=2`: a point's name, which no other has."""
    return ", ".join(f"{name}={value}" for name, value in axes.items())


def cells_of(plan: SweepPlan, axes: Mapping[str, Any]) -> list[Cell]:
    """The runs of one point; repeats differ in their seed."""
    found = []
    for repeat in range(plan.repeats):
        label = name_of(axes).replace(", ", ",") or "run"
        if plan.repeats > 1:
            label += f",repeat={repeat + 1}"
        options = {**plan.fixed, **axes, "seed": plan.seed + repeat, "quiet": True}
        context = {"trace_sha256": plan.trace_sha256, "repeat": repeat}
        found.append(cell(label, plan.trace, options, context))
    return found


@dataclass(slots=True)
class Sweeping:
    """The points of an open study, run as they come."""

    study: Study
    plan: SweepPlan
    settle_seconds: float
    pause: Callable[[float], None] = time.sleep
    command: Command = replay_command
    points: list[Point] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    note: str = ""
    _has_run: bool = False

    def run(self) -> SweepResult:
        """All points of the lists, then those of the search."""
        saturated: set[str] = set()
        for axes in combinations(self.plan.axes):
            row = name_of({k: v for k, v in axes.items() if k != "rate"})
            rate = float(axes.get("rate", "nan"))
            if self.plan.stops and row in saturated and math.isfinite(rate):
                self.skipped.append(name_of(axes))
                self.study.say(f"{name_of(axes)}: skipped, a lower rate queued already")
                continue
            found = self.at(axes)
            if found is not None and found.is_saturated and math.isfinite(rate):
                saturated.add(row)
        best = self._search()
        return SweepResult(
            trace=self.plan.trace,
            axes={axis.name: list(axis.values) for axis in self.plan.axes},
            fixed=self.plan.fixed,
            repeats=self.plan.repeats,
            simulated=any(each.simulated for each in self.points),
            goodput=self._limits(),
            points=self.points,
            skipped=self.skipped,
            failed=self.failed,
            saturation=saturation(self.points) if self._has_one_axis() else None,
            front=pareto_front(self.points),
            best=best,
            note=self.note,
        )

    def at(self, axes: Mapping[str, Any]) -> Point | None:
        """One point, run unless it is there; None where no repeat of it came off."""
        runs = []
        for each in cells_of(self.plan, axes):
            self.study.add([each])
            more = [f"--header={header}" for header in self.plan.headers]
            outcome = self.study.run(
                each, more, command=self.command, before=self._settle
            )
            if outcome.status == "failed":
                continue
            try:
                summary = load_run(outcome.folder)
                runs.append(windowed(summary, records_of(outcome.folder)))
            except LoadgenError as error:
                self.study.say(f"{each.name}: left out: {error}")
        name = name_of(axes) or "run"
        if not runs:
            self.failed.append(name)
            return None
        found = point(name, axes, runs)
        self.points.append(found)
        return found

    def _settle(self) -> None:
        """Before a run that follows another one."""
        if self._has_run and self.settle_seconds > 0:
            self.study.say(f"    settling for {self.settle_seconds:g} s")
            self.pause(self.settle_seconds)
        self._has_run = True

    def _search(self) -> Optimum | None:
        if not self._has_one_axis():
            return None
        rates = tried(self.points)
        if len(rates) < 2:
            return None
        reason = "it was not searched further"
        if self.plan.search_runs:
            reason = f"after {self.plan.search_runs} further rates (--search)"
        for _ in range(self.plan.search_runs):
            rate, why = next_rate(rates)
            if rate is None or any(each.rate == rate for each in rates):
                reason = why
                break
            self.study.say(f"search: rate {rate:g} next, {why}")
            if self.at({"rate": plain(rate)}) is None:
                reason = f"the run at {rate:g} requests/s failed"
                break
            rates = tried(self.points)
        else:
            rate, why = next_rate(rates)
            if rate is None:
                reason = why
        return optimum(rates, reason)

    def _has_one_axis(self) -> bool:
        return [axis.name for axis in self.plan.axes] == ["rate"]

    def _limits(self) -> dict[str, float]:
        from loadgen.results.measures import parse_goodput

        words = self.plan.fixed.get("goodput", [])
        return parse_goodput([words] if isinstance(words, str) else words)


def _config(plan: SweepPlan, axes: Mapping[str, Any]) -> ReplayConfig:
    values = decode_settings({**plan.fixed, **axes}, SETTINGS, "sweep")
    return configured(ReplayConfig, values, trace=Path(plan.trace))


def _values(setting: Setting, texts: Sequence[str]) -> list[Any]:
    if setting.kind is bool:
        return [text == "true" for text in texts]
    if is_list(setting):
        return [part.strip() for text in texts for part in text.split(",")]
    return list(texts)


def is_list(setting: Setting) -> bool:
    """Whether commas separate values of this option, and are no part of one."""
    if setting.option.choices or setting.name in ("rate", "session-rate"):
        return True
    return setting.kind in (int, float)


def _check_values(setting: Setting, values: Sequence[Any]) -> None:
    together = [values] if setting.option.multiple else values
    for value in together:
        try:
            decode_settings({setting.key: value}, (setting,), "sweep")
        except ConfigError as error:
            said = str(error).removeprefix(f"sweep: {setting.key} ")
            raise UsageError(f"--{setting.name} {said}") from None


def sha256_of_trace(trace: str) -> str | None:
    """Of the file; None for `synthetic`."""
    return trace_sha256(Path(trace))
