"""Edges fine enough for a median, and counts by them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.process.tally import Tally, coarse_edges, fine_edges


@given(first=st.integers(-6, 6), decades=st.integers(1, 8))
def test_fine_edges_are_a_quarter_apart_at_most_and_end_on_decades(
    first: int, decades: int
) -> None:
    edges = fine_edges(first, decades)
    assert len(edges) == 11 * decades + 1
    assert (edges[0], edges[-1]) == (float(f"1e{first}"), float(f"1e{first + decades}"))
    assert all(1.2 < later / sooner <= 1.25 for sooner, later in pairwise(edges))


def test_edges_around_the_fine_ones_stay_in_order() -> None:
    edges = fine_edges(0, 1, below=(0.1,), above=(100.0, 1000.0))
    assert edges[:2] == (0.1, 1.0)
    assert edges[-3:] == (10.0, 100.0, 1000.0)
    assert list(edges) == sorted(set(edges))


def test_coarse_edges_are_three_a_decade() -> None:
    assert coarse_edges(-1, 2) == (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


@given(values=st.lists(st.floats(0, 1e9), max_size=50))
def test_every_value_is_counted_once_below_its_edge(values: list[float]) -> None:
    tally = Tally(coarse_edges(-2, 4))
    for value in values:
        bucket = tally.add(value)
        assert bucket == len(tally.edges) or value <= tally.edges[bucket]
        assert bucket == 0 or value > tally.edges[bucket - 1]
    assert sum(tally.counts) == len(values)
    assert tally.total == pytest.approx(sum(values))


def test_a_value_may_stand_for_several() -> None:
    tally = Tally((1.0, 2.0))
    tally.add(1.5, 3)
    assert (tally.counts, tally.total) == ([0, 3, 0], 4.5)
