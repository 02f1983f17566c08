"""Runs against a baseline: real differences, what differs beside them, limits."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from loadgen.analysis.compare import FIGURES, compare, compared_run, parse_limit
from loadgen.analysis.schema import Summary
from loadgen.analysis.summary import RunInfo
from loadgen.cli.compare import compare as command
from loadgen.errors import LoadgenError, RunError, UsageError
from loadgen.report import comparison as shown
from loadgen.run.finish import finish_run
from tests.support.canned_run import made_results, write_run
from tests.support.finished_runs import metered, run, with_boundary
from tests.support.shown import printed


def compared(*arguments: object) -> Any:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_a_run_that_costs_more_is_told_by_how_much(tmp_path: Path) -> None:
    base, dear = run(tmp_path / "base"), run(tmp_path / "dear", 1.06)
    result = compared(base, dear, "--format", "json")
    (found,) = json.loads(result.output)
    changes = {change["figure"]: change for change in found["changes"]}
    energy = changes["joules_per_output_token"]
    assert found["is_paired"]
    assert energy["change"] == pytest.approx(0.06)
    assert energy["is_real"]
    assert energy["change_low"] <= 0.06 <= energy["change_high"] + 1e-12
    assert not changes["p50_ttft_seconds"]["is_real"]


def test_the_same_run_differs_in_nothing(tmp_path: Path) -> None:
    base = run(tmp_path / "base")
    (found,) = json.loads(compared(base, base, "--format", "json").output)
    assert {change["is_real"] for change in found["changes"]} == {False}
    assert found["differences"] == []


def test_joules_of_two_boundaries_are_never_compared(tmp_path: Path) -> None:
    base = with_boundary(run(tmp_path / "base"), "gpu")
    node = with_boundary(run(tmp_path / "node", 2.0), "node")
    result = compared(base, node)
    assert "joules inside gpu against joules inside node" in result.output
    assert "+100" not in result.output
    assert "differs: boundary: gpu -> node" in result.output


def test_settings_that_differ_are_listed(tmp_path: Path) -> None:
    base = run(tmp_path / "base", model="a", metadata={"gpu": "H100"})
    other = run(tmp_path / "other", model="b", max_concurrency=8)
    text = " ".join(compared(base, other).output.split())
    assert "differs: model: a -> b" in text
    assert "differs: max concurrency: unknown -> 8" in text
    assert "differs: metadata gpu: H100 -> unknown" in text


def test_a_run_without_energy_compares_its_latencies(tmp_path: Path) -> None:
    base, bare = run(tmp_path / "base"), tmp_path / "bare"
    write_run(bare, made_results(120))
    finish_run(bare, RunInfo())
    result = compared(base, bare)
    assert result.exit_code == 0
    assert "not known of the run: energy per request, mean" in result.output
    assert "TTFT p50" in result.output


@pytest.mark.parametrize(
    ("limit", "code"),
    [
        ("joules_per_output_token>+5%", 4),
        ("joules_per_output_token>10%", 0),
        ("joules_per_output_token<-5%", 0),
        ("p50_ttft_seconds>1%", 0),
    ],
)
def test_a_limit_fails_what_is_beyond_it(tmp_path: Path, limit: str, code: int) -> None:
    base, dear = run(tmp_path / "base"), run(tmp_path / "dear", 1.06)
    assert compared(base, dear, "--fail-if", limit).exit_code == code


def test_a_limit_that_cannot_be_told_fails(tmp_path: Path) -> None:
    base, few = run(tmp_path / "base"), run(tmp_path / "few", count=6)
    result = compared(base, few, "--fail-if", "joules_per_request>50%")
    assert result.exit_code == 4
    assert "cannot be told" in result.output


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("joules>5%", "unknown figure 'joules'"),
        ("joules_per_request>5", "expected a figure"),
        ("joules_per_request=5%", "expected a figure"),
        ("", "expected a figure"),
    ],
)
def test_a_limit_in_another_form_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse_limit(text)


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    base = run(tmp_path / "base")
    gone = compared(base, tmp_path / "gone")
    assert isinstance(gone.exception, RunError)
    assert "gone is not a run folder" in str(gone.exception)
    (base / "requests.jsonl").unlink()
    assert "requests.jsonl is gone" in str(compared(base, base).exception)


def test_every_form_has_every_figure(tmp_path: Path) -> None:
    base, dear = run(tmp_path / "base"), run(tmp_path / "dear_&_50%", 1.06)
    sheet = list(
        csv.DictReader(io.StringIO(compared(base, dear, "--format", "csv").output))
    )
    assert [row["figure"] for row in sheet] == list(FIGURES)
    latex = compared(base, dear, "--format", "latex").output
    assert latex.count(r"\\") == len(FIGURES) + 1
    assert "95 \\% interval" in latex
    markdown = compared(base, dear, "--format", "markdown").output
    assert markdown.count("\n| ") == len(FIGURES) + 1
    out = tmp_path / "table.txt"
    assert compared(base, dear, "-o", out).exit_code == 0
    assert "energy per output token" in out.read_text()


def test_parquet_reads_back_as_it_was_written(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    base, dear = run(tmp_path / "base"), run(tmp_path / "dear", 1.06)
    out = tmp_path / "table.parquet"
    assert compared(base, dear, "--format", "parquet", "-o", out).exit_code == 0
    rows = parquet.read_table(out).to_pylist()
    assert [row["figure"] for row in rows] == list(FIGURES)
    refused = compared(base, dear, "--format", "parquet")
    assert isinstance(refused.exception, LoadgenError)


def test_the_table_fits_its_terminal(tmp_path: Path) -> None:
    summary = msgspec.json.decode(
        (run(tmp_path / "base") / "summary.json").read_bytes(), type=Summary
    )
    base = compared_run("base", summary, metered(made_results(120)))
    dear = compared_run("a-run-with-a-name", summary, metered(made_results(120), 1.5))
    text = printed(shown.render([compare(base, dear)]), width=80)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "+50.0 %" in text
