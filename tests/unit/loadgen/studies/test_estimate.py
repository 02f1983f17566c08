"""Energy summed from bins: the paper's formula, a replay beside it, bad input."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from loadgen.analysis.bins import bin_table, edges_of, lengths_of_trace
from loadgen.cli.estimate import estimate as command
from loadgen.errors import LoadgenError, UsageError
from loadgen.report.sheet import render
from loadgen.simulator.core.aggregate import step_cost
from loadgen.simulator.core.config import EngineConfig
from loadgen.studies.estimate import (
    BinPlan,
    EstimateReport,
    plans_of,
    played_batch,
    played_replay,
    sessions_inside,
    sessions_of_batches,
    summed,
    total_joules,
)
from loadgen.studies.estimate_sheet import sheets
from loadgen.traces.trace import Session, Turn
from tests.support.paths import ROOT
from tests.support.shown import printed

COST = step_cost(EngineConfig())


def sessions(*lengths: tuple[int, int]) -> list[Session]:
    return [
        Session(f"s{n}", (Turn(input_tokens=i, output_tokens=o),))
        for n, (i, o) in enumerate(lengths)
    ]


def table(*lengths: tuple[int, int]) -> Any:
    found = lengths_of_trace(sessions(*lengths))
    return found, bin_table("paper", edges_of("paper", found), found)


def test_the_sum_is_requests_over_batch_times_the_energy_of_a_batch() -> None:
    plans = [BinPlan("a", 10, 5, 30, 10), BinPlan("b", 20, 5, 8, 4)]
    bins = summed(plans, {"a": 100.0, "b": 50.0})
    assert [each.joules for each in bins] == [300.0, 100.0]
    assert [each.fraction for each in bins] == [0.75, 0.25]
    assert total_joules(bins) == 400.0


def test_a_bin_that_is_not_known_leaves_no_total() -> None:
    plans = [BinPlan("a", 10, 5, 30, 10), BinPlan("b", 20, 5, 8, 4)]
    bins = summed(plans, {"a": 100.0, "b": "no GPU"})
    assert total_joules(bins) is None
    assert bins[1].reason == "no GPU"
    assert bins[1].joules is None


def test_a_bin_is_measured_at_its_mean_or_at_its_ends() -> None:
    _, found = table((100, 9), (120, 15), (40, 3))
    (short, long) = plans_of(found, "mean", batch=4)
    assert (short.input_tokens, short.output_tokens, short.requests) == (40, 3, 1)
    assert (long.input_tokens, long.output_tokens, long.requests) == (110, 12, 2)
    (short, long) = plans_of(found, "edge", batch=4)
    assert (short.input_tokens, short.output_tokens) == (128, 8)
    assert (long.input_tokens, long.output_tokens) == (128, 16)


def test_the_largest_batch_is_what_the_cache_holds() -> None:
    _, found = table((8192, 512), (32, 8))
    small, large = plans_of(
        found, "edge", batch=None, capacity_tokens=100_000, max_num_seqs=256
    )
    assert (small.batch, large.batch) == (256, 100_000 // (8192 + 512))
    with pytest.raises(UsageError, match="--batch N"):
        plans_of(found, "edge", batch=None)


def test_requests_beyond_the_edges_are_in_neither_sum_nor_replay() -> None:
    lengths, found = table((100, 9), (9000, 9), (100, 600))
    assert found.beyond == 2
    assert len(sessions_inside(lengths, found)) == 1


@given(
    given=st.integers(1, 4000), written=st.integers(1, 300), batch=st.integers(1, 40)
)
def test_requests_of_one_length_are_estimated_exactly(
    given: int, written: int, batch: int
) -> None:
    plan = BinPlan("a", given, written, batch * 3, batch)
    each = played_batch(plan, 3, COST)
    assert isinstance(each, float)
    whole = played_replay(sessions_of_batches(plan, 3), batch, COST)
    assert total_joules(summed([plan], {"a": each})) == pytest.approx(whole)


def test_a_bin_that_does_not_fit_says_so() -> None:
    cost = step_cost(EngineConfig(kv_blocks=10))
    found = played_batch(BinPlan("a", 500, 5, 3, 1), 1, cost)
    assert found == "505 tokens do not fit the engine's 160 of KV cache"


@pytest.mark.parametrize("trace", ["azure-conv", "azure-code"])
def test_the_shipped_traces_are_estimated_within_ten_percent(trace: str) -> None:
    path = str(ROOT / "traces" / f"{trace}.jsonl")
    asked = [path, "--validate", "--num-prompts", "300", "--format", "json"]
    told = json.loads(CliRunner().invoke(command, asked).output)
    assert abs(told["error_fraction"]) < 0.1
    assert told["edge_error_fraction"] > told["error_fraction"] + 0.1


def test_the_command_prints_the_error_and_every_form(tmp_path: Path) -> None:
    path = written(tmp_path, [{"input_length": 100, "output_length": 9}] * 5)
    text = CliRunner().invoke(command, [str(path), "--validate"]).output
    assert "the estimate is off by" in text
    assert "SIMULATED" in text
    alone = CliRunner().invoke(command, [str(path)]).output
    assert "not validated" in alone
    rows = CliRunner().invoke(command, [str(path), "--format", "csv"]).output
    assert next(csv.DictReader(io.StringIO(rows)))["requests"] == "5"


def written(folder: Path, lines: list[dict[str, Any]]) -> Path:
    path = folder / "t.jsonl"
    head = {"loadtrace": "loadtrace/1", "name": "t"}
    path.write_text("".join(json.dumps(line) + "\n" for line in [head, *lines]))
    return path


@pytest.mark.parametrize(
    ("line", "words", "text"),
    [
        ({"prompt": "a", "output_length": 3}, [], "input_length"),
        ({"input_length": 9999, "output_length": 3}, [], "--edges percentile"),
        ({"input_length": 9, "output_length": 3}, ["--power", "nvml"], "--url"),
        ({"input_length": 9, "output_length": 3}, ["--real-time"], "--batch N"),
        ({"input_length": 9, "output_length": 3}, ["--folder", "x"], "--real-time"),
        (
            {"input_length": 9, "output_length": 3},
            ["--real-time", "--batch", "2", "--replay-option", "backend"],
            "NAME=VALUE",
        ),
    ],
    ids=["text", "beyond", "power", "batch", "folder", "option"],
)
def test_bad_input_is_one_line(
    tmp_path: Path, line: dict[str, Any], words: list[str], text: str
) -> None:
    path = written(tmp_path, [line])
    found = CliRunner().invoke(command, [str(path), *words]).exception
    assert isinstance(found, LoadgenError)
    assert text in str(found)
    assert "\n" not in str(found)


def test_the_table_fits_a_terminal() -> None:
    bins = summed([BinPlan("a", 8192, 512, 100_000, 256)], {"a": 123_456.0})
    report = EstimateReport(
        trace="t", engine="e", simulated=True, boundary="gpu", edge_set="paper",
        lengths="mean", batch=None, requests=5, beyond=1, unknown=2, joules=1.0,
        joules_per_request=0.2, bins=tuple(bins),
    )  # fmt: skip
    text = printed(render(sheets(report)), width=80)
    assert max(map(len, text.splitlines())) <= 80
