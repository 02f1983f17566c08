"""What every power source promises, each against its own counterpart."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.errors import SensorError
from proxy.meter.curve import DeviceCurve
from proxy.power.energy_source import EnergySource
from proxy.power.sampler import Sampler
from proxy.power.sources import SOURCES
from proxy.wire.events import PowerSampled
from proxy.wire.facts import Reading
from tests.support.power_benches import BENCHES, Bench

PATIENCE_SECONDS = 20


@pytest.fixture(params=BENCHES)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    with BENCHES[request.param](tmp_path) as bench:
        yield bench


def shown(bench: Bench, source: EnergySource, joules: float, watts: float) -> Reading:
    """What the source says of the first device after the sensor was set."""
    bench.show(joules, watts)
    return source.read()[0]


def curve_of(
    bench: Bench, source: EnergySource, joules: list[float], watts: float = 0.0
) -> DeviceCurve:
    """The curve of counter readings a tenth of a second apart."""
    curve = DeviceCurve()
    for number, value in enumerate(joules):
        reading = shown(bench, source, value, watts)
        curve.observe(number / 10, reading.joules, reading.watts)
    return curve


def test_every_sensor_has_a_counterpart_here() -> None:
    assert set(BENCHES) == set(SOURCES) - {"none"}


def test_figures_are_joules_and_watts_and_missing_ones_are_none(bench: Bench) -> None:
    source = bench.open()
    reading = shown(bench, source, 2500.5, 300.0)
    if bench.has_counter:
        assert reading.joules == pytest.approx(2500.5, abs=1e-3)
    else:
        assert reading.joules is None
    assert reading.watts == (pytest.approx(300.0) if bench.has_watts else None)
    source.close()


def test_it_says_its_name_and_boundary_and_that_it_is_real(
    bench: Bench, request: pytest.FixtureRequest
) -> None:
    source = bench.open()
    bench.show(1.0, 1.0)
    source.read()
    assert source.name in request.node.name
    assert source.boundary == bench.boundary
    assert source.is_simulated is False
    source.close()


def test_the_curve_gets_what_the_counter_rose_by(bench: Bench) -> None:
    if not bench.has_counter:
        pytest.skip("this sensor has no counter")
    source = bench.open()
    curve = curve_of(bench, source, [100.0, 130.0, 130.0, 145.5, 145.5, 200.0])
    assert curve.total_joules == pytest.approx(70.0, abs=1e-3)
    assert list(curve.joules) == sorted(curve.joules)
    assert not any(curve.reasons)
    source.close()


def test_a_counter_that_starts_anew_is_a_gap_and_no_energy(bench: Bench) -> None:
    if not bench.has_counter:
        pytest.skip("this sensor has no counter")
    source = bench.open()
    curve = curve_of(bench, source, [100.0, 130.0, 150.0, 5.0, 15.0, 30.0])
    assert curve.resets == 1
    assert curve.total_joules == pytest.approx(20.0 + 15.0, abs=1e-3)
    assert any(curve.reasons)
    source.close()


def test_a_failing_sensor_is_one_line_that_names_the_source(
    bench: Bench, request: pytest.FixtureRequest
) -> None:
    source = bench.open()
    shown(bench, source, 1.0, 1.0)
    bench.fail()
    with pytest.raises(SensorError) as caught:
        source.read()
    source.close()
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(source.name)
    assert not message.endswith(".")


def test_opened_again_after_a_failure_it_reads_again(bench: Bench) -> None:
    source = bench.open()
    shown(bench, source, 1.0, 1.0)
    bench.fail()
    with pytest.raises(SensorError):
        source.read()
    source.close()
    again = bench.open()
    assert shown(bench, again, 2.0, 2.0).device
    again.close()


def test_closing_twice_does_nothing(bench: Bench) -> None:
    source = bench.open()
    source.close()
    source.close()


def test_the_sampler_carries_on_over_a_failure_with_time_in_order(
    bench: Bench,
) -> None:
    events: list[PowerSampled] = []
    seen = {kind: threading.Event() for kind in ("before", "failed", "after")}

    def open_source() -> EnergySource:
        source = bench.open()
        bench.show(1.0, 1.0)
        return source

    def deliver(event: PowerSampled) -> None:
        events.append(event)
        if event.gap_reason is not None:
            seen["failed"].set()
        elif seen["failed"].is_set():
            seen["after"].set()
        else:
            if not seen["before"].is_set():
                bench.fail()
            seen["before"].set()

    sampler = Sampler(open_source, 0.005, deliver)
    sampler.start()
    assert seen["after"].wait(PATIENCE_SECONDS), sampler.stats.last_error
    sampler.stop()
    stamps = [event.at_seconds for event in events if event.gap_reason is None]
    assert stamps == sorted(stamps)
    assert sampler.stats.boundary == bench.boundary
