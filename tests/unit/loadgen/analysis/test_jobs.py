"""Jobs metered whole: a table of their own, compared with each other only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from loadgen.analysis.jobs import read_job
from loadgen.cli.compare import compare
from loadgen.cli.report import report
from loadgen.errors import RunError, UsageError
from proxy.measure.figures import Energy
from proxy.measure.report import (
    CommandReport,
    SourceReport,
    as_json,
    runtime_times_power,
)
from tests.support.finished_runs import run


def job(path: Path, joules: float | None, *, error: float = 5.0, **more: Any) -> Path:
    """The file that `metering-proxy meter --json` writes of a command."""
    least = 40.0 if joules is None else joules - error
    energy = Energy(
        device="all", joules=joules, at_least_joules=least,
        at_most_joules=None if joules is None else joules + error,
        mean_watts=None if joules is None else joules / 10, peak_watts=None,
        baseline_watts=50.0,
        above_baseline_joules=None if joules is None else joules - 500,
        unmeasured_seconds=0.0, gap_seconds={},
        unknown_because="sensor_gap" if joules is None else None,
    )  # fmt: skip
    source = SourceReport(
        source="nvml", boundary=more.pop("boundary", "gpu"), is_simulated=False,
        devices=(energy,), total=energy,
        runtime=runtime_times_power(700.0, "--tdp", 10.0, energy),
        samples=10, missed=0, errors=0, failure=None,
    )  # fmt: skip
    found = CommandReport(
        command=("train",), name="train", labels={"epochs": "3"},
        started_unix_seconds=0.0, duration_seconds=10.0,
        exit_code=more.pop("exit_code", 0), signal=None,
        sample_interval_seconds=0.02, sources=(source,),
    )  # fmt: skip
    path.write_text(json.dumps(as_json(found)))
    return path


def invoke(command: Any, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(each) for each in arguments])


def test_a_job_is_compared_by_the_bounds_of_its_sensor(tmp_path: Path) -> None:
    base, dear = job(tmp_path / "a.json", 2000.0), job(tmp_path / "b.json", 2200.0)
    rows = json.loads(invoke(compare, base, dear, "--format", "json").output)
    assert rows[0]["change"] is None
    assert rows[1]["change"] == pytest.approx(0.1)
    assert rows[1]["change_low"] == pytest.approx(2195 / 2005 - 1)
    assert rows[1]["change_high"] == pytest.approx(2205 / 1995 - 1)
    assert rows[0]["runtime_times_power_over_measured"] == pytest.approx(3.5)
    text = invoke(compare, base, dear).output
    assert "apart from inference" in text
    assert "+10.0 %" in text


def test_other_boundaries_are_not_compared(tmp_path: Path) -> None:
    gpu, node = (
        job(tmp_path / f"{name}.json", 2000.0, boundary=name)
        for name in ("gpu", "node")
    )
    rows = json.loads(invoke(compare, gpu, node, "--format", "json").output)
    assert [row["change"] for row in rows] == [None, None]


def test_an_unknown_energy_is_told_with_its_lower_bound(tmp_path: Path) -> None:
    lost = job(tmp_path / "lost.json", None, exit_code=9)
    text = invoke(report, lost).output
    assert "energy in gpu unknown: sensor gap; at least 40.0 J" in text
    assert "ended with code 9" in text


def test_jobs_and_runs_have_tables_of_their_own(tmp_path: Path) -> None:
    folder, train = run(tmp_path / "run"), job(tmp_path / "train.json", 2000.0)
    text = invoke(report, folder, train).output
    assert "verdict" in text
    assert "Jobs metered whole" in text
    both = json.loads(invoke(report, folder, train, "--json").output)
    assert [sorted(each) for each in both] == [["run", "summary"], ["job"]]
    refused = invoke(compare, folder, train).exception
    assert isinstance(refused, UsageError)
    assert "jobs metered whole are compared with jobs" in str(refused)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"command": 1}', "[" * 100_000])
def test_what_is_no_report_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(
        RunError, match=r"neither a run's folder nor a report"
    ) as caught:
        read_job(path)
    assert "\n" not in str(caught.value)
