"""The textfile of metered commands: what adds up, and what is left alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import ConfigError, ProxyError
from proxy.measure.figures import Energy, total_energy
from proxy.measure.report import CommandReport, SourceReport
from proxy.measure.textfile import (
    MAX_SERIES,
    RESERVED,
    Series,
    add_run,
    check_textfile,
    parse_totals,
    render_totals,
    series_of,
    update_textfile,
)
from tests.support.paths import ROOT

JOULES = "servewatt_command_energy_joules_total"


def energy(device: str, joules: float | None, at_least: float = 0.0) -> Energy:
    return Energy(
        device=device, joules=joules, at_least_joules=at_least, at_most_joules=None,
        mean_watts=None, peak_watts=None, baseline_watts=None,
        above_baseline_joules=None, unmeasured_seconds=0.0 if joules else 2.0,
        gap_seconds={}, unknown_because=None if joules else "sensor_gap",
    )  # fmt: skip


def report(*devices: Energy, **changes: object) -> CommandReport:
    source = SourceReport(
        source="nvml", boundary="gpu", is_simulated=False, devices=devices,
        total=total_energy(devices, 2.0, None), runtime=None, samples=100, missed=0,
        errors=0, failure=None,
    )  # fmt: skip
    made = CommandReport(
        command=("./train.sh",), name="train", labels={}, started_unix_seconds=1000.0,
        duration_seconds=2.0, exit_code=0, signal=None, sample_interval_seconds=0.02,
        sources=(source,),
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type] # fields by name


def shown(path: Path, name: str) -> dict[str, float]:
    """Values of one metric by the label that differs in these tests."""
    return {
        dict(labels).get("device") or dict(labels).get("outcome") or "": value
        for (own, labels), value in parse_totals(path.read_text()).items()
        if own == name
    }


def test_runs_of_one_name_add_up(tmp_path: Path) -> None:
    update_textfile(tmp_path, "ada", report(energy("gpu0", 10), energy("gpu1", 5)))
    failed = report(energy("gpu0", 2), exit_code=1, started_unix_seconds=2000.0)
    path = update_textfile(tmp_path, "ada", failed)
    assert path.name == "servewatt-ada@train.prom"
    assert shown(path, JOULES) == {"gpu0": 12, "gpu1": 5}
    assert shown(path, "servewatt_command_runs_total") == {"ok": 1, "failed": 1}
    assert shown(path, "servewatt_command_seconds_total") == {"": 4}
    end = "servewatt_command_last_end_timestamp_seconds"
    assert shown(path, end) == {"": 2002}


def test_unknown_energy_adds_what_was_measured_and_the_time_that_was_not(
    tmp_path: Path,
) -> None:
    path = update_textfile(tmp_path, "ada", report(energy("gpu0", None, at_least=7)))
    assert shown(path, JOULES) == {"gpu0": 7}
    assert shown(path, "servewatt_command_unmeasured_seconds_total") == {"": 2}


def test_users_and_names_have_files_of_their_own(tmp_path: Path) -> None:
    one = report(energy("gpu0", 1))
    paths = {
        update_textfile(tmp_path, "a-b", replace(one, name="c")),
        update_textfile(tmp_path, "a", replace(one, name="b-c")),
        update_textfile(tmp_path, "a", replace(one, name="b")),
    }
    assert len(paths) == 3
    assert all(shown(path, JOULES) == {"gpu0": 1} for path in paths)


def test_the_collector_may_read_the_file_and_finds_no_half_of_one(
    tmp_path: Path,
) -> None:
    path = update_textfile(tmp_path, "ada", report(energy("gpu0", 1)))
    assert path.stat().st_mode & 0o777 == 0o644
    assert [other.suffix for other in tmp_path.iterdir() if other != path] == [".lock"]


def test_runs_that_end_together_are_all_counted(tmp_path: Path) -> None:
    def add() -> None:
        for _ in range(10):
            update_textfile(tmp_path, "ada", report(energy("gpu0", 1)))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shown(tmp_path / "servewatt-ada@train.prom", JOULES) == {"gpu0": 40}


@pytest.mark.parametrize("content", ["up 1\n", "nonsense{", "\x00\xff"])
def test_a_file_that_is_not_ours_is_left_as_it_was(
    content: str, tmp_path: Path
) -> None:
    path = tmp_path / "servewatt-ada@train.prom"
    path.write_text(content, encoding="latin-1")
    before = path.read_bytes()
    with pytest.raises(ProxyError, match="was not updated"):
        update_textfile(tmp_path, "ada", report(energy("gpu0", 1)))
    assert path.read_bytes() == before


def test_labels_without_end_are_refused(tmp_path: Path) -> None:
    totals: dict[Series, float] = {
        ("x_total", (("job", str(job)),)): 1.0 for job in range(MAX_SERIES)
    }
    run = series_of(report(energy("gpu0", 1)), "ada")
    with pytest.raises(ValueError, match="fewer different --label values"):
        add_run(totals, run)
    assert add_run(run, run)


@pytest.mark.parametrize("label", [*RESERVED, "__name__", "a-b", "1st", ""])
def test_a_label_that_would_hide_ours_is_refused(label: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be a label"):
        check_textfile(tmp_path, "train", {label: "x"})


@given(
    label=st.text(st.characters(codec="utf-8"), max_size=30),
    joules=st.floats(0.001, 1e12),
)
def test_what_is_written_is_read_back(label: str, joules: float) -> None:
    run = series_of(report(energy("gpu0", joules), labels={"job": label}), "ada")
    assert parse_totals(render_totals(run).decode()) == run


@given(st.permutations([1.0, 2.0, 4.0, 8.0]))
def test_the_order_of_runs_changes_no_total(order: list[float]) -> None:
    totals = add_run({}, {})
    for joules in order:
        totals = add_run(totals, series_of(report(energy("gpu0", joules)), "ada"))
    assert {v for (name, _), v in totals.items() if name == JOULES} == {15.0}


@pytest.mark.prometheus
def test_promtool_finds_no_fault(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    path = update_textfile(
        tmp_path, "ada",
        report(energy("gpu0", 12345.678), labels={"job": 'a "quoted" \\ line\n'}),
    )  # fmt: skip
    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        input=path.read_bytes(), capture_output=True, check=False,
    )  # fmt: skip
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_the_command_adds_to_the_users_file(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "proxy", "meter", "--power", "none", "--textfile",
        str(tmp_path), "--quiet", "--", "true",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for _ in range(2):
        subprocess.run(command, env=environment, check=True, timeout=60)
    (path,) = tmp_path.glob("servewatt-*@true.prom")
    assert shown(path, "servewatt_command_runs_total") == {"ok": 2}
