"""The verdict on a run: valid, degraded or invalid, with the reasons.

`invalid`: the load was not the one planned, or the books do not close; do not
use the figures. `degraded`: usable with the stated reservation. Every reason is
one sentence with the figure and the threshold it broke.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from loadgen.analysis.warmup import WarmUp, degrades
from loadgen.results.results import title
from proxy.wire.api import BoardSummary

VALID, DEGRADED, INVALID = "valid", "degraded", "invalid"
POWER_CAP = "sw_power_cap"
FIGURES = {"ttft": "TTFT", "power": "power", "sm_clock": "SM clock"}
EXIT_CODES: dict[str, int] = {VALID: 0, DEGRADED: 0, INVALID: 3}


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Limits beyond which a figure is not good enough, each with its reason."""

    lag_degraded_seconds: float = 0.010
    """An engine's step takes 10 ms and more: below it, a late request still joins
    the step it was meant for."""
    lag_gap_fraction: float = 0.5
    """Late by half the median planned gap, requests begin to swap places. (5 % of
    the gap would be under a millisecond from 35 requests/s on, finer than an
    event loop's timer, so every client would fail it.)"""
    lag_floor_seconds: float = 0.005
    """The lag that this client holds at 200 requests/s; the gap rule stops here."""
    lag_invalid_seconds: float = 0.100
    """Ten steps: bursts arrive as another pattern than the one planned."""
    loop_lag_degraded_seconds: float = 0.010
    """A busy event loop stamps first tokens late by as much."""
    loop_lag_invalid_seconds: float = 0.100
    achieved_fraction: float = 0.80
    """Of the asked rate: below it the figures are of another load than the one asked
    for."""
    error_invalid_fraction: float = 0.05
    """The load on the server is lighter than the plan's by about this much."""
    residual_joules: float = 0.001
    """The finest step of the sensors: more than this is a defect of the books."""
    residual_fraction: float = 1e-9
    """Float64 cannot hold a millijoule beside a counter of terajoules."""
    unattributed_fraction: float = 0.05
    unknown_energy_fraction: float = 0.01
    """Requests without joules: above it, J/request describes another population."""
    missed_reading_fraction: float = 0.01
    gap_fraction: float = 0.01
    throttled_fraction: float = 0.01
    """Too hot or short of power from outside: the board is not what it is sold as."""
    power_capped_fraction: float = 0.05
    """At its power limit a board is slower than it could be; a full one touches it."""
    shared_fraction: float = 0.01
    clock_error_degraded_seconds: float = 0.010
    """As the schedule lag: so much early or late are the requests of a worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyFacts:
    """Facts of the energy block for the verdict; None is not known."""

    unknown_reason: str | None = None
    """Why there are no joules at all."""
    is_restarted: bool = False
    """The proxy was restarted during the run."""
    measured_joules: float | None = None
    residual_joules: float | None = None
    unattributed_joules: Mapping[str, float] = field(default_factory=dict)
    requests_with: int = 0
    requests_without: int = 0
    readings: int | None = None
    missed_readings: int | None = None
    window_seconds: float | None = None
    gap_seconds: float | None = None
    """Seconds of the window that were not measured."""
    is_settled: bool = True
    """False when the books were read before their end was final."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFacts:
    """Facts of one of several processes or workers that sent a run."""

    number: int
    worker: str | None = None
    clock_error_seconds: float | None = None
    """Of the worker's clock against the run's, drift included."""
    lag_p99_seconds: float | None = None
    death: str | None = None
    """How it ended before its time."""
    lost_requests: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """Facts of a run for the verdict; counts are of the whole run."""

    attempted: int
    completed: int
    errors: Mapping[str, int]
    """Failures by outcome: `error`, `timeout`."""
    dropped: int = 0
    lag_p99_seconds: float | None = None
    gap_p50_seconds: float | None = None
    """Median planned gap; None or 0 where requests are planned together."""
    is_paced: bool = True
    """False at rate inf: the plan is "as fast as it goes", nothing can be late."""
    asked_per_second: float | None = None
    achieved_per_second: float | None = None
    max_concurrency: int | None = None
    loop_lag_p99_seconds: float | None = None
    interrupted: bool = False
    failure: str | None = None
    """Why it ended itself before its plan did."""
    energy: EnergyFacts | None = None
    """None when no metering was asked for."""
    boards: Sequence[BoardSummary] = ()
    """How they worked in the window."""
    warm_up: Sequence[WarmUp] = ()
    processes: Sequence[ProcessFacts] = ()
    """Each, where several sent the run: the latest of them decides."""
    allows_partial: bool = False
    """The loss of one of them was allowed for."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The judgement as it stands in `summary.json`."""

    status: str
    reasons: list[str]


Finding = tuple[str, str]
"""Status and the sentence that explains it."""

DEFAULT = Thresholds()


def judge(facts: RunFacts, limits: Thresholds = DEFAULT) -> Verdict:
    """The worst of all findings, and all reasons, worst first."""
    findings = [
        *_of_processes(facts, limits),
        *_of_completion(facts, limits),
        *_of_schedule(facts, limits),
        *_of_client(facts, limits),
        *_of_warm_up(facts),
    ]
    for board in facts.boards:
        findings += _of_board(board, limits)
    if facts.energy is not None:
        findings += _of_energy(facts.energy, limits)
    order = (INVALID, DEGRADED)
    findings.sort(key=lambda finding: order.index(finding[0]))
    status = findings[0][0] if findings else VALID
    return Verdict(status=status, reasons=[reason for _, reason in findings])


def lag_limit_seconds(gap_p50_seconds: float | None, limits: Thresholds) -> float:
    """Schedule lag above which a run is degraded, for this median planned gap."""
    if not gap_p50_seconds:
        return limits.lag_degraded_seconds
    by_gap = max(limits.lag_gap_fraction * gap_p50_seconds, limits.lag_floor_seconds)
    return min(by_gap, limits.lag_degraded_seconds)


def _of_processes(facts: RunFacts, limits: Thresholds) -> Iterator[Finding]:
    for each in facts.processes:
        if each.death is not None:
            yield (
                DEGRADED if facts.allows_partial else INVALID,
                f"{_title(each, facts)} {each.death}: {each.lost_requests} of its "
                "requests are lost",
            )
    limit = limits.clock_error_degraded_seconds
    unsure = [
        (each.clock_error_seconds, each)
        for each in facts.processes
        if each.clock_error_seconds is not None and each.clock_error_seconds > limit
    ]
    if unsure:
        error, worst = max(unsure, key=lambda pair: pair[0])
        yield (
            DEGRADED,
            f"the clock of {_title(worst, facts)} is known to {_ms(error)} only, limit "
            f"{_ms(limit)}: its requests may have left as much early or late",
        )


def _title(each: ProcessFacts, facts: RunFacts) -> str:
    return title(each.number, len(facts.processes), each.worker)


def _of_completion(facts: RunFacts, limits: Thresholds) -> Iterator[Finding]:
    if facts.failure is not None:
        yield (
            INVALID,
            f"the run was ended early: {facts.failure}; figures cover what was done "
            "until then",
        )
    if facts.interrupted:
        yield (
            DEGRADED,
            f"the run was interrupted after {facts.attempted} requests; figures cover "
            "what was done until then",
        )
    if not facts.completed:
        yield INVALID, f"none of {facts.attempted} requests was answered"
        return
    failed = sum(facts.errors.values())
    if not failed:
        return
    share = failed / facts.attempted
    kinds = ", ".join(f"{count} {name}" for name, count in facts.errors.items())
    limit = limits.error_invalid_fraction
    yield (
        INVALID if share > limit else DEGRADED,
        f"{failed} of {facts.attempted} requests failed ({kinds}): {share:.1%}, "
        f"degraded above 0, invalid above {limit:.0%}",
    )


def _of_schedule(facts: RunFacts, limits: Thresholds) -> Iterator[Finding]:
    if facts.dropped and facts.is_paced:
        yield (
            DEGRADED if facts.interrupted else INVALID,
            f"{facts.dropped} planned requests were never sent; the limit is 0",
        )
    yield from _of_rate(facts, limits)
    lag, where = facts.lag_p99_seconds, ""
    for each in facts.processes:
        if each.lag_p99_seconds is not None and each.lag_p99_seconds > (lag or 0.0):
            lag = each.lag_p99_seconds
            where = f" in {_title(each, facts)}"
    if lag is None or not facts.is_paced:
        return
    limit = lag_limit_seconds(facts.gap_p50_seconds, limits)
    if lag <= limit:
        return
    if facts.max_concurrency is not None:
        yield (
            DEGRADED,
            f"--max-concurrency {facts.max_concurrency} held requests back: schedule "
            f"lag p99 {_ms(lag)}{where} (limit {_ms(limit)}); read the latencies from "
            "the intended start",
        )
        return
    is_invalid = lag > limits.lag_invalid_seconds
    threshold = limits.lag_invalid_seconds if is_invalid else limit
    yield (
        INVALID if is_invalid else DEGRADED,
        f"requests left late: schedule lag p99 {_ms(lag)}{where}, limit "
        f"{_ms(threshold)}",
    )


def _of_rate(facts: RunFacts, limits: Thresholds) -> Iterator[Finding]:
    asked, achieved = facts.asked_per_second, facts.achieved_per_second
    if not asked or achieved is None or not facts.is_paced:
        return
    limit = limits.achieved_fraction
    if achieved < limit * asked:
        yield (
            DEGRADED,
            f"the load was lighter than asked: {achieved:.3g} requests/s achieved of "
            f"{asked:.3g} asked, {achieved / asked:.0%}, limit {limit:.0%}; take more "
            "requests, or leave out ramp-up and drain with --warmup and --cooldown",
        )


def _of_client(facts: RunFacts, limits: Thresholds) -> Iterator[Finding]:
    lag = facts.loop_lag_p99_seconds
    if lag is None or lag <= limits.loop_lag_degraded_seconds:
        return
    is_invalid = lag > limits.loop_lag_invalid_seconds
    threshold = (
        limits.loop_lag_invalid_seconds
        if is_invalid
        else limits.loop_lag_degraded_seconds
    )
    yield (
        INVALID if is_invalid else DEGRADED,
        f"this client was too busy to stamp on time: event loop lag p99 {_ms(lag)}, "
        f"limit {_ms(threshold)}",
    )


def _of_board(board: BoardSummary, limits: Thresholds) -> Iterator[Finding]:
    name, seen = board.device, board.seconds
    if not seen:
        return
    for reason, seconds in board.throttled_seconds_by_reason.items():
        is_cap = reason == POWER_CAP
        limit = limits.power_capped_fraction if is_cap else limits.throttled_fraction
        if seconds > limit * seen:
            yield (
                DEGRADED,
                f"{name} was throttled for {seconds:.0f} s of {seen:.0f} s ({reason}): "
                f"{seconds / seen:.0%}, limit {limit:.0%}",
            )
    watts = board.power_limit_watts
    if board.power_limit_changes and watts is not None:
        times = (
            "once"
            if board.power_limit_changes == 1
            else (f"{board.power_limit_changes} times")
        )
        yield (
            DEGRADED,
            f"the power limit of {name} was changed {times}, between {watts.min:g} W "
            f"and {watts.max:g} W",
        )
    shared = board.shared_seconds or 0.0
    if shared > limits.shared_fraction * seen:
        yield (
            DEGRADED,
            f"another process was on {name} for {shared:.0f} s of {seen:.0f} s: its "
            "joules are among those of the requests",
        )
    if board.uncorrected_ecc_errors:
        yield (
            DEGRADED,
            f"{name} had {board.uncorrected_ecc_errors} memory errors that it could "
            "not correct",
        )
    if board.xids:
        faults = ", ".join(map(str, board.xids))
        yield DEGRADED, f"the driver noted faults of {name}: XID {faults}"


def _of_warm_up(facts: RunFacts) -> Iterator[Finding]:
    """One sentence for all figures: the remedy is one."""
    found = [each for each in facts.warm_up if degrades(each)]
    if not found:
        return
    seconds = max(each.seconds for each in found)
    shifts = ", ".join(
        f"mean {FIGURES[each.signal]} {each.mean_shift:+.1%}" for each in found
    )
    yield (
        DEGRADED,
        f"the first {seconds:.0f} s were warm-up, unlike the rest at equal load "
        f"({shifts}); leave them out with --warmup {math.ceil(seconds)}",
    )


def _of_energy(energy: EnergyFacts, limits: Thresholds) -> Iterator[Finding]:
    if energy.measured_joules is None:
        reason = energy.unknown_reason or "no reading"
        if energy.is_restarted:
            yield INVALID, reason
            return
        yield DEGRADED, f"energy was asked for and is unknown: {reason}"
        return
    measured = energy.measured_joules
    yield from _of_books(energy, measured, limits)
    unattributed = sum(energy.unattributed_joules.values())
    limit = limits.unattributed_fraction
    if measured > 0 and unattributed / measured > limit:
        why = ", ".join(
            f"{joules:.1f} J {reason}"
            for reason, joules in energy.unattributed_joules.items()
            if joules
        )
        yield (
            DEGRADED,
            f"{unattributed / measured:.1%} of the energy belongs to no request "
            f"({why}), limit {limit:.0%}",
        )
    known = energy.requests_with + energy.requests_without
    limit = limits.unknown_energy_fraction
    if known and energy.requests_without / known > limit:
        yield (
            DEGRADED,
            f"{energy.requests_without} of {known} requests have no joules: "
            f"{energy.requests_without / known:.1%}, limit {limit:.0%}",
        )


def _of_books(
    energy: EnergyFacts, measured: float, limits: Thresholds
) -> Iterator[Finding]:
    residual = abs(energy.residual_joules or 0.0)
    limit = max(limits.residual_joules, limits.residual_fraction * measured)
    if residual > limit:
        yield (
            INVALID,
            f"the books do not close: {residual * 1000:.1f} mJ of {measured:.1f} J are "
            f"in no account, limit {limit * 1000:.0f} mJ",
        )
    if not energy.is_settled:
        yield DEGRADED, "the last part of the run's energy was not final when read"
    if energy.missed_readings:
        due = (energy.readings or 0) + energy.missed_readings
        limit = limits.missed_reading_fraction
        if energy.missed_readings / due > limit:
            yield (
                DEGRADED,
                f"the power sensor missed {energy.missed_readings} of {due} readings: "
                f"{energy.missed_readings / due:.1%}, limit {limit:.0%}",
            )
    gap, limit = energy.gap_seconds or 0.0, limits.gap_fraction
    if energy.window_seconds and gap / energy.window_seconds > limit:
        yield (
            DEGRADED,
            f"{gap:.1f} s of {energy.window_seconds:.1f} s were not measured: "
            f"{gap / energy.window_seconds:.1%}, limit {limit:.0%}",
        )


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
