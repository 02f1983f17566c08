"""The figures of a metered command, against a known course of power."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.measure.figures import NOT_READ_AFTER, TOO_SHORT, Energy
from proxy.measure.report import (
    CommandReport,
    SourceReport,
    as_json,
    describe,
    runtime_times_power,
)
from proxy.measure.watch import Watch
from proxy.wire.facts import Reading
from tests.support.profiles import examples

MILLIJOULE = 0.001
Kind = Literal["counter", "power"]


@dataclass(frozen=True)
class Course:
    """Power of a device, constant in pieces, and the sensor's view of it."""

    pieces: tuple[tuple[float, float], ...]
    """(seconds, watts), from second 0 on; the last piece lasts for ever."""
    period_seconds: float = 0.1
    phase_seconds: float = 0.0

    def joules(self, at_seconds: float) -> float:
        ends = [0.0, *accumulate(seconds for seconds, _ in self.pieces)]
        spent = [seconds * watts for seconds, watts in self.pieces]
        sums = [0.0, *accumulate(spent)]
        beyond = max(0.0, at_seconds - ends[-1]) * self.pieces[-1][1]
        return float(np.interp(at_seconds, ends, sums)) + beyond

    def watts(self, at_seconds: float) -> float:
        for end, (_, watts) in zip(
            accumulate(seconds for seconds, _ in self.pieces), self.pieces, strict=True
        ):
            if at_seconds < end:
                return watts
        return self.pieces[-1][1]

    def counter(self, at_seconds: float) -> float:
        ticks = (at_seconds - self.phase_seconds) // self.period_seconds
        updated = max(0.0, self.phase_seconds + ticks * self.period_seconds)
        return self.joules(updated)


def watched(
    courses: dict[str, Course],
    start: float,
    end: float,
    *,
    interval: float = 0.02,
    kind: Kind = "counter",
    gap: tuple[float, float] | None = None,
    reset_at: float | None = None,
    until: float | None = None,
) -> Watch:
    """A sampler's reads from second 0 until 0.5 s after the end."""
    watch = Watch(has_baseline=True)
    has_started = has_ended = False
    for at in np.arange(0.003, (until or end + 0.5), interval).tolist():
        if at >= start and not has_started:
            has_started = True
            watch.start(start)
        if at >= end and not has_ended:
            has_ended = True
            watch.end(end)
        if gap is not None and gap[0] <= at < gap[1]:
            watch.failed("no answer")
            continue
        watch.sampled(
            at, [reading(n, c, at, kind, reset_at) for n, c in courses.items()]
        )
    if not has_ended:
        watch.end(end)
    return watch


def reading(
    name: str, course: Course, at: float, kind: Kind, reset_at: float | None
) -> Reading:
    if kind == "power":
        return Reading(name, watts=course.watts(at))
    joules = course.counter(at)
    if reset_at is not None and at >= reset_at:
        joules -= course.counter(reset_at)
    return Reading(name, joules=joules)


def only(watch: Watch) -> Energy:
    (energy,) = watch.energies()
    return energy


courses = st.builds(
    Course,
    st.lists(
        st.tuples(st.floats(0.05, 1.0), st.floats(20, 700)), min_size=1, max_size=8
    ).map(tuple),
    st.sampled_from([0.02, 0.05, 0.1, 0.3]),
    st.floats(0, 0.1),
)


@examples(60)
@given(
    course=courses, start=st.floats(0.9, 1.3), length=st.floats(0.001, 4),
    interval=st.sampled_from([0.005, 0.02, 0.05]),
)  # fmt: skip
def test_the_truth_lies_within_the_stated_bounds(
    course: Course, start: float, length: float, interval: float
) -> None:
    energy = only(watched({"gpu0": course}, start, start + length, interval=interval))
    truth = course.joules(start + length) - course.joules(start)
    assert energy.at_least_joules <= truth + MILLIJOULE
    assert energy.at_most_joules is not None
    assert truth <= energy.at_most_joules + MILLIJOULE
    if energy.joules is None:
        assert energy.unknown_because == TOO_SHORT
    else:
        assert energy.uncertainty_joules is not None
        assert abs(truth - energy.joules) <= energy.uncertainty_joules + MILLIJOULE


@examples(60)
@given(
    course=courses, begin=st.floats(1.3, 2.3), length=st.floats(0.001, 2),
    interval=st.sampled_from([0.005, 0.02, 0.05]),
)  # fmt: skip
def test_the_truth_of_a_part_lies_within_its_bounds(
    course: Course, begin: float, length: float, interval: float
) -> None:
    watch = watched({"a": course, "b": course}, 1.2, 5.0, interval=interval)
    part = watch.energy_between(begin, begin + length)
    truth = 2 * (course.joules(begin + length) - course.joules(begin))
    assert part.at_least_joules <= truth + MILLIJOULE
    assert part.at_most_joules is not None
    assert truth <= part.at_most_joules + MILLIJOULE
    if part.joules is not None:
        assert part.uncertainty_joules is not None
        assert abs(truth - part.joules) <= part.uncertainty_joules + MILLIJOULE


def test_a_part_before_the_first_reading_is_unknown() -> None:
    watch = watched({"gpu0": Course(((1.0, 300.0),))}, 1.2, 3.0)
    part = watch.energy_between(-5.0, 2.0)
    assert (part.joules, part.at_most_joules) == (None, None)
    assert part.unknown_because == "not_read_before"


@examples(40)
@given(course=courses, start=st.floats(0.9, 1.3), length=st.floats(0.0005, 0.6))
def test_a_command_is_never_said_to_have_cost_nothing(
    course: Course, start: float, length: float
) -> None:
    energy = only(watched({"gpu0": course}, start, start + length))
    assert energy.joules is None or energy.joules > 0
    if energy.joules is None:
        assert energy.unmeasured_seconds == pytest.approx(length)


def test_the_bounds_are_about_one_counter_period_of_power_apart_at_each_end() -> None:
    steady = Course(((1.0, 300.0),))
    energy = only(watched({"gpu0": steady}, 1.234, 4.321))
    assert energy.joules == pytest.approx(300 * 3.087, abs=300 * 0.02)
    assert energy.uncertainty_joules is not None
    assert 0 < energy.uncertainty_joules <= 2 * 300 * (0.1 + 2 * 0.02)


def test_shorter_than_the_counter_period_cannot_be_resolved() -> None:
    energy = only(watched({"gpu0": Course(((1.0, 500.0),))}, 1.52, 1.55))
    assert (energy.joules, energy.mean_watts) == (None, None)
    assert energy.unknown_because == TOO_SHORT
    assert energy.at_least_joules == 0
    assert energy.at_most_joules is not None
    assert 15 <= energy.at_most_joules <= 500 * 0.3


def test_idle_power_is_measured_before_and_taken_off() -> None:
    course = Course(((1.5, 80.0), (2.0, 400.0), (1.0, 80.0)))
    energy = only(watched({"gpu0": course}, 1.5, 3.5))
    assert energy.baseline_watts == pytest.approx(80, abs=1)
    assert energy.joules == pytest.approx(800, abs=30)
    assert energy.above_baseline_joules == pytest.approx(640, abs=32)
    assert energy.mean_watts == pytest.approx(400, abs=15)


def test_a_read_that_was_under_way_at_the_start_is_not_the_commands() -> None:
    watch = Watch(has_baseline=True)
    for hundredths in range(0, 100, 10):
        watch.sampled(hundredths / 100, [Reading("gpu0", watts=100)])
    watch.start(1.0)
    watch.sampled(0.99, [Reading("gpu0", watts=700)])
    for hundredths in range(100, 201, 10):
        watch.sampled(hundredths / 100, [Reading("gpu0", watts=100)])
    watch.end(2.0)
    watch.sampled(2.01, [Reading("gpu0", watts=100)])
    energy = only(watch)
    assert energy.peak_watts == 100
    assert energy.at_least_joules == pytest.approx(100)
    assert energy.joules == pytest.approx(100)


def test_the_baseline_begins_after_the_last_gap() -> None:
    course = Course(((1.0, 600.0), (0.8, 50.0), (3.0, 300.0)))
    for kind in ("counter", "power"):
        watch = watched({"gpu0": course}, 1.8, 3.0, kind=kind, gap=(0.9, 1.1))
        assert only(watch).baseline_watts == pytest.approx(50, abs=1)


@pytest.mark.parametrize("kind", ["counter", "power"])
def test_the_peak_is_of_the_command_and_not_of_what_came_before(kind: Kind) -> None:
    pieces = ((1.2, 700.0), (0.8, 100.0), (0.6, 350.0), (1.0, 100.0))
    course = Course(pieces, period_seconds=0.12, phase_seconds=0.03)
    watch = watched({"gpu0": course}, 1.2, 3.2, kind=kind)
    assert only(watch).peak_watts == pytest.approx(350, rel=0.05)
    assert watch.peak_watts == only(watch).peak_watts


@examples(30)
@given(course=courses, at=st.floats(1.6, 2.2), length=st.floats(0.1, 1.0))
def test_a_counter_counts_on_while_it_is_not_read_and_that_is_said(
    course: Course, at: float, length: float
) -> None:
    energy = only(watched({"gpu0": course}, 1.2, 4.0, gap=(at, at + length)))
    truth = course.joules(4.0) - course.joules(1.2)
    assert energy.gap_seconds["sensor_gap"] >= length - 0.04
    assert energy.unmeasured_seconds == 0
    assert energy.joules is not None
    assert energy.at_most_joules is not None
    assert energy.at_least_joules - MILLIJOULE <= truth
    assert truth <= energy.at_most_joules + MILLIJOULE


@examples(30)
@given(course=courses, at=st.floats(1.6, 2.2), length=st.floats(0.1, 1.0))
def test_power_that_was_not_read_is_missing_and_never_filled(
    course: Course, at: float, length: float
) -> None:
    watch = watched({"gpu0": course}, 1.2, 4.0, kind="power", gap=(at, at + length))
    energy = only(watch)
    assert (energy.joules, energy.at_most_joules) == (None, None)
    assert energy.unknown_because == "sensor_gap"
    assert length - 0.02 <= energy.unmeasured_seconds <= length + 0.04
    lost = course.joules(at + length) - course.joules(at)
    truth = course.joules(4.0) - course.joules(1.2)
    # trapezoids cut each change of power within an interval of 20 ms
    assert energy.at_least_joules <= truth - lost + 8 * 700 * 0.02


def test_a_counter_that_starts_anew_leaves_the_energy_unknown() -> None:
    steady = Course(((1.0, 300.0),))
    energy = only(watched({"gpu0": steady}, 1.2, 4.0, reset_at=2.5))
    assert energy.joules is None
    assert energy.unknown_because == "counter_reset"
    assert 300 * 2.2 < energy.at_least_joules < 300 * 2.8
    assert 0 < energy.unmeasured_seconds < 0.5


def test_a_sensor_lost_until_the_end_leaves_a_lower_bound() -> None:
    steady = Course(((1.0, 300.0),))
    energy = only(watched({"gpu0": steady}, 1.2, 4.0, gap=(3.0, 99.0)))
    assert (energy.joules, energy.unknown_because) == (None, "sensor_gap")
    assert 300 * 1.5 < energy.at_least_joules < 300 * 1.8
    assert energy.unmeasured_seconds == pytest.approx(1.0, abs=0.15)


def test_a_counter_that_did_not_tick_after_the_end_is_not_extrapolated() -> None:
    slow = Course(((1.0, 300.0),), period_seconds=0.9)
    energy = only(watched({"gpu0": slow}, 1.2, 4.0, until=4.1))
    assert (energy.joules, energy.unknown_because) == (None, NOT_READ_AFTER)
    assert energy.at_most_joules is None
    assert energy.at_least_joules > 0


def test_a_sensor_that_never_answered_is_unknown_and_not_zero() -> None:
    watch = watched({"gpu0": Course(((1.0, 300.0),))}, 1.2, 2.0, gap=(0.0, 99.0))
    assert watch.energies() == ()
    total = watch.total()
    assert (total.joules, total.unknown_because) == (None, "no_device")
    assert total.unmeasured_seconds == pytest.approx(0.8)


def test_devices_add_up_and_one_unknown_makes_the_sum_unknown() -> None:
    pair = {"gpu0": Course(((1.0, 300.0),)), "gpu1": Course(((1.0, 100.0),), 0.1, 0.05)}
    watch = watched(pair, 1.2, 4.0)
    total, each = watch.total(), watch.energies()
    assert total.joules == pytest.approx(sum(e.joules or 0 for e in each))
    assert total.mean_watts == pytest.approx(400, rel=0.03)
    assert total.baseline_watts == pytest.approx(400, rel=0.03)
    assert watch.peak_watts == pytest.approx(400, rel=0.25)
    pair["gpu1"] = Course(((1.0, 100.0),), period_seconds=30.0)
    total = watched(pair, 1.2, 4.0).total()
    assert total.joules is None
    assert total.at_least_joules > 300 * 2.5


def test_an_hour_of_readings_keeps_the_starts_edges() -> None:
    steady = Course(((1.0, 200.0),), period_seconds=0.05)
    energy = only(watched({"gpu0": steady}, 1.234, 3601.234, interval=0.05))
    assert energy.joules == pytest.approx(200 * 3600, abs=200 * 0.1)
    assert energy.uncertainty_joules is not None
    assert energy.uncertainty_joules < 200 * 0.6


def test_runtime_times_power_stands_beside_the_measurement() -> None:
    steady = Course(((1.0, 200.0),))
    total = watched({"gpu0": steady}, 1.2, 11.2).total()
    said = runtime_times_power(700, "--tdp", 10.0, total)
    assert said is not None
    assert said.joules == 7000
    assert said.error_percent == pytest.approx(250, rel=0.02)
    assert runtime_times_power(None, "", 10.0, total) is None


def test_runtime_times_power_is_compared_with_no_unknown() -> None:
    total = watched({"gpu0": Course(((1.0, 200.0),))}, 1.52, 1.53).total()
    said = runtime_times_power(700, "--tdp", 0.01, total)
    assert said is not None
    assert said.error_percent is None


def made_of(watch: Watch, *command: str) -> CommandReport:
    total = watch.total()
    source = SourceReport(
        source="nvml", boundary="gpu", is_simulated=False, devices=watch.energies(),
        total=total, runtime=runtime_times_power(700, "--tdp", 2.0, total),
        samples=1, missed=0, errors=0, failure=None,
    )  # fmt: skip
    return CommandReport(
        command=command, name="x", labels={}, started_unix_seconds=0.0,
        duration_seconds=2.0, exit_code=0, signal=None, sample_interval_seconds=0.02,
        sources=(source,),
    )  # fmt: skip


def test_words_fit_a_terminal_and_repeat_no_control_characters() -> None:
    name = "GPU-8d7f2f0a-5a83-4d0b-b1f7-3d2ac0ffee00"
    steady = Course(((1.0, 300.0),))
    watch = watched({name: steady, "gpu1": steady}, 1.2, 3.2, gap=(2.0, 2.1))
    words = describe(made_of(watch, "sh", "-c", "printf '\x1b[31m'\n" * 40))
    assert max(map(len, words.splitlines())) <= 100
    assert all(line.isprintable() for line in words.splitlines())
    assert "17 % too much" in words
    assert "all: not read for" in words


def test_words_and_json_say_the_same_of_the_unknown() -> None:
    watch = watched({"gpu0": Course(((1.0, 500.0),))}, 1.52, 1.55)
    report = made_of(watch, "true")
    words = describe(report)
    (source,) = as_json(report)["sources"]
    assert source["joules"] is None
    assert "gpu0 unknown: the command is too short for this sensor" in words
    assert f"{source['at_most_joules']:.4g} J" in words
    assert " 0 J\n" not in words
