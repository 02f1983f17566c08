"""Shortcuts of settlement give what the long way gives, whatever the load."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.meter.activity import work
from proxy.meter.activity.request import RequestTimeline, TokenLog
from proxy.meter.activity.steps import StepBook
from proxy.meter.activity.work import population_of
from proxy.wire.facts import RequestFacts

READ = st.tuples(st.integers(0, 5), st.integers(0, 6), st.integers(0, 3))
"""Request, step, and a stamp in it."""


@given(st.lists(READ, max_size=40), st.booleans())
def test_reads_that_come_once_a_step_are_counted_as_if_sorted(
    reads: list[tuple[int, int, int]], is_once: bool
) -> None:
    if is_once:
        reads = list({read[:2]: read for read in reads}.values())
    request, step, stamp = np.array(reads, np.int64).reshape(-1, 3).T
    with_first = request == 0
    columns = request, step, step + stamp / 10, with_first, np.ones(len(reads))
    quick = work._presence(*columns)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "_has_repeats", lambda request, step: True)
        assert work._presence(*columns).tolist() == quick.tolist()


@given(st.lists(READ, min_size=1, max_size=40))
def test_sums_by_step_are_the_same_with_a_table_and_without(
    reads: list[tuple[int, int, int]],
) -> None:
    request, step, tenths = np.array(reads, np.int64).T
    of_step = np.arange(14.0).reshape(7, 2)
    found = []
    for cells in (0, 1000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(work, "MAX_CELLS", cells)
            found.append(work._sum_by_step(request, step, tenths / 10, of_step, 6))
    assert found[0] == pytest.approx(found[1])


@given(st.permutations([(0.1, 1), (0.1, 2), (0.2, 1), (0.2, 7), (0.3, 2)]))
def test_steps_are_the_same_whether_reads_come_in_order_or_not(
    reads: list[tuple[float, int]],
) -> None:
    log, book = TokenLog(), StepBook()
    for seconds, key in reads:
        log.add(seconds, key, 1.0, seconds * 10)
    book.absorb(log, 0.2)
    assert book.steps.seconds.tolist() == [0.1, 0.1, 0.2, 0.2]
    assert book.steps.keys.tolist() == [1, 2, 1, 7]
    assert log.seconds.tolist() == [0.3]


def test_prompts_and_stalls_that_ended_before_are_left_out() -> None:
    request = RequestTimeline(1, 0.0, RequestFacts("chat"))
    request.prefill_rows = [(0.0, 1.0, 50.0), (3.0, 4.0, 9.0)]
    request.stalls = [(1.5, 2.0), (2.0, 3.0)]
    population = population_of([request], since_seconds=2.0)
    assert population.row_tokens.tolist() == [9.0]
    assert population.stall_seconds.tolist() == [[2.0, 3.0]]
