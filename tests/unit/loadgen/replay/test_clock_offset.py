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


@given(
    offset_seconds=st.floats(-3e6, 3e6),
    drift=st.floats(-1e-3, 1e-3),
    ways=st.lists(st.tuples(st.floats(0, 60), DELAYS, DELAYS), min_size=1, max_size=20),
)
def test_a_clock_that_runs_fast_is_off_by_its_drift_at_most(
    offset_seconds: float, drift: float, ways: list[tuple[float, float, float]]
) -> None:
    """Worse than any quartz: a millisecond a second; the trips take seconds."""

    def told_at(seconds: float) -> float:
        return seconds + offset_seconds + drift * seconds

    found = offset_of(
        [
            RoundTrip(
                asked_seconds=asked, told_seconds=told_at(asked + there),
                heard_seconds=asked + there + back,
            )
            for asked, there, back in ways
        ]
    )  # fmt: skip
    begin = min(asked for asked, _, _ in ways)
    end = max(sum(way) for way in ways)
    spans = [told_at(at) - at for at in (begin, end)]
    assert min(spans) - found.error_seconds - CLOSE <= found.offset_seconds
    assert found.offset_seconds <= max(spans) + found.error_seconds + CLOSE


@given(
    offset_seconds=st.floats(-3e6, 3e6),
    apart_seconds=st.floats(-5, 5),
    ways=st.lists(st.tuples(st.floats(0, 60), DELAYS, DELAYS), min_size=2, max_size=20),
)
def test_no_more_drift_is_told_than_there_was_nor_hidden_than_the_errors_allow(
    offset_seconds: float,
    apart_seconds: float,
    ways: list[tuple[float, float, float]],
) -> None:
    half = len(ways) // 2
    begin = offset_of(trips(offset_seconds, ways[:half]))
    end = offset_of(trips(offset_seconds + apart_seconds, ways[half:]))
    told, errors = (
        disagreement_seconds(begin, end),
        (begin.error_seconds + end.error_seconds),
    )
    assert told <= abs(apart_seconds) + CLOSE
    assert abs(apart_seconds) <= told + 2 * errors + CLOSE


def clock(offset_seconds: float, error_seconds: float) -> ClockOffset:
    return ClockOffset(offset_seconds=offset_seconds, error_seconds=error_seconds)


def test_a_drift_is_only_what_the_errors_cannot_explain() -> None:
    begin = clock(10.0, 0.25)
    assert disagreement_seconds(begin, clock(10.5, 0.5)) == 0
    assert disagreement_seconds(begin, clock(9.0, 0.25)) == pytest.approx(0.5)
