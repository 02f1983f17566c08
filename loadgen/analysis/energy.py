"""The energy of a run: the difference of two books, and the joules of its requests.

Pure. `measured = prefill + decode + idle share + idle + unattributed + residual`
holds for the difference because it holds for both books. Unknown is null with a
reason, never 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec

from loadgen.analysis.distribution import Distribution
from loadgen.analysis.energy_tally import EnergyTally
from loadgen.analysis.schema import (
    EnergyBlock,
    PerRequest,
    Phases,
    PowerSeries,
    ShownAccounts,
)
from loadgen.analysis.tally import Tally

DEFINITIONS = {
    "measured_joules": "what the sensor counted in the window; at the run's own start "
    "and end the window is widened by the proxy's attribution interval, so that no "
    "request's first or last interval is cut",
    "joules_per_request": "prefill + decode + idle share of each answered request "
    "of the window whose energy is known",
    "active_joules_per_request": "the same requests without the idle share: what "
    "they added to an engine that stands by",
    "joules_per_output_token": "the same requests: sum of their joules over sum of "
    "their output tokens",
    "joules_per_total_token": "the same, over prompt tokens (cached ones too) + "
    "output tokens",
    "measured_joules_per_output_token": "all measured joules over all output tokens "
    "of answered requests: idle and unattributed energy included",
    "policy_joules": "prefill + decode of every request of the window, divided by "
    "each policy over the same intervals",
}


class Books(ShownAccounts, frozen=True, kw_only=True):
    """The proxy's `/books`, as far as a report reads it."""

    complete: bool
    sensor_up: bool = True
    boundary: str | None = None
    policy: str | None = None
    sample_interval_seconds: float | None = None
    window_seconds: float = 0.5
    """Of attribution: energy is divided in pieces so long."""
    device_watts: dict[str, float] = msgspec.field(default_factory=dict)
    idle_watts: float | None = None
    idle_source: str | None = None
    gaps_total: int | None = None
    samples_total: int | None = None
    missed_total: int | None = None
    counter_period_seconds: float | None = None
    counter_power_ratio: float | None = None
    unsettled_seconds: float | None = None
    gap_seconds: float | None = None
    bare_idle_watts: float | None = None
    model_idle_watts: float | None = None
    idle_accelerators_joules: float | None = None
    boundaries: dict[str, Books] = msgspec.field(default_factory=dict)
    """Of every boundary, the headline's among them."""

    @property
    def is_final(self) -> bool:
        """Whether waiting makes it better: a sensor that is down settles nothing."""
        every = (self, *self.boundaries.values())
        return all(books.complete or not books.sensor_up for books in every)


class Accounts(msgspec.Struct, frozen=True, kw_only=True):
    """Joules between two instants, by account."""

    measured_joules: float
    attributed_joules: Phases
    idle_share_joules: float
    idle_joules: float
    unattributed_joules: dict[str, float]

    @property
    def residual_joules(self) -> float:
        """What is in no account; recomputed here, not taken on trust."""
        return self.measured_joules - (
            self.attributed_joules.prefill
            + self.attributed_joules.decode
            + self.idle_share_joules
            + self.idle_joules
            + sum(self.unattributed_joules.values())
        )


class Metering(msgspec.Struct, frozen=True, kw_only=True):
    """What the admin API told about a run; `reason` stands for what it did not."""

    opening: Books | None = None
    """At the window's start."""
    closing: Books | None = None
    """At the window's end."""
    window_seconds: float | None = None
    power: PowerSeries | None = None
    reason: str | None = None


def accounts_between(opening: Books, closing: Books) -> Accounts | None:
    """What was booked from one snapshot to the next; None when it is not known."""
    start, end = _accounts(opening), _accounts(closing)
    if start is None or end is None:
        return None
    reasons = sorted(start.unattributed_joules | end.unattributed_joules)
    return Accounts(
        measured_joules=end.measured_joules - start.measured_joules,
        attributed_joules=Phases(
            prefill=end.attributed_joules.prefill - start.attributed_joules.prefill,
            decode=end.attributed_joules.decode - start.attributed_joules.decode,
        ),
        idle_share_joules=end.idle_share_joules - start.idle_share_joules,
        idle_joules=end.idle_joules - start.idle_joules,
        unattributed_joules={
            reason: end.unattributed_joules.get(reason, 0.0)
            - start.unattributed_joules.get(reason, 0.0)
            for reason in reasons
        },
    )


def power_series(books: Sequence[Books], edges_seconds: list[float]) -> PowerSeries:
    """Mean watts between consecutive books taken at these instants.

    Raises ValueError when one of them knows no joules: a hole is not zero watts.
    """
    rows: list[list[float]] = []
    for index, (sooner, later) in enumerate(pairwise(books)):
        spent = accounts_between(sooner, later)
        if spent is None:
            raise ValueError(f"no joules known at {edges_seconds[index]} s")
        width = edges_seconds[index + 1] - edges_seconds[index]
        rows.append(
            [
                joules / width
                for joules in (
                    spent.attributed_joules.prefill,
                    spent.attributed_joules.decode,
                    spent.idle_share_joules,
                    spent.idle_joules,
                    sum(spent.unattributed_joules.values()),
                )
            ]
        )
    prefill, decode, share, idle, unattributed = (
        [row[column] for row in rows] for column in range(5)
    )
    return PowerSeries(
        edges_seconds=edges_seconds, prefill_watts=prefill, decode_watts=decode,
        idle_share_watts=share, idle_watts=idle, unattributed_watts=unattributed,
    )  # fmt: skip


def energy_block(metering: Metering, tally: Tally) -> EnergyBlock:
    """Join the books of the window with the requests of the window."""
    opening, closing = metering.opening, metering.closing
    requests = _of_requests(tally)
    if closing is None:
        return EnergyBlock(**requests, reason=metering.reason or "not metered")
    about = _about(closing, metering)
    spent = accounts_between(opening, closing) if opening is not None else None
    if opening is None or spent is None:
        reason = metering.reason or f"power source {closing.source!r} gives no joules"
        return EnergyBlock(**about, **requests, reason=reason)
    seconds = metering.window_seconds
    return EnergyBlock(
        **about,
        **requests,
        measured_joules=spent.measured_joules,
        attributed_joules=spent.attributed_joules,
        idle_share_joules=spent.idle_share_joules,
        idle_joules=spent.idle_joules,
        unattributed_joules=spent.unattributed_joules,
        residual_joules=spent.residual_joules,
        mean_watts=spent.measured_joules / seconds if seconds else None,
        measured_joules_per_output_token=_ratio(
            spent.measured_joules, tally.output_tokens
        ),
        readings=closing.samples_total,
        missed_readings=_sum_known(closing.gaps_total, closing.missed_total),
        settled=closing.complete,
        power=metering.power,
        reason=metering.reason,
    )


def _of_requests(tally: Tally) -> dict[str, Any]:
    energy: EnergyTally = tally.energy
    return {
        "joules_per_request": _per_request(tally.measures["energy"]),
        "active_joules_per_request": _per_request(tally.measures["active_energy"]),
        "joules_per_output_token": _ratio(
            energy.answered_joules, energy.answered_output_tokens
        ),
        "joules_per_total_token": _ratio(
            energy.answered_joules, energy.answered_total_tokens
        ),
        "failed_request_joules": (
            energy.failed_joules if energy.requests_with else None
        ),
        "joined_joules": energy.joined_joules if energy.requests_with else None,
        "requests_with_energy": energy.requests_with,
        "requests_without_energy": energy.requests_without,
        "policy_joules": {
            policy: dict(kinds) for policy, kinds in energy.policy_joules.items()
        },
        "policy_joules_per_request": {
            policy: found
            for policy, joules in energy.by_policy.items()
            if (found := _per_request(joules)) is not None
        },
        "quality": dict(energy.quality),
        "definitions": DEFINITIONS,
    }


def _about(books: Books, metering: Metering) -> dict[str, Any]:
    return {
        "boundary": books.boundary,
        "source": books.source,
        "policy": books.policy,
        "simulated": books.simulated,
        "sample_interval_seconds": books.sample_interval_seconds,
        "window_seconds": metering.window_seconds,
        "loaded_idle_watts": books.idle_watts,
        "idle_source": books.idle_source,
        "bare_idle_watts": books.bare_idle_watts,
        "model_idle_watts": books.model_idle_watts,
        "counter_period_seconds": books.counter_period_seconds,
        "counter_power_ratio": books.counter_power_ratio,
    }


def _per_request(joules: Distribution) -> PerRequest | None:
    stats = joules.stats("J")
    if stats is None:
        return None
    return PerRequest(
        n=stats.n, mean=stats.mean, p50=stats.p50, p90=stats.p90, p99=stats.p99
    )


def _accounts(books: Books) -> Accounts | None:
    if (
        books.measured_joules is None
        or books.attributed_joules is None
        or books.idle_share_joules is None
        or books.idle_joules is None
        or books.unattributed_joules is None
    ):
        return None
    return Accounts(
        measured_joules=books.measured_joules,
        attributed_joules=books.attributed_joules,
        idle_share_joules=books.idle_share_joules,
        idle_joules=books.idle_joules,
        unattributed_joules=books.unattributed_joules,
    )


def _sum_known(*counts: int | None) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _ratio(joules: float, tokens: int) -> float | None:
    return joules / tokens if tokens else None
