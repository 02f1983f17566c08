"""The deal of a plan: a partition, sessions whole, loads alike at any time."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.errors import PlanError
from loadgen.plan.plan import (
    PlanHeader,
    PlannedSession,
    PlannedTurn,
    read_plan,
    requests_of_shards,
)
from loadgen.plan.shards import Deal, Shard, split

WEIGHTS = st.lists(st.integers(1, 9), min_size=1, max_size=6).map(tuple)
SIZES = st.lists(st.integers(1, 12), max_size=60)


def written(path: Path, sizes: list[int]) -> Path:
    header = PlanHeader(
        trace="t", trace_format="loadtrace", arrival="constant", rate_per_second=1.0,
        burstiness=None, seed=0, sessions=len(sizes), requests=sum(sizes),
        span_seconds=float(max(len(sizes) - 1, 0)),
    )  # fmt: skip
    sessions = [
        PlannedSession(
            session_id=f"s{number}",
            start_seconds=float(number),
            turns=[PlannedTurn(request_id=f"s{number}-{n}") for n in range(size)],
        )
        for number, size in enumerate(sizes)
    ]
    lines = [msgspec.json.encode(each) + b"\n" for each in (header, *sessions)]
    path.write_bytes(b"".join(lines))
    return path


@given(sizes=SIZES, weights=WEIGHTS)
def test_loads_by_weight_differ_by_one_session_at_most_after_each(
    sizes: list[int], weights: tuple[int, ...]
) -> None:
    deal = Deal(weights)
    for size in sizes:
        owner = deal.owner(size)
        assert 0 <= owner < len(weights)
        loads = [n / weight for n, weight in zip(deal.requests, weights, strict=True)]
        assert max(loads) - min(loads) <= max(sizes) + 1e-9
    assert sum(deal.requests) == sum(sizes)


@given(sizes=SIZES, weights=WEIGHTS)
def test_the_shards_are_the_plan_with_every_session_whole_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], weights: tuple[int, ...]
) -> None:
    path = written(tmp_path_factory.mktemp("plan") / "plan.jsonl", sizes)
    whole = list(read_plan(path)[1])
    parts = [
        list(read_plan(path, Shard(number, weights))[1])
        for number in range(len(weights))
    ]
    for part in parts:
        starts = [session.start_seconds for session in part]
        assert starts == sorted(starts)
    dealt = [session for part in parts for session in part]
    assert sorted(dealt, key=lambda s: s.start_seconds) == whole
    sent = [sum(len(session.turns) for session in part) for part in parts]
    assert requests_of_shards(path, weights) == sent


@given(total=st.integers(1, 10_000), parts=st.integers(1, 64))
def test_a_split_has_the_same_sum_and_parts_alike(total: int, parts: int) -> None:
    found = split(total, parts)
    assert sum(found) == total
    assert len(found) == parts
    assert max(found) - min(found) <= 1


@pytest.mark.parametrize("number", [0, 1])
def test_a_shard_of_a_plan_cut_short_is_refused_by_everybody(
    tmp_path: Path, number: int
) -> None:
    path = written(tmp_path / "plan.jsonl", [1, 1, 1, 1])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(PlanError, match="3 sessions, the header says 4"):
        list(read_plan(path, Shard(number, (1, 1)))[1])


def test_a_line_of_another_shard_is_still_a_line_of_a_plan(tmp_path: Path) -> None:
    path = written(tmp_path / "plan.jsonl", [1, 1])
    path.write_bytes(path.read_bytes().replace(b'"s1"', b'"s1'))
    with pytest.raises(PlanError, match="line 3"):
        list(read_plan(path, Shard(0, (1, 1)))[1])
