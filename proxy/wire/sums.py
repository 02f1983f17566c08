"""Books of several engines as one: in one proxy, or in several that share a load.

Rule: a sum is over whole ledgers. Where one engine's figure is not known the sum is
null: a part of the truth would look like all of it. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from proxy.wire.api import BooksReply, BoundaryBooks, FleetBooks, summed


def fleet_books(
    replies: Mapping[str, BooksReply],
    *,
    run: str = "",
    run_unix_seconds: float = 0.0,
) -> FleetBooks:
    """The books of several engines: the sums, which belong to `run`, and each one's.

    Boundaries that not all of them have are in no sum.
    """
    first, *others = replies.values()
    shared = [
        name
        for name in first.boundaries
        if all(name in reply.boundaries for reply in others)
    ]
    boundaries = {
        name: {engine: reply.boundaries[name] for engine, reply in replies.items()}
        for name in shared
    }
    own: dict[str, Any] = {"run": run, "run_unix_seconds": run_unix_seconds}
    return FleetBooks(
        **_sum(replies),
        **own,
        boundaries={
            name: BoundaryBooks(**_sum(s), **own) for name, s in boundaries.items()
        },
        engines=dict(replies),
    )


SUMMED = (
    "idle_watts", "rest_watts", "bare_idle_watts", "model_idle_watts",
    "gaps_total", "samples_total", "missed_total", "open_requests",
    "drafted_tokens", "accepted_tokens",
)  # fmt: skip
WORST = ("window_seconds", "counter_period_seconds", "unsettled_seconds", "gap_seconds")
JOINED = ("boundary", "source", "policy", "sample_interval_seconds", "idle_source")
"""One value where all have the same. What is in no list stays null: an engine's
other GPUs may be another engine's, and a ratio of ratios means nothing."""


def _sum(books: Mapping[str, BoundaryBooks]) -> dict[str, Any]:
    """One boundary of several engines; joules of different boundaries are no sum."""
    each = list(books.values())
    late = [reply for reply in each if not reply.complete]
    total: dict[str, Any] = {
        "settled_unix_seconds": _all(each, "settled_unix_seconds", min),
        "complete": not late,
        "simulated": any(reply.simulated for reply in each),
        # whether what is not complete may still come
        "sensor_up": any(reply.sensor_up for reply in late or each),
        "device_watts": {
            f"{engine}/{device}": watts
            for engine, reply in books.items()
            for device, watts in reply.device_watts.items()
        },
    }
    if len({reply.boundary for reply in each}) == 1:
        total |= summed(each)
    total |= {name: _all(each, name, sum) for name in SUMMED}
    total |= {name: _all(each, name, max) for name in WORST}
    for name in JOINED:
        values = [getattr(reply, name) for reply in each]
        texts = list(map(str, values))
        total[name] = values[0] if len(set(texts)) == 1 else ", ".join(texts)
    return total


def _all(
    each: Sequence[BoundaryBooks], name: str, of: Callable[[list[Any]], Any]
) -> Any:
    """One figure of all of them; None where it is unknown of one."""
    values = [getattr(reply, name) for reply in each]
    return None if None in values else of(values)
