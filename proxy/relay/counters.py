"""Counters of the relay, read by the metrics."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields

import msgspec

from proxy.process.tally import Tally, coarse_edges, fine_edges

TOKEN_EDGES_SECONDS = fine_edges(-3, 3, below=(0.0001, 0.0003), above=(3.0, 10.0))
OVERHEAD_EDGES_SECONDS = coarse_edges(-5, 5)


@dataclass(slots=True)
class RelayCounters:
    """Totals since start, and a few figures of the present."""

    requests: Counter[str] = field(default_factory=Counter)
    """Metered requests that ended, by outcome."""
    unmetered: int = 0
    """Requests passed through without a meter (health, models, tokenize)."""
    refusals: Counter[tuple[int, str]] = field(default_factory=Counter)
    """Requests, or connections, answered by the relay itself before any upstream,
    by status and code."""
    timeouts: Counter[str] = field(default_factory=Counter)
    """Connections closed because their client was silent, by what was awaited."""
    in_flight: int = 0
    """Requests between their last byte in and their last byte out, now."""
    clients_open: int = 0
    upstream_open: int = 0
    """Connections to the engine, now; `upstream_idle` of them wait for use."""
    upstream_idle: int = 0
    upstream_connects: int = 0
    upstream_retries: int = 0
    """Requests sent again because a kept connection turned out closed."""
    rerouted: int = 0
    """Requests for which it could not be reached and that another one was given."""
    pauses: int = 0
    """Times an engine was held back because its client read slowly."""
    chunks: int = 0
    """Reads of metered replies; each had one stamp."""
    events: int = 0
    reply_bytes: int = 0
    """Bytes of metered replies, as the engine sent them."""
    meter_errors: int = 0
    """Calls into the meter that failed; the requests went on."""
    token_seconds: Tally = field(default_factory=lambda: Tally(TOKEN_EDGES_SECONDS))
    """Time between reads that bore tokens, shared equally by those of the later one."""
    request_seconds: Tally = field(
        default_factory=lambda: Tally(OVERHEAD_EDGES_SECONDS)
    )
    """From a request's arrival until it was handed to the engine's connection."""
    reply_seconds: Tally = field(default_factory=lambda: Tally(OVERHEAD_EDGES_SECONDS))
    """From a read of a metered reply's body until it was handed to the client's
    connection; counted when the copy is parsed."""
    unreadable_replies: int = 0
    """Replies that could not be metered: not SSE, too large or compressed."""
    unseen_requests: int = 0
    """Metered requests that ended with nobody to meter them: the process of the meter
    was away when they came, or was another one when they ended."""
    unseen_reads: int = 0
    """Reads of replies that had no room to wait for the meter's process."""


PRESENT = frozenset(["in_flight", "clients_open", "upstream_open", "upstream_idle"])
"""Figures of the present: those of a process that ended are gone with it."""

Key = tuple[str | int, ...]


class CounterFigures(msgspec.Struct, frozen=True, array_like=True):
    """Counters as one process tells them to another, by the names of the fields."""

    numbers: dict[str, int] = {}
    counts: dict[str, list[tuple[Key, int]]] = {}
    tallies: dict[str, tuple[list[int], float]] = {}
    """Values in each bucket, and their sum."""


def figures_of(counters: RelayCounters) -> CounterFigures:
    """What they are now."""
    figures = CounterFigures({}, {}, {})
    for each in fields(counters):
        value = getattr(counters, each.name)
        if isinstance(value, int):
            figures.numbers[each.name] = value
        elif isinstance(value, Tally):
            figures.tallies[each.name] = (list(value.counts), value.total)
        else:
            figures.counts[each.name] = [
                (key if isinstance(key, tuple) else (key,), count)
                for key, count in value.items()
            ]
    return figures


def add_difference(
    counters: RelayCounters, before: CounterFigures, now: CounterFigures
) -> None:
    """Add what another process counted from `before` to `now`."""
    for name, number in now.numbers.items():
        more = number - before.numbers.get(name, 0)
        setattr(counters, name, getattr(counters, name) + more)
    for name, counts in now.counts.items():
        counted, known = getattr(counters, name), dict(before.counts.get(name, ()))
        for key, count in counts:
            more = count - known.get(key, 0)
            if more:
                counted[key if len(key) > 1 else key[0]] += more
    for name, (buckets, total) in now.tallies.items():
        tally: Tally = getattr(counters, name)
        tally.add_difference(before.tallies.get(name), buckets, total)


def without_present(figures: CounterFigures) -> CounterFigures:
    """What stays of a process that has ended."""
    numbers = dict.fromkeys(PRESENT & figures.numbers.keys(), 0)
    return msgspec.structs.replace(figures, numbers=figures.numbers | numbers)
