"""No reading enters the curve unchecked."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.meter.curve import GroupCurve
from proxy.power.gate import (
    CONTRADICTION_UPDATES,
    MAX_DEVICES,
    MAX_JOULES,
    ReadingGate,
    Rejected,
)
from proxy.wire.facts import Reading

WATTS = 300.0
STEP_SECONDS = 0.1

Good = tuple[float, float, float]
Sample = tuple[float, float | None, float | None]
"""(at, joules, watts)"""


def good(seconds: float, *, start: float = 0.0, base: float = 5e6) -> list[Good]:
    """A board at 300 W, read ten times a second."""
    count = round(seconds / STEP_SECONDS)
    times = [start + STEP_SECONDS * n for n in range(count)]
    return [(at, base + WATTS * at, WATTS) for at in times]


def through(
    samples: Iterable[Sample], gate: ReadingGate | None = None
) -> tuple[list[Reading], list[Rejected]]:
    gate = gate or ReadingGate(3000.0)
    passed, rejected = [], []
    for at, joules, watts in samples:
        readings, faults = gate.checked(at, [Reading("gpu0", joules, watts)])
        passed += readings
        rejected += faults
    return passed, rejected


def measured(samples: Iterable[Sample]) -> float:
    """Joules that a curve behind the gate measures, gaps left out."""
    gate, curve = ReadingGate(3000.0), GroupCurve()
    for at, joules, watts in samples:
        readings, _ = gate.checked(at, [Reading("gpu0", joules, watts)])
        curve.observe(at, [(r.device, r.joules, r.watts) for r in readings])
    return curve.devices["gpu0"].total_joules


def with_odd(
    samples: list[Good], at: int, joules: float | None, watts: float | None
) -> list[Sample]:
    """The same samples with other figures in one of them."""
    out: list[Sample] = [*samples]
    out[at] = (samples[at][0], joules, watts)
    return out


def test_good_readings_pass_untouched() -> None:
    samples = good(60.0)
    passed, rejected = through(samples)
    assert [(r.joules, r.watts) for r in passed] == [(j, w) for _, j, w in samples]
    assert rejected == []


@pytest.mark.parametrize(
    ("joules", "reason"),
    [
        (math.nan, "not_a_number"),
        (math.inf, "not_a_number"),
        (-math.inf, "not_a_number"),
        (-1.0, "negative"),
        (9223372036854775792 / 1000, "beyond_counter"),  # DCGM's blank, as millijoules
        (2**64 / 1000, "beyond_counter"),
        (5e6 + 1e6, "rise_beyond_power"),
    ],
)
def test_a_counter_that_cannot_be_is_dropped_and_named(
    joules: float, reason: str
) -> None:
    samples = with_odd(good(10.0), 50, joules, WATTS)
    passed, rejected = through(samples)
    assert [fault.reason for fault in rejected] == [reason]
    assert passed[50].joules is None
    assert passed[50].watts == WATTS
    assert all(r.joules is not None for n, r in enumerate(passed) if n != 50)


@pytest.mark.parametrize(
    ("watts", "reason"),
    [
        (math.nan, "not_a_number"),
        (math.inf, "not_a_number"),
        (-5.0, "negative"),
        (3.69e12, "beyond_power"),
        (140737488355328.0, "beyond_power"),  # DCGM's blank floating-point number
        (4294967.295, "beyond_power"),  # 32 bits of milliwatts
    ],
)
def test_power_that_cannot_be_is_dropped_and_the_counter_kept(
    watts: float, reason: str
) -> None:
    passed, rejected = through(with_odd(good(10.0), 50, 5e6 + 1500.0, watts))
    assert [fault.reason for fault in rejected] == [reason]
    assert passed[50].watts is None
    assert passed[50].joules == 5e6 + 1500.0


def test_a_board_with_a_known_limit_is_held_to_it() -> None:
    gate, rejected = ReadingGate(3000.0), []
    for at, watts in enumerate([700.0, 900.0]):
        reading = Reading("gpu0", watts=watts)
        rejected += gate.checked(float(at), [reading], {"gpu0": 400.0})[1]
    assert [fault.value for fault in rejected] == [900.0]


def test_a_jump_that_stays_is_a_gap_and_no_energy() -> None:
    samples = good(20.0)
    jumped = [(t, j + (2**32 / 1000 if t > 10 else 0.0), w) for t, j, w in samples]
    assert measured(jumped) == pytest.approx(measured(samples), rel=0.02)
    _, rejected = through(jumped)
    assert [fault.reason for fault in rejected] == ["rise_beyond_power"]


def test_a_jump_and_back_is_as_if_it_had_not_been() -> None:
    samples = good(20.0)
    glitch = [(t, j + (1e6 if 10 < t < 10.35 else 0.0), w) for t, j, w in samples]
    assert measured(glitch) == pytest.approx(measured(samples), rel=0.02)


def test_a_counter_that_starts_anew_passes_and_is_seen_as_a_fall() -> None:
    samples = [*good(5.0), *good(5.0, start=5.0, base=0.0)]
    passed, rejected = through(samples)
    assert rejected == []
    assert passed[50].joules == WATTS * 5.0


def test_a_slow_exporter_is_believed() -> None:
    """dcgm-exporter's default: both figures change every 30 s, read at 10 Hz."""
    samples = [
        (t, 5e6 + WATTS * (t // 30 * 30), WATTS if t < 90 else 700.0)
        for t in (n / 10 for n in range(4000))
    ]
    _, rejected = through(samples)
    assert rejected == []


def test_a_counter_that_contradicts_power_is_not_believed() -> None:
    samples = [(t, j + 9 * WATTS * max(t - 30, 0.0), w) for t, j, w in good(90.0)]
    passed, rejected = through(samples)
    reasons = {fault.reason for fault in rejected}
    assert reasons == {"counter_contradicts_power"}
    assert all(reading.joules is None for reading in passed[-300:])
    assert measured(samples) < WATTS * 30 + 10 * WATTS * 25


def test_a_stuck_counter_beside_a_working_board_is_not_believed() -> None:
    samples = [(t, min(j, 5e6 + WATTS * 30), w) for t, j, w in good(300.0)]
    _, rejected = through(samples)
    assert {fault.reason for fault in rejected} == {"counter_contradicts_power"}


def test_a_counter_is_believed_again_once_it_agrees() -> None:
    samples = [
        (t, j + 9 * WATTS * min(max(t - 30, 0.0), 30.0), w) for t, j, w in good(200.0)
    ]
    passed, _ = through(samples)
    assert passed[-1].joules is not None
    assert measured(samples) < WATTS * 200 + 10 * WATTS * 25


def test_devices_are_judged_apart() -> None:
    gate = ReadingGate(3000.0)
    readings = [Reading("gpu0", math.nan, 100.0), Reading("gpu1", 5.0, 100.0)]
    passed, rejected = gate.checked(0.0, readings)
    assert [reading.joules for reading in passed] == [None, 5.0]
    assert [fault.device for fault in rejected] == ["gpu0"]
    assert gate.rejected_total == {"not_a_number": 1}


odd_figures = st.one_of(
    st.none(),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([2.0**63, 2.0**47, 2.0**31, -1.0, 0.0, 1e30, MAX_JOULES * 1.01]),
)


def test_a_figure_that_is_gone_is_missing_and_counted() -> None:
    samples: list[Sample] = [*good(1.0), (1.0, None, WATTS), (1.1, None, None)]
    _, rejected = through(samples)
    assert [str(fault) for fault in rejected] == [
        "gpu0: no joules (missing)", "gpu0: no watts (missing)",
        "gpu0: no joules (missing)",
    ]  # fmt: skip


def test_a_figure_that_a_board_never_had_is_not_missing() -> None:
    assert through([(0.0, None, 70.0), (0.1, None, 70.0)])[1] == []
    assert through([(0.0, 5.0, None), (0.1, 6.0, None)])[1] == []


@pytest.mark.parametrize(
    ("stamp", "reason"),
    [
        (1106.0, "stamp_ahead"), (math.nan, "stamp_ahead"), (math.inf, "stamp_ahead"),
        (799.0, "stamp_behind"), (-math.inf, "stamp_behind"),
    ],
)  # fmt: skip
def test_a_stamp_of_another_day_is_a_gap(stamp: float, reason: str) -> None:
    gate = ReadingGate(3000.0)
    odd = Reading("gpu0", 5.0, 70.0, at_seconds=stamp)
    passed, rejected = gate.checked(1100.0, [odd], max_behind_seconds=300.0)
    assert passed == [Reading("gpu0")]
    assert [fault.reason for fault in rejected] == [reason, reason]


def test_a_device_has_one_reading() -> None:
    passed, rejected = ReadingGate(3000.0).checked(
        0.0, [Reading("gpu0", 5.0), Reading("gpu0", 9.0)]
    )
    assert passed == [Reading("gpu0", 5.0)]
    assert [fault.reason for fault in rejected] == ["repeated_device"]


def test_names_that_change_with_every_page_do_not_pile_up() -> None:
    gate = ReadingGate(3000.0)
    for number in range(10 * MAX_DEVICES):
        gate.checked(number * 1.0, [Reading(f"gpu{number}", 1.0)])
    assert len(gate._devices) <= MAX_DEVICES
    assert gate.rejected_total["too_many_devices"] > 0
    passed, _ = gate.checked(1e6, [Reading("gpu0", 1.0)])
    assert passed == [Reading("gpu0", 1.0)]


def test_a_load_that_momentary_power_misses_is_no_contradiction() -> None:
    """A reading every 30 s: five of them may all fall between a load's peaks."""
    samples: list[Sample] = [
        (t, 5e6 + 340.0 * (t // 30 * 30), 100.0) for t in (n / 2 for n in range(1200))
    ]
    assert through(samples)[1] == []


def test_a_meter_that_counts_in_large_steps_is_believed() -> None:
    """A power strip: 0.1 kWh a step, beside its power."""
    samples: list[Sample] = [
        (t, t * 1000.0 // 360_000 * 360_000, 1000.0) for t in range(4000)
    ]
    assert through(samples, ReadingGate(100_000.0))[1] == []


@given(
    rises=st.lists(st.floats(0, 3000), min_size=CONTRADICTION_UPDATES, max_size=200),
    bound=st.floats(100, 3000),
)
def test_no_counter_draws_more_than_the_bound_over_any_span(
    rises: list[float], bound: float
) -> None:
    gate, curve, raw = ReadingGate(bound), GroupCurve(), 0.0
    for number, rise in enumerate([1.0, *rises]):
        raw += rise
        at = number * STEP_SECONDS
        (reading,), _ = gate.checked(at, [Reading("gpu0", raw)])
        curve.observe(at, [(reading.device, reading.joules, reading.watts)])
    seconds = len(rises) * STEP_SECONDS
    # the very first rise may be of a minute, and nobody is charged for it
    assert curve.devices["gpu0"].total_joules <= bound * (seconds + 1.0) + 1e-6


@given(
    odd=st.lists(st.tuples(odd_figures, odd_figures), min_size=1, max_size=6),
    first=st.integers(5, 80),
)
def test_whatever_a_sensor_says_for_a_while_no_energy_is_invented(
    odd: list[tuple[float | None, float | None]], first: int
) -> None:
    """Odd readings among good ones never add more than the board could have drawn."""
    samples: list[Sample] = [*good(30.0)]
    for n, (joules, watts) in enumerate(odd):
        samples[first + n] = (samples[first + n][0], joules, watts)
    total = measured(samples)
    assert math.isfinite(total)
    assert 0 <= total <= WATTS * 30.0 + 3000.0 * 62


@given(
    joules=st.lists(odd_figures, min_size=1, max_size=40),
    watts=st.lists(odd_figures, min_size=1, max_size=40),
)
def test_what_passes_is_finite_and_within_bounds(
    joules: list[float | None], watts: list[float | None]
) -> None:
    samples = [
        (n * STEP_SECONDS, j, w)
        for n, (j, w) in enumerate(zip(joules, watts, strict=False))
    ]
    passed, _ = through(samples)
    for reading in passed:
        assert reading.joules is None or math.isfinite(reading.joules)
        assert reading.watts is None or 0 <= reading.watts <= 3000.0
