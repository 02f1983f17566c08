"""Remote sensors are read often around a change and seldom between two."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.power.pace import MAX_PAUSE_SECONDS, ReadingPace
from proxy.wire.facts import Reading

INTERVAL_SECONDS = 0.02


def changes_every(seconds: float, jitter: float = 0.0, seed: int = 1) -> list[float]:
    """Instants of two minutes of changes."""
    draw = random.Random(seed)
    return [
        n * seconds + draw.uniform(-jitter, jitter)
        for n in range(1, round(120 / seconds))
    ]


def reads_of(changes: list[float]) -> Iterator[tuple[float, int]]:
    """(instant, changes so far) of every read of two minutes."""
    pace, at, seen = ReadingPace(INTERVAL_SECONDS), 0.0, 0
    while at < 119:
        while seen < len(changes) and changes[seen] <= at:
            seen += 1
        yield at, seen
        at += pace.pause_seconds(at, [Reading("gpu0", 5.0 * seen)])


def errors_of(reads: list[tuple[float, int]], changes: list[float]) -> list[float]:
    """How far from each change the middle of its two reads lies, the newest minute."""
    found = []
    for (before, old), (at, new) in pairwise(reads):
        if before > 60 and new == old + 1:
            found.append(abs((before + at) / 2 - changes[old]))
    return found


@pytest.mark.parametrize(
    ("period", "most_reads"), [(0.1, 3.5), (0.25, 4), (1.0, 5), (10.0, 25)]
)
def test_a_steady_sensor_is_read_a_few_times_a_change(
    period: float, most_reads: float
) -> None:
    changes = changes_every(period)
    reads = [at for at, _ in reads_of(changes) if at > 90 or period < 1]
    seconds = 119 - 90 if period >= 1 else 119
    assert len(reads) / (seconds / period) <= most_reads


@pytest.mark.parametrize("period", [0.1, 0.25, 1.0, 5.0])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.2])
def test_a_change_is_placed_as_well_as_by_reading_all_the_time(
    period: float, share: float
) -> None:
    changes = changes_every(period, share * period)
    errors = sorted(errors_of(list(reads_of(changes)), changes))
    assert errors[len(errors) * 8 // 10] <= INTERVAL_SECONDS / 2 + 1e-9


@pytest.mark.parametrize(
    "changes",
    [
        lambda: changes_every(0.02),
        lambda: sorted(changes_every(0.1) + [t + 0.03 for t in changes_every(0.1)]),
        lambda: [],
    ],
    ids=["fast", "two boards", "never"],
)
def test_a_sensor_without_a_steady_period_is_read_at_full_rate(
    changes: Callable[[], list[float]],
) -> None:
    count = len(list(reads_of(changes())))
    assert count == pytest.approx(119 / INTERVAL_SECONDS, rel=0.01)


@given(
    pauses=st.lists(st.tuples(st.floats(0, 50), st.floats(0, 5)), max_size=60),
    interval=st.floats(0.001, 0.4),
)
def test_a_pause_is_never_shorter_than_asked_nor_longer_than_stated(
    pauses: list[tuple[float, float]], interval: float
) -> None:
    pace, at = ReadingPace(interval), 0.0
    for elapsed, joules in pauses:
        at += elapsed
        pause = pace.pause_seconds(at, [Reading("gpu0", joules)])
        assert interval <= pause <= MAX_PAUSE_SECONDS
