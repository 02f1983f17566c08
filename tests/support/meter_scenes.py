"""Small scenes for the meter's tests: a scripted engine, a scripted counter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

from proxy.meter.config import MeterConfig
from proxy.meter.ledger import RequestRecord
from proxy.meter.meter import Meter
from proxy.wire.events import (
    Event,
    PowerSampled,
    RequestClosed,
    RequestOpened,
    TokensReceived,
)
from proxy.wire.facts import Labels, PhaseSeconds, Reading, RequestFacts, Update, Usage


@dataclass(frozen=True)
class Asked:
    """One streamed request: when it came, when each token came, when it ended."""

    arrived: float
    tokens: Sequence[float]
    prompt: int = 100
    cached: int | None = None
    closed: float | None = None
    labels: Labels = field(default_factory=Labels)
    outcome: str = "ok"
    status: int | None = 200
    running_usage: bool = True
    prefill_seconds: float | None = None

    @property
    def closed_seconds(self) -> float:
        if self.closed is not None:
            return self.closed
        return (self.tokens[-1] if self.tokens else self.arrived) + 0.001


def events_of(requests: Sequence[Asked]) -> list[Event]:
    """What the relay would feed, in order of time; keys count from 0."""
    found: list[Event] = []
    for key, asked in enumerate(requests):
        facts = RequestFacts(
            "chat", is_stream=True, has_running_usage=asked.running_usage
        )
        found.append(RequestOpened(key, asked.arrived, f"r{key}", facts, asked.labels))
        for count, at in enumerate(asked.tokens, start=1):
            usage = Usage(asked.prompt, count, asked.cached)
            shown = usage if asked.running_usage else None
            updates = (Update(carries_token=True, usage=shown),)
            found.append(TokensReceived(key, at, updates))
        closed = asked.closed_seconds
        if asked.tokens:
            usage = Usage(asked.prompt, len(asked.tokens), asked.cached)
            phases = (
                None
                if asked.prefill_seconds is None
                else PhaseSeconds(prefill_seconds=asked.prefill_seconds)
            )
            last = Update(is_usage_only=True, usage=usage, phases=phases)
            found.append(TokensReceived(key, closed, (last,)))
        found.append(RequestClosed(key, closed, asked.outcome, asked.status))
    return in_order(found)


def in_order(*some: Iterable[Event]) -> list[Event]:
    """All of them by time; those of one instant stay as they are."""
    return sorted(chain(*some), key=lambda event: event.at_seconds)


def counter(
    until: float, watts: float = 300.0, *, period: float = 0.1, poll: float = 0.02
) -> list[PowerSampled]:
    """Polls of a counter that shows a multiple of its period."""
    per_period = round(period / poll)
    shown = [(n // per_period) * period * watts for n in range(round(until / poll) + 1)]
    return [
        PowerSampled("gpu", number * poll, (Reading("gpu0", joules, watts),))
        for number, joules in enumerate(shown)
    ]


def counter_of(
    watts: Sequence[float],
    *,
    reset_at: int | None = None,
    poll: float = 0.02,
    boundary: str = "gpu",
) -> list[PowerSampled]:
    """Polls of a counter updated every 0.1 s; mean power of each update is given.

    The driver is reloaded before update number `reset_at`: it counts from 0 again.
    """
    shown = [1000.0]
    for number, power in enumerate(watts):
        shown.append(0.0 if number == reset_at else shown[-1] + power * 0.1)
    per_update = round(0.1 / poll)
    return [
        PowerSampled(
            boundary, number * poll, (Reading("gpu0", shown[number // per_update]),)
        )
        for number in range(len(watts) * per_update)
    ]


class Fed(Protocol):
    """Whatever takes events."""

    def feed(self, event: Event) -> None: ...


def play(meter: Fed, events: Iterable[Event]) -> None:
    """Feed them in the order given."""
    for event in events:
        meter.feed(event)


def ticks(start: float, until: float, every: float = 0.02) -> list[float]:
    """Instants of tokens, evenly apart."""
    return [start + every * n for n in range(round((until - start) / every) + 1)]


def settled_on_beat(
    meter: Meter, events: Iterable[Event], *, beat: float, until: float
) -> list[RequestRecord]:
    """Events in order of time, settled at every beat between them and at the end."""
    records: list[RequestRecord] = []
    due = beat
    for event in in_order(events):
        while event.at_seconds > due:
            records += meter.settle(due)
            due += beat
        meter.feed(event)
    return records + meter.settle(until)


def settled(
    requests: Sequence[Asked],
    sensor: Sequence[PowerSampled],
    config: MeterConfig | None = None,
) -> tuple[Meter, dict[str, RequestRecord]]:
    """All of it played in order of time and settled; records by request id."""
    meter = Meter(config)
    play(meter, in_order(events_of(requests), sensor))
    records = meter.settle(sensor[-1].at_seconds + 100.0 if sensor else 1000.0)
    return meter, {record.request_id: record for record in records}
