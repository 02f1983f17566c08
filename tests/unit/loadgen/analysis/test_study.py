"""The table of a study: rows, repeats together, and what stands below the rows."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadgen.analysis.compare import ComparedRun, compared_run, pooled
from loadgen.analysis.study import Combination, StudyTable, study_rows
from loadgen.report import study as shown
from loadgen.results.recorder import read_results
from loadgen.run.finish import load_run
from tests.support.finished_runs import run, with_boundary
from tests.support.shown import printed


def read(folder: Path) -> ComparedRun:
    results = read_results(folder / "requests.jsonl")
    return compared_run(folder.name, load_run(folder), results)


def combination(server: str, *runs: Path, load: str = "online", **more: Any) -> Any:
    return Combination(
        names={"servers": server, "loads": load},
        baseline={"servers": "plain", "loads": load},
        runs=[read(folder) for folder in runs],
        **{"asked_runs": len(runs) or 1} | more,
    )


def table_of(*combinations: Combination, **more: Any) -> StudyTable:
    asked: dict[str, Any] = {"simulated": False, "about": None} | more
    return StudyTable(
        study="servers", axes=["servers", "loads"], baseline={"servers": "plain"},
        rows=study_rows(combinations, has_baseline=True), **asked,
    )  # fmt: skip


@pytest.fixture
def table(tmp_path: Path) -> StudyTable:
    return table_of(
        combination("plain", run(tmp_path / "plain")),
        combination("fast", run(tmp_path / "fast", 0.27)),
        combination("same", run(tmp_path / "same")),
        combination("lost", reason="the server lost ended with code 1\n  | log"),
    )


def test_a_row_has_its_change_against_the_baseline(table: StudyTable) -> None:
    plain, fast, same, lost = table.rows
    assert plain.is_baseline
    assert not plain.changes
    assert fast.changes[0].change == pytest.approx(-0.73)
    assert same.changes[0].is_real is False
    assert (lost.status, lost.runs) == ("failed", [])
    text = printed(shown.render(table))
    assert "-73.0 %" in text
    assert "~+0.0 %" in text
    assert "lost+online failed: the server lost ended with code 1" in text
    assert "not told apart from the baseline: same+online" in text


def test_a_row_whose_baseline_has_no_run_says_so(tmp_path: Path) -> None:
    table = table_of(
        combination("plain", reason="gone"), combination("fast", run(tmp_path / "fast"))
    )
    assert table.rows[1].baseline is None
    assert not table.rows[1].changes
    assert "plain+online failed: gone" in printed(shown.render(table))


def test_other_boundaries_are_never_compared(tmp_path: Path) -> None:
    table = table_of(
        combination("plain", run(tmp_path / "plain")),
        combination("node", with_boundary(run(tmp_path / "node", 3.0), "node")),
    )
    assert table.rows[1].changes[0].change is None
    assert "joules inside" in printed(shown.render(table))


def test_csv_and_markdown_have_every_row(table: StudyTable) -> None:
    rows = list(csv.DictReader(io.StringIO(shown.to_csv(table))))
    assert [row["servers"] for row in rows] == ["plain", "fast", "same", "lost"]
    assert float(rows[1]["joules_per_request_change"]) == pytest.approx(-0.73)
    assert rows[3]["joules_per_request"] == ""
    markdown = shown.to_markdown(table)
    assert "| fast | online |" in markdown
    widths = {line.count("|") for line in markdown.splitlines() if line[:1] == "|"}
    assert len(widths) == 1


def test_what_the_simulator_does_not_know_is_said(tmp_path: Path) -> None:
    plain = combination("plain", run(tmp_path / "plain"))
    drafted = combination(
        "drafted", run(tmp_path / "drafted"), not_simulated=["speculative"]
    )
    text = printed(shown.render(table_of(plain, drafted, simulated=True)))
    assert "not simulated, shows no effect: speculative (drafted+online)" in text
    assert "SIMULATED" in text


def test_repeats_are_one_sample_of_more_sessions(tmp_path: Path) -> None:
    runs = [read(run(tmp_path / f"r{n}", 1.0 + n / 10)) for n in range(3)]
    together = pooled(runs)
    assert together.sample.blocks == sum(one.sample.blocks for one in runs)
    joules = together.sample.columns["joules"]
    assert len(joules.values) == sum(
        len(o.sample.columns["joules"].values) for o in runs
    )
    assert np.unique(joules.blocks).tolist() == list(range(together.sample.blocks))
    assert pooled(runs[:1]) is runs[0]
