"""Arrival processes over 200,000 draws: rate, cv, counts, order, seed, blocks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.plan.arrivals import (
    ARRIVALS,
    FloatArray,
    Pace,
    constant,
    grid_seconds,
    poisson,
    spread_ties,
    staged,
)

DRAWS = 200_000
RATE = 8.0
BURSTY = Pace(seed=11, rate_per_second=RATE, burstiness=0.25)
DRAWN = {  # process, pace, cv of its gaps, variance over mean of counts in 10 s
    "poisson": (replace(BURSTY, burstiness=1.0), 1.0, 1.0),
    "gamma": (BURSTY, 2.0, 4.0),
    "constant": (BURSTY, 0.0, 0.0),
}


def starts(name: str, pace: Pace, size: int = DRAWS) -> FloatArray:
    own = np.zeros(size)
    return np.fromiter(ARRIVALS[name](own, pace), dtype=np.float64)


@pytest.mark.parametrize("name", DRAWN)
def test_the_rate_is_the_one_asked_for(name: str) -> None:
    pace, cv, _ = DRAWN[name]
    gaps = np.diff(starts(name, pace))
    # five standard errors of the mean gap; one percent of nothing for constant
    limit = 5 * cv / np.sqrt(DRAWS) + 1e-9
    assert gaps.mean() * RATE == pytest.approx(1, abs=limit)


@pytest.mark.parametrize("name", DRAWN)
def test_the_gaps_vary_as_the_name_says(name: str) -> None:
    pace, cv, _ = DRAWN[name]
    gaps = np.diff(starts(name, pace))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.02, abs=1e-6)


@pytest.mark.parametrize("name", DRAWN)
def test_counts_are_as_bursty_as_the_gaps(name: str) -> None:
    pace, _, dispersion = DRAWN[name]
    at_seconds = starts(name, pace)
    edges = np.arange(0, at_seconds[-1], 10.0)
    counts = np.histogram(at_seconds, edges)[0]
    # 2,500 windows: a dispersion index has a relative standard error near 3 %
    assert counts.var() / counts.mean() == pytest.approx(dispersion, rel=0.15, abs=0.05)


@pytest.mark.parametrize("name", DRAWN)
def test_gaps_are_independent_of_each_other(name: str) -> None:
    pace, cv, _ = DRAWN[name]
    if cv == 0:
        return
    gaps = np.diff(starts(name, pace))
    lagged = np.corrcoef(gaps[:-1], gaps[1:])[0, 1]
    assert abs(lagged) < 5 / np.sqrt(DRAWS)


def test_the_last_arrival_is_not_pulled_to_n_over_the_rate() -> None:
    ends = [
        starts("poisson", Pace(seed=seed, rate_per_second=RATE), 401)[-1]
        for seed in range(400)
    ]
    # 400 gaps of cv 1: the end's relative spread is 1/20, and would be 0 if rescaled
    assert np.std(ends) / np.mean(ends) == pytest.approx(0.05, rel=0.2)
    assert np.mean(ends) == pytest.approx(50, rel=0.0125)


def test_no_gap_is_clipped() -> None:
    pace, _, _ = DRAWN["poisson"]
    gaps = np.diff(starts("poisson", pace)) * RATE
    assert gaps.max() > 9  # the longest of 200,000 is near ln(200,000) = 12.2 means
    assert (gaps > 3).mean() == pytest.approx(np.exp(-3), rel=0.05)


@pytest.mark.parametrize("name", ARRIVALS)
def test_starts_begin_at_zero_and_never_go_back(name: str) -> None:
    own = np.sort(np.random.default_rng(0).random(5_000)) * 100 + 7
    found = np.fromiter(ARRIVALS[name](own, BURSTY), dtype=np.float64)
    assert found[0] == 0
    assert len(found) == 5_000
    assert (np.diff(found) >= 0).all()


@pytest.mark.parametrize("name", ["poisson", "gamma"])
def test_a_seed_gives_one_sequence_and_another_seed_another(name: str) -> None:
    one, same = starts(name, BURSTY, 100), starts(name, BURSTY, 100)
    other = starts(name, replace(BURSTY, seed=12), 100)
    assert (one == same).all()
    assert not (one[1:] == other[1:]).any()


@pytest.mark.parametrize("name", ARRIVALS)
@pytest.mark.parametrize("block", [1, 7, 1000])
def test_the_starts_do_not_depend_on_the_block(name: str, block: int) -> None:
    expected = starts(name, BURSTY, 3_000)
    assert (starts(name, replace(BURSTY, block=block), 3_000) == expected).all()


@pytest.mark.parametrize("name", ARRIVALS)
def test_one_session_is_taken_for_each_start(name: str) -> None:
    taken = 0

    def own() -> Iterator[float]:
        nonlocal taken
        for at_seconds in itertools.count():
            taken += 1
            yield float(at_seconds)

    found = ARRIVALS[name](own(), BURSTY)
    assert len(list(itertools.islice(found, 10))) == 10
    assert taken == 10


def test_the_traces_own_gaps_keep_their_shape() -> None:
    own = [5.0, 5.5, 9.0, 9.0, 20.0]
    pace = Pace(stretch=0.5)
    assert list(ARRIVALS["trace"](own, pace)) == [0, 0.25, 2, 2, 7.5]


def test_a_grid_is_seen_where_most_instants_tie() -> None:
    herds = np.repeat(np.arange(0, 300, 3.0), 5)
    assert grid_seconds(herds) == 3.0
    assert grid_seconds(np.arange(100) * 3.0) is None  # even, but no herd
    assert grid_seconds([1.0, 1.0, 1.0]) is None  # one instant has no step
    assert grid_seconds([]) is None


def test_ties_are_spread_evenly_over_their_step() -> None:
    herds = np.repeat(np.arange(0, 3000, 3.0), 20)
    spread = np.fromiter(spread_ties(herds, 3.0, seed=5), dtype=np.float64)
    inside = (spread - herds) / 3.0
    assert np.histogram(inside, 10, (0, 1))[0] == pytest.approx(2000, abs=5 * 45)
    assert (spread == np.fromiter(spread_ties(herds, 3.0, 5), dtype=np.float64)).all()
    assert (spread != np.fromiter(spread_ties(herds, 3.0, 6), dtype=np.float64)).any()


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=60).map(sorted),
    st.floats(0.1, 10),
)
def test_spreading_keeps_order_and_never_passes_the_next_instant(
    own: list[int], grid: float
) -> None:
    spread = list(spread_ties([float(at) for at in own], grid, seed=0))
    assert len(spread) == len(own)
    assert spread == sorted(spread)
    for before, after in zip(own, spread, strict=True):
        later = [at for at in own if at > before]
        assert before <= after <= min([before + grid, *later[:1]]) + 1e-9


def test_stages_keep_each_stage_at_its_rate_and_the_process_a_poisson() -> None:
    stages = [(20_000.0, 2.0), (10_000.0, 0.0), (20_000.0, 5.0)]
    pace = Pace(seed=11, rate_per_second=1.0)
    found = np.array(list(staged(poisson([0.0] * 400_000, pace), stages)))
    assert (np.diff(found) >= 0).all()
    first = found[found < 20_000]
    last = found[found >= 30_000]
    assert len(first) + len(last) == len(found)
    assert len(first) / 20_000 == pytest.approx(2, rel=0.02)
    assert len(last) / 20_000 == pytest.approx(5, rel=0.02)
    for gaps in (np.diff(first), np.diff(last)):
        assert gaps.std() / gaps.mean() == pytest.approx(1, rel=0.02)
    assert found[-1] < 50_000


def test_equal_gaps_stay_equal_within_a_stage() -> None:
    starts = constant([0.0] * 100, Pace(rate_per_second=1.0))
    assert list(staged(starts, [(2.0, 1.0), (1.0, 4.0)])) == pytest.approx(
        [0, 1, 2, 2.25, 2.5, 2.75]
    )
