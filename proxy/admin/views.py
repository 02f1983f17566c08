"""What the admin API says of boundaries, sensors and the store, as JSON objects.

Rule: base units, every instant in Unix seconds, and null for what is not known.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from proxy.meter.accounts import Boundaries, Ratio
from proxy.meter.ledger.accounts import Books
from proxy.serve.sensors import Measured
from proxy.store.writer import StoreState


def boundary_json(
    boundaries: Boundaries,
    measured: Measured,
    at_seconds: float | None,
    *,
    unix_offset_seconds: float,
    sample_interval_seconds: float,
) -> dict[str, Any]:
    """One boundary as `/books` shows it: what it is, its accounts, its sensor."""
    state, stats, name = measured.meter, measured.sampler, measured.boundary
    settled = state.books.settled_seconds
    is_known = math.isfinite(settled)
    reply: dict[str, Any] = {
        "settled_unix_seconds": settled + unix_offset_seconds if is_known else None,
        "complete": at_seconds is None or settled >= at_seconds,
        "boundary": name,
        "source": measured.source,
        "simulated": bool(stats and stats.is_simulated),
        "sensor_up": bool(stats and stats.is_up),
        "policy": state.policy,
        "sample_interval_seconds": sample_interval_seconds,
        "window_seconds": state.window_seconds,
    }
    is_measured = state.samples_total > 0 and is_known
    books = boundaries.books_of(name, at_seconds)
    outside = boundaries.outside_books(name, at_seconds)
    reply |= books_json(books) if is_measured else NO_BOOKS
    return reply | {
        "gap_seconds": books.gap_seconds if is_measured else None,
        "idle_accelerators_joules": outside.measured_joules if outside else None,
        "idle_accelerators_watts": (
            dict(measured.outside.device_watts) if measured.outside else {}
        ),
        "idle_watts": state.idle_watts,
        "idle_source": state.idle_source,
        "bare_idle_watts": measured.bare_idle_watts,
        "model_idle_watts": measured.model_idle_watts,
        "device_watts": dict(state.device_watts),
        "gaps_total": state.gaps_total,
        "samples_total": state.samples_total,
        "missed_total": stats.missed if stats else 0,
        "counter_period_seconds": state.counter_period_seconds,
        "counter_power_ratio": state.counter_power_ratio,
        "unsettled_seconds": state.unsettled_seconds,
        "open_requests": state.open_requests,
    }


def lacking(measured: Measured) -> str | None:
    """Why energy is not known yet; None when it is, or is not asked for."""
    stats, state = measured.sampler, measured.meter
    if stats is None:
        return None
    if not stats.is_up:
        return stats.last_error or "the power source has not answered yet"
    if state.books.measured_joules <= 0:
        return "the energy counter has not moved yet"
    if state.idle_watts is None:
        return "idle power is still being measured"
    return None


def sensor_json(measured: Measured) -> dict[str, Any]:
    """How the sensor of one boundary does, as `/info` shows it."""
    stats = measured.sampler
    return {
        "source": measured.source,
        "up": bool(stats and stats.is_up),
        "simulated": bool(stats and stats.is_simulated),
        "last_error": stats.last_error if stats else None,
        "clock_offset_seconds": stats.clock_offset_seconds if stats else None,
    }


NO_BOOKS: dict[str, Any] = {
    "measured_joules": None,
    "attributed_joules": None,
    "idle_share_joules": None,
    "idle_joules": None,
    "unattributed_joules": None,
    "residual_joules": None,
}
"""Before any reading the joules are unknown, which is not zero."""


def books_json(books: Books) -> dict[str, Any]:
    """The accounts as `/books` shows them."""
    return {
        "measured_joules": books.measured_joules,
        "attributed_joules": {
            "prefill": books.prefill_joules,
            "decode": books.decode_joules,
        },
        "idle_share_joules": books.idle_share_joules,
        "idle_joules": books.idle_joules,
        "unattributed_joules": dict(books.unattributed_joules),
        "residual_joules": books.residual_joules,
    }


def ratio_json(ratio: Ratio) -> dict[str, Any]:
    """Joules of one boundary over those around it, since both were measured."""
    return {
        "inner": ratio.inner,
        "outer": ratio.outer,
        "ratio": ratio.ratio,
        "inner_joules": ratio.inner_joules,
        "outer_joules": ratio.outer_joules,
        "seconds": ratio.seconds,
    }


def store_json(state: StoreState) -> dict[str, Any]:
    """How the store does, as `/info` shows it."""
    shown: dict[str, Any] = msgspec.to_builtins(state)
    return {"up": shown.pop("is_up"), **shown}
