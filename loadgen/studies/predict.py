"""What another trace or rate would take, by the costs that a run has taught.

The load is played in virtual time with the fitted seconds per step, for the batches
that it would find; the fitted joules of what those steps do, and the idle watts for
the time that it takes, are the prediction. A held out run is asked for its plan only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadgen.analysis.schema import Summary
from loadgen.analysis.tally import RunWindow
from loadgen.errors import RunError
from loadgen.plan.load import Load
from loadgen.plan.plan import PlanHeader
from loadgen.results.results import Result
from loadgen.simulator.core.aggregate import Outcome, StepCost, Workload, run_aggregate
from loadgen.studies.fit import (
    ENERGY_TERMS,
    TIME_TERMS,
    Fit,
    FloatArray,
    Rows,
    fit_energy,
    fit_time,
    reach,
    rows_of,
)
from loadgen.studies.workload import planned_workload

UNLIMITED = 1 << 40
MAX_SEQS = 256
"""Requests in a batch of a fitted engine, where nobody tells: vLLM's usual bound."""
_FAR_CONTEXT = 1.5
_BEYOND = 1.2
"""A load that much outside of what was fitted to is named."""


class Coefficient(msgspec.Struct, frozen=True, kw_only=True):
    """One fitted cost."""

    term: str
    unit: str
    value: float | None
    """None: the runs had nothing of it."""
    low: float | None
    high: float | None
    """95 % of the draws of blocks of sessions are between them."""


class Learnt(msgspec.Struct, frozen=True, kw_only=True):
    """What a run taught of its engine."""

    runs: tuple[str, ...]
    simulated: bool
    boundary: str | None
    requests: int
    blocks: int
    idle_watts: float
    joules: tuple[Coefficient, ...]
    seconds: tuple[Coefficient, ...]
    energy_error_fraction: float
    """Cross-validated by blocks of sessions: root mean square of a block's error."""
    energy_bias_fraction: float
    energy_median_request_error_fraction: float
    time_error_fraction: float
    notes: tuple[str, ...] = ()


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """Energy of a load on the fitted engine; low and high are a 95 % interval."""

    trace: str
    requests: int
    seconds: float
    """From the first start to the last token."""
    joules: float
    low_joules: float
    high_joules: float
    watts: float
    low_watts: float
    high_watts: float
    joules_per_request: float
    joules_per_output_token: float
    idle_joules: float
    """Of the joules: the idle watts for all of the time."""
    mean_batch: float
    p50_ttft_seconds: float
    p50_tpot_seconds: float | None
    notes: tuple[str, ...] = ()


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A prediction against the run that was held out; fractions are signed errors."""

    run: str
    simulated: bool
    measured_joules: float
    predicted_joules: float
    joules_error_fraction: float
    is_inside: bool
    """Whether the measurement is in the prediction's interval."""
    measured_watts: float
    predicted_watts: float
    watts_error_fraction: float
    measured_joules_per_request: float
    predicted_joules_per_request: float
    measured_p50_tpot_seconds: float | None
    predicted_p50_tpot_seconds: float | None
    notes: tuple[str, ...] = ()


class PredictionReport(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer of `loadgen predict`."""

    learnt: Learnt
    prediction: Prediction | None = None
    held: tuple[Held, ...] = ()


@dataclass(frozen=True, slots=True)
class FittedEngine:
    """Costs of an engine by the records of its runs."""

    learnt: Learnt
    energy: Fit
    time: Fit
    rows: Rows
    margin_seconds: float
    """Measured before the first and after the last request of a run."""
    reuse_fraction: float
    """Of a conversation's history that the prefix cache held."""
    is_reuse_known: bool
    prompt_factor: float
    output_factor: float

    def cost(self, max_num_seqs: int = MAX_SEQS) -> StepCost:
        """The engine as one that can be run in virtual time."""
        joules, seconds = self.energy.values, self.time.values
        step, prefill, output, context = seconds.tolist()
        return StepCost(
            lines=((step, prefill, 0.0, 0.0, output, context),),
            overhead_seconds=0.0,
            joules=tuple(_by_feature(joules).tolist()),
            busy_watts=self.learnt.idle_watts,
            idle_watts=self.learnt.idle_watts,
            capacity_tokens=UNLIMITED,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=2048,
        )


def _by_feature(joules: FloatArray) -> FloatArray:
    """Joules of the energy terms in the order of an aggregate's features.

    Cached tokens are read with the chunks after them: they stand apart.
    """
    step, token, pair, _, output, context = joules
    return np.array([step, token, pair, 0.0, output, context])


def learn(
    names: Sequence[str],
    runs: Sequence[tuple[Summary, Sequence[Result]]],
    reuse_fraction: float | None = None,
) -> FittedEngine:
    """Fit an engine to runs of it. Raises RunError for runs that cannot teach.

    `reuse_fraction` is what is known of its prefix cache where the runs tell nothing.
    """
    boundaries = {summary.energy.boundary for summary, _ in runs}
    for name, (summary, _) in zip(names, runs, strict=True):
        books = summary.energy
        if books.measured_joules is None and books.joules_per_request is None:
            raise RunError(
                f"{name} has no energy ({books.reason or 'not measured'}): give a run "
                "that was metered"
            )
        if books.loaded_idle_watts is None:
            raise RunError(
                f"{name}: its idle power is not known, so idle and work cannot be told "
                "apart; replay with --idle-watts W"
            )
    if len(boundaries) > 1:
        inside = " and ".join(sorted(str(each) for each in boundaries))
        raise RunError(
            f"the runs were measured inside {inside}: joules of two boundaries are "
            "never fitted together; give runs of one"
        )
    rows = _together(
        [
            rows_of(
                name,
                results,
                RunWindow(summary.window.start_seconds, summary.window.end_seconds),
            )
            for name, (summary, results) in zip(names, runs, strict=True)
        ]
    )
    energy, time = fit_energy(rows), fit_time(rows)
    summaries = [summary for summary, _ in runs]
    idle = [s.energy.loaded_idle_watts or 0.0 for s in summaries]
    margins = [
        max((s.energy.window_seconds or s.duration) - s.duration, 0.0)
        for s in summaries
    ]
    reuse = reuse_fraction
    if reuse is None:
        reuse = _reuse([r for _, results in runs for r in results])
    return FittedEngine(
        learnt=Learnt(
            runs=tuple(names),
            simulated=any(s.simulated for s in summaries),
            boundary=summaries[0].energy.boundary,
            requests=len(rows),
            blocks=int(rows.block.max()) + 1,
            idle_watts=float(np.mean(idle)),
            joules=_coefficients(ENERGY_TERMS, energy),
            seconds=_coefficients(TIME_TERMS, time),
            energy_error_fraction=energy.error_fraction,
            energy_bias_fraction=energy.bias_fraction,
            energy_median_request_error_fraction=energy.median_error_fraction,
            time_error_fraction=time.error_fraction,
            notes=tuple(
                f"{name}: {note}"
                for name, summary in zip(names, summaries, strict=True)
                for note in _doubts(summary)
            ),
        ),
        energy=energy,
        time=time,
        rows=rows,
        margin_seconds=float(np.mean(margins)),
        reuse_fraction=reuse or 0.0,
        is_reuse_known=reuse is not None,
        prompt_factor=_factor(
            [s.input_lengths.ratio_p50_without_live for s in summaries]
        ),
        output_factor=_factor([s.output_lengths.served_over_asked for s in summaries]),
    )


def predict(
    engine: FittedEngine, name: str, work: Workload, notes: Sequence[str] = ()
) -> Prediction:
    """Energy of a workload on the engine. Raises RunError where nothing would run."""
    cost = engine.cost()
    outcome = run_aggregate(work, cost)
    begin = float(np.nanmin(outcome.start_seconds))
    seconds = outcome.end_seconds - begin + engine.margin_seconds
    if not seconds > 0:
        raise RunError(f"{name}: nothing would run")
    cached = float(work.cached_tokens.sum())
    draws = np.array([_active(each, outcome, cached) for each in engine.energy.draws])
    active = _active(engine.energy.values, outcome, cached)
    idle = cost.idle_watts * seconds
    part = reach(engine.energy, draws / max(active, 1e-12) - 1, engine.learnt.blocks)
    joules, half = active + idle, min(part, 1.0) * active
    replies = outcome.last_token_seconds - outcome.first_token_seconds
    many = work.output_tokens > 1
    per_token = replies[many] / (work.output_tokens[many] - 1)
    in_flight = np.nansum(outcome.last_token_seconds - outcome.start_seconds)
    return Prediction(
        trace=name,
        requests=len(work),
        seconds=seconds,
        joules=joules,
        low_joules=joules - half,
        high_joules=joules + half,
        watts=joules / seconds,
        low_watts=(joules - half) / seconds,
        high_watts=(joules + half) / seconds,
        joules_per_request=joules / len(work),
        joules_per_output_token=joules / float(work.output_tokens.sum()),
        idle_joules=idle,
        mean_batch=float(in_flight) / max(outcome.end_seconds - begin, 1e-9),
        p50_ttft_seconds=float(
            np.nanmedian(outcome.first_token_seconds - outcome.start_seconds)
        ),
        p50_tpot_seconds=float(np.nanmedian(per_token)) if many.any() else None,
        notes=(*notes, *_outside(engine, work, outcome)),
    )


def hold(
    engine: FittedEngine, name: str, folder: Path, summary: Summary
) -> tuple[Prediction, Held]:
    """The prediction for a run by its plan, and what it took. Raises RunError."""
    energy = summary.energy
    if energy.measured_joules is None:
        raise RunError(
            f"{name} has no energy ({energy.reason or 'not measured'}): it cannot be "
            "held against a prediction"
        )
    if energy.boundary != engine.learnt.boundary:
        raise RunError(
            f"{name} was measured inside {energy.boundary}, the fit is of "
            f"{engine.learnt.boundary}: joules of two boundaries are never compared"
        )
    if summary.window.requests_outside:
        raise RunError(
            f"{name} left warm-up or cool-down out of its window: hold a run against "
            "the prediction that counts all of its requests"
        )
    _, work = _workload(engine, folder, Load())
    found = predict(engine, name, work)
    seconds = energy.window_seconds or summary.duration
    tpot = summary.measures.get("tpot")
    answered = max(summary.completed, 1)
    return found, Held(
        run=name,
        simulated=summary.simulated,
        measured_joules=energy.measured_joules,
        predicted_joules=found.joules,
        joules_error_fraction=found.joules / energy.measured_joules - 1,
        is_inside=found.low_joules <= energy.measured_joules <= found.high_joules,
        measured_watts=energy.measured_joules / seconds,
        predicted_watts=found.watts,
        watts_error_fraction=found.watts * seconds / energy.measured_joules - 1,
        measured_joules_per_request=energy.measured_joules / answered,
        predicted_joules_per_request=found.joules_per_request,
        measured_p50_tpot_seconds=tpot.p50 if tpot else None,
        predicted_p50_tpot_seconds=found.p50_tpot_seconds,
        notes=tuple(f"{name}: {note}" for note in (*found.notes, *_doubts(summary))),
    )


def _doubts(summary: Summary) -> list[str]:
    """Why a run should not be built on."""
    verdict = summary.verdict
    if verdict.status == "invalid":
        return [f"the run is invalid: {'; '.join(verdict.reasons)}"]
    return []


def workload_for(
    engine: FittedEngine, trace: Path, load: Load, format: str | None = None
) -> tuple[Workload, tuple[str, ...]]:
    """A trace as this engine would serve it, and what was assumed for that."""
    header, work = _workload(engine, trace, load, format)
    notes = list(header.notes)
    for what, factor in (
        ("prompts", engine.prompt_factor), ("outputs", engine.output_factor),
    ):  # fmt: skip
        if factor != 1.0:
            notes.append(f"{what} are taken x {factor:.3f}, as the fitted runs served")
    return work, tuple(notes)


def _workload(
    engine: FittedEngine, trace: Path, load: Load, format: str | None = None
) -> tuple[PlanHeader, Workload]:
    return planned_workload(
        trace, load, format,
        reuse_fraction=engine.reuse_fraction,
        prompt_factor=engine.prompt_factor,
        output_factor=engine.output_factor,
    )  # fmt: skip


def _active(joules: FloatArray, outcome: Outcome, cached: float) -> float:
    """Joules of the work of all steps, cached tokens included."""
    return float(_by_feature(joules) @ outcome.sums + joules[3] * cached)


def _outside(engine: FittedEngine, work: Workload, outcome: Outcome) -> list[str]:
    """What of a load the fit has not seen the like of."""
    rows = engine.rows
    notes = []
    if work.next_turn is not None and not engine.is_reuse_known:
        notes.append(
            "every later turn is taken to compute its whole history anew: the fit saw "
            "none, so give --reuse 1 for an engine with a prefix cache"
        )
    if work.cached_tokens.any() and not rows.cached_tokens.any():
        notes.append(
            "cached prompt tokens are taken to cost nothing but their context: the fit "
            "saw none"
        )
    for what, seen, asked in (
        ("prompts", rows.prompt_tokens, work.prompt_tokens),
        ("outputs", rows.output_tokens, work.output_tokens),
    ):
        most, now = float(seen.max()), float(np.quantile(asked, 0.99))
        if now > _BEYOND * most:
            notes.append(
                f"extrapolated: {what} of {now:,.0f} tokens (p99), the fit saw up to "
                f"{most:,.0f}"
            )
    before, ahead = (
        _context(rows.prompt_tokens, rows.output_tokens),
        _context(work.prompt_tokens, work.output_tokens),
    )
    if not 1 / _FAR_CONTEXT < ahead / before < _FAR_CONTEXT:
        notes.append(
            f"extrapolated: {ahead:,.0f} tokens of context per token written, in the "
            f"fit it was {before:,.0f}: add a run with others by --also"
        )
    seen_batch = _mean_batch(rows.sent_seconds, rows.last_seconds)
    now_batch = _mean_batch(outcome.start_seconds, outcome.last_token_seconds)
    if now_batch > 2 * seen_batch or now_batch < seen_batch / 2:
        notes.append(
            f"extrapolated: {now_batch:.1f} requests in flight on average, in the fit "
            f"it was {seen_batch:.1f}"
        )
    if outcome.unfit:
        notes.append(f"{outcome.unfit:,} requests are longer than the engine can hold")
    return notes


def _context(
    prompts: FloatArray | NDArray[np.int64], outputs: FloatArray | NDArray[np.int64]
) -> float:
    """Tokens before each token that is written, on average over those."""
    return float((outputs * (prompts + outputs / 2)).sum() / outputs.sum())


def _mean_batch(begin: FloatArray, end: FloatArray) -> float:
    span = float(np.nanmax(end) - np.nanmin(begin))
    return float(np.nansum(end - begin)) / max(span, 1e-9)


def _coefficients(terms: dict[str, str], fit: Fit) -> tuple[Coefficient, ...]:
    found = []
    for at, (name, unit) in enumerate(terms.items()):
        value, low, high = (
            float(each[at]) if fit.seen[at] else None
            for each in (fit.values, fit.low, fit.high)
        )
        found.append(Coefficient(term=name, unit=unit, value=value, low=low, high=high))
    return tuple(found)


def _reuse(results: Sequence[Result]) -> float | None:
    """Part of the history that later turns found cached; None where nobody told."""
    cached = history = 0
    before: dict[str, int] = {}
    for result in sorted(results, key=lambda each: each.turn):
        if result.turn and result.cached_tokens is not None:
            cached += result.cached_tokens
            history += before.get(result.session_id, 0)
        whole = (result.prompt_tokens or 0) + (result.output_tokens or 0)
        before[result.session_id] = whole
    return min(cached / history, 1.0) if history else None


def _factor(ratios: Sequence[float | None]) -> float:
    """Served over asked lengths; 1 where it is not known or next to nothing."""
    known = [ratio for ratio in ratios if ratio is not None and math.isfinite(ratio)]
    found = float(np.mean(known)) if known else 1.0
    return 1.0 if abs(found - 1) < 0.005 else found


def _together(parts: Sequence[Rows]) -> Rows:
    """Rows of several runs, one after the other."""
    if len(parts) == 1:
        return parts[0]
    reached, block = 0.0, 0
    moved = []
    for part in parts:
        shift = reached - float(part.sent_seconds.min())
        moved.append(
            Rows(
                part.sent_seconds + shift,
                part.first_seconds + shift,
                part.last_seconds + shift,
                part.prompt_tokens,
                part.cached_tokens,
                part.output_tokens,
                part.active_joules,
                part.block + block,
            )
        )
        reached = float(moved[-1].last_seconds.max()) + 1.0
        block += int(part.block.max()) + 1
    return Rows(
        *(
            np.concatenate([getattr(each, field.name) for each in moved])
            for field in fields(Rows)
        )
    )
