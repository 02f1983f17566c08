"""Least squares with coefficients that are not negative."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from proxy.process.least_squares import nonnegative_least_squares

rows_of_many = st.integers(1, 11).flatmap(
    lambda size: st.lists(
        st.lists(st.floats(-10, 10), min_size=size + 1, max_size=size + 1),
        min_size=size,
        max_size=size + 7,
    )
)


@given(rows=rows_of_many, near=st.integers(0, 2**11))
def test_nonnegative_least_squares_meets_the_conditions_of_a_minimum(
    rows: list[list[float]], near: int
) -> None:
    table = np.array(rows)
    left, right = table[:, :-1], table[:, -1]
    squares = left.T @ left + 0.1 * np.eye(left.shape[1])
    products = left.T @ right
    begin = np.array([float(near >> bit & 1) for bit in range(len(products))])
    found = nonnegative_least_squares(squares, products, begin)
    slope = squares @ found - products
    tolerance = 1e-6 * (1 + np.abs(products).max())
    assert (found >= 0).all()
    assert (slope >= -tolerance).all()  # going up from 0 never helps
    assert (np.abs(slope[found > 0]) <= tolerance).all()
