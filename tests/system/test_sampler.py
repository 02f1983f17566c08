"""The sampling thread: stamps, retries, gaps and misses, with events for waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest

from proxy.errors import SensorError
from proxy.power.sampler import Sampler, check_instant, read_once
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


def test_no_reading_reaches_the_meter_unchecked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    script = [1.0, float("nan"), -3.0, float("inf"), 2.0]
    events, sampler = collect(ScriptedSource([*script]), 5)
    assert [event.gap_reason is None for event in events] == [
        True, False, False, False, True,
    ]  # fmt: skip
    assert events[1].gap_reason == (
        "scripted: no reading is believed (gpu0 joules: not_a_number)"
    )
    assert sampler.stats.rejected["not_a_number"] == 2
    assert sampler.stats.rejected["negative"] == 1
    assert sampler.stats.is_up


class TwoBoards(ScriptedSource):
    """The second board is always good."""

    def read(self) -> Sequence[Reading]:
        return [*super().read(), Reading("gpu1", watts=70.0)]


def test_one_board_that_is_not_believed_is_no_failure_of_the_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = TwoBoards([1.0, *[float("nan")] * 200])
    events, sampler = collect(source, 150)
    assert all(event.gap_reason is None for event in events)
    assert events[9].readings == (Reading("gpu0"), Reading("gpu1", watts=70.0))
    assert sampler.stats.errors == 0
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "power source: scripted: not believed: gpu0: nan joules (not_a_number)"
    ]


class BoundedScript(ScriptedSource):
    """A board of 100 W."""

    def read(self) -> Sequence[Reading]:
        super().read()
        return [Reading("gpu0", watts=250.0)]

    def max_watts(self) -> dict[str, float]:
        return {"gpu0": 100.0}


def test_a_board_is_held_to_its_own_limit_or_to_the_stated_one() -> None:
    (event,), _ = collect(BoundedScript([]), 1)
    assert event.gap_reason is not None
    assert "beyond_power" in event.gap_reason
    got: list[PowerSampled] = []
    some = threading.Event()

    def deliver(event: PowerSampled) -> None:
        got.append(event)
        some.set()

    sampler = Sampler(lambda: BoundedScript([]), 0.001, deliver, max_watts=300.0)
    sampler.start()
    assert some.wait(PATIENCE_SECONDS)
    sampler.stop()
    assert got[0].readings == (Reading("gpu0", watts=250.0),)


@pytest.mark.parametrize("took_seconds", [0.0, 2.9])
def test_a_read_in_time_is_stamped_at_its_middle(took_seconds: float) -> None:
    check_instant("nvml", [Reading("gpu0", joules=1.0)], took_seconds)


def test_a_read_that_hung_says_nothing_about_when() -> None:
    with pytest.raises(SensorError, match="nvml: one read took 61 s"):
        check_instant("nvml", [Reading("gpu0", joules=1.0)], 61.0)
    check_instant("redfish", [Reading("node", watts=1.0, at_seconds=5.0)], 61.0)


class FollowedScript(ScriptedSource):
    """A remote sensor that is new every 50 ms."""

    follows_updates = True

    def __init__(self) -> None:
        super().__init__([])
        self.begin_seconds = time.monotonic()

    def read(self) -> Sequence[Reading]:
        steps = (time.monotonic() - self.begin_seconds) // 0.05
        return [Reading("gpu0", joules=steps)]


def test_a_remote_sensor_is_asked_at_the_pace_of_its_updates() -> None:
    enough = threading.Event()

    def deliver(event: PowerSampled) -> None:
        if event.readings[0].joules == 40.0:
            enough.set()

    source = FollowedScript()
    sampler = Sampler(lambda: source, 0.002, deliver)
    sampler.start()
    assert enough.wait(PATIENCE_SECONDS)
    sampler.stop()
    assert sampler.stats.samples < 40 * 25 * 0.7  # of 25 reads a change
    assert sampler.stats.missed < 40 * 25


class ComingAndGoing(ScriptedSource):
    """A second board is there for a while."""

    def read(self) -> Sequence[Reading]:
        (first,) = super().read()
        return [first, Reading("gpu1", joules=1.0)] if first.joules else [first]


def test_a_device_that_comes_is_said(caplog: pytest.LogCaptureFixture) -> None:
    collect(ComingAndGoing([0.0, 0.0, 1.0, 2.0]), 4)
    said = [record.getMessage() for record in caplog.records]
    assert said == ["power source: scripted: gpu1 came"]
