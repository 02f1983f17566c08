"""The files in `studies/`, each with two of its cells and four requests, simulated."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from loadgen.studies.study_file import read_study
from tests.support.paths import ROOT
from tests.support.runs import loadgen

FILES = sorted((ROOT / "studies").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_runs_on_the_simulator(path: Path, tmp_path: Path) -> None:
    found = read_study(path)
    (axis, base), *_ = found.baseline.items()
    others = (name for name in found.axis(axis) if name != base)
    asked = [f"--only={axis}={name}" for name in (base, *islice(others, 1))]
    workload = next(iter(found.axis("workloads")))
    load = next(iter(found.axis("loads")))
    if axis != "loads":
        asked.append(f"--only=loads={load}")
    done = loadgen(
        "study", path, "--simulate", "--num-prompts", "4", *asked,
        f"--only=workloads={workload}", "--out", tmp_path / "out",
        cwd=tmp_path, seconds=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "SIMULATED" in done.stdout
    rows = json.loads((tmp_path / "out" / "table.json").read_text())["rows"]
    assert [row["status"] for row in rows] == ["finished", "finished"]
    assert sum(row["is_baseline"] for row in rows) == 1
    assert all(row["completed"] == 4 for row in rows)
    assert all(row["figures"]["joules_per_request"]["value"] > 0 for row in rows)
