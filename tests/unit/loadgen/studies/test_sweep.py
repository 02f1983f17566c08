"""Options with several values become points, in order, or one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loadgen.errors import TraceError, UsageError
from loadgen.studies.sweep import (
    Axis,
    SweepPlan,
    cells_of,
    check_points,
    combinations,
    name_of,
    parse_axes,
)


def plan(trace: str = "synthetic", **changes: Any) -> SweepPlan:
    fields: dict[str, Any] = {
        "trace_sha256": None, "fixed": {}, "axes": (Axis("rate", ("1", "2")),),
    }  # fmt: skip
    return SweepPlan(trace=trace, **(fields | changes))


def test_what_has_several_values_is_an_axis() -> None:
    axes, fixed = parse_axes(
        {
            "rate": ["1,2", "inf"], "output_len": ["8"], "top_p": ["0.5,1"],
            "goodput": ["ttft:200", "tpot:50"], "power": ["dcgm=http://a,rapl"],
            "extra_body": ['{"a": 1}', '{"a": 2}'], "ignore_eos": ["false"],
        }
    )  # fmt: skip
    assert axes == (
        Axis("rate", ("1", "2", "inf")),
        Axis("top-p", ("0.5", "1")),
        Axis("extra-body", ('{"a": 1}', '{"a": 2}')),
    )
    assert fixed == {
        "power": "dcgm=http://a,rapl", "output-len": "8", "ignore-eos": False,
        "goodput": ["ttft:200", "tpot:50"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"rate": ["1,0"]}, "--rate is '0': 0 is not above 0"),
        ({"rate": ["1,,2"]}, "--rate is ''"),
        ({"n": ["0,1"]}, "--n is '0', expected int >= 1"),
        ({"backend": ["vllm,foo"]}, "--backend is 'foo': not one of"),
        ({"rate": ["2,2"]}, "--rate has a value twice"),
        ({"seed": ["1,2"]}, "--seed is no axis"),
        ({"stages": ["60s@2,x"]}, "--stages is '60s@2,x'"),
    ],
)
def test_a_value_that_an_option_refuses_is_one_line(
    written: dict[str, list[str]], said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        parse_axes(written)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rates_rise_within_each_row_of_the_other_axes() -> None:
    axes = (Axis("rate", ("4", "inf", "1")), Axis("n", ("2", "1")))
    assert [name_of(each) for each in combinations(axes)] == [
        "rate=1, n=2", "rate=4, n=2", "rate=inf, n=2",
        "rate=1, n=1", "rate=4, n=1", "rate=inf, n=1",
    ]  # fmt: skip


def test_repeats_differ_in_their_seed_and_their_name() -> None:
    first, second = cells_of(plan(repeats=2, seed=5), {"rate": "2"})
    assert (first.name, second.name) == ("rate=2,repeat=1", "rate=2,repeat=2")
    assert (first.options["seed"], second.options["seed"]) == (5, 6)
    assert first.hash != second.hash
    (one,) = cells_of(plan(), {"rate": "2"})
    assert one.name == "rate=2"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (plan("gone.jsonl"), "gone.jsonl: no such trace"),
        (plan("plan.jsonl"), "plan.jsonl is a plan, whose load is fixed"),
        (plan("empty.jsonl"), "empty.jsonl"),
        (plan(fixed={"concurrency": "3"}), "at rate=1: --concurrency is a closed loop"),
        (
            plan(axes=(Axis("seed", tuple("123456789")),), repeats=200),
            "more than 1,000",
        ),
    ],
    ids=["no trace", "a plan", "an empty trace", "two loads", "too many"],
)
def test_points_that_could_not_run_are_refused_before_any_runs(
    given: SweepPlan, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plan.jsonl").write_text('{"plan": "plan/1"}')
    Path("empty.jsonl").write_text("")
    with pytest.raises((UsageError, TraceError), match=said):
        check_points(given)


def test_headers_are_in_no_plan() -> None:
    given = plan(headers=("authorization=s3cret",))
    assert "s3cret" not in str(given.asked)
    assert "s3cret" not in str(cells_of(given, {"rate": "1"}))
