"""Naive estimates: the paper's own figures, each peak named, nothing made up."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from loadgen.analysis.datasheets import GPU_SHEETS, gpu_sheet, model_sheet
from loadgen.analysis.naive import Given, Work, measured_over_naive, naive_block
from loadgen.analysis.schema import (
    HardwareBlock,
    NaiveBlock,
    NaiveEstimate,
    Summary,
)
from loadgen.analysis.summary import RunInfo
from loadgen.analysis.tally import RunWindow, Tally, attention_pairs
from loadgen.cli.naive import naive as command
from loadgen.errors import RunError, UsageError
from loadgen.report import naive as shown
from loadgen.report.html import render_html
from loadgen.report.sheet import render, to_markdown
from loadgen.run.finish import finish_run
from loadgen.simulator.core.presets import GPUS
from proxy.wire.api import BoardSummary
from tests.support.canned_run import failed, made_results, write_run
from tests.support.shown import printed


def run(folder: Path, **info: Any) -> Summary:
    write_run(folder, made_results(60))
    return finish_run(folder, RunInfo(**info))


def measured(summary: Summary, joules: float | None, **more: Any) -> Summary:
    energy = msgspec.structs.replace(
        summary.energy, measured_joules=joules, window_seconds=20.0, boundary="gpu"
    )
    return msgspec.structs.replace(summary, energy=energy, **more)


NOTHING = Given()


def estimates(summary: Summary, given: Given = NOTHING) -> dict[str, NaiveEstimate]:
    block = naive_block(summary, Work(0.0, 0.5), given)
    return {each.name: each for each in block.estimates}


def test_the_ideal_line_of_fernandez_for_both_peaks(tmp_path: Path) -> None:
    summary = measured(
        run(tmp_path / "run"), 1000.0,
        total_input_tokens=900, cached_tokens=0, total_output_tokens=100,
    )  # fmt: skip
    found = estimates(summary, Given(gpu="a6000", parameters=8e9))
    # 300 W / 309.7 TFLOPS x 2 x 8e9 x 1,000 tokens, footnote 5 of the paper
    assert found["flops_sparse_peak"].joules == pytest.approx(15.5, rel=0.002)
    assert found["flops_dense_peak"].joules == pytest.approx(31.0, rel=0.002)
    sparse, dense = (
        found[f"flops_{kind}_peak"].measured_over_naive for kind in ("sparse", "dense")
    )
    assert sparse is not None
    assert dense is not None
    assert sparse == pytest.approx(2 * dense)


def test_cached_prompt_tokens_are_no_flops(tmp_path: Path) -> None:
    whole = measured(run(tmp_path / "run"), 1.0, total_input_tokens=1000,
                     total_output_tokens=1, cached_tokens=0)  # fmt: skip
    cached = msgspec.structs.replace(whole, cached_tokens=999)
    given = Given(gpu="h100", parameters=1e9)
    before = estimates(whole, given)["flops_dense_peak"].joules
    after = estimates(cached, given)["flops_dense_peak"].joules
    assert before is not None
    assert after == pytest.approx(before * 2 / 1001)


def test_tdp_counts_every_gpu_for_the_whole_window(tmp_path: Path) -> None:
    summary = measured(run(tmp_path / "run"), 7000.0)
    found = estimates(summary, Given(gpu="h100", gpus=2, utilization=0.25))
    assert found["tdp_runtime"].joules == pytest.approx(2 * 700 * 20)
    assert found["utilization_tdp"].joules == pytest.approx(0.25 * 2 * 700 * 20)
    assert found["tdp_runtime"].measured_over_naive == pytest.approx(0.25)


def test_utilization_is_the_time_with_a_request_in_flight(tmp_path: Path) -> None:
    results = made_results(2)
    spans = [(1.0, 3.0), (2.0, 4.0)]
    moved = [
        msgspec.structs.replace(
            result, planned_seconds=start, sent_seconds=start, finished_seconds=end
        )
        for result, (start, end) in zip(results, spans, strict=True)
    ]
    tally = Tally(RunWindow(0.0, 6.0), {}).add_all(moved)
    assert tally.busy_fraction() == pytest.approx(0.5)
    assert Tally(RunWindow(0.0, 6.0), {}).busy_fraction() is None


def test_attention_looks_at_everything_before_a_token() -> None:
    result = msgspec.structs.replace(
        made_results(1)[0], prompt_tokens=10, cached_tokens=4, output_tokens=3
    )
    # positions 5..10 of the prompt, then 11..13
    assert attention_pairs(result) == sum(range(5, 14))


def test_what_is_not_known_names_its_option(tmp_path: Path) -> None:
    found = estimates(measured(run(tmp_path / "run", model="gpt2"), 10.0))
    assert "--gpu" in (found["flops_dense_peak"].reason or "")
    assert "--gpu" in (found["tdp_runtime"].reason or "")
    assert "--parameters" in (found["tokens_ecologits"].reason or "")
    assert found["flops_dense_peak"].joules is None
    with_board = estimates(
        measured(run(tmp_path / "other", model="gpt2"), 10.0), Given(gpu="l4")
    )
    assert "--parameters" in (with_board["flops_dense_peak"].reason or "")
    assert "--gpus" in (with_board["tdp_runtime"].reason or "")


def test_a_run_without_joules_has_estimates_and_no_ratio(tmp_path: Path) -> None:
    summary = run(tmp_path / "run", model="llama-3.1-8b", gpu="NVIDIA H200", gpus=1)
    assert summary.naive is not None
    found = {each.name: each for each in summary.naive.estimates}
    assert found["tdp_runtime"].joules is not None
    assert {each.measured_over_naive for each in summary.naive.estimates} == {None}
    assert "no metering proxy" in shown.facts(summary.naive)


def test_metadata_tells_what_the_run_does_not(tmp_path: Path) -> None:
    facts = {"gpu": "l40s", "gpus": "4", "parameters": "13e9"}
    summary = run(tmp_path / "run", metadata=facts)
    assert summary.naive is not None
    assert (summary.naive.gpu, summary.naive.gpus) == ("NVIDIA L40S", 4)
    assert summary.naive.parameters == 13e9
    strange = run(tmp_path / "other", metadata={"gpus": "many", "parameters": "-1"})
    assert strange.naive is not None
    assert strange.naive.gpus is None
    assert strange.naive.parameters is None


@pytest.mark.parametrize(
    ("models", "gpu", "count"),
    [
        (["NVIDIA L4", "NVIDIA L4"], "NVIDIA L4", 2),
        (["NVIDIA L4", "NVIDIA H200"], None, 2),
        ([None], None, 1),
    ],
    ids=["alike", "two models", "silent"],
)
def test_boards_tell_what_nobody_noted(
    tmp_path: Path, models: list[str | None], gpu: str | None, count: int
) -> None:
    boards = [
        BoardSummary(boundary="gpu", device=f"gpu{n}", seconds=1.0, model=model)
        for n, model in enumerate(models)
    ]
    boards.append(BoardSummary(boundary="node", device="cpu", seconds=1.0))
    summary = run(tmp_path / "run")
    summary = msgspec.structs.replace(summary, hardware=HardwareBlock(boards=boards))
    found = naive_block(summary, Work(0.0, 0.5))
    assert (found.gpu, found.gpus) == (gpu, count)


def test_a_run_of_nothing_but_failures_has_no_infinite_ratio(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [failed("f", at=1.0)])
    info = RunInfo(model="llama-3.1-8b", gpu="NVIDIA H100 80GB HBM3", gpus=1)
    summary = measured(finish_run(tmp_path / "run", info), 50.0)
    found = estimates(summary)
    assert found["flops_dense_peak"].joules == 0
    assert found["flops_dense_peak"].measured_over_naive is None


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (Given(gpu="h1000"), "--gpu h1000"),
        (Given(gpus=0), "--gpus 0"),
        (Given(utilization=90.0), "--utilization 90"),
        (Given(parameters=8.0), "--parameters 8"),
        (Given(joules_per_token=float("nan")), "--joules-per-token nan"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_figure_that_cannot_be_is_refused(
    tmp_path: Path, given: Given, named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        estimates(run(tmp_path / "run"), given)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H100 PCIe", "h100-pcie"),
        ("SIMULATED NVIDIA A100-SXM4-80GB", "a100-sxm"), ("NVIDIA L40S", "l40s"),
        ("nvidia rtx 6000 ada generation", "rtx-6000-ada"), ("A6000", "a6000"),
        ("NVIDIA L40", None), ("A100", None), ("", None), ("h100\x1b[31m", None),
    ],
)  # fmt: skip
def test_a_board_is_found_by_the_name_that_tools_print(
    name: str, key: str | None
) -> None:
    assert gpu_sheet(name) == (GPU_SHEETS[key] if key else None)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", 8.03e9), ("Qwen/Qwen2.5-7B", 7e9),
        ("Qwen2.5-0.5B", 0.5e9), ("Qwen3-30B-A3B", 3e9), ("mixtral-8x7B", None),
        ("OLMoE-1B-7B", None), ("gpt2", None), ("7B/other", None),
    ],
)  # fmt: skip
def test_a_model_is_as_large_as_its_name_says(
    name: str, parameters: float | None
) -> None:
    sheet = model_sheet(name)
    found = sheet and (sheet.active_parameters or sheet.parameters)
    assert found == parameters


def test_every_simulated_board_has_its_data_sheet() -> None:
    boards = {name: gpu for name, gpu in GPUS.items() if name != "xeon-2s"}
    for gpu in boards.values():  # the node without accelerators is none
        sheet = gpu_sheet(gpu.name)
        assert sheet is not None
        assert (sheet.dense_flops, sheet.tdp_watts) == (gpu.peak_flops, gpu.tdp_watts)


def test_the_command_prints_sources_and_every_form(tmp_path: Path) -> None:
    run(tmp_path / "run", model="llama-3.1-8b", gpu="NVIDIA H200", gpus=1)
    folder = str(tmp_path / "run")
    text = CliRunner().invoke(command, [folder]).output
    assert "data sheet" in text
    assert "EcoLogits" in text
    rows = CliRunner().invoke(command, [folder, folder, "--format", "csv"]).output
    parsed = list(csv.DictReader(io.StringIO(rows)))
    assert len(parsed) == 12
    assert {row["run"] for row in parsed} == {"run"}
    told = json.loads(CliRunner().invoke(command, [folder, "--format", "json"]).output)
    assert len(told[0]["naive"]["estimates"]) == 6
    out = tmp_path / "naive.md"
    CliRunner().invoke(command, [folder, "--format", "markdown", "-o", str(out)])
    assert "| FLOPs at dense peak x TDP |" in out.read_text()


def test_the_table_fits_a_terminal_and_the_page_has_it(tmp_path: Path) -> None:
    summary = run(tmp_path / "run", model="llama-3.1-8b", gpu="NVIDIA H200", gpus=1)
    assert summary.naive is not None
    sheets = shown.sheets("run", summary.naive, is_simulated=True)
    assert max(map(len, printed(render(sheets), width=80).splitlines())) <= 80
    assert "SIMULATED" in to_markdown(sheets)
    assert "measured / naive" in render_html(summary, made_results(60))


def test_a_folder_without_a_run_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, [str(tmp_path)])
    assert isinstance(result.exception, RunError)
    assert str(tmp_path) in str(result.exception)


def block_of(measured_joules: float | None, **joules: float | None) -> NaiveBlock:
    return NaiveBlock(
        gpu=None, gpus=None, model=None, parameters=None, boundary="gpu",
        measured_joules=measured_joules,
        estimates=[NaiveEstimate(name=n, joules=j) for n, j in joules.items()],
    )  # fmt: skip


def test_repeats_are_held_against_their_estimates_together() -> None:
    blocks = [block_of(10.0, tdp=20.0, flops=5.0), block_of(30.0, tdp=60.0, flops=None)]
    assert measured_over_naive(blocks) == {"tdp": 0.5, "flops": None}
    assert measured_over_naive([*blocks, block_of(None, tdp=1.0)])["tdp"] is None
    assert measured_over_naive([*blocks, None])["tdp"] is None
    assert measured_over_naive([block_of(1.0, tdp=0.0)]) == {"tdp": None}
    assert measured_over_naive([None]) == {}


def test_ratios_of_several_settings_are_one_sentence() -> None:
    settings: list[shown.Ratios] = [
        {"tdp_runtime": 0.5, "odd": None}, {"tdp_runtime": 0.812}, {}
    ]  # fmt: skip
    assert shown.ranges(settings) == (
        "measured over naive estimate: TDP x runtime 0.500 to 0.812"
    )
    assert shown.ranges([{"odd": 2.0}]) == "measured over naive estimate: odd 2.00"
    assert shown.ranges([{"odd": None}]) is None
