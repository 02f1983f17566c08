from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.meter.curve import DeviceCurve, GroupCurve


def polled(
    curve: DeviceCurve, until: float, watts: float, *, period: float, poll: float
) -> None:
    for number in range(round(until / poll) + 1):
        at = number * poll
        curve.observe(at, int(at / period + 1e-9) * period * watts, watts)


def test_an_edge_lies_midway_between_the_polls_around_it() -> None:
    curve = DeviceCurve()
    for at, joules in [(0.0, 5.0), (0.02, 5.0), (0.04, 9.0), (0.06, 9.0), (0.08, 11.0)]:
        curve.observe(at, joules, None)
    assert list(curve.seconds) == pytest.approx([0.03, 0.07])
    assert list(curve.joules) == pytest.approx([0.0, 2.0])


def test_readings_that_repeat_are_no_edges() -> None:
    curve = DeviceCurve()
    polled(curve, 2.0, 300.0, period=0.1, poll=0.02)
    assert len(curve.seconds) == 20
    assert curve.period_seconds == pytest.approx(0.1)
    assert curve.watts == pytest.approx(300.0)


def test_counter_and_integrated_power_are_compared() -> None:
    right, wrong = DeviceCurve(), DeviceCurve()
    polled(right, 3.0, 300.0, period=0.1, poll=0.02)
    for number in range(150):
        at = number * 0.02
        wrong.observe(at, int(at / 0.1 + 1e-9) * 0.1 * 300.0, 200.0)
    assert right.counter_power_ratio == pytest.approx(1.0, abs=0.01)
    assert wrong.counter_power_ratio == pytest.approx(1.5, abs=0.02)


def test_without_a_counter_power_is_integrated_by_trapezoids() -> None:
    curve = DeviceCurve()
    for at, watts in [(0.0, 100.0), (0.1, 200.0), (0.3, 200.0)]:
        curve.observe(at, None, watts)
    assert list(curve.joules) == pytest.approx([0.0, 15.0, 55.0])
    assert curve.counter_power_ratio is None


def test_power_is_not_integrated_across_a_long_silence() -> None:
    curve = DeviceCurve()
    for at in (0.0, 0.1, 10.0, 10.1):
        curve.observe(at, None, 100.0)
    assert list(curve.joules) == pytest.approx([0.0, 10.0, 10.0, 20.0])
    assert [bool(reason) for reason in curve.reasons] == [False, False, True, False]


def test_a_reset_gives_a_gap_without_joules() -> None:
    curve = DeviceCurve()
    shown = [0.0, 10.0, 20.0, 30.0, 2.0, 12.0, 22.0]
    for number, joules in enumerate(shown):
        curve.observe(number * 0.1, joules, None)
    assert curve.resets == 1
    assert list(curve.joules) == pytest.approx([0.0, 10.0, 20.0, 20.0, 30.0])
    assert [bool(reason) for reason in curve.reasons] == [False] * 3 + [True, False]


def test_a_counter_that_stood_still_for_long_is_a_gap() -> None:
    curve = DeviceCurve()
    polled(curve, 2.0, 300.0, period=0.1, poll=0.02)
    for number in range(101, 500):
        curve.observe(number * 0.02, 600.0, 300.0)
    curve.observe(10.0, 2400.0, 300.0)
    assert bool(curve.reasons[-1])
    assert curve.total_joules == pytest.approx(2370.0)


def test_a_slow_counter_is_slow_and_not_stuck() -> None:
    curve = DeviceCurve()
    for number in range(200):
        curve.observe(number * 1.0, number // 30 * 100.0, None)
    assert not any(curve.reasons)


@given(steps=st.lists(st.floats(0, 100), min_size=1, max_size=60))
def test_joules_never_run_backwards_whatever_the_counter_shows(
    steps: list[float],
) -> None:
    curve = DeviceCurve()
    for number, joules in enumerate(steps):
        curve.observe(number * 0.1, joules, None)
    assert (np.diff(curve.joules) >= 0).all()
    assert (np.diff(curve.seconds) > 0).all()


def test_a_group_is_the_sum_of_its_devices() -> None:
    group = GroupCurve()
    for number in range(301):
        at = number * 0.01
        late = max(int((at - 0.05) / 0.1 + 1e-9), 0) * 0.1
        group.observe(
            at, [("0", int(at / 0.1 + 1e-9) * 30.0, None), ("1", late * 500.0, None)]
        )
    window = group.next_window(1.0, 0.5)
    assert window is not None
    assert window.end_seconds >= 1.5
    span = window.end_seconds - window.start_seconds
    assert window.joules[-1] - window.joules[0] == pytest.approx(800.0 * span)


def test_a_device_that_vanishes_makes_a_gap_of_the_group() -> None:
    group = GroupCurve()
    for number in range(301):
        at = number * 0.01
        shown = int(at / 0.1 + 1e-9) * 30.0
        both = [("0", shown, None), ("1", shown, None)]
        group.observe(at, both[:1] if 1.0 <= at < 1.5 else both)
    reasons = []
    at = group.start_seconds or 0.0
    covered = 0.0
    while (window := group.next_window(at, 0.5)) is not None:
        reasons.append(window.gap_reason)
        covered += float(window.joules[-1] - window.joules[0])
        at = window.end_seconds
    assert "sensor_gap" in reasons
    start = group.start_seconds or 0.0
    ends = group.joules_at(np.array([start, at]))
    assert covered == pytest.approx(float(ends[1] - ends[0]))


def test_windows_follow_each_other_and_end_at_edges() -> None:
    group = GroupCurve()
    for number in range(501):
        at = number * 0.02
        group.observe(at, [("0", int(at / 0.1 + 1e-9) * 20.0, None)])
    at = group.start_seconds or 0.0
    edges = set(np.round(group.devices["0"].seconds, 6))
    while (window := group.next_window(at, 0.5)) is not None:
        assert window.start_seconds == at
        assert round(window.end_seconds, 6) in edges
        assert 0.5 - 1e-6 <= window.end_seconds - at <= 0.6 + 1e-6
        at = window.end_seconds
    assert at > 9.0


def test_forgetting_what_is_settled_changes_no_joule() -> None:
    group = GroupCurve()
    for number in range(501):
        at = number * 0.02
        group.observe(at, [("0", int(at / 0.1 + 1e-9) * 20.0, None)])
    before = group.next_window(5.0, 0.5)
    group.forget(5.0)
    after = group.next_window(5.0, 0.5)
    assert before is not None
    assert after is not None
    assert after.joules.tolist() == before.joules.tolist()
    assert len(group.devices["0"].seconds) < 60


def test_a_curve_nobody_settles_gets_coarser_and_not_longer() -> None:
    curve = DeviceCurve()
    for number in range(90_000):
        curve.observe(number * 0.1, number * 30.0, None)
    assert len(curve.seconds) <= 36_001
    assert curve.joules[-1] == pytest.approx(curve.total_joules)
    assert np.interp(500.05, curve.seconds, curve.joules) == pytest.approx(
        150_000, 0.01
    )
