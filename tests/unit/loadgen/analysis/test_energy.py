"""A run's figures from a proxy that has stood for long: differences, never totals."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.analysis.energy import energy_block
from loadgen.analysis.schema import EnergyBlock
from loadgen.analysis.tally import RunWindow, Tally
from loadgen.analysis.verdict import EnergyFacts, RunFacts, judge
from loadgen.report import text
from loadgen.report.text import speculation_text
from loadgen.results.results import Metering
from proxy.wire.api import BooksReply, Phases, SavedCalibration

SECONDS = 60.0


def books(joules: float = 0.0, **changes: Any) -> BooksReply:
    """Books of a proxy that attributes all it measures."""
    return BooksReply(
        **{
            "complete": True,
            "measured_joules": joules,
            "attributed_joules": Phases(prefill=0.0, decode=joules),
            "idle_share_joules": 0.0,
            "idle_joules": 0.0,
            "unattributed_joules": {},
            "residual_joules": 0.0,
            "gap_seconds": 0.0,
            **changes,
        }
    )


def counters(samples: int, gaps: int, missed: int) -> dict[str, int]:
    return {"samples_total": samples, "gaps_total": gaps, "missed_total": missed}


def block(
    begun: BooksReply | None, ended: BooksReply | None, gaps: tuple[float, float]
) -> EnergyBlock:
    """The energy of a window of a minute, between books with so many seconds of gap."""
    metering = Metering(
        opening=books(1e6, gap_seconds=gaps[0]),
        closing=books(1e6 + 6000.0, gap_seconds=gaps[1], **counters(9**9, 9**8, 9**8)),
        begun=begun,
        ended=ended,
        window_seconds=SECONDS,
    )
    return energy_block(metering, Tally(RunWindow(0.0, SECONDS), {}))


def verdict(energy: EnergyBlock) -> tuple[str, str]:
    facts = EnergyFacts(
        measured_joules=energy.measured_joules,
        readings=energy.readings,
        missed_readings=energy.missed_readings,
        window_seconds=energy.window_seconds,
        gap_seconds=energy.gap_seconds,
        requests_with=10,
    )
    found = judge(RunFacts(attempted=10, completed=10, errors={}, energy=facts))
    return found.status, " ".join(found.reasons)


def test_old_misses_of_a_standing_proxy_are_not_the_runs() -> None:
    begun = books(**counters(100_000, 40, 2361))
    ended = books(**counters(103_000, 40, 2361))
    found = block(begun, ended, (500.0, 500.0))
    assert (found.readings, found.missed_readings, found.gap_seconds) == (3000, 0, 0.0)
    assert verdict(found) == ("valid", "")


def test_a_bad_run_does_not_hide_behind_a_long_good_life() -> None:
    begun = books(**counters(10_000_000, 0, 0))
    ended = books(**counters(10_002_000, 1, 999))
    status, reasons = verdict(block(begun, ended, (0.0, 0.0)))
    assert status == "degraded"
    assert "missed 1000 of 3000 readings" in reasons


def test_a_window_that_was_not_measured_is_degraded_however_long_the_run() -> None:
    steady = books(**counters(1_000_000, 0, 0))
    status, reasons = verdict(block(steady, steady, (5000.0, 5006.0)))
    assert status == "degraded"
    assert "6.0 s of 60.0 s were not measured: 10.0%, limit 1%" in reasons


@pytest.mark.parametrize(
    ("begun", "ended"),
    [
        (None, books(**counters(9, 9, 9))),
        (books(**counters(9, 9, 9)), None),
        (books(**counters(9000, 9, 9)), books(**counters(100, 0, 0))),
        (books(), books()),
    ],
    ids=["no start", "no end", "a new proxy", "no counters"],
)
def test_what_cannot_be_counted_is_unknown_and_never_a_total(
    begun: BooksReply | None, ended: BooksReply | None
) -> None:
    found = block(begun, ended, (0.0, 0.0))
    assert (found.readings, found.missed_readings) == (None, None)
    assert verdict(found) == ("valid", "")


@given(
    life=st.tuples(*[st.integers(0, 2**40)] * 3),
    run=st.tuples(*[st.integers(0, 10_000)] * 3),
)
def test_a_verdict_does_not_depend_on_what_was_before(
    life: tuple[int, int, int], run: tuple[int, int, int]
) -> None:
    after = [old + new for old, new in zip(life, run, strict=True)]
    standing = block(books(**counters(*life)), books(**counters(*after)), (0.0, 0.0))
    fresh = block(books(**counters(0, 0, 0)), books(**counters(*run)), (0.0, 0.0))
    assert standing.readings == fresh.readings == run[0]
    assert verdict(standing) == verdict(fresh)


def speculated(
    opening: tuple[float, float], closing: tuple[float, float]
) -> EnergyBlock:
    """A window of 6 kJ of decode, by what was drafted and accepted at its edges."""
    edges = [
        books(joules, drafted_tokens=drafted, accepted_tokens=accepted)
        for joules, (drafted, accepted) in ((0.0, opening), (6000.0, closing))
    ]
    metering = Metering(opening=edges[0], closing=edges[1], window_seconds=SECONDS)
    return energy_block(metering, Tally(RunWindow(0.0, SECONDS), {}))


def test_an_accepted_token_took_the_decode_joules_of_the_window() -> None:
    found = speculated((100.0, 50.0), (4100.0, 3050.0))
    assert (found.drafted_tokens, found.accepted_tokens) == (4000.0, 3000.0)
    assert found.joules_per_accepted_token == 2.0
    said = speculation_text(found)
    assert said == (
        "2.00 J of decode per accepted token; "
        "3,000 of 4,000 drafted were accepted (75.0 %)"
    )


@pytest.mark.parametrize("closing", [(100.0, 50.0), (40.0, 10.0)], ids=["none", "anew"])
def test_without_accepted_tokens_nothing_is_said(closing: tuple[float, float]) -> None:
    found = speculated((100.0, 50.0), closing)
    assert found.joules_per_accepted_token is None
    assert speculation_text(found) == ""


def test_doubt_of_the_constants_is_in_the_runs_record() -> None:
    found = (
        SavedCalibration("vllm", "llama", is_fitted=True, rows=90.0, form="plain"),
        SavedCalibration(
            "other", None, is_fitted=False, doubt="changed", reason="they drifted"
        ),
    )
    metering = Metering(opening=books(), closing=books(9.0), constants=found)
    energy = energy_block(metering, Tally(RunWindow(0.0, SECONDS), {}))
    trusted, doubted = energy.constants
    assert (trusted.is_trusted, trusted.doubt, trusted.rows) == (True, None, 90.0)
    assert (doubted.is_trusted, doubted.doubt) == (False, "changed")
    assert text.constants_lines(energy) == [
        "of vllm, llama: trusted",
        "of other, no model yet: not trusted, they drifted",
    ]
