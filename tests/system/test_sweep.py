"""A sweep of seven points is killed, and gone on with where it was."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from loadgen.analysis.sweep import SweepResult
from loadgen.studies.cells import Cell
from loadgen.studies.launch import open_study
from loadgen.studies.sweep import Axis, Sweeping, SweepPlan
from tests.support.children import wait_for
from tests.support.paths import ROOT
from tests.support.runs import loadgen

RATES = "40,50,60,70,80,90,inf"
SWEEP = (
    "sweep", "synthetic", "--input-len", "20", "--output-len", "2", "--num-prompts",
    "12", "--rate", RATES, "--search", "0", "--no-stop", "--out", "sweep",
)  # fmt: skip


def finished(folder: Path) -> list[Path]:
    return sorted((folder / "sweep" / "cells").glob("[!.]*/cell.json"))


def test_a_sweep_that_is_killed_goes_on_without_repeating_a_point(
    tmp_path: Path,
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "loadgen", *SWEEP], cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for(lambda: len(finished(tmp_path)) >= 2)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    kept = {path: path.read_bytes() for path in finished(tmp_path)}
    assert 2 <= len(kept) < 7
    wait_for(lambda: not left_of(tmp_path))
    done = loadgen(*SWEEP, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("kept, finished before") == len(kept)
    assert done.stderr.count(": finished in") == 7 - len(kept)
    assert {path: path.read_bytes() for path in kept} == kept
    found = json.loads(done.stdout)
    assert [each["axes"]["rate"] for each in found["points"]] == RATES.split(",")
    assert found["simulated"] is True
    assert all(
        each["figures"]["joules_per_request"]["value"] for each in found["points"]
    )
    table = (tmp_path / "sweep" / "sweep.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(table)))
    assert len(rows) == 7
    assert all(0 < float(row["measured_over_naive_tdp_runtime"]) < 2 for row in rows)
    assert "SIMULATED" in (tmp_path / "sweep" / "sweep.html").read_text()
    other = loadgen(*SWEEP, "--repeat", "2", cwd=tmp_path)
    assert other.returncode == 2
    assert other.stderr.count("\n") == 1
    assert "now it is --repeat 2" in other.stderr


def left_of(folder: Path) -> list[str]:
    """Processes that write into the sweep's folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                shown = os.readlink(entry / "fd" / "2")
            except OSError:
                continue
            if shown.startswith(str(folder / "sweep")):
                found.append(shown)
    return found


def canned(one: Cell, run: Path) -> list[str]:
    rate, seed = one.options["rate"], one.options["seed"]
    return [
        sys.executable, "-m", "tests.support.sweep_child", str(run), str(rate),
        str(seed),
    ]  # fmt: skip


def swept(
    folder: Path, rates: str, search: int
) -> tuple[SweepResult, int, list[float]]:
    """A sweep over rates of an engine that is known, and what it paused for."""
    axis = Axis("rate", tuple(rates.split(",")))
    plan = SweepPlan(
        trace="synthetic", trace_sha256=None, fixed={}, axes=(axis,), repeats=2,
        search_runs=search,
    )  # fmt: skip
    paused: list[float] = []
    with open_study(folder, "sweep", plan.asked, [], say=lambda _: None) as study:
        found = Sweeping(study, plan, 5.0, paused.append, canned).run()
    return found, study.exit_code, paused


def test_a_sweep_finds_saturation_and_the_least_joules_of_a_known_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    found, code, paused = swept(tmp_path, "1,3,4,16,32", search=5)
    assert code == 1
    assert found.failed == ["rate=3"]
    assert found.skipped == ["rate=32"]  # 16 queues already
    assert len(paused) == 2 * (len(found.points) + 1) - 1
    assert found.saturation is not None
    assert found.saturation.saturated_per_second == 16
    # idle power over more requests, until they wait: just below 10 per second
    assert found.best is not None
    assert 5 <= found.best.rate_per_second < 10
    assert found.best.is_bracketed
    by_rate = {point.rate: point for point in found.points}
    assert by_rate[1.0].joules_per_good.value == pytest.approx(64, rel=0.05)
    assert by_rate[16.0].good < by_rate[1.0].good / 2
    assert by_rate[4.0].repeats == 2
    again, _, paused = swept(tmp_path, "1,3,4,16,32", search=5)
    assert again == found  # read from the folder; what failed is tried again
    assert len(paused) == 1
