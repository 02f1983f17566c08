"""Devices that come and go do not hold the books, and no joule is lost or made."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.meter.curve import (
    JOIN_SECONDS,
    LEAVE_SECONDS,
    SENSOR_GAP,
    GroupCurve,
    Window,
)
from proxy.meter.meter import Meter
from proxy.wire.events import PowerSampled
from proxy.wire.facts import Reading

STEP_SECONDS = 0.1
WATTS = {"gpu0": 300.0, "gpu1": 100.0, "gpu2": 50.0}

Spans = list[tuple[float, float]]
Shown = tuple[str, float | None, float | None]


def group() -> GroupCurve:
    return GroupCurve(
        join_readings=10, join_seconds=JOIN_SECONDS, leave_seconds=LEAVE_SECONDS
    )


def readings_at(at: float, there: dict[str, Spans]) -> list[Shown]:
    """Counters of the devices that are there at an instant."""
    return [
        (device, 1e6 + WATTS[device] * at, WATTS[device])
        for device, spans in there.items()
        if any(start <= at < end for start, end in spans)
    ]


def windows_of(
    curve: GroupCurve,
    seconds: float,
    there: dict[str, Spans],
    step_seconds: float = STEP_SECONDS,
) -> list[Window]:
    """Read at every step, and take every window as soon as it is measured."""
    found: list[Window] = []
    settled: float | None = None
    for number in range(round(seconds / step_seconds)):
        at = number * step_seconds
        readings = readings_at(at, there)
        if readings:
            curve.observe(at, readings)
        else:
            curve.interrupt(SENSOR_GAP)
        if settled is None:
            settled = curve.start_seconds
        while settled is not None and (window := curve.next_window(settled, 0.5)):
            found.append(window)
            settled = window.end_seconds
            curve.forget(settled)
    return found


ALWAYS: Spans = [(0.0, 1e9)]


def measured_joules(windows: list[Window], *, is_gap: bool = False) -> float:
    return sum(
        float(w.joules[-1] - w.joules[0])
        for w in windows
        if (w.gap_reason is not None) is is_gap
    )


def gap_seconds(windows: list[Window]) -> float:
    return sum(w.end_seconds - w.start_seconds for w in windows if w.gap_reason)


def test_a_device_seen_for_a_moment_at_the_start_does_not_hold_the_books() -> None:
    curve = group()
    windows = windows_of(curve, 100, {"gpu0": ALWAYS, "gpu1": [(0.0, 0.05)]})
    assert windows[-1].end_seconds > 99
    assert (curve.left_total, list(curve.devices)) == (1, ["gpu0"])


def test_a_device_seen_for_a_moment_never_joins() -> None:
    curve = group()
    windows = windows_of(curve, 60, {"gpu0": ALWAYS, "gpu1": [(20.0, 20.3)]})
    assert gap_seconds(windows) == 0
    assert measured_joules(windows) == pytest.approx(300 * 60, rel=0.02)
    assert (curve.joined_total, curve.left_total) == (0, 0)


def test_a_device_that_is_lost_leaves_after_a_gap() -> None:
    curve = group()
    windows = windows_of(curve, 120, {"gpu0": ALWAYS, "gpu1": [(0.0, 30.0)]})
    assert windows[-1].end_seconds > 119
    assert gap_seconds(windows) == pytest.approx(LEAVE_SECONDS, abs=0.5)
    assert measured_joules(windows) == pytest.approx(300 * 90 + 100 * 30, rel=0.02)
    assert curve.left_total == 1


def test_the_first_device_may_be_the_one_that_is_lost() -> None:
    curve = group()
    windows = windows_of(curve, 120, {"gpu0": [(0.0, 30.0)], "gpu1": ALWAYS})
    assert windows[-1].end_seconds > 119
    assert measured_joules(windows) == pytest.approx(300 * 30 + 100 * 90, rel=0.02)


def test_a_device_that_comes_back_counts_again() -> None:
    curve = group()
    spans = [(0.0, 30.0), (90.0, 1e9)]
    windows = windows_of(curve, 150, {"gpu0": ALWAYS, "gpu1": spans})
    assert (curve.joined_total, curve.left_total) == (1, 1)
    assert gap_seconds(windows) == pytest.approx(LEAVE_SECONDS, abs=0.5)
    joules = 300 * 120 + 100 * (30 + 150 - 90 - JOIN_SECONDS)
    assert measured_joules(windows) == pytest.approx(joules, rel=0.02)


def test_a_short_absence_is_a_gap_whose_joules_are_counted() -> None:
    curve = group()
    spans = [(0.0, 30.0), (40.0, 1e9)]
    windows = windows_of(curve, 60, {"gpu0": ALWAYS, "gpu1": spans})
    assert (curve.joined_total, curve.left_total) == (0, 0)
    assert measured_joules(windows, is_gap=True) == pytest.approx(4000, rel=0.05)


def test_a_device_that_shows_power_but_no_counter_stays_and_is_a_gap() -> None:
    curve, found, settled = group(), [], None
    for number in range(1500):
        at = number * STEP_SECONDS
        joules = 1e6 + 100 * at if at < 20 or at > 120 else None
        curve.observe(at, [*readings_at(at, {"gpu0": ALWAYS}), ("gpu1", joules, 100.0)])
        settled = curve.start_seconds if settled is None else settled
        while settled is not None and (window := curve.next_window(settled, 0.5)):
            found.append(window)
            settled = window.end_seconds
            curve.forget(settled)
            assert at - settled <= LEAVE_SECONDS + 1
    assert curve.left_total == 0
    assert gap_seconds(found) == pytest.approx(100, abs=0.5)
    total = measured_joules(found) + measured_joules(found, is_gap=True)
    assert total == pytest.approx(400 * 150, rel=0.01)


def test_a_sensor_that_is_away_as_a_whole_keeps_its_devices() -> None:
    curve = group()
    spans = [(0.0, 30.0), (100.0, 1e9)]
    windows_of(curve, 150, {"gpu0": spans, "gpu1": spans})
    assert (curve.joined_total, curve.left_total) == (0, 0)
    assert list(curve.devices) == ["gpu0", "gpu1"]


spans = st.lists(
    st.tuples(st.floats(0, 200), st.floats(0.05, 120)).map(lambda s: (s[0], sum(s))),
    max_size=3,
)


@given(there=st.fixed_dictionaries({"gpu0": spans, "gpu1": spans, "gpu2": spans}))
def test_whoever_comes_and_goes_the_windows_follow_and_the_books_close(
    there: dict[str, Spans],
) -> None:
    curve = group()
    windows = windows_of(curve, 300, there, 0.5)
    for window, after in itertools.pairwise(windows):
        assert after.start_seconds == window.end_seconds
        assert after.joules[0] == pytest.approx(window.joules[-1], abs=1e-6)
    for window in windows:
        assert (window.joules[1:] >= window.joules[:-1] - 1e-6).all()
    drawn = sum(
        WATTS[device] * sum(max(min(end, 300) - start, 0) for start, end in spans)
        for device, spans in there.items()
    )
    # where nobody is there the sensor is away: counters that come back went on
    nobody = sum(
        not any(a <= at < b for spans in there.values() for a, b in spans)
        for at in np.arange(0.0, 300.0, 0.1)
    )
    absent = sum(WATTS.values()) * (LEAVE_SECONDS * 3 + 0.1 * nobody)
    everything = measured_joules(windows) + measured_joules(windows, is_gap=True)
    assert everything <= drawn + absent + 1e-6


@given(there=st.fixed_dictionaries({"gpu1": spans, "gpu2": spans}))
def test_the_ledger_of_a_group_that_changes_has_no_residual_and_goes_on(
    there: dict[str, Spans],
) -> None:
    meter = Meter()
    for number in range(600):
        at = number * 0.5
        shown = readings_at(at, {"gpu0": ALWAYS, **there})
        readings = tuple(Reading(*figures) for figures in shown)
        meter.feed(PowerSampled("gpu", at, readings))
        if number % 20 == 0:
            meter.settle(at)
            books = meter.state().books
            assert books.residual_joules == pytest.approx(0, abs=1e-6)
    state = meter.state()
    assert state.unsettled_seconds <= LEAVE_SECONDS + 10
