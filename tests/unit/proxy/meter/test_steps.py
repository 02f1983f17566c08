"""Reads put into steps: each into one, whatever the order they came in."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.meter.activity.request import (
    TokenLog,
)
from proxy.meter.activity.steps import LONGEST_SECONDS, StepBook


def log_of(rows: list[tuple[float, int]]) -> TokenLog:
    log = TokenLog()
    for at, key in rows:
        log.add(at, key, 1.0, 1.0)
    return log


def test_stamps_close_together_are_one_step() -> None:
    book = StepBook()
    book.absorb(log_of([(1.0, 1), (1.0004, 2), (1.02, 1), (1.0203, 2)]), 9.0)
    assert book.steps.end_seconds.tolist() == pytest.approx([1.0004, 1.0203])
    assert book.steps.floor_seconds.tolist()[1] == pytest.approx(1.0004)


@given(
    stamps=st.lists(st.floats(0.0, 2.0), min_size=1, max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=4),
)
def test_steps_do_not_depend_on_how_the_reads_came_in(
    stamps: list[float], cuts: list[int]
) -> None:
    rows = [(at, key) for key, at in enumerate(stamps)]
    whole, parts = StepBook(), StepBook()
    whole.absorb(log_of(rows), 9.0)
    bounds = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    for first, stop in itertools.pairwise(bounds):
        parts.absorb(log_of(rows[first:stop]), 9.0)
    assert parts.steps.end_seconds.tolist() == whole.steps.end_seconds.tolist()
    assert parts.steps.first_row.tolist() == whole.steps.first_row.tolist()
    assert parts.steps.seconds.tolist() == sorted(stamps)


def test_reads_too_young_stay_in_the_log() -> None:
    book, log = StepBook(), log_of([(1.0, 1), (2.0, 1)])
    book.absorb(log, 1.5)
    assert book.steps.end_seconds.tolist() == [1.0]
    assert list(log.seconds) == [2.0]


@given(
    gaps=st.lists(st.floats(0.0001, 0.0019), min_size=100, max_size=400),
    parts=st.lists(st.integers(1, 60), min_size=1, max_size=30),
)
def test_streams_without_a_common_step_are_cut_however_the_reads_came_in(
    gaps: list[float], parts: list[int]
) -> None:
    stamps = np.cumsum(gaps)
    rows = [(float(at), number) for number, at in enumerate(stamps)]
    whole, pieces = StepBook(), StepBook()
    whole.absorb(log_of(rows), 100.0)
    left = list(rows)
    for size in itertools.cycle(parts):
        pieces.absorb(log_of(left[:size]), 100.0)
        left = left[size:]
        if not left:
            break
    assert whole.steps.end_seconds.tolist() == pieces.steps.end_seconds.tolist()
    assert whole.steps.first_row.tolist() == pieces.steps.first_row.tolist()
    first = whole.steps.seconds[whole.steps.first_row[:-1]]
    assert (whole.steps.end_seconds - first).max() <= LONGEST_SECONDS


def test_forgotten_steps_still_bound_the_next_one() -> None:
    book = StepBook()
    book.absorb(log_of([(1.0, 1), (1.1, 1), (1.2, 1)]), 9.0)
    book.forget(1.1)
    assert book.steps.end_seconds.tolist() == [1.2]
    book.forget(1.2)
    book.absorb(log_of([(1.3, 1)]), 9.0)
    assert book.steps.floor_seconds.tolist() == [1.2]
