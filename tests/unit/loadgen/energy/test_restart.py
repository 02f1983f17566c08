"""A proxy that is restarted inside a run: no joules, and a verdict that says so."""

from __future__ import annotations

import pytest

from loadgen.analysis.energy import energy_block
from loadgen.analysis.tally import RunWindow, Tally
from loadgen.analysis.verdict import INVALID, EnergyFacts, RunFacts, judge
from loadgen.energy.join import restarted_unix_seconds
from loadgen.results.results import Metering
from proxy.wire.api import BooksReply, Phases


def books(run: str, began: float, joules: float | None = 10.0) -> BooksReply:
    return BooksReply(
        complete=True, run=run, run_unix_seconds=began, measured_joules=joules,
        attributed_joules=Phases(prefill=1.0, decode=1.0), idle_joules=8.0,
        idle_share_joules=0.0, unattributed_joules={},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("opening", "closing", "begun"),
    [
        (books("a", 50.0), books("a", 50.0), None),
        (books("a", 50.0), books("b", 120.0), 120.0),
        (books("b", 120.0, None), books("b", 120.0), 120.0),
    ],
)
def test_books_of_one_run_that_began_before_the_window_span_it(
    opening: BooksReply, closing: BooksReply, begun: float | None
) -> None:
    assert restarted_unix_seconds(opening, closing, 100.0) == begun


def test_books_of_two_runs_have_no_difference() -> None:
    metering = Metering(
        opening=books("a", 0.0), closing=books("b", 5.0, 30.0), is_restarted=True,
        reason="the proxy was restarted 5.0 s into the run: no books span it",
    )  # fmt: skip
    block = energy_block(metering, Tally(RunWindow(0.0, 10.0), {}))
    assert block.measured_joules is None
    facts = EnergyFacts(unknown_reason=block.reason, is_restarted=True)
    verdict = judge(RunFacts(attempted=1, completed=1, errors={}, energy=facts))
    assert verdict.status == INVALID
    assert "restarted" in verdict.reasons[0]
