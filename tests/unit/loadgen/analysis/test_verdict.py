"""What makes a run unfit to be read, and how that is said."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.analysis.verdict import (
    DEFAULT,
    EXIT_CODES,
    EnergyFacts,
    ProcessFacts,
    RunFacts,
    judge,
    lag_limit_seconds,
)
from loadgen.analysis.warmup import WarmUp
from proxy.wire.api import BoardSummary, SpreadReply

GOOD_ENERGY: dict[str, Any] = {
    "measured_joules": 1000.0,
    "residual_joules": 1e-10,
    "unattributed_joules": {"sensor_gap": 2.0},
    "requests_with": 100,
    "readings": 1000,
    "missed_readings": 0,
}
GOOD: dict[str, Any] = {
    "attempted": 100,
    "completed": 100,
    "errors": {},
    "lag_p99_seconds": 0.002,
    "gap_p50_seconds": 0.2,
    "loop_lag_p99_seconds": 0.001,
}


def facts(energy: dict[str, Any] | None = None, **changes: Any) -> RunFacts:
    part = EnergyFacts(**(GOOD_ENERGY | (energy or {})))
    return RunFacts(**(GOOD | {"energy": part} | changes))


def test_a_clean_run_is_valid_and_needs_no_reason() -> None:
    verdict = judge(facts())
    assert (verdict.status, verdict.reasons) == ("valid", [])


@pytest.mark.parametrize(
    ("changes", "status", "word"),
    [
        ({"lag_p99_seconds": 0.011}, "degraded", "11.0 ms"),
        ({"lag_p99_seconds": 0.150}, "invalid", "150.0 ms"),
        ({"lag_p99_seconds": 0.007, "gap_p50_seconds": 0.003}, "degraded", "5.0 ms"),
        ({"lag_p99_seconds": 0.150, "max_concurrency": 8}, "degraded", "concurrency 8"),
        ({"dropped": 1}, "invalid", "1 planned"),
        ({"dropped": 9, "interrupted": True}, "degraded", "interrupted"),
        ({"errors": {"error": 5}, "completed": 95}, "degraded", "5.0%"),
        ({"errors": {"timeout": 6}, "completed": 94}, "invalid", "6 timeout"),
        ({"errors": {"error": 100}, "completed": 0}, "invalid", "none of 100"),
        ({"attempted": 0, "completed": 0}, "invalid", "none of 0"),
        ({"loop_lag_p99_seconds": 0.02}, "degraded", "20.0 ms"),
        ({"loop_lag_p99_seconds": 0.2}, "invalid", "200.0 ms"),
        ({"interrupted": True}, "degraded", "interrupted"),
        ({"failure": "5 requests failed"}, "invalid", "early: 5 requests failed"),
    ],
)
def test_each_fault_of_a_run_has_its_verdict(
    changes: dict[str, Any], status: str, word: str
) -> None:
    verdict = judge(facts(**changes))
    assert verdict.status == status
    assert any(word in reason for reason in verdict.reasons)


@pytest.mark.parametrize(
    ("energy", "status", "word"),
    [
        ({"residual_joules": 0.0011}, "invalid", "1.1 mJ"),
        ({"residual_joules": -0.0011}, "invalid", "1.1 mJ"),
        ({"unattributed_joules": {"bypass": 51.0}}, "degraded", "51.0 J bypass"),
        ({"requests_without": 2}, "degraded", "2 of 102"),
        ({"missed_readings": 20}, "degraded", "20 of 1020"),
        ({"missed_readings": 1, "readings": 0}, "degraded", "1 of 1"),
        ({"is_settled": False}, "degraded", "not final"),
        (
            {"measured_joules": None, "unknown_reason": "connection refused"},
            "degraded",
            "connection refused",
        ),
    ],
)
def test_each_fault_of_the_books_has_its_verdict(
    energy: dict[str, Any], status: str, word: str
) -> None:
    verdict = judge(facts(energy))
    assert verdict.status == status
    assert any(word in reason for reason in verdict.reasons)


def test_a_run_without_metering_is_not_blamed_for_it() -> None:
    assert judge(RunFacts(**GOOD)).status == "valid"


def test_at_rate_inf_nothing_can_be_late() -> None:
    assert judge(facts(is_paced=False, lag_p99_seconds=30.0)).status == "valid"


def test_the_worst_reason_comes_first() -> None:
    verdict = judge(facts(interrupted=True, lag_p99_seconds=1.0))
    assert verdict.status == "invalid"
    assert "late" in verdict.reasons[0]
    assert len(verdict.reasons) == 2


def test_only_an_invalid_run_fails_the_command() -> None:
    assert EXIT_CODES == {"valid": 0, "degraded": 0, "invalid": 3}


@given(st.floats(0, 1e4))
def test_the_lag_limit_stays_between_what_is_held_and_a_step(gap: float) -> None:
    limit = lag_limit_seconds(gap, DEFAULT)
    assert DEFAULT.lag_floor_seconds <= limit <= DEFAULT.lag_degraded_seconds


@given(
    lag=st.floats(0, 1), more=st.floats(0, 1), errors=st.integers(0, 100),
    dropped=st.integers(0, 3),
)  # fmt: skip
def test_more_lag_never_makes_a_run_better(
    lag: float, more: float, errors: int, dropped: int
) -> None:
    order = ["valid", "degraded", "invalid"]
    counts: dict[str, Any] = {
        "errors": {"error": errors},
        "completed": 100 - errors,
        "dropped": dropped,
    }
    sooner = judge(facts(lag_p99_seconds=lag, **counts))
    later = judge(facts(lag_p99_seconds=lag + more, **counts))
    assert order.index(later.status) >= order.index(sooner.status)


def board(**changes: Any) -> BoardSummary:
    return BoardSummary(boundary="gpu", device="gpu0", seconds=100.0, **changes)


LIMITS = SpreadReply(min=500.0, median=700.0, max=700.0)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        (
            {"throttled_seconds_by_reason": {"hw_thermal_slowdown": 2.0}},
            "throttled for 2 s of 100 s (hw_thermal_slowdown)",
        ),
        ({"throttled_seconds_by_reason": {"sw_power_cap": 6.0}}, "6%, limit 5%"),
        (
            {"power_limit_watts": LIMITS, "power_limit_changes": 2},
            "changed 2 times, between 500 W and 700 W",
        ),
        ({"shared_seconds": 30.0}, "another process was on gpu0 for 30 s of 100 s"),
        ({"uncorrected_ecc_errors": 1}, "1 memory errors"),
        ({"xids": [79]}, "XID 79"),
    ],
)
def test_a_board_that_did_not_work_as_it_should_degrades_a_run(
    changes: dict[str, Any], word: str
) -> None:
    verdict = judge(facts(boards=[board(**changes)]))
    assert verdict.status == "degraded"
    assert any(word in reason for reason in verdict.reasons)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"throttled_seconds_by_reason": {"sw_power_cap": 4.0, "hw_slowdown": 0.5}},
        {"power_limit_watts": LIMITS, "power_limit_changes": 0},
        {"shared_seconds": 0.0, "other_processes": 0, "corrected_ecc_errors": 9},
    ],
)
def test_a_board_that_worked_or_told_nothing_is_no_reason(
    changes: dict[str, Any],
) -> None:
    assert judge(facts(boards=[board(**changes)])).status == "valid"
    unobserved = BoardSummary(
        boundary="gpu", device="gpu0", seconds=0.0,
        throttled_seconds_by_reason={"hw_slowdown": 0.0},
    )  # fmt: skip
    assert judge(facts(boards=[unobserved])).status == "valid"


def test_a_warm_up_that_moves_the_mean_degrades_a_run_and_says_the_remedy() -> None:
    drift = WarmUp(
        signal="ttft", seconds=12.2, before=0.9, after=0.1, mean_shift=0.2
    )  # fmt: skip
    verdict = judge(facts(warm_up=[drift]))
    assert verdict.status == "degraded"
    assert "--warmup 13" in verdict.reasons[0]
    assert "mean TTFT +20.0%" in verdict.reasons[0]
    small = WarmUp(signal="ttft", seconds=1.0, before=0.9, after=0.1, mean_shift=0.01)
    assert judge(facts(warm_up=[small])).status == "valid"


@pytest.mark.parametrize(
    ("asked", "achieved", "is_paced", "status"),
    [
        (4.0, 3.3, True, "valid"),
        (4.0, 3.1, True, "degraded"),
        (4.0, 3.1, False, "valid"),
        (None, 3.1, True, "valid"),
        (4.0, None, True, "valid"),
    ],
    ids=["near", "far below", "all at once", "the trace's own", "one request"],
)
def test_a_run_far_below_the_rate_asked_says_so(
    asked: float | None, achieved: float | None, is_paced: bool, status: str
) -> None:
    verdict = judge(
        facts(asked_per_second=asked, achieved_per_second=achieved, is_paced=is_paced)
    )
    assert verdict.status == status
    if status == "degraded":
        assert "3.1 requests/s achieved of 4 asked, 78%, limit 80%" in "".join(
            verdict.reasons
        )


def test_the_latest_of_several_processes_decides_and_is_named() -> None:
    processes = [
        ProcessFacts(number=1, lag_p99_seconds=0.001),
        ProcessFacts(number=2, lag_p99_seconds=0.150),
    ]
    verdict = judge(facts(lag_p99_seconds=0.004, processes=processes))
    assert verdict.status == "invalid"
    assert verdict.reasons == [
        "requests left late: schedule lag p99 150.0 ms in process 2 of 2, "
        "limit 100.0 ms"
    ]
    assert judge(facts(processes=processes[:1])).status == "valid"


def test_a_loss_that_was_allowed_for_only_degrades_a_run() -> None:
    dead = ProcessFacts(
        number=1, worker="rack7", death="was not heard of for 15 s", lost_requests=7
    )
    verdict = judge(facts(processes=[dead], allows_partial=True))
    assert verdict.status == "degraded"
    assert verdict.reasons == [
        "worker rack7 (1 of 1) was not heard of for 15 s: 7 of its requests are lost"
    ]


def test_the_worst_clock_of_workers_is_told_beyond_its_limit() -> None:
    processes = [
        ProcessFacts(number=n, worker=f"w{n}", clock_error_seconds=seconds)
        for n, seconds in enumerate([0.010, 0.050, 0.020], 1)
    ]
    verdict = judge(facts(processes=processes))
    assert verdict.status == "degraded"
    assert verdict.reasons == [
        "the clock of worker w2 (2 of 3) is known to 50.0 ms only, limit 10.0 ms: its "
        "requests may have left as much early or late"
    ]
    assert judge(facts(processes=processes[:1])).status == "valid"


def test_a_process_that_died_makes_the_run_invalid_with_what_it_lost() -> None:
    dead = ProcessFacts(number=1, death="was ended by SIGKILL", lost_requests=7)
    verdict = judge(facts(processes=[dead, ProcessFacts(number=2)]))
    assert verdict.status == "invalid"
    assert verdict.reasons[0] == (
        "process 1 of 2 was ended by SIGKILL: 7 of its requests are lost"
    )
