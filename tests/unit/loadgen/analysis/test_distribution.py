"""Percentiles are numpy's while they are affordable, and within 0.5 % after."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.analysis.distribution import RELATIVE_ERROR, Distribution

VALUES = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=300)


def filled(values: list[float], limit: int = 1_000_000) -> Distribution:
    distribution = Distribution(limit)
    distribution.extend(values)
    return distribution


@given(VALUES)
def test_percentiles_are_those_of_numpy(values: list[float]) -> None:
    stats = filled(values).stats("s")
    assert stats is not None
    found = [stats.p50, stats.p90, stats.p95, stats.p99]
    assert found == pytest.approx(list(np.percentile(values, [50, 90, 95, 99])))
    assert stats.mean == pytest.approx(np.mean(values))
    assert stats.std == pytest.approx(np.std(values))
    assert (stats.n, stats.is_exact) == (len(values), True)


@given(VALUES)
def test_beyond_the_limit_a_value_of_that_rank_is_within_half_a_percent(
    values: list[float],
) -> None:
    stats = filled(values, limit=0).stats("s")
    assert stats is not None
    assert not stats.is_exact
    for percent, found in ((50, stats.p50), (99, stats.p99)):
        low = np.percentile(values, percent, method="lower")
        high = np.percentile(values, percent, method="higher")
        # 1e-9: the edges of a bucket are themselves rounded
        assert low * (1 - RELATIVE_ERROR - 1e-9) <= found
        assert found <= high * (1 + RELATIVE_ERROR + 1e-9)


@given(VALUES, st.integers(1, 50))
def test_count_mean_deviation_and_extremes_stay_exact(
    values: list[float], limit: int
) -> None:
    distribution = Distribution(limit)
    for value in values:
        distribution.add(value)
    stats = distribution.stats("s")
    assert stats is not None
    assert stats.n == len(distribution) == len(values)
    assert stats.mean == pytest.approx(np.mean(values))
    assert stats.std == pytest.approx(np.std(values), abs=1e-6 * stats.max)
    assert (stats.min, stats.max) == (min(values), max(values))


def test_no_value_gives_no_figure() -> None:
    distribution = Distribution()
    distribution.add(None)
    assert distribution.stats("s") is None


def test_memory_stays_bounded_beyond_the_limit() -> None:
    distribution = Distribution(limit=1000)
    for _ in range(20):
        distribution.extend(np.random.default_rng(1).exponential(size=10_000))
    assert len(distribution) == 200_000
    assert len(distribution._values) < 20_000


def test_a_zero_or_negative_lag_is_counted_and_kept_as_the_minimum() -> None:
    stats = filled([-0.001, 0.0, 0.5], limit=0).stats("s")
    assert stats is not None
    assert (stats.n, stats.min, stats.max) == (3, -0.001, 0.5)
