"""What the simulated GPU shows of its power."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.errors import UsageError
from loadgen.simulator.core.sensor import GpuSensor, PowerCurve, SensorConfig


def curve() -> PowerCurve:
    """100 W idle; 1 s at 500 W from 2 s, 0.5 s at 300 W from 3 s."""
    power = PowerCurve(100.0)
    sensor_start = power.end_seconds
    assert sensor_start == 0
    power.extend(2.0, 3.0, 500.0)
    power.extend(3.0, 3.5, 150.0)
    return power


def sensor(config: SensorConfig, **group: int) -> GpuSensor:
    power = PowerCurve(100.0)
    made = GpuSensor(power, config, **group)
    power.extend(2.0, 3.0, 500.0)
    power.extend(3.0, 3.5, 150.0)
    return made


@pytest.mark.parametrize(
    ("at_seconds", "joules", "watts"),
    [
        (-1, 0, 100),
        (0, 0, 100),
        (1, 100, 100),
        (2.5, 450, 500),
        (3.25, 775, 300),
        (4.5, 950, 100),
    ],
)
def test_the_curve_is_exact_at_any_instant(
    at_seconds: float, joules: float, watts: float
) -> None:
    assert curve().joules_at(at_seconds) == pytest.approx(joules)
    later = curve().joules_at(max(0.0, at_seconds) + 1e-3)
    now = curve().joules_at(max(0.0, at_seconds))
    assert (later - now) / 1e-3 == pytest.approx(watts)


def test_forgetting_the_past_does_not_change_later_readings() -> None:
    power = curve()
    power.forget_before(2.5)
    assert power.joules_at(2.5) == pytest.approx(450)
    assert power.joules_at(9) == pytest.approx(curve().joules_at(9))


def test_steps_that_overlap_are_refused() -> None:
    with pytest.raises(ValueError, match="does not follow"):
        curve().extend(3.4, 4.0, 1.0)


CONFIGS = st.builds(
    SensorConfig,
    period_seconds=st.floats(0.02, 0.5),
    jitter_fraction=st.floats(0, 0.9),
    averaging_seconds=st.sampled_from([0.0, 1.0]),
    lag_seconds=st.floats(0, 0.3),
    dropped_fraction=st.floats(0, 0.8),
    initial_joules=st.sampled_from([0.0, 123456.789]),
    seed=st.integers(0, 99),
)


@given(CONFIGS)
def test_the_counter_never_falls_and_never_runs_ahead(config: SensorConfig) -> None:
    shown = sensor(config)
    exact = curve()
    last_joules = 0.0
    for at_seconds in np.arange(0, 6, 0.013):
        reading = shown.read(float(at_seconds))
        assert reading.joules >= last_joules
        assert reading.joules * 1000 == pytest.approx(round(reading.joules * 1000))
        ahead = exact.joules_at(float(at_seconds)) + config.initial_joules
        assert reading.joules <= ahead + 1e-6
        assert 0 <= reading.watts <= 500 + 1e-6
        last_joules = reading.joules


@given(CONFIGS, st.lists(st.floats(0, 6), min_size=2, max_size=20))
def test_a_reading_does_not_depend_on_who_asked_before(
    config: SensorConfig, instants: list[float]
) -> None:
    shown = sensor(config)
    forward = {at: shown.read(at) for at in sorted(instants)}
    assert all(shown.read(at) == forward[at] for at in instants)


def test_the_counter_changes_once_per_period() -> None:
    shown = sensor(SensorConfig(period_seconds=0.1))
    readings = {shown.read(at / 1000).joules for at in range(0, 1000, 5)}
    assert sorted(readings) == pytest.approx([10.0 * k for k in range(10)])
    edges = {shown.read(at / 1000).updated_seconds for at in range(0, 1000, 5)}
    assert sorted(edges) == pytest.approx([k / 10 for k in range(10)])


def test_averaged_power_lags_behind_the_instantaneous() -> None:
    quick = sensor(SensorConfig())
    slow = sensor(SensorConfig(averaging_seconds=1.0))
    assert quick.read(2.15).watts == pytest.approx(500)
    assert slow.read(2.15).watts == pytest.approx(140)  # 0.9 s at 100, 0.1 s at 500


def test_dropped_updates_repeat_the_last_value_and_lose_no_energy() -> None:
    dropping = sensor(SensorConfig(dropped_fraction=0.5, seed=3))
    grid = np.arange(0, 50, 0.05)
    edges = {dropping.read(float(at)).updated_seconds for at in grid}
    assert 180 < len(edges) < 320  # half of 500
    last = dropping.read(50.0)
    assert last.joules == pytest.approx(curve().joules_at(last.updated_seconds))


def test_the_gpus_of_a_group_show_equal_parts_at_their_own_moments() -> None:
    both = [sensor(SensorConfig(), n_gpus=2, index=index) for index in (0, 1)]
    readings = [gpu.read(1.0) for gpu in both]
    assert [r.updated_seconds for r in readings] == pytest.approx([1.0, 0.95])
    assert [r.joules for r in readings] == pytest.approx([50.0, 47.5])
    assert [r.watts for r in readings] == pytest.approx([50.0, 50.0])


@given(CONFIGS, st.integers(0, 3))
def test_a_gpu_that_just_started_shows_idle(config: SensorConfig, index: int) -> None:
    shown = sensor(config, n_gpus=4, index=index)
    for at_seconds in np.arange(0, 1, 0.017):
        assert shown.read(float(at_seconds)).watts == pytest.approx(25)
        assert shown.read(float(at_seconds)).updated_seconds <= at_seconds


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("period_seconds", 0.0),
        ("jitter_fraction", 1.0),
        ("dropped_fraction", -0.1),
        ("lag_seconds", -1.0),
    ],
)
def test_an_impossible_sensor_is_refused(field: str, value: float) -> None:
    with pytest.raises(UsageError):
        SensorConfig(**{field: value})  # type: ignore[arg-type]  # by name on purpose
