"""From a study's file to cells: their options, their names, what makes them another."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from loadgen.errors import UsageError
from loadgen.studies.matrix import Planned, generated_trace, only, planned_cells
from loadgen.studies.presets import server_command
from loadgen.studies.study_file import Server, Speculative, Spread, Workload, read_study

BASE = """\
study: tiny
model: meta/llama
servers:
  eager: {preset: vllm-eager, gpus: "1"}
  plain: {preset: transformers}
decoding:
  greedy: {temperature: 0}
  wide: {beam: 4}
skip: [{servers: plain, decoding: wide}]
workloads:
  short: {input: 100, output: 20, requests: 30}
loads:
  eight: {concurrency: 8}
repeat: 2
seed: 7
simulate: {requests: 12}
"""


def planned(folder: Path, text: str = BASE, **asked: Any) -> list[Planned]:
    path = folder / "study.yaml"
    path.write_text(text)
    return planned_cells(
        read_study(path), folder / "out", lambda _: "sha", lambda _: Path("t.jsonl"),
        **{"is_simulated": False} | asked,
    )  # fmt: skip


def test_names_say_what_tells_the_cells_apart(tmp_path: Path) -> None:
    assert [each.cell.name for each in planned(tmp_path)] == [
        "eager+greedy+r1", "eager+greedy+r2", "eager+wide+r1", "eager+wide+r2",
        "plain+greedy+r1", "plain+greedy+r2",
    ]  # fmt: skip


def test_only_some_cells_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(BASE)
    found = read_study(path)
    cells = planned(tmp_path)
    kept = only(cells, found, ["servers=eager", "decoding=greedy"])
    assert [each.cell.name for each in kept] == ["eager+greedy+r1", "eager+greedy+r2"]
    assert only(cells, found, []) == cells
    with pytest.raises(UsageError, match="--only servers=eagr: expected AXIS=NAME"):
        only(cells, found, ["servers=eagr"])


def test_options_are_those_of_a_replay(tmp_path: Path) -> None:
    first, second, wide, *_, plain = planned(tmp_path)
    options = first.cell.options
    assert options["rate"] == "inf"
    assert (options["max-concurrency"], options["seed"]) == (8, 7)
    assert (options["power"], options["gpus"]) == ("nvml", "1")
    assert "model" not in options
    assert second.cell.options["seed"] == 8
    assert wide.cell.options["extra-body"] == {"use_beam_search": True, "n": 4}
    assert plain.cell.options["model"] == "meta/llama"
    assert plain.cell.options["backend"] == "transformers"


def test_simulated_cells_ask_for_less_and_say_what_is_not_simulated(
    tmp_path: Path,
) -> None:
    first, _, wide, *_ = planned(tmp_path, is_simulated=True)
    trace = generated_trace("short", Workload(input=100, output=20), 12, 7)
    assert (
        first.cell.context["trace_sha256"]
        != planned(tmp_path)[0].cell.context["trace_sha256"]
    )
    assert len(trace.splitlines()) == 13
    assert wide.cell.options["n"] == 4
    assert wide.not_simulated == ("beam sorting",)
    assert "power" not in first.cell.options


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("vllm-eager", "vllm-graphs"),
        ("input: 100", "input: 101"),
        ("concurrency: 8", "concurrency: 9"),
        ("seed: 7", "seed: 6"),
        ("meta/llama", "meta/lama"),
        ('gpus: "1"', 'gpus: "1", environment: {TOKEN: secret}'),
    ],
)
def test_what_changes_a_run_makes_it_another_cell(
    tmp_path: Path, before: str, after: str
) -> None:
    was = planned(tmp_path)[0].cell
    now = planned(tmp_path, BASE.replace(before, after))[0].cell
    assert was.hash != now.hash
    assert "secret" not in json.dumps(now.context)


def test_an_entry_that_is_added_leaves_the_others_as_they_were(tmp_path: Path) -> None:
    was = {each.cell.hash for each in planned(tmp_path)}
    more = BASE.replace("workloads:", "workloads:\n  long: {input: 500, output: 9}")
    assert was <= {each.cell.hash for each in planned(tmp_path, more)}


def test_lengths_have_their_mean_and_deviation() -> None:
    workload = Workload(input=Spread(mean=300, sd=150), output=Spread(mean=5))
    header, *rows = map(
        json.loads, generated_trace("x", workload, 20_000, 3).splitlines()
    )
    assert header["synthetic"]
    given = [row["input_length"] for row in rows]
    assert statistics.mean(given) == pytest.approx(300, rel=0.02)
    assert statistics.stdev(given) == pytest.approx(150, rel=0.05)
    assert min(given) >= 1
    assert {row["output_length"] for row in rows} == {5}
    assert generated_trace("x", workload, 9, 3) == generated_trace("x", workload, 9, 3)
    assert generated_trace("x", workload, 9, 3) != generated_trace("x", workload, 9, 4)


def test_one_word_means_the_same_in_every_engine() -> None:
    asked: dict[str, Any] = {"dtype": "bfloat16", "quantization": "fp8"}
    more: dict[str, Any] = {
        "tensor_parallel": 2,
        "max_num_seqs": 8,
        "speculative": Speculative(model="d", tokens=3),
    }
    vllm = " ".join(
        server_command(Server(preset="vllm-eager", **asked, **more), "m", 80)
    )
    assert vllm == (
        "vllm serve m --host 127.0.0.1 --port 80 --enforce-eager --dtype bfloat16 "
        "--quantization fp8 --tensor-parallel-size 2 --max-num-seqs 8 "
        '--speculative-config {"model": "d", "num_speculative_tokens": 3}'
    )
    tgi = " ".join(server_command(Server(preset="tgi", **asked, **more), "m", 80))
    assert "--quantize fp8 --num-shard 2 --max-batch-size 8 --speculate 3" in tgi
    plain = server_command(Server(preset="transformers-compile", **asked), "m", 80)
    assert "--compile" in plain


def test_a_command_is_filled_in_word_by_word() -> None:
    server = Server(
        command="serve '{model} x' --at {host}:{port} --json '{\"a\": {\"b\": 1}}'",
        arguments=["{port}"],
    )
    assert server_command(server, "a b", 80) == [
        "serve", "a b x", "--at", "127.0.0.1:80", "--json", '{"a": {"b": 1}}', "80",
    ]  # fmt: skip
