"""The forms of the cost model, and the least squares that find their constants."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.meter.attribution.forms import (
    FORMS,
    PLAIN,
    PRIOR,
    Form,
    nonnegative_least_squares,
)
from proxy.meter.attribution.policies import FEATURES

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


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_usual_constants_are_those_of_phase_for_steps_of_one_token_each(
    form: Form,
) -> None:
    # one step of three decodes and one of a prompt beside them, by hand
    work = dict.fromkeys(FEATURES, 0.0)
    work |= {"step": 2.0, "prefill_token": 500.0}
    work |= {"prefill_context": 500.0 * 250.0, "decode_token": 6.0, "kv_token": 600.0}
    work |= {"mixed_kv_tokens": 300.0}
    work |= {"decode_rows": 6.0, "kv_rows": 600.0, "reach_4": 1.5}
    scaled = np.array([work[name] for name in FEATURES]) * PRIOR
    plain = FORMS[PLAIN]
    expected = scaled @ plain.matrix @ plain.usual
    assert scaled @ form.matrix @ form.usual == pytest.approx(expected)
    assert len(form.constants) == len(form.units) == len(form.usual)


def test_the_plain_form_comes_first_and_has_the_constants_of_phase() -> None:
    assert next(iter(FORMS)) == PLAIN
    assert FORMS[PLAIN].scale.tolist() == PRIOR[:5].tolist()
