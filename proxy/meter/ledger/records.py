"""From a settled request to the record that users see.

Rule: energy that is not known for all of the time a request ran is None, never
a part of it and never 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from proxy.meter.entry import Entry
from proxy.meter.ledger.accounts import Ledger, RequestEnergy, RequestRecord
from proxy.wire.facts import Labels


@dataclass(slots=True, eq=False)
class Request:
    """Who asked, and how it ended; what it did is in the entry's timeline."""

    entry: Entry
    request_id: str
    route: str
    labels: Labels
    outcome: str = ""
    status: int | None = None
    error: str | None = None
    key: int = 0
    """The relay's name for it."""


def first_model(requests: Iterable[Request]) -> str:
    """Model that the first of some requests asked for."""
    first = min(requests, key=lambda each: each.entry.timeline.arrived_seconds)
    return first.labels.model


def is_settled(request: Request, settled_seconds: float | None) -> bool:
    """Whether every window that the request ran in is closed."""
    timeline = request.entry.timeline
    if timeline.closed_seconds is None or settled_seconds is None:
        return False
    if timeline.scheduled_seconds is None:
        return False
    return timeline.end_seconds <= settled_seconds


def record_of(
    request: Request,
    sequence: int,
    ledger: Ledger,
    *,
    measured_from_seconds: float | None,
    settled_seconds: float | None,
    engine: str = "",
) -> RequestRecord:
    """The record of a closed request; unknown energy where it was not settled."""
    timeline = request.entry.timeline
    assert timeline.closed_seconds is not None
    return RequestRecord(
        sequence=sequence,
        request_id=request.request_id,
        route=request.route,
        model=request.labels.model,
        kind=request.labels.kind,
        tenant=request.labels.tenant,
        stored_tenant=request.labels.stored_tenant,
        outcome=request.outcome,
        error=request.error,
        status=request.status,
        arrived_seconds=timeline.arrived_seconds,
        scheduled_seconds=timeline.scheduled_seconds,
        first_token_seconds=timeline.first_token_seconds,
        last_token_seconds=timeline.last_token_seconds,
        finished_seconds=timeline.closed_seconds,
        prompt_tokens=timeline.prompt_tokens,
        cached_tokens=timeline.cached_tokens,
        output_tokens=timeline.output_tokens,
        energy=_energy(
            request,
            ledger,
            is_measured=is_settled(request, settled_seconds)
            and _is_covered(request, measured_from_seconds),
        ),
        serial=timeline.serial,
        engine=engine,
    )


def _is_covered(request: Request, measured_from_seconds: float | None) -> bool:
    scheduled = request.entry.timeline.scheduled_seconds
    if measured_from_seconds is None or scheduled is None:
        return False
    return scheduled >= measured_from_seconds and not request.entry.has_gap


def _energy(request: Request, ledger: Ledger, *, is_measured: bool) -> RequestEnergy:
    if not is_measured:
        return RequestEnergy(None, None, None, None, ledger.headline, "unknown")
    by_policy, idle_share = ledger.entry(request.entry.slot)
    active = dict(zip(ledger.policies, by_policy.sum(axis=1).tolist(), strict=True))
    prefill, decode = by_policy[ledger.policies.index(ledger.headline)].tolist()
    timeline = request.entry.timeline
    is_exact = (
        timeline.is_scheduled_exact
        and timeline.is_count_exact
        and not request.entry.is_forced
        and not request.entry.has_preemption
        and not request.entry.lacks_idle
    )
    return RequestEnergy(
        prefill_joules=prefill,
        decode_joules=decode,
        idle_share_joules=idle_share,
        energy_joules=prefill + decode + idle_share,
        policy=ledger.headline,
        quality="exact" if is_exact else "estimated",
        policy_joules=active,
    )
