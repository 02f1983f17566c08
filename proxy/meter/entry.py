"""A request in the books: what it did, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.meter.activity.request import RequestTimeline


@dataclass(slots=True, eq=False)
class Entry:
    """A request in the books: its timeline, its ledger slot, what is wrong with it."""

    timeline: RequestTimeline
    slot: int
    has_gap: bool = False
    """Part of its time was not measured."""
    is_forced: bool = False
    """A window was closed before all of its facts were known."""
    has_preemption: bool = False
    """The engine set somebody aside meanwhile; the wire does not tell whom."""
    lacks_idle: bool = False
    """A window was divided while idle watts were not known yet."""
