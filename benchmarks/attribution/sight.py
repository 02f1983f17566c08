"""What of a run reaches the meter: reads, usage, the sensor, the engine's metrics.

Everything is as late as it would be: reads by the network and a busy loop, by a process
that stands still, readings by the sensor's period and lag, metrics by a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np

from benchmarks.attribution.engine import FloatArray, Run, Tally
from benchmarks.attribution.load import EMBEDDING, NETWORK_SECONDS, QUIET_SECONDS, Load
from benchmarks.attribution.scenarios import Scenario
from loadgen.simulator.core.sensor import GpuSensor, PowerCurve, SensorConfig
from proxy.meter.ledger import RequestRecord
from proxy.meter.meter import Meter
from proxy.wire.events import (
    EngineObserved,
    PowerSampled,
    RequestClosed,
    RequestOpened,
    TokensReceived,
)
from proxy.wire.facts import (
    UNMETERED,
    EngineGauges,
    Labels,
    PhaseSeconds,
    Reading,
    RequestFacts,
    Update,
    Usage,
)

POLL_SECONDS = 0.02
SETTLE_SECONDS = 0.5
SCRAPE_SECONDS = 1.0
AFTER_SECONDS = 3.0
"""Sampled on after the last token."""

SEEN, WHOLE, PASSED, PAST = "streamed", "whole", "unmetered", "bypass"


@dataclass(frozen=True)
class Event:
    """One call of the meter."""

    at_seconds: float
    order: int
    what: str
    key: int = -1
    updates: tuple[Update, ...] = ()


def ways_of(made: Load, scenario: Scenario) -> list[str]:
    """How each request comes to the engine, and its reply back."""
    rng = np.random.default_rng([scenario.seed, 11])
    ways = []
    for kind, bypasses in zip(made.kinds, made.bypasses, strict=True):
        is_whole = rng.random() < scenario.whole_fraction
        if kind == EMBEDDING:
            ways.append(PASSED if scenario.embeddings_pass else PAST)
        elif bypasses:
            ways.append(PAST)
        else:
            ways.append(WHOLE if is_whole else SEEN)
    return ways


def sensor_of(run: Run, scenario: Scenario) -> GpuSensor:
    """A sensor on the whole group's curve, which is read from its start."""
    curve = PowerCurve(run.idle_watts)
    sensor = GpuSensor(
        curve,
        SensorConfig(
            period_seconds=scenario.counter_seconds,
            averaging_seconds=scenario.averaging_seconds,
            lag_seconds=scenario.lag_seconds,
            initial_joules=1234.567,
        ),
    )
    for start, end, joules in run.pieces:
        curve.extend(start, end, joules)
    return sensor


def stalls_of(
    made: Load, scenario: Scenario, rng: np.random.Generator
) -> list[tuple[float, float]]:
    """When the proxy's process stands still: around some of the first tokens."""
    spans: list[tuple[float, float]] = []
    until = 0.0
    firsts = [stamps[0] for stamps in made.done.token_seconds.values() if len(stamps)]
    for first in sorted(firsts):
        if rng.random() < scenario.stall_fraction and first > until + 0.1:
            began = float(first) - 0.05 * rng.random()
            until = began + rng.uniform(0.1, 0.3)
            spans.append((began, until))
    return spans


class Lateness:
    """When something that happened is seen by the proxy."""

    def __init__(self, made: Load, scenario: Scenario) -> None:
        rng = np.random.default_rng([scenario.seed, 13])
        stalls = stalls_of(made, scenario, rng) if scenario.stall_fraction else []
        self._began = np.array([began for began, _ in stalls])
        self._ended = np.array([ended for _, ended in stalls])
        self._turns = np.empty(0)
        if scenario.loop_seconds:
            turns = int(2 * (made.done.end_seconds + 60.0) / scenario.loop_seconds)
            self._turns = rng.exponential(scenario.loop_seconds, turns).cumsum()

    def seen(self, at_seconds: FloatArray) -> FloatArray:
        """Instants of the proxy's loop at which these are dealt with."""
        if len(self._turns):
            turn = np.searchsorted(self._turns, at_seconds)
            last = len(self._turns) - 1
            at_seconds = np.maximum(self._turns[np.minimum(turn, last)], at_seconds)
        return self.running(at_seconds)

    def running(self, at_seconds: FloatArray) -> FloatArray:
        """As `seen`, of what a thread of its own does: only the process stops it."""
        if not len(self._began):
            return at_seconds
        at = np.searchsorted(self._began, at_seconds, side="right") - 1
        ended = np.where(at >= 0, self._ended[np.maximum(at, 0)], -np.inf)
        return np.maximum(at_seconds, ended)


def events_of(made: Load, scenario: Scenario, jitter_seconds: float) -> list[Event]:
    """Everything the meter is told, in order of time."""
    run, lateness = made.done, Lateness(made, scenario)
    rng = np.random.default_rng([scenario.seed, 7])
    events: list[Event] = []
    ways = ways_of(made, scenario)
    for key, (request, way) in enumerate(zip(made.requests, ways, strict=True)):
        if way == PAST:
            continue
        arrived = request.arrived_seconds - NETWORK_SECONDS
        events.append(Event(arrived, 0, "opened", key))
        truth = run.truth[request.request_id]
        assert truth.last_token_seconds is not None
        if way == PASSED:
            ended = truth.last_token_seconds + NETWORK_SECONDS
            closed = float(lateness.seen(np.array([ended]))[0])
            events.append(Event(closed, 3, "closed", key))
            continue
        stamps = run.token_seconds[request.request_id]
        reads = stamps + NETWORK_SECONDS + rng.random(len(stamps)) * jitter_seconds
        reads = lateness.seen(np.maximum.accumulate(reads))
        counts = run.token_counts[request.request_id].cumsum().astype(int).tolist()
        prompt = request.prompt_tokens
        if way == SEEN:
            numbered = zip(reads.tolist(), counts, strict=True)
            for at, together in groupby(numbered, key=itemgetter(0)):
                updates = tuple(
                    Update(carries_token=True, usage=Usage(prompt, number))
                    for _, number in together
                )
                events.append(Event(at, 1, "received", key, updates))
        phases = None
        if scenario.has_phase_times:
            assert truth.first_token_seconds is not None
            assert truth.scheduled_seconds is not None
            phases = PhaseSeconds(
                queue_seconds=truth.scheduled_seconds - truth.arrived_seconds,
                prefill_seconds=truth.first_token_seconds - truth.scheduled_seconds,
                decode_seconds=truth.last_token_seconds - truth.first_token_seconds,
            )
        tells_cache = scenario.repeat_fraction and not scenario.hides_cache
        last = Update(
            usage=Usage(
                prompt, counts[-1], truth.cached_tokens if tells_cache else None
            ),
            phases=phases,
            is_usage_only=way == SEEN,
            is_end=way == WHOLE,
        )
        events.append(Event(float(reads[-1]), 2, "received", key, (last,)))
        events.append(Event(float(reads[-1]), 3, "closed", key))
    end_seconds = run.end_seconds + AFTER_SECONDS
    return sorted(
        [*events, *_beats(lateness, scenario, end_seconds)],
        key=lambda event: (event.at_seconds, event.order),
    )


def _beats(
    lateness: Lateness, scenario: Scenario, end_seconds: float
) -> Iterator[Event]:
    """Polls of the sensor, scrapes and settlements; those missed are left out."""
    polls = lateness.running(np.arange(0.0, end_seconds, POLL_SECONDS))
    for at in np.unique(polls).tolist():
        yield Event(at, 4, "sampled")
    if scenario.has_gauges:
        scrapes = lateness.seen(np.arange(0.37, end_seconds, SCRAPE_SECONDS))
        for at in np.unique(scrapes).tolist():
            yield Event(at, 4, "observed")
    beats = np.arange(SETTLE_SECONDS / 2, end_seconds, SETTLE_SECONDS)
    for at in np.unique(lateness.seen(beats)).tolist():
        yield Event(at, 5, "settled")
    yield Event(end_seconds + 60.0, 6, "settled")


def gauges_at(tally: Tally, at_seconds: float) -> EngineGauges:
    """What a scrape finds; an engine that does not speculate has no such counters."""
    found = tally.at(at_seconds)
    has_drafts = tally.rows and tally.now["drafts"] > 0
    return EngineGauges(
        running=int(found["running"]),
        waiting=int(found["waiting"]),
        preemptions=int(found["preemptions"]),
        progress=found["progress"],
        prompt_tokens=found["prompt_tokens"],
        cached_tokens=found["cached_tokens"],
        output_tokens=found["output_tokens"],
        drafts=found["drafts"] if has_drafts else None,
        draft_tokens=found["draft_tokens"] if has_drafts else None,
        accepted_tokens=found["accepted_tokens"] if has_drafts else None,
        steps=found["steps"],
        step_tokens=found["step_tokens"],
    )


def play(
    made: Load,
    scenario: Scenario,
    meter: Meter,
    jitter_seconds: float,
    lags: list[float] | None = None,
) -> tuple[list[RequestRecord], float]:
    """Make all calls; the settled records, and since when constants were trusted.

    The latter as a part of the busy time, 0..1. `lags` gets the seconds from the end of
    each request to its record.
    """
    run, ways = made.done, ways_of(made, scenario)
    trusted: list[bool] = []
    sensor = sensor_of(run, scenario)
    streamed = RequestFacts("chat", is_stream=True, has_running_usage=True)
    facts = {
        SEEN: streamed,
        WHOLE: RequestFacts("chat"),
        PASSED: RequestFacts(UNMETERED),
    }
    records: list[RequestRecord] = []
    for event in events_of(made, scenario, jitter_seconds):
        at, key = event.at_seconds, event.key
        if event.what == "received":
            meter.feed(TokensReceived(key, at, event.updates))
        elif event.what == "sampled":
            shown = sensor.read(at)
            joules = shown.joules if scenario.has_counter else None
            meter.feed(PowerSampled("gpu", at, (Reading("gpu0", joules, shown.watts),)))
        elif event.what == "observed":
            meter.feed(EngineObserved(at, gauges_at(run.tally, at)))
        elif event.what == "settled":
            now_final = meter.settle(at)
            records += now_final
            if lags is not None:
                lags += [at - record.finished_seconds for record in now_final]
            calibration = meter.state().calibration
            if calibration is not None and QUIET_SECONDS < at < run.end_seconds:
                trusted.append(calibration.is_fitted)
        elif event.what == "opened":
            labels = Labels(kind=made.kinds[key])
            name = made.requests[key].request_id
            meter.feed(RequestOpened(key, at, name, facts[ways[key]], labels))
        else:
            meter.feed(RequestClosed(key, at, "ok", status=200))
    return records, float(np.mean(trusted))
