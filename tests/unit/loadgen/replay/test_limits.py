"""When a run ends itself: too many failures, or nobody who answers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from loadgen.replay.limits import ErrorLimit
from loadgen.results.results import Result


def result(at: float, outcome: str = "error", status: int | None = None) -> Result:
    return Result(
        request_id="r",
        session_id="s",
        turn=0,
        kind="other",
        sent_seconds=at,
        planned_seconds=at,
        finished_seconds=at,
        outcome=outcome,
        status=status,
    )


def noted(results: Sequence[Result], max_errors: int | None = None) -> str | None:
    limit = ErrorLimit(max_errors)
    for each in results:
        limit.note(each)
    return limit.reason


def test_a_run_ends_with_the_failure_that_reaches_the_limit() -> None:
    failures = [result(n, "error" if n % 2 else "timeout", 500) for n in range(3)]
    assert noted(failures[:2], max_errors=3) is None
    assert noted(failures, max_errors=3) == "3 requests failed (--max-errors 3)"


def test_what_was_never_sent_or_was_stopped_is_no_failure() -> None:
    others = [result(n, outcome) for n, outcome in enumerate(["dropped", "aborted"])]
    assert noted(others * 9, max_errors=1) is None


def test_failures_need_not_be_in_a_row() -> None:
    mixed = [result(0), result(1, "ok", 200), result(2)]
    assert noted(mixed, max_errors=2) == "2 requests failed (--max-errors 2)"


@pytest.mark.parametrize("status", [None, 502])
def test_a_dead_target_ends_a_run_that_nobody_limited(status: int | None) -> None:
    refused = [result(float(n), status=status) for n in range(31)]
    assert noted(refused[:-1]) is None
    assert noted(refused) == "no engine answered any of 31 requests in 30 s"


def test_a_burst_of_refusals_is_a_restart_and_not_the_end() -> None:
    assert noted([result(n / 1000) for n in range(10_000)]) is None


def test_few_refusals_in_a_long_time_prove_nothing() -> None:
    assert noted([result(60.0 * n) for n in range(10)]) is None


@pytest.mark.parametrize(
    "sign",
    [result(20.5, "ok", 200), result(20.5, "error", 503), result(20.5, "timeout")],
)
def test_any_sign_of_life_begins_anew(sign: Result) -> None:
    before = [result(float(n)) for n in range(21)]
    after = [result(21.0 + n) for n in range(25)]
    assert noted([*before, sign, *after]) is None
