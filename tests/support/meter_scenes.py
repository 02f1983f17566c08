"""Small scenes for the meter's tests: a scripted engine, a scripted counter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from proxy.engines.dialect import PhaseSeconds, RequestFacts, Update, Usage
from proxy.engines.gauges import EngineGauges
from proxy.meter.ledger.accounts import RequestRecord
from proxy.meter.meter import Labels, Meter, MeterConfig, MeterProtocol
from proxy.power.reading import Reading


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


@dataclass(frozen=True)
class Event:
    """One call of the meter, with its instant."""

    at: float
    what: str
    key: int = 0
    detail: object = None


def events_of(requests: Sequence[Asked]) -> list[Event]:
    """What the relay would call, in order of time."""
    found = []
    for key, asked in enumerate(requests):
        found.append(Event(asked.arrived, "opened", key, asked))
        for count, at in enumerate(asked.tokens, start=1):
            usage = Usage(asked.prompt, count, asked.cached)
            shown = usage if asked.running_usage else None
            found.append(
                Event(at, "received", key, (Update(carries_token=True, usage=shown),))
            )
        last = Usage(asked.prompt, len(asked.tokens), asked.cached)
        phases = (
            None
            if asked.prefill_seconds is None
            else PhaseSeconds(prefill_seconds=asked.prefill_seconds)
        )
        if asked.tokens:
            final = (Update(is_usage_only=True, usage=last, phases=phases),)
            found.append(Event(asked.closed_seconds, "received", key, final))
        found.append(Event(asked.closed_seconds, "closed", key, asked))
    return sorted(found, key=lambda event: event.at)


def counter(
    until: float, watts: float = 300.0, *, period: float = 0.1, poll: float = 0.02
) -> list[Event]:
    """Polls of a counter that shows a multiple of its period."""
    polls = round(until / poll) + 1
    per_period = round(period / poll)
    return [
        Event(
            number * poll,
            "sampled",
            detail=(Reading("gpu0", (number // per_period) * period * watts, watts),),
        )
        for number in range(polls)
    ]


def counter_of(
    watts: Sequence[float], *, reset_at: int | None = None, poll: float = 0.02
) -> list[Event]:
    """Polls of a counter updated every 0.1 s; mean power of each update is given.

    The driver is reloaded before update number `reset_at`: it counts from 0 again.
    """
    shown = [1000.0]
    for number, power in enumerate(watts):
        shown.append(0.0 if number == reset_at else shown[-1] + power * 0.1)
    per_update = round(0.1 / poll)
    return [
        Event(
            number * poll,
            "sampled",
            detail=(Reading("gpu0", shown[number // per_update]),),
        )
        for number in range(len(watts) * per_update)
    ]


def play(meter: MeterProtocol, events: Iterable[Event]) -> None:
    """Make the calls in the order given."""
    for event in events:
        detail = event.detail
        if event.what == "opened":
            assert isinstance(detail, Asked)
            facts = RequestFacts(
                "chat", is_stream=True, has_running_usage=detail.running_usage
            )
            meter.opened(event.key, f"r{event.key}", event.at, facts, detail.labels)
        elif event.what == "received":
            assert isinstance(detail, tuple)
            meter.received(event.key, event.at, detail)
        elif event.what == "closed":
            assert isinstance(detail, Asked)
            meter.closed(event.key, event.at, detail.outcome, status=detail.status)
        elif event.what == "sampled":
            assert isinstance(detail, tuple)
            meter.sampled(event.at, detail)
        elif event.what == "gauged":
            assert isinstance(detail, EngineGauges)
            meter.gauged(event.at, detail)
        else:
            meter.sensor_gap(event.at, event.what)


def settled(
    requests: Sequence[Asked],
    sensor: Sequence[Event],
    config: MeterConfig | None = None,
) -> tuple[Meter, dict[str, RequestRecord]]:
    """All of it played in order of time and settled; records by request id."""
    meter = Meter(config)
    play(meter, sorted([*events_of(requests), *sensor], key=lambda event: event.at))
    records = meter.settle(sensor[-1].at + 100.0 if sensor else 1000.0)
    return meter, {record.request_id: record for record in records}
