"""The energy of a run: the difference of two books, and the joules of its requests.

Pure. `measured = prefill + decode + idle share + idle + unattributed + residual`
holds for the difference because it holds for both books. Unknown is null with a
reason, never 0. Boundaries (`gpu`, `host`, `node`) overlap, so their joules are
compared and never added; a share is given only where both were measured throughout.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec

from loadgen.analysis.distribution import Distribution
from loadgen.analysis.schema import (
    BoundaryBlock,
    ConstantsTrust,
    EnergyBlock,
    PerRequest,
    PowerSeries,
    RequestInterval,
)
from loadgen.analysis.tally import BoundaryTally, EnergyTally, Tally
from loadgen.results.results import Metering
from proxy.wire.api import (
    Accounts,
    BoundaryBooks,
    BoundaryRatio,
    difference,
    joules_of,
)

DEFINITIONS = {
    "measured_joules": "what the sensor counted in the window; at the run's own start "
    "and end the window is widened by the proxy's attribution interval, so that no "
    "request's first or last interval is cut",
    "joules_per_request": "prefill + decode + idle share of each answered request "
    "of the window whose energy is known",
    "active_joules_per_request": "the same requests without the idle share: what "
    "they added to an engine that stands by",
    "interval": "bounds of the 90 % intervals of all sent requests whose energy is "
    "known, added up and divided by their number; the sum of all requests is known "
    "better, see attributed_low_joules and attributed_high_joules",
    "joules_per_output_token": "the same requests: sum of their joules over sum of "
    "their output tokens",
    "joules_per_total_token": "the same, over prompt tokens (cached ones too) + "
    "output tokens",
    "measured_joules_per_output_token": "all measured joules over all output tokens "
    "of answered requests: idle and unattributed energy included",
    "joules_per_accepted_token": "decode joules of the window's books over the tokens "
    "that the engine drafted and accepted in it, by its own count: drafting and "
    "verifying all of them is what these took",
    "output_tokens_per_joule": "output tokens of answered requests over all measured "
    "joules",
    "good_requests_per_joule": "answered requests within every --goodput limit over "
    "all measured joules: goodput (requests/s) per watt",
    "energy_delay_joule_seconds": "joules of a request (prefill + decode + idle share) "
    "times its end-to-end latency, mean over requests",
    "joined_joules": "the whole energy of each request sent in the window, also what "
    "it drew after the window's end; the books have what was drawn in the window, also "
    "by requests that began before it, and by others that the proxy served",
    "policy_joules": "prefill + decode of every request of the window, divided by "
    "each policy over the same intervals",
}
WHOLE = "node"
"""The boundary that contains all the others, which are beside each other."""
IDLE_ACCELERATORS = "idle_accelerators"


def energy_block(metering: Metering, tally: Tally) -> EnergyBlock:
    """The books of the window beside the requests of the window."""
    opening, closing = metering.opening, metering.closing
    requests = _requests(tally)
    if closing is None or metering.is_restarted:
        return EnergyBlock(**requests, reason=metering.reason or "not metered")
    block = EnergyBlock(
        **requests,
        boundary=closing.boundary,
        source=closing.source,
        policy=closing.policy,
        simulated=closing.simulated,
        sample_interval_seconds=closing.sample_interval_seconds,
        window_seconds=metering.window_seconds,
        loaded_idle_watts=closing.idle_watts,
        idle_source=closing.idle_source,
        bare_idle_watts=closing.bare_idle_watts,
        model_idle_watts=closing.model_idle_watts,
        counter_period_seconds=closing.counter_period_seconds,
        counter_power_ratio=closing.counter_power_ratio,
        boundaries=boundary_blocks(metering, tally),
        boundary_ratios=boundary_ratios(metering),
        idle_accelerators_joules=idle_accelerators_joules(metering),
        constants=constants_trust(metering),
        reason=metering.reason,
    )
    spent = None if opening is None else accounts_between(opening, closing)
    if spent is None:
        reason = metering.reason or f"power source {closing.source!r} gives no joules"
        return msgspec.structs.replace(block, reason=reason)
    return msgspec.structs.replace(
        block,
        **joules_of(spent),
        mean_watts=_ratio(spent.measured_joules, metering.window_seconds),
        measured_joules_per_output_token=_ratio(
            spent.measured_joules, tally.output_tokens
        ),
        **_speculation(opening, closing, spent),
        output_tokens_per_joule=_ratio(tally.output_tokens, spent.measured_joules),
        good_requests_per_joule=(
            _ratio(tally.good, spent.measured_joules) if tally.goodput else None
        ),
        readings=_counted(metering, "samples_total"),
        missed_readings=_sum_known(
            _counted(metering, "gaps_total"), _counted(metering, "missed_total")
        ),
        gap_seconds=None if opening is None else _gap_seconds(opening, closing),
        settled=closing.complete,
        power=power_series(metering),
    )


def constants_trust(metering: Metering) -> list[ConstantsTrust]:
    """Whether each engine's fitted constants are trusted, and why not."""
    return [
        ConstantsTrust(
            engine=each.engine,
            model=each.model,
            is_trusted=each.is_fitted,
            doubt=each.doubt,
            reason=each.reason,
            form=each.form,
            rows=each.rows,
        )
        for each in metering.constants
    ]


def accounts_between(opening: BoundaryBooks, closing: BoundaryBooks) -> Accounts | None:
    """Joules booked from one snapshot to the next; None when they are not known.

    `residual_joules` is computed here, not taken on trust.
    """
    spent = difference(closing, opening)
    by_account = spent.by_account()
    if spent.measured_joules is None or by_account is None:
        return None
    return msgspec.structs.replace(
        spent,
        unattributed_joules=dict(sorted((spent.unattributed_joules or {}).items())),
        residual_joules=spent.measured_joules - sum(by_account.values()),
    )


def power_series(metering: Metering) -> PowerSeries | None:
    """Mean watts by account over the run; None when not known throughout."""
    edges = metering.edges_seconds
    if len(metering.curve) < 3 or len(metering.curve) != len(edges):
        return None
    watts: dict[str, list[float]] = {}
    for books, (start, end) in zip(
        pairwise(metering.curve), pairwise(edges), strict=True
    ):
        spent = difference(books[1], books[0]).by_account()
        if spent is None:
            return None  # a hole is not zero watts
        for account, joules in spent.items():
            watts.setdefault(f"{account}_watts", []).append(joules / (end - start))
    return PowerSeries(edges_seconds=edges, **watts)


# -- boundaries ----------------------------------------------------------------


def boundary_blocks(metering: Metering, tally: Tally) -> dict[str, BoundaryBlock]:
    """One block for each boundary, the headline first; none where there is only one."""
    opening, closing = metering.opening, metering.closing
    if opening is None or closing is None or len(closing.boundaries) < 2:
        return {}
    return {
        name: _boundary_block(
            opening.boundaries.get(name),
            books,
            tally.energy_inside(name, is_headline=name == closing.boundary),
            metering.window_seconds,
            tally.completed,
        )
        for name, books in closing.boundaries.items()
    }


def boundary_ratios(metering: Metering) -> list[BoundaryRatio]:
    """Joules inside each boundary over those of the node, in the window."""
    opening, closing = metering.opening, metering.closing
    if opening is None or closing is None or WHOLE not in closing.boundaries:
        return []
    joules = {
        name: _joules_between(opening.boundaries.get(name), books)
        for name, books in closing.boundaries.items()
    }
    whole = joules.pop(WHOLE)
    idle = idle_accelerators_joules(metering)
    if idle is not None:
        joules[IDLE_ACCELERATORS] = idle
    return [
        BoundaryRatio(inner=name, outer=WHOLE, ratio=_ratio(part, whole))
        for name, part in joules.items()
    ]


def idle_accelerators_joules(metering: Metering) -> float | None:
    """Joules of the host's other GPUs in the window; None where none was seen."""
    opening, closing = metering.opening, metering.closing
    if closing is None or opening is None or closing.idle_accelerators_joules is None:
        return None
    return closing.idle_accelerators_joules - (opening.idle_accelerators_joules or 0.0)


def _boundary_block(
    opening: BoundaryBooks | None,
    closing: BoundaryBooks,
    requests: BoundaryTally,
    seconds: float | None,
    completed: int,
) -> BoundaryBlock:
    spent = None if opening is None else accounts_between(opening, closing)
    block = BoundaryBlock(
        source=closing.source,
        simulated=closing.simulated,
        settlement_window_seconds=closing.window_seconds,
        counter_period_seconds=closing.counter_period_seconds,
        loaded_idle_watts=closing.idle_watts,
        idle_source=closing.idle_source,
        settled=closing.complete,
        joules_per_request=_per_request(requests.inclusive),
        active_joules_per_request=_per_request(requests.active),
        joules_per_output_token=_ratio(
            requests.answered_joules, requests.answered_output_tokens
        ),
        requests_with_energy=requests.requests_with,
        requests_without_energy=requests.requests_without,
        reason=_reason(opening, closing, spent),
    )
    if spent is None:
        return block
    return msgspec.structs.replace(
        block,
        **joules_of(spent),
        mean_watts=_ratio(spent.measured_joules, seconds),
        measured_joules_per_request=_ratio(spent.measured_joules, completed),
    )


def _joules_between(
    opening: BoundaryBooks | None, closing: BoundaryBooks
) -> float | None:
    """Measured joules; None unless all of the window was measured and is settled."""
    if opening is None or not closing.complete or _gap_seconds(opening, closing) > 0:
        return None
    spent = accounts_between(opening, closing)
    return None if spent is None else spent.measured_joules


def _gap_seconds(opening: BoundaryBooks, closing: BoundaryBooks) -> float:
    return (closing.gap_seconds or 0.0) - (opening.gap_seconds or 0.0)


def _reason(
    opening: BoundaryBooks | None, closing: BoundaryBooks, spent: Accounts | None
) -> str | None:
    if opening is None or spent is None:
        return f"power source {closing.source!r} gave no joules"
    if not closing.complete:
        return f"power source {closing.source!r} was not settled to the window's end"
    gap = _gap_seconds(opening, closing)
    return f"not measured for {gap:.1f} s of the window" if gap > 0 else None


# -- parts ---------------------------------------------------------------------


def _requests(tally: Tally) -> dict[str, Any]:
    energy = tally.energy
    delays = tally.measures["energy_delay"].stats("J s")
    return {
        "energy_delay_joule_seconds": delays.mean if delays else None,
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
        "timing": dict(energy.timing),
        "grade": dict(energy.grade),
        "grade_reasons": dict(energy.grade_reasons.most_common()),
        "interval": _interval(energy),
        "definitions": DEFINITIONS,
    }


def _interval(energy: EnergyTally) -> RequestInterval | None:
    count, joules = energy.requests_bounded, energy.bounded_joules
    if not count or joules <= 0:
        return None
    return RequestInterval(
        n=count,
        mean_joules=joules / count,
        low_joules=energy.low_joules / count,
        high_joules=energy.high_joules / count,
        half_width_fraction=(energy.high_joules - energy.low_joules) / 2 / joules,
    )


def _per_request(joules: Distribution) -> PerRequest | None:
    stats = joules.stats("J")
    if stats is None:
        return None
    return PerRequest(
        n=stats.n, mean=stats.mean, p50=stats.p50, p90=stats.p90, p99=stats.p99
    )


def _speculation(
    opening: BoundaryBooks | None, closing: BoundaryBooks, spent: Accounts
) -> dict[str, float | None]:
    """Tokens drafted and accepted in the window, and what an accepted one took."""
    found: dict[str, float | None] = {}
    for name in ("drafted_tokens", "accepted_tokens"):
        before = getattr(opening, name) if opening is not None else None
        after = getattr(closing, name)
        is_known = before is not None and after is not None and after >= before
        found[name] = after - before if is_known else None
    phases = spent.attributed_joules
    decode_joules = None if phases is None else phases.decode
    found["joules_per_accepted_token"] = _ratio(decode_joules, found["accepted_tokens"])
    return found


def _counted(metering: Metering, name: str) -> int | None:
    """How far a counter of the proxy rose during the run; None where it began anew."""
    begun, ended = metering.begun, metering.ended
    if begun is None or ended is None:
        return None
    before, after = getattr(begun, name), getattr(ended, name)
    if before is None or after is None or after < before:
        return None
    return int(after - before)


def _sum_known(*counts: int | None) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _ratio(joules: float | None, whole: float | None) -> float | None:
    return joules / whole if joules is not None and whole else None
