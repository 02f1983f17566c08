"""Intervals and grades: wide where the sensor and the model differ, else narrow."""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.meter.attribution.interval import (
    CORRELATION,
    DOUBTS,
    GRADE_REASONS,
    GUESSED_DOUBT,
    LEVEL,
    TAILS,
    UNWATCHED_DOUBT,
    Bounds,
    ErrorScale,
    ErrorTracker,
    Evidence,
    bounds_of,
    doubts_of,
    grade_of,
    grade_reasons,
    total_bounds,
)

SURE = Evidence(
    is_cache_told=True,
    is_cache_inferred=False,
    is_seen=True,
    is_watched=True,
    is_alone=True,
    has_counter=True,
    distrust=None,
)
EXACT = ErrorScale(relative=0.0, typical_joules=10.0)


def one_window(
    joules: list[float],
    *,
    doubts: list[float] | None = None,
    residual_joules: float = 0.0,
    external_joules: float = 0.0,
    unfitted: list[float] | None = None,
    inferred: list[float] | None = None,
    constants: list[float] | None = None,
    late_square: float = 0.0,
) -> np.ndarray:
    active = np.array(joules)
    return doubts_of(
        active,
        inclusive_joules=active,
        unfitted_joules=np.array(unfitted or joules),
        inferred_joules=np.array(inferred or [0.0] * len(joules)),
        constants_joules=np.array(constants or [0.0] * len(joules)),
        doubts=np.array(doubts or [1.0] * len(joules)),
        residual_joules=residual_joules,
        external_joules=external_joules,
        seconds=0.5,
        began=np.ones(len(joules), bool),
        ended=np.ones(len(joules), bool),
        late_square=late_square,
    )


def tracker_of(errors: np.ndarray, seed: int = 1) -> ErrorTracker:
    """Windows of requests of 5 to 15 J, each off by a relative error of its own."""
    rng = np.random.default_rng(seed)
    tracker = ErrorTracker()
    key = 0
    for window in errors:
        joules = rng.uniform(5.0, 15.0, len(window))
        true = joules * (1 + window)
        tracker.learn(
            {"phase": float(joules.sum())},
            float(true.sum()),
            seconds=2.0,
            keys=range(key, key + len(window)),
            joules=joules,
            doubts=np.ones(len(window)),
        )
        key += len(window)
    return tracker


@pytest.mark.parametrize("count", [2, 10, 100])
@pytest.mark.parametrize("error", [0.02, 0.1, 0.4])
def test_the_scale_is_that_of_one_request_as_far_as_errors_are_alike(
    count: int, error: float
) -> None:
    rng = np.random.default_rng(5)
    alike, apart = rng.normal(0.0, error, (60, 1)), rng.normal(0.0, error, (60, count))
    errors = CORRELATION**0.5 * alike + (1 - CORRELATION) ** 0.5 * apart
    found = [
        tracker_of(errors[:rows]).scale("phase").relative for rows in range(30, 60)
    ]
    assert np.median(found) == pytest.approx(TAILS * 1.645 * error, rel=0.4)
    typical = tracker_of(errors).scale("phase").typical_joules
    assert typical == pytest.approx(10.8, rel=0.15)


def test_before_the_first_window_what_is_guessed_is_wide() -> None:
    assert 0.2 < GUESSED_DOUBT * ErrorTracker().scale("phase").relative < 0.5


@given(
    seed=st.integers(0, 10_000),
    edge_seconds=st.floats(0.0, 0.1),
    constants=st.floats(0.0, 0.2),
)
def test_what_edges_and_constants_explain_is_no_error_of_places(
    seed: int, edge_seconds: float, constants: float
) -> None:
    found = []
    for part in (0.0, 1.0):
        tracker = ErrorTracker()
        rows = np.random.default_rng(seed).normal(0.0, 5.0, 30)
        for row, missed in enumerate(rows.tolist()):
            tracker.learn(
                {"phase": 100.0},
                100.0 + missed,
                seconds=2.0,
                keys=[row],
                joules=np.array([100.0]),
                doubts=np.ones(1),
                edge_seconds=part * edge_seconds,
                constants_joules=part * constants * 100.0,
            )
        found.append(tracker.scale("phase").relative)
    assert 0.0 <= found[1] <= found[0]


def test_rows_that_are_off_by_their_edges_alone_leave_hardly_any_scale() -> None:
    rng = np.random.default_rng(4)
    tracker = ErrorTracker()
    edges = rng.normal(0.0, 0.006, 41)  # of 500 W: 3 J each
    for row in range(40):
        tracker.learn(
            {"phase": 1000.0},
            1000.0 + 500.0 * (edges[row + 1] - edges[row]),
            seconds=2.0,
            keys=[row],
            joules=np.array([1000.0]),
            doubts=np.ones(1),
            edge_seconds=0.006,
        )
    assert tracker.scale("phase").relative < 0.006


def test_once_errors_are_small_the_large_ones_before_count_little() -> None:
    rng = np.random.default_rng(5)
    early, late = rng.normal(0.0, 0.3, (10, 20)), rng.normal(0.0, 0.01, (10, 20))
    before = tracker_of(early).scale("phase").relative
    after = tracker_of(np.concatenate((early, late))).scale("phase").relative
    assert after < before / 4


def test_a_few_rows_that_fit_by_chance_do_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(5)
    wide, none = rng.normal(0.0, 0.3, (20, 20)), np.zeros((4, 20))
    before = tracker_of(wide).scale("phase").relative
    lucky = tracker_of(np.concatenate((wide, none))).scale("phase").relative
    assert lucky > before / 3


def test_work_of_others_is_one_more_that_the_residual_may_be_of() -> None:
    found = []
    for external in (0.0, 100.0):
        tracker = ErrorTracker()
        for row in range(20):
            tracker.learn(
                {"phase": 100.0},
                100.0 + 10.0 * (-1) ** row,
                seconds=2.0,
                keys=[row],
                joules=np.array([20.0]),
                doubts=np.ones(1),
                external_joules=external,
            )
        found.append(tracker.scale("phase").relative)
    assert found[1] < found[0] / 2


def test_where_nobody_watched_the_engine_the_interval_is_wider() -> None:
    scale = ErrorScale(relative=0.1, typical_joules=10.0)
    doubts = one_window([10.0] * 9)[0]
    seen, unseen = (
        bounds_of(10.0, 10.0, doubts, scale, edge_seconds=0.0, is_watched=is_watched)
        for is_watched in (True, False)
    )
    widths = [each.high_joules - 10.0 for each in (seen, unseen)]
    assert widths[1] == pytest.approx(UNWATCHED_DOUBT * widths[0])


def test_stamps_that_are_late_are_a_part_by_themselves() -> None:
    found = one_window([10.0], late_square=0.1**2 / 3)[0]
    bounds = bounds_of(10.0, 10.0, found, EXACT, edge_seconds=0.0)
    # 20 W at two instants that are each off by up to 0.1 s
    half = 1.645 * 20.0 * (0.1**2 / 3 * 2) ** 0.5
    assert bounds.high_joules - 10.0 == pytest.approx(half, rel=1e-3)


def test_a_model_that_is_off_by_a_factor_is_no_error_of_requests() -> None:
    tracker = ErrorTracker()
    for window in range(40):
        tracker.learn(
            {"phase": 50.0},
            150.0,
            seconds=2.0,
            keys=[window],
            joules=np.array([150.0]),
            doubts=np.ones(1),
        )
    assert tracker.scale("phase").relative < 0.01


def test_who_is_alone_in_its_windows_has_all_of_their_joules() -> None:
    scale = ErrorScale(relative=0.5, typical_joules=10.0)
    alone = bounds_of(10.0, 10.0, one_window([10.0])[0], scale, edge_seconds=0.0)
    among = bounds_of(10.0, 10.0, one_window([10.0] * 9)[0], scale, edge_seconds=0.0)
    assert (alone.low_joules, alone.high_joules) == (10.0, 10.0)
    assert among.low_joules < 6.0
    assert among.high_joules > 14.0


@pytest.mark.parametrize(
    "wide",
    [
        one_window([10.0, 10.0], residual_joules=8.0)[0],
        one_window([10.0, 10.0], external_joules=20.0)[0],
        one_window([10.0, 10.0], unfitted=[18.0, 2.0])[0],
        one_window([10.0, 10.0], inferred=[8.0, 0.0])[0],
        one_window([10.0, 10.0], constants=[2.0, 2.0])[0],
    ],
    ids=["residual", "external", "form", "inferred", "constants"],
)
def test_each_cause_of_doubt_widens_the_interval(wide: np.ndarray) -> None:
    bounds = bounds_of(10.0, 10.0, wide, EXACT, edge_seconds=0.02)
    assert bounds.low_joules < 9.5
    assert bounds.high_joules > 10.5


def test_the_edges_of_its_time_matter_more_to_a_short_request() -> None:
    bounds = bounds_of(10.0, 10.0, one_window([10.0])[0], EXACT, edge_seconds=0.006)
    # 20 W at two edges that are each off by 6 ms
    half = 1.645 * 20.0 * 0.006 * 2**0.5
    assert bounds.high_joules - 10.0 == pytest.approx(half, rel=1e-3)


def test_the_sensors_accuracy_is_a_part_by_itself() -> None:
    doubts = one_window([10.0])[0]
    bounds = bounds_of(
        10.0, 10.0, doubts, EXACT, edge_seconds=0.0, sensor_fraction=0.05
    )
    assert (bounds.low_joules, bounds.high_joules) == (9.5, 10.5)
    assert bounds.half_fraction == 0.0


@given(
    joules=st.floats(0.1, 1e4),
    published=st.floats(0.1, 1e4),
    relative=st.floats(0.0, 2.0),
    idle=st.floats(0.0, 1e3),
)
def test_the_published_joules_are_always_inside(
    joules: float, published: float, relative: float, idle: float
) -> None:
    doubts = one_window([joules, joules])[0]
    energy = published + idle
    bounds = bounds_of(
        energy, published, doubts, ErrorScale(relative, joules), edge_seconds=0.0
    )
    assert 0.0 <= bounds.low_joules <= energy * (1 + 1e-9)
    assert bounds.high_joules >= energy * (1 - 1e-9)


@pytest.mark.parametrize("off", [0.0, 0.5, 1.0, 2.0, 3.0])
def test_the_level_holds_where_the_headline_is_another_model(off: float) -> None:
    scale = ErrorScale(relative=0.2, typical_joules=10.0)
    doubts = one_window([10.0] * 1000)[0]
    bounds = bounds_of(10.0 + off, 10.0 + off, doubts, scale, edge_seconds=0.0)
    truth = NormalDist(mu=10.0, sigma=2.0 / NormalDist().inv_cdf(0.95))
    inside = truth.cdf(bounds.high_joules) - truth.cdf(bounds.low_joules)
    assert inside == pytest.approx(LEVEL, abs=0.01)


def test_the_sum_of_all_requests_is_known_better_than_its_parts() -> None:
    assert total_bounds(100.0, 0.0) == (100.0, 100.0)
    low, high = total_bounds(100.0, 50.0, sensor_fraction=0.05)
    assert low == pytest.approx(85.0)
    assert high == pytest.approx(115.0)


def grade(half: float, evidence: Evidence = SURE, timing: str = "timed") -> str:
    bounds = Bounds(10.0 * (1 - half), 10.0 * (1 + half), half)
    return grade_of(10.0, bounds, grade_reasons(10.0, bounds, timing, evidence))


def test_grades_follow_the_width() -> None:
    found = [grade(half) for half in (0.01, 0.02, 0.03, 0.24, 0.26)]
    assert found == ["good", "good", "fair", "fair", "poor"]


@pytest.mark.parametrize(
    ("changed", "reason", "found"),
    [
        ({"is_cache_told": False}, "cache_unknown", "fair"),
        (
            {"is_cache_told": False, "is_cache_inferred": True},
            "cache_inferred",
            "fair",
        ),
        ({"is_seen": False}, "guessed", "fair"),
        ({"is_watched": False, "is_alone": False}, "unwatched", "fair"),
        ({"is_alone": False}, "others", "fair"),
        ({"has_counter": False}, "no_counter", "fair"),
        ({"distrust": "rows"}, "constants", "fair"),
        ({"distrust": "experts"}, "constants", "fair"),
        ({"distrust": "shared"}, "shared", "poor"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_without_one_piece_of_evidence_nothing_is_good(
    changed: dict[str, bool | str], reason: str, found: str
) -> None:
    evidence = replace(SURE, **changed)  # type: ignore[arg-type]  # of many types
    bounds = Bounds(9.9, 10.1, 0.01)
    reasons = grade_reasons(10.0, bounds, "timed", evidence)
    assert reasons == (reason,)
    assert grade_of(10.0, bounds, reasons) == found
    assert set(GRADE_REASONS) >= set(reasons)


def test_no_window_leaves_no_doubt_and_no_width() -> None:
    bounds = bounds_of(0.0, 0.0, np.zeros(DOUBTS), EXACT, edge_seconds=0.01)
    assert (bounds.low_joules, bounds.high_joules) == (0.0, 0.0)
