"""What each boundary used in a run, side by side: `gpu`, `host`, `node`.

Pure. Boundaries overlap, so their joules are compared and never added. A share is
given only where both were measured all the time.
"""

from __future__ import annotations

import msgspec

from loadgen.analysis.distribution import Distribution
from loadgen.analysis.energy import Accounts, Books, Metering, accounts_between
from loadgen.analysis.energy_tally import BoundaryTally, EnergyTally
from loadgen.analysis.schema import (
    BoundaryBlock,
    BoundaryRatio,
    EnergyBlock,
    PerRequest,
)
from loadgen.analysis.tally import Tally

WHOLE = "node"
"""Contains all the others, which are beside each other."""
IDLE_ACCELERATORS = "idle_accelerators"


def with_boundaries(
    energy: EnergyBlock, metering: Metering, tally: Tally
) -> EnergyBlock:
    """The block of a run, and beside it every boundary that was metered."""
    return msgspec.structs.replace(
        energy,
        boundaries=boundary_blocks(metering, tally),
        boundary_ratios=boundary_ratios(metering),
        idle_accelerators_joules=idle_accelerators_joules(metering),
    )


def boundary_blocks(metering: Metering, tally: Tally) -> dict[str, BoundaryBlock]:
    """One block for each boundary, the headline first; none where there is only one."""
    opening, closing = metering.opening, metering.closing
    if opening is None or closing is None or len(closing.boundaries) < 2:
        return {}
    return {
        name: _block(
            opening.boundaries.get(name),
            books,
            _of_requests(name, closing.boundary, tally),
            metering.window_seconds,
            tally,
        )
        for name, books in closing.boundaries.items()
    }


def boundary_ratios(metering: Metering) -> list[BoundaryRatio]:
    """Joules inside each boundary over those of the node, in the window."""
    opening, closing = metering.opening, metering.closing
    if opening is None or closing is None or WHOLE not in closing.boundaries:
        return []
    whole = _joules_between(opening.boundaries.get(WHOLE), closing.boundaries[WHOLE])
    parts = {
        name: _joules_between(opening.boundaries.get(name), books)
        for name, books in closing.boundaries.items()
        if name != WHOLE
    }
    idle = idle_accelerators_joules(metering)
    if idle is not None:
        parts[IDLE_ACCELERATORS] = idle
    return [
        BoundaryRatio(
            inner=name,
            outer=WHOLE,
            ratio=joules / whole if joules is not None and whole else None,
        )
        for name, joules in parts.items()
    ]


def idle_accelerators_joules(metering: Metering) -> float | None:
    """What the host's other GPUs used in the window; None where none was seen."""
    opening, closing = metering.opening, metering.closing
    if closing is None or opening is None or closing.idle_accelerators_joules is None:
        return None
    return closing.idle_accelerators_joules - (opening.idle_accelerators_joules or 0.0)


def _block(
    opening: Books | None,
    closing: Books,
    requests: BoundaryTally,
    seconds: float | None,
    tally: Tally,
) -> BoundaryBlock:
    spent = accounts_between(opening, closing) if opening is not None else None
    about = BoundaryBlock(
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
    return about if spent is None else _with_accounts(about, spent, seconds, tally)


def _with_accounts(
    about: BoundaryBlock, spent: Accounts, seconds: float | None, tally: Tally
) -> BoundaryBlock:
    joules = spent.measured_joules
    return msgspec.structs.replace(
        about,
        measured_joules=joules,
        attributed_joules=spent.attributed_joules,
        idle_share_joules=spent.idle_share_joules,
        idle_joules=spent.idle_joules,
        unattributed_joules=spent.unattributed_joules,
        residual_joules=spent.residual_joules,
        mean_watts=joules / seconds if seconds else None,
        measured_joules_per_request=_ratio(joules, tally.completed),
    )


def _of_requests(name: str, headline: str | None, tally: Tally) -> BoundaryTally:
    """The headline's joules are the requests' own; the others are beside them."""
    energy: EnergyTally = tally.energy
    if name != headline:
        return energy.by_boundary.get(name, BoundaryTally())
    return BoundaryTally(
        inclusive=tally.measures["energy"],
        active=tally.measures["active_energy"],
        answered_joules=energy.answered_joules,
        answered_output_tokens=energy.answered_output_tokens,
        requests_with=energy.requests_with,
        requests_without=energy.requests_without,
    )


def _joules_between(opening: Books | None, closing: Books) -> float | None:
    """None unless all of the window was measured and is settled."""
    if opening is None or not closing.complete or _gap_seconds(opening, closing) > 0:
        return None
    spent = accounts_between(opening, closing)
    return None if spent is None else spent.measured_joules


def _gap_seconds(opening: Books, closing: Books) -> float:
    return (closing.gap_seconds or 0.0) - (opening.gap_seconds or 0.0)


def _reason(
    opening: Books | None, closing: Books, spent: Accounts | None
) -> str | None:
    if opening is None or spent is None:
        return f"power source {closing.source!r} gave no joules"
    if not closing.complete:
        return f"power source {closing.source!r} was not settled to the window's end"
    gap = _gap_seconds(opening, closing)
    return f"not measured for {gap:.1f} s of the window" if gap > 0 else None


def _per_request(joules: Distribution) -> PerRequest | None:
    stats = joules.stats("J")
    if stats is None:
        return None
    return PerRequest(
        n=stats.n, mean=stats.mean, p50=stats.p50, p90=stats.p90, p99=stats.p99
    )


def _ratio(joules: float, count: int) -> float | None:
    return joules / count if count else None
