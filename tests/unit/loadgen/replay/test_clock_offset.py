"""Another host's clock by round trips: the error that is told is never exceeded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.replay.clock_offset import (
    ClockOffset,
    RoundTrip,
    disagreement_seconds,
    offset_of,
)

DELAYS = st.floats(0, 5, allow_subnormal=False)
CLOSE = 1e-6
"""Of clocks of a month: a double holds half a nanosecond there, sums some of them."""


def trips(
    offset_seconds: float, ways: list[tuple[float, float, float]]
) -> list[RoundTrip]:
    """Each asked at an instant, with its own time there and back."""
    return [
        RoundTrip(
            asked_seconds=asked,
            told_seconds=asked + there + offset_seconds,
            heard_seconds=asked + there + back,
        )
        for asked, there, back in ways
    ]


@given(
    offset_seconds=st.floats(-3e6, 3e6),
    ways=st.lists(
        st.tuples(st.floats(0, 3e6), DELAYS, DELAYS), min_size=1, max_size=20
    ),
)
def test_the_true_offset_is_within_the_error(
    offset_seconds: float, ways: list[tuple[float, float, float]]
) -> None:
    found = offset_of(trips(offset_seconds, ways))
    assert abs(found.offset_seconds - offset_seconds) <= found.error_seconds + CLOSE


@given(
    ways=st.lists(
        st.tuples(st.floats(0, 1e3), DELAYS, DELAYS), min_size=1, max_size=20
    ),
    quick=st.tuples(st.floats(0, 1e3), DELAYS, DELAYS),
)
def test_one_trip_more_never_makes_it_worse(
    ways: list[tuple[float, float, float]], quick: tuple[float, float, float]
) -> None:
    before = offset_of(trips(7.0, ways)).error_seconds
    assert offset_of(trips(7.0, [*ways, quick])).error_seconds <= before


def clock(offset_seconds: float, error_seconds: float) -> ClockOffset:
    return ClockOffset(offset_seconds=offset_seconds, error_seconds=error_seconds)


def test_a_drift_is_only_what_the_errors_cannot_explain() -> None:
    begin = clock(10.0, 0.25)
    assert disagreement_seconds(begin, clock(10.5, 0.5)) == 0
    assert disagreement_seconds(begin, clock(9.0, 0.25)) == pytest.approx(0.5)
