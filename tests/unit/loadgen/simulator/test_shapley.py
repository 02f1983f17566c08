"""The Shapley value of a largest-of-lines cost, against its definition."""

from __future__ import annotations

from itertools import combinations
from math import factorial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from loadgen.simulator.core.truth import shapley_of_max

FloatArray = NDArray[np.float64]
LINES = 3


def cost(
    offsets: FloatArray, slopes: FloatArray, members: tuple[int, ...] | list[int]
) -> float:
    if not members:
        return 0.0
    return float((offsets + slopes[:, list(members)].sum(axis=1)).max())


def brute_force(offsets: FloatArray, slopes: FloatArray) -> FloatArray:
    """Over all subsets, straight from the definition."""
    count = slopes.shape[1]
    shares = np.zeros(count)
    for member in range(count):
        others = [other for other in range(count) if other != member]
        for size in range(count):
            weight = factorial(size) * factorial(count - size - 1) / factorial(count)
            for subset in combinations(others, size):
                gain = cost(offsets, slopes, [*subset, member])
                shares[member] += weight * (gain - cost(offsets, slopes, subset))
    return shares


@st.composite
def games(draw: st.DrawFn, most: int = 9) -> tuple[FloatArray, FloatArray]:
    count = draw(st.integers(1, most))
    amounts = st.floats(0, 100, allow_subnormal=False)
    offsets = draw(st.lists(amounts, min_size=LINES, max_size=LINES))
    rows = st.lists(amounts, min_size=count, max_size=count)
    slopes = draw(st.lists(rows, min_size=LINES, max_size=LINES))
    return np.array(offsets), np.array(slopes) + 1e-6


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@given(games())
def test_shares_sum_to_the_cost_of_everybody(
    game: tuple[FloatArray, FloatArray],
) -> None:
    offsets, slopes = game
    everybody = list(range(slopes.shape[1]))
    shares = shapley_of_max(offsets, slopes, rng())
    assert shares.sum() == pytest.approx(cost(offsets, slopes, everybody))
    assert (shares >= 0).all()


@given(games(most=4))
def test_few_members_get_the_exact_value(game: tuple[FloatArray, FloatArray]) -> None:
    offsets, slopes = game
    shares = shapley_of_max(offsets, slopes, rng())
    assert shares == pytest.approx(brute_force(offsets, slopes), rel=1e-9, abs=1e-9)


@given(st.integers(0, 2**32))
def test_one_line_on_top_for_all_subsets_needs_no_sampling(seed: int) -> None:
    draw = np.random.default_rng(seed)
    offsets = np.array([0.0, 50.0, 1.0])
    slopes = draw.uniform(0, 1, (LINES, 6))
    expected = slopes[1] + 50.0 / 6
    shares = shapley_of_max(offsets, slopes, rng(), orders=2)
    assert shares == pytest.approx(expected)
    assert shares == pytest.approx(brute_force(offsets, slopes))


@pytest.mark.parametrize("seed", range(5))
def test_sampling_approaches_the_definition(seed: int) -> None:
    """One prefill among decodes, where no line is on top for all subsets."""
    draw = np.random.default_rng(seed)
    offsets = np.array([0.0, 6.0, 2.0])
    slopes = np.array([[0.03] * 8 + [60.0], [0.1] * 8 + [0.2], [0.05] * 8 + [55.0]])
    slopes *= draw.uniform(0.5, 1.5, slopes.shape)
    expected = brute_force(offsets, slopes)
    rough = shapley_of_max(offsets, slopes, draw, orders=16)
    fine = shapley_of_max(offsets, slopes, draw, orders=4000)
    assert rough == pytest.approx(expected, rel=0.15)
    assert fine == pytest.approx(expected, rel=0.01)


@given(games(most=7), st.integers(0, 100))
def test_equal_members_of_an_exact_game_pay_the_same(
    game: tuple[FloatArray, FloatArray], pick: int
) -> None:
    offsets, slopes = game
    slopes = slopes[:, :3]
    twin = pick % slopes.shape[1]
    doubled = np.concatenate([slopes, slopes[:, twin : twin + 1]], axis=1)
    shares = shapley_of_max(offsets, doubled, rng())
    assert shares[-1] == pytest.approx(shares[twin])


def test_a_member_that_changes_nothing_pays_nothing() -> None:
    slopes = np.array([[3.0, 0.0, 1.0], [2.0, 0.0, 4.0]])
    shares = shapley_of_max(np.zeros(2), slopes, rng())
    assert shares[1] == pytest.approx(0.0)


def test_the_same_seed_gives_the_same_shares() -> None:
    draw = np.random.default_rng(1)
    offsets, slopes = draw.uniform(0, 9, LINES), draw.uniform(0, 9, (LINES, 40))
    first = shapley_of_max(offsets, slopes, rng())
    assert (first == shapley_of_max(offsets, slopes, rng())).all()
