"""The replies of the admin API, made from the meters, the sensors and the upstreams.

Rule: a sum over engines is over whole ledgers. Where one engine's joules are not
known the sum is null: a part of the truth would look like all of it.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from proxy.meter.ledger import Books
from proxy.meter.meter import Meter
from proxy.metrics.collector import EndedRequests
from proxy.metrics.samples import Measured
from proxy.power.accuracy import accuracy_of
from proxy.power.hardware import HardwareLog, HardwareWindow, board_state
from proxy.relay.upstream.upstream import Upstream
from proxy.wire.api import (
    JOULES,
    Accounts,
    BoardState,
    BooksReply,
    BoundaryBooks,
    ClassTotals,
    EngineHardware,
    EngineInfo,
    EngineTotals,
    FleetReadiness,
    Phases,
    RatioReply,
    ReadinessReply,
    SensorState,
    UpstreamReply,
)


@dataclass(frozen=True, slots=True)
class ProcessRun:
    """What books belong to: a process, or the part of it since its upstreams changed.

    Books of two runs have no difference.
    """

    name: str = ""
    began_seconds: float = 0.0
    """On its monotonic clock."""


@dataclass(frozen=True, slots=True)
class EngineSources:
    """Sources of everything that the admin API shows of one engine."""

    name: str
    boundaries: Meter
    measured: Callable[[], Sequence[Measured]]
    """Every boundary now, the headline first."""
    upstream_state: Callable[[], Awaitable[str | None]]
    """None when the upstream answers, else why it does not."""
    upstream: Upstream | None = None
    hardware: HardwareLog = field(default_factory=HardwareLog)
    """How its boards worked."""
    run: ProcessRun = ProcessRun()


# -- books ---------------------------------------------------------------------


def engine_books(
    engine: EngineSources,
    at_seconds: float | None,
    *,
    unix_offset_seconds: float,
    sample_interval_seconds: float,
) -> BooksReply:
    """The books of one engine, as of an instant: the headline's, and every one."""
    replies = {
        measured.boundary: _boundary_books(
            engine.boundaries,
            measured,
            at_seconds,
            unix_offset_seconds=unix_offset_seconds,
            sample_interval_seconds=sample_interval_seconds,
            run=engine.run,
        )
        for measured in engine.measured()
    }
    return BooksReply(
        **msgspec.structs.asdict(replies[engine.boundaries.headline]),
        boundaries=replies,
        ratios=[
            msgspec.convert(ratio, RatioReply, from_attributes=True)
            for ratio in engine.boundaries.ratios()
        ],
    )


def _boundary_books(
    boundaries: Meter,
    measured: Measured,
    at_seconds: float | None,
    *,
    unix_offset_seconds: float,
    sample_interval_seconds: float,
    run: ProcessRun,
) -> BoundaryBooks:
    state, stats, name = measured.meter, measured.sampler, measured.boundary
    settled = state.books.settled_seconds
    has_begun = math.isfinite(settled)
    books = boundaries.books_of(name, at_seconds)
    outside = boundaries.outside_books(name, at_seconds)
    # before any reading the joules are unknown, which is not zero
    is_before = at_seconds is not None and _is_before(boundaries, name, at_seconds)
    is_measured = state.samples_total > 0 and has_begun and not is_before
    speculation = boundaries.speculation_at(books.settled_seconds)
    accepted = speculation.accepted if speculation else 0.0
    return BoundaryBooks(
        **(_joules_of(books) if is_measured else {}),
        source=measured.source,
        simulated=bool(stats and stats.is_simulated),
        settled_unix_seconds=settled + unix_offset_seconds if has_begun else None,
        complete=at_seconds is None or (settled >= at_seconds and not is_before),
        run=run.name,
        run_unix_seconds=run.began_seconds + unix_offset_seconds,
        boundary=name,
        sensor_up=bool(stats and stats.is_up),
        policy=state.policy,
        sample_interval_seconds=sample_interval_seconds,
        window_seconds=state.window_seconds,
        gap_seconds=books.gap_seconds if is_measured else None,
        drafted_tokens=speculation.drafted if speculation else None,
        accepted_tokens=speculation.accepted if speculation else None,
        joules_per_accepted_token=(
            books.decode_joules / accepted if is_measured and accepted else None
        ),
        idle_accelerators_joules=outside.measured_joules if outside else None,
        idle_accelerators_watts=(
            dict(measured.outside.device_watts) if measured.outside else {}
        ),
        idle_watts=state.idle_watts,
        idle_source=state.idle_source,
        rest_watts=state.rest_watts,
        bare_idle_watts=measured.bare_idle_watts,
        model_idle_watts=measured.model_idle_watts,
        device_watts=dict(state.device_watts),
        gaps_total=state.gaps_total,
        samples_total=state.samples_total,
        missed_total=stats.missed if stats else 0,
        counter_period_seconds=state.counter_period_seconds,
        counter_power_ratio=state.counter_power_ratio,
        unsettled_seconds=state.unsettled_seconds,
        open_requests=state.open_requests,
    )


def _is_before(meter: Meter, boundary: str, at_seconds: float) -> bool:
    """Whether nobody measured then, or the books of then are not kept any more."""
    oldest_seconds = meter.oldest_of(boundary)
    return oldest_seconds is not None and at_seconds < oldest_seconds


def _joules_of(books: Books) -> dict[str, Any]:
    phases = Phases(prefill=books.prefill_joules, decode=books.decode_joules)
    shown: dict[str, Any] = {"attributed_joules": phases}
    return {name: getattr(books, name) for name in JOULES if name not in shown} | shown


def engine_totals(
    engine: EngineSources, ended: Mapping[tuple[str, str], EndedRequests]
) -> EngineTotals:
    """What one engine did and drew so far, its settled requests by model and tenant."""
    headline, *_ = engine.measured()
    state = headline.meter
    is_measured = state.samples_total > 0 and math.isfinite(state.books.settled_seconds)
    accounts = Accounts(**_joules_of(state.books)) if is_measured else Accounts()
    tokens: dict[tuple[str, str], list[int]] = {}
    joules: dict[tuple[str, str], list[float]] = {}
    for labels, counts in state.class_tokens.items():
        _add(tokens.setdefault((labels.model, labels.tenant), [0, 0, 0]), counts)
    for labels, parts in state.class_joules.items():
        _add(joules.setdefault((labels.model, labels.tenant), [0.0, 0.0, 0.0]), parts)
    classes = []
    for key in dict.fromkeys((*ended, *tokens, *joules)):
        counted = ended.get(key, EndedRequests())
        prompt, _, output = tokens.get(key, (0, 0, 0))
        prefill, decode, idle_share = (
            joules.get(key, (0.0, 0.0, 0.0)) if is_measured else (None, None, None)
        )
        classes.append(
            ClassTotals(
                model=key[0],
                tenant=key[1],
                requests=counted.requests,
                requests_without_energy=counted.without_energy,
                requests_without_tokens=counted.without_tokens,
                prompt_tokens=prompt,
                output_tokens=output,
                prefill_joules=prefill,
                decode_joules=decode,
                idle_share_joules=idle_share,
                prefill_legs=counted.legs["prefill"],
                decode_legs=counted.legs["decode"],
            )
        )
    return EngineTotals(
        boundary=headline.boundary,
        simulated=bool(headline.sampler and headline.sampler.is_simulated),
        account_joules=accounts.by_account(),
        gap_seconds=state.books.gap_seconds if is_measured else None,
        classes=classes,
    )


def _add(row: list[Any], more: Sequence[Any]) -> None:
    row[:] = [mine + other for mine, other in zip(row, more, strict=True)]


# -- readiness, sensors, upstreams ---------------------------------------------


async def readiness(engine: EngineSources) -> ReadinessReply:
    """Whether one engine answers and its joules are known; else what is missing."""
    upstream_reason = await engine.upstream_state()
    headline, *others = engine.measured()
    sensor_reason = _lacking(headline)
    reasons = [r for r in (upstream_reason, sensor_reason) if r is not None]
    return ReadinessReply(
        ready=not reasons,
        upstream=upstream_reason is None,
        sensor=sensor_reason is None,
        reasons=reasons,
        lacking={
            other.boundary: reason
            for other in others
            if (reason := _lacking(other)) is not None
        },
    )


def fleet_readiness(
    engines: Sequence[EngineSources], found: Sequence[ReadinessReply]
) -> FleetReadiness:
    """Ready when each model has an engine that is; of each engine what it lacks."""
    by_model: dict[str, bool] = {}
    for engine, reply in zip(engines, found, strict=True):
        models = None if engine.upstream is None else engine.upstream.models
        # an engine that never listed its models may be the only one of some
        for model in models or (f"those of {engine.name}",):
            is_served = reply.ready and not (
                engine.upstream and engine.upstream.is_draining
            )
            by_model[model] = by_model.get(model, False) or is_served
    replies = {engine.name: r for engine, r in zip(engines, found, strict=True)}
    return FleetReadiness(
        ready=all(by_model.values()),
        upstream=any(reply.upstream for reply in found),
        sensor=any(reply.sensor for reply in found),
        reasons=[
            f"{name}: {reason}"
            for name, reply in replies.items()
            for reason in reply.reasons
        ],
        models_without_engine=[name for name, ok in by_model.items() if not ok],
        engines=replies,
    )


def _lacking(measured: Measured) -> str | None:
    """Why energy is not known yet; None when it is, or is not asked for."""
    stats, state = measured.sampler, measured.meter
    if stats is None:
        return None
    if not stats.is_up:
        return stats.last_error or "the power source has not answered yet"
    if not measured.is_settling:
        return f"energy was last settled {state.unsettled_seconds:.0f} s ago"
    if state.books.measured_joules <= 0:
        return "the energy counter has not moved yet"
    if state.idle_watts is None:
        return "idle power is still being measured"
    return None


def engine_info(engine: EngineSources) -> EngineInfo:
    """The sensors of one engine."""
    sensors = {m.boundary: _sensor(m) for m in engine.measured()}
    return EngineInfo(sensor=sensors[engine.boundaries.headline], sensors=sensors)


def _sensor(measured: Measured) -> SensorState:
    stats = measured.sampler
    return SensorState(
        source=measured.source,
        up=bool(stats and stats.is_up),
        simulated=bool(stats and stats.is_simulated),
        last_error=stats.last_error if stats else None,
        clock_offset_seconds=stats.clock_offset_seconds if stats else None,
        rejected={**stats.rejected} if stats else {},
        accuracy_fraction=accuracy_of(
            measured.source, is_simulated=bool(stats and stats.is_simulated)
        ),
    )


@dataclass(frozen=True, slots=True)
class BoardsOfEngine:
    """One engine's boards at one moment, taken on the event loop."""

    simulated: bool
    observed_seconds: float | None
    now: tuple[BoardState, ...]
    window: HardwareWindow

    def reply(self, unix_offset_seconds: float) -> EngineHardware:
        """What the admin API says of them; on any thread, as it may take long."""
        seen = self.observed_seconds
        return EngineHardware(
            simulated=self.simulated,
            observed_unix_seconds=None if seen is None else seen + unix_offset_seconds,
            now=list(self.now),
            window=self.window.boards(),
            series=self.window.series(unix_offset_seconds),
        )


def boards_of(
    engine: EngineSources, start_seconds: float, end_seconds: float
) -> BoardsOfEngine:
    """The boards of one engine now, and what was observed of them in a window."""
    log = engine.hardware
    stats = [measured.sampler for measured in engine.measured()]
    return BoardsOfEngine(
        simulated=any(each is not None and each.is_simulated for each in stats),
        observed_seconds=log.observed_seconds(),
        now=tuple(board_state(state, boundary) for boundary, state in log.now()),
        window=log.within(start_seconds, end_seconds),
    )


def upstream_reply(upstream: Upstream, unix_offset_seconds: float) -> UpstreamReply:
    """One upstream, its instants in Unix seconds."""
    return UpstreamReply(
        name=upstream.name,
        url=upstream.address.url,
        engine=upstream.dialect.name,
        models=None if upstream.models is None else list(upstream.models),
        state=(
            "draining" if upstream.is_draining else "up" if upstream.is_up else "down"
        ),
        up=upstream.is_up,
        draining=upstream.is_draining,
        reason=upstream.down_reason,
        since_unix_seconds=upstream.since_seconds + unix_offset_seconds,
        requests_in_flight=upstream.in_flight,
        rerouted_total=upstream.counters.rerouted,
    )
