"""Numbers that stand for "no figure"."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.power.blanks import AMD, ANY, DCGM, NVML, figure


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("blank", [2147483632, 9223372036854775792, 140737488355328.0])
def test_dcgm_says_blank_unknown_unsupported_forbidden_in_three_widths(
    blank: float, kind: int
) -> None:
    assert figure(blank + kind, DCGM) is None


@pytest.mark.parametrize("ones", [2**32 - 1, 2**64 - 1])
def test_all_ones_are_no_figure(ones: int) -> None:
    assert [figure(ones, table) for table in (NVML, AMD, ANY)] == [None] * 3


def test_sixteen_ones_are_no_figure_of_amd_and_a_figure_of_others() -> None:
    assert figure(0xFFFF, AMD) is None
    assert figure(0xFFFF, ANY) == 65535.0


@pytest.mark.parametrize("value", ["N/A", "", "5", None, True, [], {}])
def test_what_is_no_number_is_no_figure(value: object) -> None:
    assert figure(value) is None


def test_a_number_beyond_any_double_is_handed_on_as_infinite() -> None:
    assert figure(10**400) == math.inf


@given(st.floats(allow_nan=False) | st.integers(-(10**15), 10**15))
def test_every_other_number_is_itself(value: float) -> None:
    assert figure(value) == (None if value in ANY else value)
