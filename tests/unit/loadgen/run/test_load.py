"""The load that options ask for: a closed loop, stages, requests of one length."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from loadgen.analysis.dry_run import dry_run_of
from loadgen.errors import UsageError
from loadgen.plan.plan import plan_of, read_plan
from loadgen.run.config import ReplayConfig
from loadgen.run.load import load_of, synthetic_lengths, synthetic_requests
from loadgen.traces.fixed import fixed_lengths


def config(**options: Any) -> ReplayConfig:
    return ReplayConfig(trace=Path("synthetic"), **options)


@pytest.mark.parametrize(
    ("options", "requests"),
    [
        ({"num_prompts": 7}, 7),
        ({"concurrency": 2}, 100),
        ({"concurrency": 8}, 160),
        ({"rate": 4.0, "duration": 100.0}, 580),
        ({"stages": ((10.0, 2.0), (20.0, 4.0))}, 220),
        ({"rate": math.inf}, 100),
    ],
)
def test_requests_are_as_many_as_the_load_takes(
    options: dict[str, Any], requests: int
) -> None:
    assert synthetic_requests(config(**options)) == requests


def test_lengths_have_a_default() -> None:
    assert synthetic_lengths(config()) == (512, 128)
    assert synthetic_lengths(config(input_len=9, output_len=3)) == (9, 3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"concurrency": 2, "rate": 1.0}, "without --rate"),
        ({"concurrency": 2, "max_concurrency": 3}, "without --max-concurrency"),
        ({"concurrency": 2, "stages": ((1.0, 1.0),)}, "without --stages"),
        ({"stages": ((1.0, 1.0),), "rate": 1.0}, "rate_per_second and stages"),
    ],
)
def test_two_kinds_of_load_exclude_each_other(
    options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        load_of(config(**options))


def test_lengths_of_a_trace_are_its_own() -> None:
    with pytest.raises(UsageError, match="--input-len is for the trace `synthetic`"):
        load_of(ReplayConfig(trace=Path("t.jsonl"), input_len=3))


def test_a_dry_run_counts_what_would_be_sent(tmp_path: Path) -> None:
    load = load_of(config(stages=((10.0, 2.0),)))
    header, sha256 = plan_of(
        lambda: fixed_lengths(200, 30, 5), "synthetic", load, tmp_path / "plan"
    )
    header, sessions = read_plan(tmp_path / "plan")
    found = dry_run_of(
        header, sessions, plan_sha256=sha256, output_tokens=None, copies=2,
        length_rule="forced", target="x",
    )  # fmt: skip
    assert found.requests == header.requests < 40
    assert found.prompt_tokens == 30 * found.requests
    assert found.output_tokens == 10 * found.requests
    assert found.span_seconds < 10
    assert "stages: 10 s at 2/s" in header.notes
    assert header.rate_per_second == 2
