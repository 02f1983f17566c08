"""How wrong is a request's energy? Every policy against the truth of simulated engines.

    python -m benchmarks.attribution_error [--only TEXT] [--requests 1000] [--seeds 3]
        [--cache DIR] [--json] [--markdown FILE]

Virtual time, no sockets. An engine decides which step computes whom and what it costs;
its truth is the Shapley share of the real, non-linear step energy. The real `Meter`
sees what a proxy sees: arrivals, token reads (late by up to `--jitter-ms`), usage, the
engine's metrics every second, and a counter that updates every 100 ms, polled every
20 ms. It knows neither the engine's constants nor its steps. The first scenarios run on
the simulator of `loadgen` (a roofline), those named `bent` on boards whose cost is no
fixed part plus sums, some of the work hidden from the meter: see
`benchmarks.attribution`.

Relative error is |attributed - true| / true per request, over all seeds; bias is
attributed / true over a kind. `active` leaves the idle share out on both sides,
`inclusive` takes it in: the truth shares idle by the duration that each request causes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.attribution.load import engine_config, load
from benchmarks.attribution.scenarios import BENT, TEXTBOOK, Scenario
from benchmarks.attribution.sight import play
from loadgen.simulator.core.roofline import roofline
from proxy.meter.attribution.fit import Sums
from proxy.meter.attribution.policies import (
    POLICIES,
    CostModel,
    Policy,
    by_calibration,
    by_phase,
)
from proxy.meter.config import MeterConfig
from proxy.meter.ledger import RequestEnergy
from proxy.meter.meter import Meter

SCENARIOS = [*TEXTBOOK, *BENT]

BEST_GRADES = frozenset(("exact", "good"))
"""What a record may not say of joules that are off by a tenth."""

OFF = 0.1


@dataclass(frozen=True)
class Row:
    """What one policy got wrong in one scenario, over all its seeds."""

    scenario: str
    policy: str
    view: str
    """`active`, or `inclusive` of the idle share."""
    requests: int
    median_error: float
    p90_error: float
    bias: Mapping[str, float]
    residual_joules: float
    recomputed_fraction: float
    trusted_fraction: float
    """Of the busy time: how long `calibrated` used constants of its own."""
    unknown: int
    """Records without energy."""
    hidden_bias: float | None
    """Joules booked as other people's, by what those without a record cost."""
    best_fraction: float
    """Records that carry the best grade."""
    best_off_fraction: float | None
    """The same among those off by more than a tenth; None where there are none."""
    coverage: float | None
    """Records whose 90 % interval has the truth in it; inclusive, headline only."""
    half_width: float | None
    """Mean half width of the intervals, relative to the truth."""
    median_lag_seconds: float
    """From the end of a request to its record; a beat of 0.5 s included."""
    max_lag_seconds: float


@dataclass(frozen=True)
class Outcome:
    """One run of one seed through the meter: its records beside the truth."""

    kinds: np.ndarray
    """Shape (records,), as all arrays here."""
    true_active: np.ndarray
    true_idle: np.ndarray
    policy_joules: Mapping[str, np.ndarray]
    """Active joules."""
    idle_shares: np.ndarray
    grades: np.ndarray
    low_joules: np.ndarray
    """Of the 90 % interval, nan where the record has none; so for the next."""
    high_joules: np.ndarray
    unknown: int
    residual_joules: float
    recomputed_fraction: float
    trusted_fraction: float
    hidden_joules: float
    """Booked as somebody else's."""
    true_hidden_joules: float
    lag_seconds: np.ndarray
    """From the end of each request to its record."""


def outcome_of(
    scenario: Scenario,
    count: int,
    jitter_seconds: float,
    policies: Mapping[str, Policy] = POLICIES,
    calibrations: Mapping[str, Sums] | None = None,
    folder: Path | None = None,
) -> Outcome:
    """One scenario and seed through the meter; engines' runs are kept in `folder`."""
    made = load(scenario, count, folder)
    truth = made.done.truth
    config = MeterConfig(
        policy=list(policies)[-1], policies=policies, calibrations=calibrations or {}
    )
    meter = Meter(config)
    lags: list[float] = []
    settled, trusted_fraction = play(made, scenario, meter, jitter_seconds, lags)
    records = [each for each in settled if each.energy.energy_joules is not None]
    names = {record.request_id for record in settled}
    truths = [truth[record.request_id] for record in records]
    energies = [record.energy for record in records]
    books = meter.books_at()
    others = ("external", "unmetered")
    return Outcome(
        kinds=np.array([record.kind for record in records]),
        true_active=np.array(
            [each.prefill_joules + each.decode_joules for each in truths]
        ),
        true_idle=np.array([each.idle_share_joules for each in truths]),
        policy_joules={
            policy: np.array([each.policy_joules[policy] for each in energies])
            for policy in policies
        },
        idle_shares=np.array([each.idle_share_joules for each in energies], float),
        grades=np.array([getattr(each, "grade", each.quality) for each in energies]),
        low_joules=_bound(energies, "low_joules"),
        high_joules=_bound(energies, "high_joules"),
        unknown=len(settled) - len(records),
        residual_joules=abs(books.residual_joules),
        recomputed_fraction=made.recomputed_fraction,
        trusted_fraction=trusted_fraction,
        hidden_joules=sum(books.unattributed_joules.get(each, 0.0) for each in others),
        true_hidden_joules=sum(
            each.energy_joules for name, each in truth.items() if name not in names
        ),
        lag_seconds=np.array(lags),
    )


def _bound(energies: Sequence[RequestEnergy], name: str) -> np.ndarray:
    found = [getattr(energy, name, None) for energy in energies]
    return np.array([np.nan if each is None else each for each in found], float)


def rows_from(scenario: Scenario, outcomes: Sequence[Outcome]) -> Iterator[Row]:
    """Seeds of one scenario, pooled; a row per policy, and one inclusive."""

    def pooled(arrays: Iterable[np.ndarray]) -> np.ndarray:
        return np.concatenate(list(arrays))

    kinds = pooled(each.kinds for each in outcomes)
    active = pooled(each.true_active for each in outcomes)
    idle = pooled(each.true_idle for each in outcomes)
    shares = pooled(each.idle_shares for each in outcomes)
    is_best = np.isin(pooled(each.grades for each in outcomes), list(BEST_GRADES))
    low = pooled(each.low_joules for each in outcomes)
    high = pooled(each.high_joules for each in outcomes)
    hidden = sum(each.true_hidden_joules for each in outcomes)
    lags = pooled(each.lag_seconds for each in outcomes)
    policies = list(outcomes[0].policy_joules)
    for policy in policies:
        joules = pooled(each.policy_joules[policy] for each in outcomes)
        for view, got, true in (
            ("active", joules, active),
            ("inclusive", joules + shares, active + idle),
        ):
            errors = np.abs(got - true) / true
            is_off = errors > OFF
            has_bounds = view == "inclusive" and policy == policies[-1]
            has_bounds = has_bounds and bool(np.isfinite(low).all())
            is_inside = (low <= true) & (true <= high)
            yield Row(
                scenario.name,
                policy,
                view,
                len(errors),
                float(np.median(errors)),
                float(np.quantile(errors, 0.9)),
                _bias(kinds, got, true),
                max(each.residual_joules for each in outcomes),
                float(np.mean([each.recomputed_fraction for each in outcomes])),
                float(np.mean([each.trusted_fraction for each in outcomes])),
                sum(each.unknown for each in outcomes),
                sum(each.hidden_joules for each in outcomes) / hidden
                if hidden
                else None,
                float(is_best.mean()),
                float(is_best[is_off].mean()) if is_off.any() else None,
                float(is_inside.mean()) if has_bounds else None,
                float(((high - low) / 2 / true).mean()) if has_bounds else None,
                float(np.median(lags)),
                float(lags.max()),
            )


def rows_of(
    scenario: Scenario,
    count: int,
    jitter_seconds: float,
    policies: Mapping[str, Policy] = POLICIES,
    calibrations: Mapping[str, Sums] | None = None,
) -> Iterator[Row]:
    """One scenario and seed through the meter; a row per policy and view."""
    outcome = outcome_of(scenario, count, jitter_seconds, policies, calibrations)
    return rows_from(scenario, [outcome])


def _bias(kinds: np.ndarray, got: np.ndarray, true: np.ndarray) -> dict[str, float]:
    return {
        str(kind): float(got[kinds == kind].sum() / true[kinds == kind].sum())
        for kind in np.unique(kinds)
    }


def wrong_constants() -> dict[str, Policy]:
    """`phase` with one group of constants wrong by a factor of two.

    And with the simulator's own for the first row's hardware (additive parts only):
    what is left then is the method's error, not that of the constants.
    """
    right = CostModel()
    groups = {
        "step": ("step_joules",),
        "prefill": ("prefill_token_joules", "prefill_context_joules"),
        "decode": ("step_joules", "decode_token_joules", "kv_token_joules"),
        "kv": ("kv_token_joules",),
    }
    made: dict[str, Policy] = {"phase": by_phase}
    for group, names in groups.items():
        for factor in (0.5, 2.0):
            changed = {name: factor * getattr(right, name) for name in names}
            cost = replace(right, **changed)
            made[f"phase, {group} x{factor:g}"] = partial(by_phase, cost=cost)
    made["phase, the simulator's own constants"] = partial(by_phase, cost=own_cost())
    return made


def constants_rows(count: int, jitter_seconds: float) -> list[Row]:
    """What constants matter, fitted ones beside wrong ones."""
    default = Scenario("mixed, 8 req/s, constants")
    rows = list(rows_of(default, count, jitter_seconds, wrong_constants()))
    fitted = {"calibrated, from nothing": by_calibration}
    rows += rows_of(default, count, jitter_seconds, fitted)
    resumed = {"calibrated, going on from a saved run": by_calibration}
    calibrations = learnt(replace(default, seed=2), count, jitter_seconds)
    rows += rows_of(default, count, jitter_seconds, resumed, calibrations)
    return rows


def learnt(scenario: Scenario, count: int, jitter_seconds: float) -> Mapping[str, Sums]:
    """What a run of other requests leaves for the next one."""
    meter = Meter()
    play(load(scenario, count), scenario, meter, jitter_seconds)
    calibration = meter.state().calibration
    assert calibration is not None
    assert calibration.model is not None
    return {calibration.model: calibration.sums}


def own_cost() -> CostModel:
    """The simulator's constants for an H100 and 8B, where memory-bound or not."""
    cost = roofline(engine_config(Scenario("own")))
    joules_per_flop = cost.joules_per_flop + cost.active_watts / cost.flops_per_second
    joules_per_byte = cost.joules_per_byte + cost.active_watts / cost.bytes_per_second
    return CostModel(
        step_joules=joules_per_byte * cost.weight_bytes,
        prefill_token_joules=joules_per_flop * cost.flops_per_token,
        prefill_context_joules=joules_per_flop * cost.attention_flops_per_pair,
        decode_token_joules=cost.joules_per_flop * cost.flops_per_token,
        kv_token_joules=joules_per_byte * cost.kv_bytes_per_token,
    )


def definitions_table(
    scenarios: Sequence[Scenario], count: int, folder: Path | None
) -> list[str]:
    """What other definitions of a request's joules give on the same runs.

    Each is scaled to the energy of every step, as a definition must be that closes the
    books; differences from the Shapley value are relative, per request.
    """
    lines = [
        "| run | leave one out adds up to | scaled: median | p90 | stand-alone adds up "
        "to | scaled: median | p90 |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for scenario in scenarios:
        run = load(scenario, count, folder).done
        names = list(run.truth)
        shapley = np.array([run.truth[name].energy_joules for name in names])
        cells: list[str] = []
        for what, joules in (("last", run.last_joules), ("alone", run.alone_joules)):
            other = np.array([joules[name] for name in names])
            apart = np.abs(other - shapley) / shapley
            median, p90 = np.quantile(apart, [0.5, 0.9]).tolist()
            cells += [f"{run.unscaled[what]:.0%}", f"{median:.0%}", f"{p90:.0%}"]
        lines.append(
            f"| {scenario.name.removeprefix('bent: ')} | {' | '.join(cells)} |"
        )
    return lines


def table(rows: Sequence[Row]) -> list[str]:
    """One line per scenario: every policy's median, more of the last two."""
    lines = [
        f"| scenario | {' | '.join(POLICIES)} | p90: phase, calibrated | bias of "
        "conversation, code: phase | calibrated | inclusive: phase, calibrated "
        "| trusted | best grade | of those off | covered | half width | others "
        "| record after: median, at most | residual |",
        f"|---|{'---:|' * len(POLICIES)}---:|---|---|{'---:|' * 9}",
    ]
    for name in dict.fromkeys(row.scenario for row in rows):
        own = {(row.policy, row.view): row for row in rows if row.scenario == name}
        medians = [own[policy, "active"].median_error for policy in POLICIES]
        phase, fitted = own["phase", "active"], own["calibrated", "active"]
        published = own["calibrated", "inclusive"]
        inclusive = [
            own[policy, "inclusive"].median_error for policy in ("phase", "calibrated")
        ]
        lines.append(
            f"| {name} | {' | '.join(f'{median:.1%}' for median in medians)} "
            f"| {phase.p90_error:.1%}, {fitted.p90_error:.1%} "
            f"| {_bias_text(phase)} | {_bias_text(fitted)} "
            f"| {inclusive[0]:.1%}, {inclusive[1]:.1%} "
            f"| {phase.trusted_fraction:.0%} | {_percent(published.best_fraction)} "
            f"| {_percent(published.best_off_fraction)} "
            f"| {_percent(published.coverage)} | {_percent(published.half_width)} "
            f"| {'-' if phase.hidden_bias is None else f'{phase.hidden_bias:.2f}'} "
            f"| {phase.median_lag_seconds:.1f}, {phase.max_lag_seconds:.1f} s "
            f"| {phase.residual_joules * 1e3:.1g} mJ |"
        )
    return lines


def _percent(part: float | None) -> str:
    return "-" if part is None else f"{part:.0%}"


def constants_table(rows: Sequence[Row]) -> list[str]:
    """One line per set of constants."""
    return [
        "| constants | median | p90 | bias: conversation, code |",
        "|---|---:|---:|---|",
        *(
            f"| {row.policy} | {row.median_error:.1%} | {row.p90_error:.1%} "
            f"| {_bias_text(row)} |"
            for row in rows
            if row.view == "active"
        ),
    ]


def _bias_text(row: Row) -> str:
    kinds = ("conversation", "code")
    return ", ".join(f"{row.bias[k]:.2f}" if k in row.bias else "-" for k in kinds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1000, metavar="N")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--jitter-ms", type=float, default=1.0)
    parser.add_argument("--only", default="", help="scenarios whose name has this")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="keep the engines' runs there"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument(
        "--definitions", action="store_true", help="compare definitions, not policies"
    )
    options = parser.parse_args()
    began = time.perf_counter()
    jitter_seconds = options.jitter_ms / 1e3
    count = options.requests
    chosen = [scenario for scenario in SCENARIOS if options.only in scenario.name]
    if options.definitions:
        bent = [each for each in chosen if each.board is not None]
        print("\n".join(definitions_table(bent, count, options.cache)))
        return
    runs = [
        replace(scenario, seed=scenario.seed + number)
        for scenario in chosen
        for number in range(options.seeds)
    ]
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        constants = None
        if not options.only:
            constants = pool.submit(constants_rows, count, jitter_seconds)
        run = partial(run_of, count, jitter_seconds, options.cache)
        found = list(pool.map(run, runs))
        wrong = constants.result() if constants else []
    rows: list[Row] = []
    for number, scenario in enumerate(chosen):
        first = number * options.seeds
        rows += rows_from(scenario, found[first : first + options.seeds])
    seconds = time.perf_counter() - began
    note = (
        f"Median and p90 of the relative error per request, {options.seeds} runs of "
        f"{count} requests each; {platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, {time.strftime('%Y-%m-%d')}, {seconds:.0f} s."
    )
    text = "\n".join([note, "", *table(rows), ""])
    if wrong:
        text += "\n".join(["", *constants_table(wrong), ""])
    if options.markdown:
        options.markdown.write_text(text)
    if options.json:
        shown = [asdict(row) for row in (*rows, *wrong)]
        print(json.dumps({"note": note, "rows": shown}))
    else:
        print(text)


def run_of(
    count: int, jitter_seconds: float, folder: Path | None, scenario: Scenario
) -> Outcome:
    """As `outcome_of`, for another process."""
    return outcome_of(scenario, count, jitter_seconds, folder=folder)


if __name__ == "__main__":
    main()
