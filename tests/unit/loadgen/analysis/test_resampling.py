"""Intervals hold what they promise: exact figures, coverage, no false alarm."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.analysis.resampling import (
    Column,
    Quantile,
    Ratio,
    Sample,
    change,
    draw_weights,
    estimate,
    student_97_5,
)

FLOATS = st.floats(0.01, 1e4)


def sample(blocks: int = 20, **columns: np.ndarray) -> Sample:
    count = len(next(iter(columns.values())))
    places = np.arange(count) * blocks // count
    return Sample(
        {name: Column(values, places) for name, values in columns.items()}, blocks, {}
    )


def correlated(rng: np.random.Generator, count: int, alike: float = 0.7) -> np.ndarray:
    """Lognormal values whose neighbours are alike, as queues make them."""
    noise = rng.normal(size=count)
    level = np.empty(count)
    level[0] = noise[0]
    for at in range(1, count):
        level[at] = alike * level[at - 1] + math.sqrt(1 - alike**2) * noise[at]
    return np.exp(0.5 * level)


@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=50))
def test_a_ratio_is_that_of_the_sums(pairs: list[tuple[float, float]]) -> None:
    above, below = (np.array(side) for side in zip(*pairs, strict=True))
    found = estimate(sample(min(len(pairs), 20), a=above, b=below), Ratio("a", "b"))
    assert found is not None
    assert math.isclose(found.value, above.sum() / below.sum(), rel_tol=1e-9)


@given(
    st.lists(FLOATS, min_size=1, max_size=60), st.sampled_from([0.1, 0.5, 0.9, 0.99])
)
def test_a_quantile_is_the_smallest_value_that_reaches_it(
    values: list[float], fraction: float
) -> None:
    made = sample(min(len(values), 20), a=np.array(values))
    found = Quantile("a", fraction).of(made.columns, np.ones((1, made.blocks)))
    ordered = sorted(values)
    assert found[0] == ordered[math.ceil(fraction * len(values) * (1 - 1e-12)) - 1]


def test_a_quantile_of_a_draw_is_that_of_the_values_drawn() -> None:
    values = np.random.default_rng(3).lognormal(size=300)
    made = sample(20, a=values)
    weights = draw_weights(20)
    found = Quantile("a", 0.9).of(made.columns, weights)
    for draw in (1, 500, 1000):
        blocks = made.columns["a"].blocks
        drawn = np.repeat(values, weights[draw][blocks].astype(int))
        assert found[draw] == np.quantile(drawn, 0.9, method="inverted_cdf")


def test_many_values_go_by_in_groups_and_lose_next_to_nothing() -> None:
    values = np.random.default_rng(3).lognormal(size=50_000)
    found = Quantile("a", 0.99).of(sample(20, a=values).columns, np.ones((1, 20)))
    assert math.isclose(found[0], np.quantile(values, 0.99), rel_tol=0.01)


def test_missing_values_take_no_part() -> None:
    made = sample(a=np.array([1.0, math.nan, 3.0] * 20), b=np.ones(60))
    assert estimate(made, Ratio("a", "b")).value == 2.0  # type: ignore[union-attr]
    assert estimate(sample(a=np.full(30, math.nan)), Ratio("a")) is None
    assert estimate(sample(a=np.full(30, math.nan)), Quantile("a", 0.5)) is None


def test_few_blocks_give_a_figure_and_no_interval() -> None:
    made = sample(5, a=np.arange(1.0, 6.0))
    found = estimate(made, Ratio("a"))
    assert found is not None
    assert found.value == pytest.approx(3.0)
    assert found.low is None
    moved = change(made, made, Ratio("a"), is_paired=True)
    assert moved is not None
    assert (moved.value, moved.low, moved.high) == (0.0, None, None)


@pytest.mark.parametrize("freedom", [7, 10, 20, 39, 200])
def test_students_quantile_is_the_tables(freedom: int) -> None:
    table = {7: 2.3646, 10: 2.2281, 20: 2.0860, 39: 2.0227, 200: 1.9719}
    assert student_97_5(freedom) == pytest.approx(table[freedom], abs=2e-3)


@pytest.mark.parametrize(
    "statistic", [Ratio("a"), Quantile("a", 0.5)], ids=["mean", "p50"]
)
def test_runs_without_a_difference_are_seldom_called_different(
    statistic: Ratio | Quantile,
) -> None:
    rng = np.random.default_rng(11)
    real = 0
    for _ in range(60):
        first, second = (sample(40, a=correlated(rng, 800)) for _ in range(2))
        moved = change(first, second, statistic, is_paired=False)
        assert moved is not None
        assert moved.low is not None
        assert moved.high is not None
        real += moved.low > 0 or moved.high < 0
    assert real <= 6, "of 60 comparisons 3 are expected"


def test_an_interval_widens_where_neighbouring_blocks_move_together() -> None:
    rng = np.random.default_rng(7)
    real = 0
    for _ in range(100):  # in blocks of 20, of which neighbours share some 10
        first, second = (sample(20, a=correlated(rng, 400, 0.9)) for _ in range(2))
        moved = change(first, second, Ratio("a"), is_paired=False)
        assert moved is not None
        assert moved.low is not None
        assert moved.high is not None
        real += moved.low > 0 or moved.high < 0
    assert real <= 9, "of 100; blocks taken for independent call 14 real"


def test_an_interval_is_no_narrower_for_neighbours_that_differ() -> None:
    steady = np.tile([1.0, 1.0, 3.0, 3.0], 40)  # each block unlike the last
    drawn = np.random.default_rng(2).permutation(steady)
    widths = []
    for values in (steady, drawn):
        found = estimate(sample(80, a=values), Ratio("a"))
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        widths.append(math.log(found.high / found.low))
    assert widths[0] == pytest.approx(2 * 1.99 * 0.5 / math.sqrt(79), rel=0.1)


def test_a_difference_is_found_and_pairs_find_smaller_ones() -> None:
    rng = np.random.default_rng(5)
    common = correlated(rng, 400)
    base = sample(40, a=common * np.exp(0.02 * rng.normal(size=400)))
    other = sample(40, a=1.05 * common * np.exp(0.02 * rng.normal(size=400)))
    paired = change(base, other, Ratio("a"), is_paired=True)
    apart = change(base, other, Ratio("a"), is_paired=False)
    assert paired is not None
    assert apart is not None
    assert paired.value == pytest.approx(0.05, abs=0.005)
    assert paired.low is not None
    assert apart.low is not None
    assert apart.low < 0 < paired.low
