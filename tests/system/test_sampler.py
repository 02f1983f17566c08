"""The sampling thread: stamps, retries, gaps and misses, with events for waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest

from proxy.errors import SensorError
from proxy.power.sampler import Sampler, read_once
from proxy.power.sources.none import NoSource
from proxy.wire.events import PowerSampled
from proxy.wire.facts import Reading

PATIENCE_SECONDS = 20


class ScriptedSource:
    """Gives the script's joules one by one; an exception in it is raised."""

    name = "scripted"
    boundary = "gpu"
    is_simulated = True

    def __init__(self, script: list[float | SensorError]) -> None:
        self.script = script
        self.closed = 0

    def read(self) -> Sequence[Reading]:
        step = self.script.pop(0) if self.script else 0.0
        if isinstance(step, SensorError):
            raise step
        return [Reading("gpu0", joules=step)]

    def close(self) -> None:
        self.closed += 1


def collect(source: ScriptedSource, count: int) -> tuple[list[PowerSampled], Sampler]:
    """Run a sampler until `count` events were handed on."""
    events: list[PowerSampled] = []
    enough = threading.Event()

    def deliver(event: PowerSampled) -> None:
        events.append(event)
        if len(events) >= count:
            enough.set()

    sampler = Sampler(lambda: source, 0.001, deliver)
    sampler.start()
    assert enough.wait(PATIENCE_SECONDS)
    sampler.stop()
    return events[:count], sampler


def test_samples_come_in_order_with_rising_stamps() -> None:
    events, sampler = collect(ScriptedSource([1.0, 2.0, 3.0]), 3)
    samples = [event for event in events if event.gap_reason is None]
    assert [sample.readings[0].joules for sample in samples] == [1.0, 2.0, 3.0]
    stamps = [sample.at_seconds for sample in samples]
    assert stamps == sorted(stamps)
    assert sampler.stats.boundary == "gpu"
    assert sampler.stats.is_simulated


def test_a_failure_is_handed_on_and_the_source_opened_again() -> None:
    source = ScriptedSource([1.0, SensorError("GPU is lost"), 2.0])
    events, sampler = collect(source, 3)
    assert events[0].gap_reason is None
    assert events[1].gap_reason is not None
    assert events[1].gap_reason == "GPU is lost"
    assert events[2].gap_reason is None
    assert sampler.stats.errors == 1
    assert sampler.stats.last_error == "GPU is lost"
    assert source.closed == 2


def test_a_source_that_cannot_open_is_a_failure_and_not_the_end() -> None:
    opened = 0
    failed = threading.Event()

    def open_source() -> ScriptedSource:
        nonlocal opened
        opened += 1
        raise SensorError("no driver")

    def deliver(event: PowerSampled) -> None:
        if opened >= 2:
            failed.set()

    sampler = Sampler(open_source, 0.001, deliver)
    sampler.start()
    assert failed.wait(PATIENCE_SECONDS)
    sampler.stop()
    assert not sampler.stats.is_up
    assert sampler.stats.samples == 0


def test_one_read_says_whether_a_source_works() -> None:
    source = ScriptedSource([7.0])
    assert read_once(lambda: source)[0].joules == 7.0
    assert source.closed == 1
    with pytest.raises(SensorError, match="none shows no device"):
        read_once(NoSource)


class StampingSource(ScriptedSource):
    """A remote sensor: each reading carries the time at which it was measured."""

    clock_offset_seconds = 2.5

    def __init__(self, ages: list[float]) -> None:
        super().__init__([])
        self.ages = ages
        self.begin_seconds = time.monotonic()

    def read(self) -> Sequence[Reading]:
        age = self.ages.pop(0) if self.ages else 0.0
        return [Reading("gpu0", watts=1.0, at_seconds=self.begin_seconds - age)]


def test_the_sensors_own_time_is_used_but_never_turns_back() -> None:
    source = StampingSource([9.0, 5.0, 7.0, -3600.0])
    events, sampler = collect(source, 4)
    stamps = [event.at_seconds - source.begin_seconds for event in events]
    assert stamps[:3] == pytest.approx([-9.0, -5.0, -5.0])
    # a reading from the future was taken by the end of the call at the latest
    assert -5.0 <= stamps[3] < PATIENCE_SECONDS
    assert sampler.stats.clock_offset_seconds == 2.5
