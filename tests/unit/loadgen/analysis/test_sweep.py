"""What the points of a sweep tell: saturation, the front, and the least joules."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.analysis.sweep import (
    FIGURES,
    Interval,
    Point,
    Tried,
    next_rate,
    optimum,
    pareto_front,
    saturation,
    tried,
)


def made(rate: float | str, **changes: Any) -> Point:
    figures = {name: Interval(value=1.0) for name in FIGURES}
    figures |= {
        name: Interval(value=changes.pop(name)) for name in FIGURES if name in changes
    }
    fields: dict[str, Any] = {
        "name": f"rate={rate}", "axes": {"rate": rate}, "repeats": 1,
        "simulated": True, "boundary": "gpu", "requests": 10, "answered": 10,
        "good": 10, "asked_per_second": 1.0, "achieved_per_second": 1.0,
        "answered_per_second": 1.0, "good_per_second": 1.0,
        "output_tokens_per_second": 1.0, "kept_up": 1.0, "is_saturated": False,
        "mean_watts": 1.0, "joules_per_good": Interval(value=1.0),
        "figures": figures, "window_seconds": 1.0, "window_starts": [0.0],
        "window_rules": [], "verdicts": ["valid"], "reasons": [],
    }  # fmt: skip
    return Point(**(fields | changes))


def test_saturation_lies_between_what_kept_up_and_what_did_not() -> None:
    found = saturation(
        [
            made(1), made(2), made(4, is_saturated=True), made(8, is_saturated=True),
            made("inf", answered_per_second=3.5),
        ]
    )  # fmt: skip
    assert found.kept_up_per_second == 2
    assert found.saturated_per_second == 4
    assert found.capacity_per_second == 3.5
    assert saturation([made(1)]).saturated_per_second is None
    assert saturation([]).capacity_per_second is None


def test_the_front_holds_what_no_other_point_beats() -> None:
    points = [
        made(1, joules_per_request=9.0, p50_e2el_seconds=1.0),
        made(2, joules_per_request=5.0, p50_e2el_seconds=2.0),
        made(3, joules_per_request=6.0, p50_e2el_seconds=3.0),
        made(4, joules_per_request=4.0, p50_e2el_seconds=9.0),
        made(5, joules_per_request=None, p50_e2el_seconds=0.1),
    ]
    assert pareto_front(points) == ["rate=4", "rate=2", "rate=1"]


@given(
    values=st.lists(
        st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=1, max_size=20
    )
)
def test_every_point_is_beaten_by_one_of_the_front_or_is_on_it(
    values: list[tuple[float, float]],
) -> None:
    points = [
        made(n + 1, joules_per_request=x, p50_e2el_seconds=y)
        for n, (x, y) in enumerate(values)
    ]
    front = set(pareto_front(points))
    for n, (x, y) in enumerate(values):
        assert any(
            values[m][0] <= x and values[m][1] <= y
            for m in range(len(values))
            if f"rate={m + 1}" in front
        ), n


def test_rates_are_tried_in_order_and_all_at_once_is_none() -> None:
    nothing = made(4, joules_per_good=Interval(value=None))
    found = tried([nothing, made("inf"), made(2)])
    assert [each.rate for each in found] == [2, 4]
    assert math.isinf(found[1].value)


def cost(rate: float) -> float:
    """Idle power over few requests, then misses: least at sqrt(60 / 0.05) ** 0.5."""
    return 60 / rate + 20 + 0.05 * rate**3


LEAST = (60 / 0.15) ** 0.25


def searched(noise: float, seed: int, runs: int = 8) -> tuple[float, int]:
    """The rate that a search finds under noise, and how many runs it took."""
    draw = np.random.default_rng(seed)

    def measured(rate: float) -> Tried:
        value = cost(rate) * math.exp(noise * draw.standard_normal())
        reach = math.exp(1.96 * noise) if noise else 1.0
        return Tried(rate, value, value / reach, value * reach)

    points = [measured(rate) for rate in (1.0, 2.0, 4.0, 8.0, 16.0)]
    begun = len(points)
    while len(points) < begun + runs:
        rate, _ = next_rate(points)
        if rate is None:
            break
        points = sorted([*points, measured(rate)], key=lambda each: each.rate)
    found = optimum(points, "")
    assert found is not None
    assert found.low_per_second <= found.rate_per_second <= found.high_per_second
    return found.rate_per_second, len(points) - begun


def test_without_noise_the_least_is_found_within_a_few_runs() -> None:
    rate, runs = searched(0.0, 1)
    assert cost(rate) == pytest.approx(cost(LEAST), rel=0.01)
    assert runs <= 6


@pytest.mark.parametrize("noise", [0.02, 0.05])
def test_under_noise_what_is_found_costs_little_more_than_the_least(
    noise: float,
) -> None:
    found = [searched(noise, seed)[0] for seed in range(200)]
    excess = np.array([cost(rate) / cost(LEAST) - 1 for rate in found])
    assert np.quantile(excess, 0.95) <= 3 * noise


def test_a_search_goes_beyond_the_ends_and_stops_where_rates_are_alike() -> None:
    def at(rate: float, value: float, reach: float = 1.01) -> Tried:
        return Tried(rate, value, value / reach, value * reach)

    assert next_rate([at(2, 5), at(4, 9)])[0] == 1
    assert next_rate([at(2, 9), at(4, 5)])[0] == 8
    assert next_rate([at(2, 9), at(4, 5), at(16, 9)])[0] == 8
    assert next_rate([at(1, 9), at(4, 5), at(5, 9)])[0] == 2
    rate, why = next_rate([at(2, 5.1, 1.1), at(4, 5, 1.1), at(8, 5.1, 1.1)])
    assert rate is None
    assert "cannot be told apart" in why
    found = optimum([at(2, 5.1, 1.1), at(4, 5, 1.1), at(8, 9, 1.1)], "x")
    assert found is not None
    assert (found.low_per_second, found.high_per_second) == (2, 4)


def test_where_no_request_is_good_there_is_no_best_rate() -> None:
    points = [Tried(1.0, math.inf), Tried(2.0, math.inf)]
    assert next_rate(points)[0] is None
    assert optimum(points, "") is None


@given(
    values=st.lists(
        st.one_of(st.just(math.inf), st.floats(0.01, 1e6)), min_size=1, max_size=9
    )
)
def test_a_search_always_ends(values: list[float]) -> None:
    points = [Tried(float(2**n), value) for n, value in enumerate(values)]
    for _ in range(40):
        rate, _ = next_rate(points)
        if rate is None or any(each.rate == rate for each in points):
            return
        points = sorted([*points, Tried(rate, 1e7)], key=lambda each: each.rate)
    raise AssertionError("still searching")
