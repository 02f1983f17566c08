"""What the admin API says of one engine, and of several together.

Rule: a sum is over whole ledgers. Where one engine's joules are not known, the sum
is null: a part of the truth would look like all of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proxy.admin.views import boundary_json, lacking, ratio_json, sensor_json
from proxy.meter.accounts import Boundaries
from proxy.relay.upstream.upstream import Upstream
from proxy.serve.sensors import Measured


@dataclass(frozen=True, slots=True)
class EngineSources:
    """Where the admin API looks for one engine."""

    name: str
    boundaries: Boundaries
    measured: Callable[[], Sequence[Measured]]
    """Every boundary now, the headline first."""
    upstream_state: Callable[[], Awaitable[str | None]]
    """None when the upstream answers, else why it does not."""
    upstream: Upstream | None = None


def engine_books(
    engine: EngineSources,
    at_seconds: float | None,
    *,
    unix_offset_seconds: float,
    sample_interval_seconds: float,
) -> dict[str, Any]:
    """`/books` of one engine: the headline's, and every boundary's."""
    replies = {
        measured.boundary: boundary_json(
            engine.boundaries,
            measured,
            at_seconds,
            unix_offset_seconds=unix_offset_seconds,
            sample_interval_seconds=sample_interval_seconds,
        )
        for measured in engine.measured()
    }
    return {
        **replies[engine.boundaries.headline],
        "boundaries": replies,
        "ratios": [ratio_json(ratio) for ratio in engine.boundaries.ratios()],
    }


def fleet_books(replies: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """`/books` of several engines, each as `engine_books`: the sums, and each one.

    Boundaries that not all of them have are in no sum.
    """
    each = list(replies.values())
    shared = [
        name
        for name in each[0]["boundaries"]
        if all(name in reply["boundaries"] for reply in each)
    ]
    boundaries = {
        name: _sum({e: reply["boundaries"][name] for e, reply in replies.items()})
        for name in shared
    }
    whole = {e: {**r, "boundaries": None, "ratios": None} for e, r in replies.items()}
    return {
        **_sum(whole),
        "boundaries": boundaries,
        "ratios": [],
        "engines": replies,
    }


ADDED = (
    "measured_joules", "idle_share_joules", "idle_joules", "residual_joules",
    "idle_watts", "bare_idle_watts", "model_idle_watts",
    "gaps_total", "samples_total", "missed_total", "open_requests",
)  # fmt: skip
"""Figures of which the sum means something, where all are known."""
WORST = ("window_seconds", "counter_period_seconds", "unsettled_seconds", "gap_seconds")
SAME = ("boundary", "source", "policy", "sample_interval_seconds", "idle_source")
UNADDED = ("counter_power_ratio", "idle_accelerators_joules")
"""An engine's other GPUs may be another engine's."""


def _sum(books: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """One boundary of several engines; joules of different boundaries are no sum."""
    each = list(books.values())
    is_one_boundary = len({reply["boundary"] for reply in each}) == 1
    late = [reply for reply in each if not reply["complete"]]
    total: dict[str, Any] = {
        "settled_unix_seconds": _all([r["settled_unix_seconds"] for r in each], min),
        "complete": not late,
        "simulated": any(reply["simulated"] for reply in each),
        # whether what is not complete may still come
        "sensor_up": any(reply["sensor_up"] for reply in late or each),
    }
    for name in SAME:
        values = [str(reply[name]) for reply in each]
        total[name] = each[0][name] if len(set(values)) == 1 else ", ".join(values)
    for name in WORST:
        total[name] = _all([reply[name] for reply in each], max)
    for name in ADDED:
        known = is_one_boundary or not name.endswith("_joules")
        total[name] = _all([r[name] for r in each], sum) if known else None
    for name in ("attributed_joules", "unattributed_joules"):
        parts = [reply[name] for reply in each]
        is_known = is_one_boundary and None not in parts
        total[name] = _merged(parts) if is_known else None
    total |= dict.fromkeys(UNADDED)
    total["idle_accelerators_watts"] = {}
    total["device_watts"] = {
        f"{engine}/{device}": watts
        for engine, reply in books.items()
        for device, watts in reply["device_watts"].items()
    }
    return total


def _all(values: list[Any], of: Callable[[list[Any]], Any]) -> Any:
    """Of all of them, or null where one is not known."""
    return None if None in values else of(values)


def _merged(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = {name: None for part in parts for name in part}  # in their order
    return {name: sum(part.get(name, 0.0) for part in parts) for name in names}


def engine_info(engine: EngineSources) -> dict[str, Any]:
    """The sensors of one engine, as `/info` shows them."""
    sensors = {m.boundary: sensor_json(m) for m in engine.measured()}
    return {"sensor": sensors[engine.boundaries.headline], "sensors": sensors}


async def readiness(engine: EngineSources) -> dict[str, Any]:
    """Whether one engine answers and its joules are known; else what is missing."""
    upstream_reason = await engine.upstream_state()
    headline, *others = engine.measured()
    sensor_reason = lacking(headline)
    reasons = [r for r in (upstream_reason, sensor_reason) if r is not None]
    return {
        "ready": not reasons,
        "upstream": upstream_reason is None,
        "sensor": sensor_reason is None,
        "reasons": reasons,
        # of the boundaries beside the headline; requests do not wait for them
        "lacking": {
            other.boundary: reason
            for other in others
            if (reason := lacking(other)) is not None
        },
    }


def fleet_readiness(
    engines: Sequence[EngineSources], found: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Ready when each model has an engine that is; of each engine what it lacks."""
    by_model: dict[str, bool] = {}
    for engine, reply in zip(engines, found, strict=True):
        models = None if engine.upstream is None else engine.upstream.models
        # an engine that never told its models may be the only one of some
        for model in models or (f"those of {engine.name}",):
            is_served = reply["ready"] and not (
                engine.upstream and engine.upstream.is_draining
            )
            by_model[model] = by_model.get(model, False) or is_served
    return {
        "ready": all(by_model.values()),
        "upstream": any(reply["upstream"] for reply in found),
        "sensor": any(reply["sensor"] for reply in found),
        "reasons": [
            f"{engine.name}: {reason}"
            for engine, reply in zip(engines, found, strict=True)
            for reason in reply["reasons"]
        ],
        "models_without_engine": [name for name, ok in by_model.items() if not ok],
        "engines": {
            engine.name: reply for engine, reply in zip(engines, found, strict=True)
        },
    }


def upstream_json(upstream: Upstream, unix_offset_seconds: float) -> dict[str, Any]:
    """One upstream as `/upstreams` shows it."""
    state = "draining" if upstream.is_draining else "up" if upstream.is_up else "down"
    return {
        "name": upstream.name,
        "url": upstream.address.url,
        "engine": upstream.dialect.name,
        "models": None if upstream.models is None else list(upstream.models),
        "state": state,
        "up": upstream.is_up,
        "draining": upstream.is_draining,
        "reason": upstream.down_reason,
        "since_unix_seconds": upstream.since_seconds + unix_offset_seconds,
        "requests_in_flight": upstream.in_flight,
        "rerouted_total": upstream.counters.rerouted,
    }
