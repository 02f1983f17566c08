"""Lines in which a command names its parts."""

from __future__ import annotations

import pytest

from proxy.measure.phases import Phase, parse_phases

GOOD = '{"name": "epoch 1", "begin_seconds": 10.5, "end_seconds": 12}\n'


def test_each_line_is_a_phase_and_more_may_stand_in_it() -> None:
    more = '\n{"name": "b", "begin_seconds": 1, "end_seconds": 2, "loss": 0.3}\n'
    assert parse_phases(GOOD + more) == (
        [Phase("epoch 1", 10.5, 12.0), Phase("b", 1.0, 2.0)], None,
    )  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"name": "x"}',
        '{"name": "x", "begin_seconds": 2, "end_seconds": 1}',
        '{"name": "x", "begin_seconds": 2, "end_seconds": 1e999}',
        '{"name": 3, "begin_seconds": 2, "end_seconds": 4}',
        "[" * 100_000,
    ],
    ids=["cut", "list", "half", "backwards", "for ever", "no name", "deep"],
)
def test_a_bad_line_is_named_and_costs_only_itself(line: str) -> None:
    found, wrong = parse_phases(f"{line}\n{GOOD}")
    assert [phase.name for phase in found] == ["epoch 1"]
    assert wrong is not None
    assert wrong.startswith("line 1: ")
