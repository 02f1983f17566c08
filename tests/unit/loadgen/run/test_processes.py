"""How many processes a run has, and how its limits are shared among them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loadgen.client.backends import RequestOptions, Target
from loadgen.errors import UsageError
from loadgen.plan.plan import PlanHeader
from loadgen.plan.shards import Shard
from loadgen.run.config import ReplayConfig
from loadgen.run.processes import check_processes, shares_of
from loadgen.run.sender import Job

CONFIG = ReplayConfig(trace=Path("t.jsonl"), processes=3)
HEADER = PlanHeader(
    trace="t", trace_format="loadtrace", arrival="poisson", rate_per_second=1.0,
    burstiness=None, seed=0, sessions=100, requests=200, span_seconds=9.0,
)  # fmt: skip


def limit(option: str, slots: int) -> dict[str, Any]:
    return {option: slots}


@pytest.mark.parametrize("option", ["concurrency", "max_concurrency"])
def test_each_process_has_a_request_in_flight_or_is_refused(option: str) -> None:
    check_processes(CONFIG)
    check_processes(replace(CONFIG, **limit(option, 3)))
    with pytest.raises(
        UsageError, match=r"--processes 3 is more than --.*concurrency 2"
    ):
        check_processes(replace(CONFIG, **limit(option, 2)))


@pytest.mark.parametrize("option", ["concurrency", "max_concurrency"])
def test_a_limit_is_shared_exactly_and_so_is_the_load(option: str) -> None:
    assert shares_of(replace(CONFIG, **limit(option, 8)), HEADER) == (3, 3, 2)
    assert shares_of(CONFIG, HEADER) == (1, 1, 1)


def test_there_are_no_more_processes_than_sessions() -> None:
    few = PlanHeader(
        trace="t", trace_format="loadtrace", arrival="poisson", rate_per_second=1.0,
        burstiness=None, seed=0, sessions=2, requests=20, span_seconds=9.0,
    )  # fmt: skip
    assert shares_of(CONFIG, few) == (1, 1)
    assert shares_of(replace(CONFIG, max_concurrency=5), few) == (3, 2)


def test_a_process_is_given_all_that_one_process_has(tmp_path: Path) -> None:
    job = Job(
        plan="run/plan.jsonl",
        shard=Shard(1, (3, 2)),
        records=str(tmp_path / "requests-2.jsonl"),
        target=Target(
            "https://engine:8000/base", "vllm", model="m", endpoint="/v2",
            api_key="secret", headers={"x-team": "a"},
        ),
        options=RequestOptions(
            output_tokens=5, ignore_eos=False, temperature=0.5, top_p=0.9, n=2,
            extra_body={"top_k": 1, "nested": {"a": [1.5, None]}}, hash_block_size=512,
        ),
        max_concurrency=2,
        is_closed_loop=True,
        timeout_seconds=1.5,
        seed=7,
    )  # fmt: skip
    line = msgspec.json.encode(job)
    assert b"\n" not in line
    assert msgspec.json.decode(line, type=Job) == job
