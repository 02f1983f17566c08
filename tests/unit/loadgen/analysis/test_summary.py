"""summary.json counts what happened in the window, under the keys scripts know."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.analysis.schema import Summary
from loadgen.analysis.summary import RunInfo, environment, summarise, write_summary
from loadgen.analysis.tally import Extent, RunWindow, Tally, concurrency
from loadgen.plan.plan import PlanHeader
from loadgen.results.parts import Part
from loadgen.results.results import Metering, Result
from tests.support.canned_run import cost_of, failed, made_results

VLLM_KEYS = [
    "duration", "completed", "failed", "total_input_tokens", "total_output_tokens",
    "request_throughput", "output_throughput", "total_token_throughput",
    "request_goodput", "request_rate", "burstiness", "max_concurrency",
    *(f"{figure}_{name}_ms" for figure in ("mean", "median", "std", "p99")
      for name in ("ttft", "tpot", "itl", "e2el")),
]  # fmt: skip
OUR_KEYS = ["simulated", "verdict", "plan_sha256", "schedule", "energy", "environment",
            "metadata", "window"]  # fmt: skip
ENERGY_KEYS = [
    "boundary", "source", "policy", "simulated", "sample_interval_seconds",
    "window_seconds", "measured_joules", "attributed_joules", "idle_share_joules",
    "idle_joules", "unattributed_joules", "residual_joules", "joules_per_request",
    "joules_per_output_token", "joules_per_total_token", "failed_request_joules",
]  # fmt: skip


def header(**changes: Any) -> PlanHeader:
    fields: dict[str, Any] = {
        "trace": "t", "trace_format": "loadtrace", "arrival": "poisson",
        "rate_per_second": 4.0, "burstiness": None, "seed": 1, "sessions": 5,
        "requests": 5, "span_seconds": 10.0,
    }  # fmt: skip
    return PlanHeader(**(fields | changes))


def summed(
    results: list[Result],
    *,
    window: RunWindow | None = None,
    goodput: dict[str, float] | None = None,
    plan: PlanHeader | None = None,
    parts: Sequence[Part] = (),
    **info: Any,
) -> Summary:
    extent = Extent()
    for result in results:
        extent.add(result)
    inside = window or extent.window(0.0, 0.0)
    return summarise(
        Tally(inside, goodput or {}).add_all(results),
        info=RunInfo(**info),
        header=plan or header(),
        plan_sha256="ab" * 32,
        metering=Metering(reason="not metered"),
        run_seconds=extent.last_finished_seconds,
        parts=parts,
    )


def test_every_promised_key_is_there(tmp_path: Path) -> None:
    write_summary(tmp_path / "summary.json", summed(made_results(20)))
    found = json.loads((tmp_path / "summary.json").read_text())
    assert set(VLLM_KEYS + OUR_KEYS) <= set(found)
    assert set(ENERGY_KEYS) <= set(found["energy"])


def test_the_flat_keys_mean_what_vllm_means() -> None:
    results = [*made_results(200), failed("bad", at=3.0)]
    summary = summed(results)
    answered = results[:-1]
    ttft = [1000 * ((r.first_token_seconds or 0) - (r.sent_seconds or 0))
            for r in answered]  # fmt: skip
    assert summary.mean_ttft_ms == pytest.approx(np.mean(ttft))
    assert summary.median_ttft_ms == pytest.approx(np.median(ttft))
    assert summary.std_ttft_ms == pytest.approx(np.std(ttft))
    assert summary.p99_ttft_ms == pytest.approx(np.percentile(ttft, 99))
    assert (summary.completed, summary.failed) == (200, 1)
    tokens = sum(r.output_tokens or 0 for r in answered)
    assert summary.total_output_tokens == tokens
    assert summary.duration == max(r.finished_seconds for r in results)
    assert summary.output_throughput == pytest.approx(tokens / summary.duration)
    assert summary.request_throughput == pytest.approx(200 / summary.duration)
    assert summary.request_goodput is None


def test_offered_and_achieved_rates_do_not_depend_on_the_drain() -> None:
    results = made_results(400, rate=8.0)
    schedule = summed(results).schedule
    assert schedule.offered_per_second == pytest.approx(8.0, rel=0.1)
    assert schedule.achieved_per_second == pytest.approx(
        schedule.offered_per_second, rel=0.005
    )


def test_goodput_counts_misses_of_every_attempt() -> None:
    results = [*made_results(50), *(failed(f"f{n}", at=1.0) for n in range(50))]
    summary = summed(results, goodput={"ttft": 100.0})
    assert summary.goodput is not None
    assert summary.goodput.good == 50
    assert summary.goodput.fraction_of_attempted == 0.5
    assert summary.request_goodput == pytest.approx(50 / summary.duration)


def test_outcomes_and_the_commonest_errors_are_listed() -> None:
    results = [
        *made_results(3), failed("a", at=1.0), failed("b", at=1.0),
        failed("c", at=1.0, outcome="timeout"), failed("d", at=1.0, outcome="dropped"),
    ]  # fmt: skip
    summary = summed(results)
    assert summary.outcomes == {"ok": 3, "error": 2, "timeout": 1, "dropped": 1}
    assert (summary.failed, summary.schedule.dropped, summary.schedule.sent) == (
        3,
        1,
        6,
    )
    assert [(row.error, row.count) for row in summary.errors] == [
        ("HTTP 503: overloaded", 3)
    ]


def test_error_texts_with_ids_do_not_fill_the_memory() -> None:
    tally = Tally(RunWindow(), {})
    for index in range(2000):
        text = f"no such id {index}"
        tally.add(msgspec.structs.replace(failed(f"r{index}", at=0.0), error=text))
    assert len(tally.errors) <= 501
    assert tally.errors.total() == 2000


def test_the_rule_for_lengths_is_kept_where_a_length_was_asked() -> None:
    results = made_results(4)
    assert summed(results, output_length_rule="cap").output_length_rule == "cap"
    free = [msgspec.structs.replace(r, requested_output_tokens=None) for r in results]
    assert summed(free, output_length_rule="cap").output_length_rule is None


def test_groups_by_kind_and_turn_hold_every_request() -> None:
    results = [
        msgspec.structs.replace(r, turn=n % 9, energy=cost_of(r))
        for n, r in enumerate(made_results(90))
    ]
    summary = summed(results)
    assert sum(row.requests for row in summary.by_kind.values()) == 90
    assert list(summary.by_turn) == ["1", "2", "3", "4", "5+"]
    assert summary.by_turn["5+"].requests == 50
    joules = sum(
        (row.mean_joules or 0.0) * row.completed for row in summary.by_kind.values()
    )
    costs = [cost_of(r).energy_joules or 0.0 for r in results]
    assert joules == pytest.approx(sum(costs))


@pytest.mark.parametrize(
    ("changes", "rate"),
    [
        ({"rate_per_second": 4.0}, 4.0),
        ({"rate_per_second": None, "arrival": "inf", "span_seconds": 0.0}, "inf"),
        ({"rate_per_second": None, "arrival": "trace"}, None),
    ],
)
def test_request_rate_is_the_plans(changes: dict[str, Any], rate: object) -> None:
    assert summed(made_results(5), plan=header(**changes)).request_rate == rate


def test_at_rate_inf_lag_does_not_count_against_the_run() -> None:
    late = [
        msgspec.structs.replace(r, planned_seconds=0.0) for r in made_results(50)
    ]  # fmt: skip
    burst = header(arrival="inf", rate_per_second=None, span_seconds=0.0)
    assert summed(late, plan=burst).verdict.status == "valid"
    assert summed(late).verdict.status == "invalid"


def test_no_host_and_no_user_is_recorded() -> None:
    import getpass
    import platform

    text = json.dumps(environment())
    assert platform.node() not in text
    assert f'"{getpass.getuser()}"' not in text
    assert environment()["python"] == platform.python_version()


@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.floats(0.001, 50)), min_size=1, max_size=60
    )
)
def test_concurrency_agrees_with_counting_at_every_start(
    spans: list[tuple[float, float]],
) -> None:
    starts = [start for start, _ in spans]
    ends = [start + length for start, length in spans]
    found = concurrency(starts, ends)
    assert found is not None
    mean, peak = found
    at_starts = [
        sum(s <= at < e for s, e in zip(starts, ends, strict=True)) for at in starts
    ]
    assert peak == max(at_starts)
    busy = sum(e - s for s, e in zip(starts, ends, strict=True))
    assert mean == pytest.approx(busy / (max(ends) - min(starts)))
    assert mean <= peak + 1e-9


def test_a_record_costs_the_tally_well_under_two_kilobytes() -> None:
    results = made_results(300)
    tokens = sum(len(r.chunk_seconds) for r in results)
    assert tokens > 10_000
    tally = Tally(RunWindow(), {})
    tally.add_all(results)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(4):
            tally.add_all(results)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / 1200 < 2048


def test_requests_of_warm_up_count_among_those_in_flight_in_the_window() -> None:
    results = made_results(200)
    whole = Tally(RunWindow(), {}).add_all(results)
    late = Tally(RunWindow(10.0, 30.0), {}).add_all(results)
    at = [9.0, 10.0, 12.5, 29.0]
    assert late.in_flight(at) == whole.in_flight(at)
    assert sum(late.in_flight(at)) > 0


def test_each_process_is_judged_in_the_window_of_all() -> None:
    results = made_results(60)
    parts = [Part(number=1, cpu_seconds=0.5), Part(number=2, loop_lag_p99_seconds=0.01)]
    for number, result in enumerate(results):
        parts[number % 2].add(result)
    window = RunWindow(3.0, 9.0)
    rows = summed(results, window=window, parts=parts).schedule.processes
    inside = [[r for r in results[n::2] if window.holds(r)] for n in (0, 1)]
    assert [row.requests for row in rows] == [len(each) for each in inside]
    for row, mine in zip(rows, inside, strict=True):
        lags = [(r.sent_seconds or 0.0) - r.planned_seconds for r in mine]
        assert row.lag_ms is not None
        assert row.lag_ms.p99 == np.percentile(lags, 99) * 1000
    assert (rows[0].cpu_seconds, rows[1].loop_lag_p99_ms) == (0.5, 10.0)


def test_one_process_that_sends_it_all_has_no_row() -> None:
    assert summed(made_results(5)).schedule.processes == []
