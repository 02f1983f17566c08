"""How late a sensor shows power, and what is made of one that averages."""

from __future__ import annotations

import numpy as np
import pytest

from proxy.meter.attribution.lag import LagWatch, SensorLag, Span
from proxy.meter.attribution.policies import FloatArray
from proxy.meter.curve import DeviceCurve, GroupCurve

TICK_SECONDS = 0.01
IDLE_WATTS = 90.0


def drawn() -> FloatArray:
    """Watts above idle, every 10 ms of a minute: quiet, then prompts and decoding."""
    rng = np.random.default_rng(4)
    ticks = 6000
    prompts = np.zeros(ticks)
    for began in rng.uniform(500, ticks, 300).astype(int):
        prompts[began : began + int(rng.integers(2, 20))] = 420.0
    decoding = np.where(np.arange(ticks) > 500, 160.0, 0.0)
    return np.stack((prompts, decoding * (prompts == 0)))


def watched(averaging: float, delay: float, *, has_counter: bool) -> LagWatch:
    """A sensor that is late so, watched a tenth of a second at a time."""
    rng = np.random.default_rng(8)
    power = drawn()
    joules = np.append(0.0, (power.sum(axis=0) * TICK_SECONDS).cumsum())
    at = np.arange(len(joules)) * TICK_SECONDS
    shown = np.interp(at - delay, at, joules)
    if averaging:
        before = np.interp(at - delay - averaging, at, joules)
        mean_watts = (shown - before) / averaging
        shown = np.append(0.0, (mean_watts[1:] * TICK_SECONDS).cumsum())
    watch = LagWatch()
    for first in range(0, len(at) - 10, 10):
        start, end = at[first], at[first + 10]
        joules_shown = shown[first + 10] - shown[first] + IDLE_WATTS * (end - start)
        costs = power[:, first : first + 10].sum(axis=1) * (0.7, 1.3)
        noisy = joules_shown + rng.normal(0, 0.5)
        span = Span(float(start), float(end), float(noisy), *costs.tolist())
        if not watch.is_done:
            watch.add(span, has_counter=has_counter)
    return watch


@pytest.mark.parametrize("late", [(0.5, 0.0), (1.0, 0.1), (2.0, 0.0)], ids=str)
def test_an_average_is_found_with_its_width(late: tuple[float, float]) -> None:
    found = watched(*late, has_counter=False).lateness
    assert found is not None
    assert found.averaging_seconds == pytest.approx(late[0], rel=0.1)
    assert found.mean_seconds == pytest.approx(SensorLag(*late).mean_seconds, abs=0.1)


def test_a_counter_that_is_late_is_found() -> None:
    found = watched(0.0, 0.4, has_counter=True).lateness
    assert found is not None
    assert found.averaging_seconds == 0.0
    assert found.delay_seconds == pytest.approx(0.4, abs=0.05)


@pytest.mark.parametrize("has_counter", [False, True])
def test_a_prompt_sensor_is_found_to_be_none(has_counter: bool) -> None:
    averaging = 0.0 if has_counter else 0.1
    assert watched(averaging, 0.0, has_counter=has_counter).lateness is None


def read_average(curve: GroupCurve, until: float, watts: float, since: float) -> None:
    """Poll, every 20 ms, an average over a second that is new every 100 ms.

    Power was 100 W up to 10 s.
    """
    for number in range(round(since * 50) + 1, round(until * 50) + 1):
        updated = number // 5 / 10
        shown = 100.0 + (watts - 100.0) * min(max(updated - 10.0, 0.0), 1.0)
        curve.observe(number / 50, [("gpu0", None, shown)])


def test_an_average_that_is_known_is_the_energy_of_the_time_before() -> None:
    curve = GroupCurve()
    read_average(curve, 9.0, 100.0, 0.0)
    curve.correct(1.0, 0.05)
    read_average(curve, 16.0, 500.0, 9.0)
    ends = np.array(curve.devices["gpu0"].seconds)
    rising = np.flatnonzero((ends > 9.5) & (ends < 14.0))
    true = np.interp(ends, [0.0, 10.0, 20.0], [0.0, 1000.0, 6000.0])
    assert np.diff(ends[rising]) == pytest.approx(np.ones(len(rising) - 1), abs=0.15)
    known = curve.joules_at(ends)
    assert np.diff(known[rising]) == pytest.approx(np.diff(true[rising]), rel=0.05)


def test_what_an_average_has_not_shown_comes_with_its_next_edge() -> None:
    curve = GroupCurve()
    read_average(curve, 15.0, 500.0, 0.0)
    curve.correct(1.0, 0.05)
    read_average(curve, 18.0, 500.0, 15.0)
    end = curve.end_seconds
    assert end is not None
    known = curve.joules_at(np.array([end]))[0]
    assert known == pytest.approx(100.0 * 10.0 + 500.0 * (end - 10.0), rel=0.01)


def test_an_average_is_measured_on_after_a_gap() -> None:
    curve = GroupCurve()
    read_average(curve, 9.0, 100.0, 0.0)
    curve.correct(1.0, 0.0)
    curve.interrupt("sensor_gap")
    read_average(curve, 16.0, 100.0, 11.0)
    window = curve.next_window(9.0, 0.5)
    assert window is not None
    assert window.gap_reason == "sensor_gap"
    after = curve.next_window(window.end_seconds, 0.5)
    assert after is not None
    assert after.gap_reason is None
    seconds = after.end_seconds - after.start_seconds
    assert after.joules[-1] - after.joules[0] == pytest.approx(100.0 * seconds)


def test_a_late_counter_has_its_edges_moved_and_keeps_its_joules() -> None:
    curve = DeviceCurve()
    for number in range(40):
        curve.observe(number / 10, float(number), None)
        if number == 20:
            curve.correct(0.0, 0.4)
    assert list(curve.seconds) == sorted(curve.seconds)
    assert curve.seconds[-1] == pytest.approx(3.85 - 0.4)
    assert curve.total_joules == pytest.approx(38.0)
