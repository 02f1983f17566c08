"""`summary.json`: every figure of a run, computed once, drawn by table and page."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from loadgen import __version__
from loadgen.analysis.distribution import Distribution, Stats
from loadgen.analysis.energy import energy_block
from loadgen.analysis.hardware import hardware_block
from loadgen.analysis.naive import Work, with_naive
from loadgen.analysis.schema import (
    EnergyBlock,
    ErrorRow,
    Goodput,
    GroupRow,
    HardwareBlock,
    Lag,
    ProcessRow,
    RunRecord,
    Schedule,
    Summary,
    WindowBlock,
)
from loadgen.analysis.tally import Group, RunWindow, Tally
from loadgen.analysis.verdict import EnergyFacts, ProcessFacts, RunFacts, judge
from loadgen.plan.plan import PlanHeader
from loadgen.results.measures import MEASURES, POOLED_MEASURES
from loadgen.results.parts import Part
from loadgen.results.results import Metering
from proxy.process.build import build_form
from proxy.process.files import write_whole

SHOWN_ERRORS = 5
PACKAGES = ("aiohttp", "httptools", "httpx", "msgspec", "numpy", "uvloop")
"""Packages that can change a measurement; recorded with every run."""


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about a run that its records do not have; given by its caller."""

    zero_unix_seconds: float | None = None
    """Wall-clock instant of the run's zero: places the window in the books."""
    warmup_seconds: float = 0.0
    cooldown_seconds: float = 0.0
    goodput: dict[str, float] = {}
    """Limits in base units, from `measures.parse_goodput`."""
    max_concurrency: int | None = None
    loop_lag_p99_seconds: float | None = None
    interrupted: bool = False
    failure: str | None = None
    """Why the run ended itself before its plan did."""
    simulated: bool = False
    """The engine is simulated; the books tell of the sensor."""
    metered: bool = False
    """Whether energy was asked for, so that its absence counts against the run."""
    power: str | None = None
    backend: str | None = None
    output_length_rule: str | None = None
    """The result of `backends.length_rule`."""
    model: str | None = None
    gpu: str | None = None
    """The engine's board, as its tools print it."""
    gpus: int | None = None
    metadata: dict[str, str] = {}
    allows_partial: bool = False
    """The loss of a process or a worker only degrades the run."""
    run: RunRecord | None = None


def summarise(
    tally: Tally,
    *,
    info: RunInfo,
    header: PlanHeader | None,
    plan_sha256: str | None,
    metering: Metering,
    run_seconds: float,
    parts: Sequence[Part] = (),
) -> Summary:
    """The summary of a run, from one pass over its records.

    `parts` tell of each process, where several sent it.
    """
    processes = [_process_row(part, tally.window) for part in parts]
    energy = energy_block(metering, tally)
    hardware = hardware_block(metering, tally, energy.power, info.zero_unix_seconds)
    measures = _all_stats(tally)
    seconds = tally.window.seconds
    tokens = tally.output_tokens
    summary = Summary(
        simulated=info.simulated or energy.simulated,
        simulated_engine=info.simulated,
        verdict=judge(
            _facts(tally, info, header, energy, hardware, metering, processes)
        ),
        trace=header.trace if header else None,
        trace_format=header.trace_format if header else None,
        arrival=header.arrival if header else None,
        seed=header.seed if header else None,
        backend=info.backend,
        model=info.model,
        plan_sha256=plan_sha256,
        duration=seconds,
        completed=tally.completed,
        failed=_failed(tally),
        total_input_tokens=tally.prompt_tokens,
        total_output_tokens=tokens,
        request_throughput=_per(tally.completed, seconds),
        output_throughput=_per(tokens, seconds),
        total_token_throughput=_per(tally.prompt_tokens + tokens, seconds),
        request_goodput=_per(tally.good, seconds) if tally.goodput else None,
        **_vllm_latencies(measures),
        request_rate=_request_rate(header),
        burstiness=header.burstiness if header else None,
        max_concurrency=info.max_concurrency,
        schedule=_schedule(tally, info, header, measures["schedule_lag"], processes),
        energy=energy,
        measures=measures,
        window=_window_block(tally, info, run_seconds),
        hardware=hardware,
        goodput=_goodput(tally) if tally.goodput else None,
        outcomes=dict(tally.outcomes.most_common()),
        errors=[
            ErrorRow(error=text, count=count)
            for text, count in tally.errors.most_common(SHOWN_ERRORS)
        ],
        by_kind={kind: _row(group) for kind, group in sorted(tally.kinds.items())},
        by_turn={turn: _row(group) for turn, group in sorted(tally.turns.items())},
        cached_tokens=tally.cached_tokens,
        input_lengths=tally.fidelity.prompts.block(),
        output_lengths=tally.fidelity.replies.block(),
        # without a length asked there was nothing to force
        output_length_rule=info.output_length_rule
        if tally.fidelity.replies.requests
        else None,
        environment=environment() | _boards(info),
        metadata=dict(info.metadata),
        run=info.run,
    )
    return with_naive(summary, work_of(tally))


def work_of(tally: Tally) -> Work:
    """The facts for naive estimates that the summary's sums do not hold."""
    return Work(tally.attention_pairs, tally.busy_fraction())


def write_summary(path: Path, summary: Summary) -> None:
    """Whole or not at all: a reader never meets half a file."""
    text = msgspec.json.format(msgspec.json.encode(summary), indent=2)
    write_whole(path, text + b"\n")


def read_summary(path: Path) -> Summary:
    """Raises OSError, or msgspec's errors when it is not one of ours."""
    return msgspec.json.decode(path.read_bytes(), type=Summary)


def is_paced(header: PlanHeader | None) -> bool:
    """False when everything was planned at once: then nothing can be late."""
    if header is None:
        return True
    return not (
        header.arrival == "inf" or (header.sessions > 1 and header.span_seconds == 0)
    )


def environment() -> dict[str, str | int | None]:
    """Recorded with every run, because it can change what was measured."""
    found: dict[str, str | int | None] = {
        "servewatt": __version__,
        "build": build_form(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
    }
    for name in PACKAGES:
        try:
            found[name] = packages.version(name)
        except packages.PackageNotFoundError:
            found[name] = None
    return found


# -- parts ---------------------------------------------------------------------


def _boards(info: RunInfo) -> dict[str, str | int | None]:
    """The engine's boards, where the run knows them."""
    known = {"gpu": info.gpu, "gpus": info.gpus}
    return {name: value for name, value in known.items() if value is not None}


def _facts(
    tally: Tally,
    info: RunInfo,
    header: PlanHeader | None,
    energy: EnergyBlock,
    hardware: HardwareBlock,
    metering: Metering,
    processes: Sequence[ProcessRow],
) -> RunFacts:
    lag = tally.lag.stats("s")
    errors = {
        outcome: count
        for outcome, count in tally.outcomes.items()
        if outcome not in {"ok", "dropped", "aborted"}
    }
    asked = info.metered or metering.is_restarted or energy.source not in {None, "none"}
    return RunFacts(
        attempted=tally.attempted,
        completed=tally.completed,
        errors=errors,
        dropped=tally.outcomes["dropped"],
        lag_p99_seconds=lag.p99 if lag else None,
        gap_p50_seconds=tally.gap_p50_seconds(),
        is_paced=is_paced(header),
        asked_per_second=_asked_per_second(tally, header),
        achieved_per_second=tally.achieved_per_second(),
        max_concurrency=info.max_concurrency,
        loop_lag_p99_seconds=info.loop_lag_p99_seconds,
        interrupted=info.interrupted,
        failure=info.failure,
        energy=_energy_facts(energy, metering) if asked else None,
        boards=hardware.boards,
        warm_up=hardware.warm_up,
        processes=[_process_facts(row) for row in processes],
        allows_partial=info.allows_partial,
    )


def _process_row(part: Part, window: RunWindow) -> ProcessRow:
    """One process of several: its records that are in the window."""
    planned = np.asarray(part.planned_seconds)
    lags = np.asarray(part.lag_seconds)
    is_inside = (window.start_seconds <= planned) & (planned <= window.end_seconds)
    found = Distribution()
    found.extend(lags[is_inside & ~np.isnan(lags)].tolist())
    loop_lag = part.loop_lag_p99_seconds
    return ProcessRow(
        process=part.number,
        requests=int(is_inside.sum()),
        lag_ms=_lag_ms(found.stats("s")),
        loop_lag_p99_ms=_in_ms(loop_lag),
        cpu_seconds=part.cpu_seconds,
        worker=part.worker,
        death=part.death,
        lost_requests=part.lost,
        clock_offset_seconds=part.clock_offset_seconds,
        clock_error_ms=_in_ms(part.clock_error_seconds),
        clock_drift_ms=_in_ms(part.clock_drift_seconds),
    )


def _in_ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


def _process_facts(row: ProcessRow) -> ProcessFacts:
    return ProcessFacts(
        number=row.process,
        worker=row.worker,
        clock_error_seconds=None
        if row.clock_error_ms is None
        else (row.clock_error_ms + (row.clock_drift_ms or 0.0)) / 1000,
        lag_p99_seconds=row.lag_ms.p99 / 1000 if row.lag_ms else None,
        death=row.death,
        lost_requests=row.lost_requests,
    )


def _lag_ms(lag: Stats | None) -> Lag | None:
    if lag is None:
        return None
    return Lag(
        mean=lag.mean * 1000, p50=lag.p50 * 1000, p90=lag.p90 * 1000,
        p99=lag.p99 * 1000, max=lag.max * 1000,
    )  # fmt: skip


def _energy_facts(energy: EnergyBlock, metering: Metering) -> EnergyFacts:
    return EnergyFacts(
        unknown_reason=energy.reason,
        is_restarted=metering.is_restarted,
        measured_joules=energy.measured_joules,
        residual_joules=_worst_residual_joules(energy),
        unattributed_joules=energy.unattributed_joules or {},
        requests_with=energy.requests_with_energy,
        requests_without=energy.requests_without_energy,
        readings=energy.readings,
        missed_readings=energy.missed_readings,
        window_seconds=energy.window_seconds,
        gap_seconds=energy.gap_seconds,
        is_settled=energy.settled is not False,
    )


def _worst_residual_joules(energy: EnergyBlock) -> float | None:
    """The worst residual of all boundaries: one not closed makes a run invalid."""
    every = [energy.residual_joules]
    every += [block.residual_joules for block in energy.boundaries.values()]
    return max(
        (joules for joules in every if joules is not None), key=abs, default=None
    )


def _all_stats(tally: Tally) -> dict[str, Stats | None]:
    found = {
        name: tally.measures[name].stats(measure.unit)
        for name, measure in MEASURES.items()
    }
    for name, pooled in POOLED_MEASURES.items():
        found[name] = tally.pooled[name].stats(pooled.unit)
    found["schedule_lag"] = tally.lag.stats("s")
    return found


def _vllm_latencies(measures: Mapping[str, Stats | None]) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for name in ("ttft", "tpot", "itl", "e2el"):
        stats = measures[name]
        keys[f"mean_{name}_ms"] = stats.mean * 1000 if stats else None
        keys[f"median_{name}_ms"] = stats.p50 * 1000 if stats else None
        keys[f"std_{name}_ms"] = stats.std * 1000 if stats else None
        keys[f"p99_{name}_ms"] = stats.p99 * 1000 if stats else None
    return keys


def _schedule(
    tally: Tally,
    info: RunInfo,
    header: PlanHeader | None,
    lag: Stats | None,
    processes: list[ProcessRow],
) -> Schedule:
    busy = tally.concurrency()
    loop_lag = info.loop_lag_p99_seconds
    gap = tally.gap_p50_seconds()
    return Schedule(
        plan_requests=header.requests if header else None,
        planned=tally.attempted,
        sent=tally.sent,
        dropped=tally.outcomes["dropped"],
        asked_per_second=_asked_per_second(tally, header),
        offered_per_second=tally.offered_per_second(),
        achieved_per_second=tally.achieved_per_second(),
        lag_ms=_lag_ms(lag),
        gap_p50_ms=gap * 1000 if gap is not None else None,
        loop_lag_p99_ms=loop_lag * 1000 if loop_lag is not None else None,
        mean_concurrency=busy[0] if busy else None,
        peak_concurrency=busy[1] if busy else None,
        processes=processes,
    )


def _window_block(tally: Tally, info: RunInfo, run_seconds: float) -> WindowBlock:
    window: RunWindow = tally.window
    zero = info.zero_unix_seconds
    return WindowBlock(
        start_seconds=window.start_seconds,
        end_seconds=window.end_seconds,
        warmup_seconds=info.warmup_seconds,
        cooldown_seconds=info.cooldown_seconds,
        requests=tally.attempted,
        requests_outside=tally.outside,
        run_seconds=run_seconds,
        started_unix_seconds=None if zero is None else zero + window.start_seconds,
    )


def _goodput(tally: Tally) -> Goodput:
    return Goodput(
        limits=tally.goodput,
        good=tally.good,
        fraction_of_attempted=_per(tally.good, tally.attempted),
    )


def _row(group: Group) -> GroupRow:
    ttft, tpot, e2el, energy = (
        group.measures[name].stats("") for name in ("ttft", "tpot", "e2el", "energy")
    )
    return GroupRow(
        requests=group.requests,
        completed=group.completed,
        mean_prompt_tokens=_per(group.prompt_tokens, group.completed),
        mean_output_tokens=_per(group.output_tokens, group.completed),
        p50_ttft_seconds=ttft.p50 if ttft else None,
        p50_tpot_seconds=tpot.p50 if tpot else None,
        p50_e2el_seconds=e2el.p50 if e2el else None,
        mean_joules=energy.mean if energy else None,
        p50_joules=energy.p50 if energy else None,
        p90_joules=energy.p90 if energy else None,
        joules_per_output_token=_per(group.energy_joules, group.energy_output_tokens),
    )


def _failed(tally: Tally) -> int:
    """Sent and not answered in full; the never sent are `dropped`."""
    return tally.attempted - tally.completed - tally.outcomes["dropped"]


def _asked_per_second(tally: Tally, header: PlanHeader | None) -> float | None:
    rate = _request_rate(header)
    if rate == "inf":
        return None
    return rate if isinstance(rate, float) else tally.offered_per_second()


def _request_rate(header: PlanHeader | None) -> float | str | None:
    if header is None:
        return None
    rate = header.rate_per_second
    if (rate is None and header.arrival == "inf") or (rate and math.isinf(rate)):
        return "inf"
    return rate


def _per(amount: float, whole: float) -> float | None:
    return amount / whole if whole > 0 else None
