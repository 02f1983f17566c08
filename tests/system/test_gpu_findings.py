"""The hardware section's arithmetic, on simulated readings: no GPU is at hand here."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.free_checks import ClassCost, Spread
from benchmarks.gpu_findings import (
    BEGIN,
    END,
    Division,
    Samples,
    against_isolated,
    at_the_edges,
    coverage,
    division_lines,
    in_flight,
    joules_between,
    page_of,
    phase_finding,
    sensor_of,
    with_section,
)
from benchmarks.gpu_validation import Findings, Watch
from loadgen.simulator.core.sensor import GpuSensor, PowerCurve, SensorConfig
from proxy.wire.facts import Reading
from tests.support.paths import ROOT

SPANS = [(1000.0 + start, 1000.0 + start + 4.0) for start in (6.0, 16.0, 26.0, 36.0)]
IDLE_WATTS, BUSY_WATTS = 100.0, 500.0


def samples(*, has_counter: bool = True, has_average: bool = True) -> Samples:
    """The simulated sensor over four bursts, read every 5 ms."""
    read = []
    for averaging in (0.0, 1.0):
        curve = PowerCurve(IDLE_WATTS)
        config = SensorConfig(period_seconds=0.1, averaging_seconds=averaging)
        sensor = GpuSensor(curve, config)
        for began, ended in SPANS:
            joules = BUSY_WATTS * (ended - began)
            curve.extend(began - 1000.0, ended - 1000.0, joules)
        read.append([sensor.read(at) for at in np.arange(0.0, 44.0, 0.005).tolist()])
    instant, average = read
    return Samples(
        1000.0 + np.arange(0.0, 44.0, 0.005),
        np.array([each.joules for each in instant]) if has_counter else None,
        np.array([each.watts for each in instant]),
        np.array([each.watts for each in average]) if has_average else None,
    )


def test_levels_period_and_ratio_of_a_sensor_are_found() -> None:
    found = sensor_of(samples(), SPANS)
    assert found.idle_watts == pytest.approx(IDLE_WATTS, rel=0.02)
    assert found.loaded_watts == pytest.approx(BUSY_WATTS, rel=0.02)
    assert found.period_seconds == pytest.approx(0.1, abs=0.006)
    assert found.counter_by_instant == pytest.approx(1.0, abs=0.02)
    assert found.counter_by_average == pytest.approx(1.0, abs=0.02)


def test_an_averaged_figure_is_seen_to_lag_and_the_counter_is_not() -> None:
    lags = sensor_of(samples(), SPANS).lags_seconds
    assert lags["counter"] <= 0.1
    assert lags["instant power"] <= 0.12
    assert 0.35 <= lags["average power"] <= 0.65


def test_what_a_board_lacks_is_unknown_and_not_zero() -> None:
    bare = sensor_of(samples(has_counter=False, has_average=False), SPANS)
    assert bare.period_seconds is None
    assert bare.counter_by_instant is None
    assert bare.idle_watts == pytest.approx(IDLE_WATTS, rel=0.02)
    assert set(bare.lags_seconds) == {"instant power"}


def test_the_checks_are_one_line_per_policy() -> None:
    division = Division(
        "phase",
        [Spread(96, 0.005, 0.02, 0.1)],
        [ClassCost("code", 50.0, 1.0, 52.0)],
        {"all": 1.0, "code": 0.98},
    )
    (*_, line) = division_lines([division])
    assert line == ("| phase | 0.5%, 2.0% | code 1.04 (2%) | all 1.00, code 0.98 |")


def test_only_the_hardware_section_is_replaced() -> None:
    document = f"# Title\n\n{BEGIN}\nold\n{END}\nrest\n"
    assert with_section(document, "new") == f"# Title\n\n{BEGIN}\nnew\n{END}\nrest\n"
    with pytest.raises(ValueError, match="hardware"):
        with_section("# Title\n", "new")


def test_the_document_has_the_section() -> None:
    text = (ROOT / "docs" / "validation.md").read_text()
    assert "new findings" in with_section(text, "new findings")


def test_without_a_gpu_it_says_so_in_one_line_and_fails() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_validation", "--power",
         "dcgm=http://127.0.0.1:9/metrics"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert ended.returncode != 0
    assert ended.stderr.startswith("gpu_validation: no GPU to validate on: ")
    assert len(ended.stderr.splitlines()) == 1


def test_without_an_engine_it_keeps_what_it_found_and_says_why(tmp_path: Path) -> None:
    rows = "".join(f"{second},{300 * second},300\n" for second in range(100))
    recording = tmp_path / "gpu.csv"
    recording.write_text(f"# boundary=gpu\nseconds,joules,watts\n{rows}")
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_validation", "--quick",
         "--power", f"csv={recording}", "--engine-python", "/no/such/python",
         "--out", str(tmp_path / "found"), "--room", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert ended.returncode != 0
    (line,) = ended.stderr.splitlines()
    assert line.startswith("gpu_validation: 8b: ")
    assert "3b: " in line
    found = json.loads((tmp_path / "found" / "findings.json").read_text())
    assert found["bare"]["watts"] is None or found["bare"]["watts"] > 0
    assert set(found["left_out"]) == {"engine 8b", "engine 3b"}


class TwoBoards:
    """A source whose second board has no counter."""

    name, boundary, is_simulated = "two", "gpu", True

    def read(self) -> list[Reading]:
        """Both boards."""
        self.was_read.set()
        return [Reading("gpu0", 10.0, 100.0), Reading("gpu1", None, 50.0)]

    def close(self) -> None:
        """Nothing to close."""

    def __init__(self) -> None:
        self.was_read = threading.Event()


def test_the_watch_sums_boards_and_never_a_part_of_them() -> None:
    source = TwoBoards()
    watch = Watch(source, lambda: None, 0.001)
    watch.start()
    assert source.was_read.wait(10)
    watch.stop()
    found = watch.between()
    assert found.watts is not None
    assert set(found.watts.tolist()) == {150.0}
    assert found.joules is None
    assert found.average_watts is None


# -- loads ---------------------------------------------------------------------


def record(
    request_id: str, begin: float, end: float, joules: float, **energy: object
) -> dict[str, Any]:
    parts = {"energy_joules": joules, "policy_joules": {"phase": joules}}
    return {
        "request_id": request_id, "arrived_unix_seconds": begin,
        "scheduled_unix_seconds": begin, "last_token_unix_seconds": end,
        "prompt_tokens": 100, "cached_tokens": 0, "output_tokens": 50,
        "energy": parts | energy,
    }  # fmt: skip


def books(joules: float, prefill: float, decode: float) -> dict[str, Any]:
    return {
        "measured_joules": joules, "residual_joules": 0.0, "idle_watts": IDLE_WATTS,
        "attributed_joules": {"prefill": prefill, "decode": decode},
        "complete": True, "window_seconds": 0.5,
    }  # fmt: skip


SUMMARY = {"median_ttft_ms": 50.0, "median_tpot_ms": 10.0, "verdict": {}}


def phase(name: str, requests: int, active: float, **more: object) -> dict[str, Any]:
    found = {
        "name": name, "requests": requests, "active_joules": active,
        "prompt_tokens": 100 * requests, "output_tokens": 50 * requests,
    }  # fmt: skip
    return found | more


def test_the_counter_between_two_instants_is_known_between_its_changes_only() -> None:
    found = samples()
    idle = joules_between(found, 1001.0, 1005.0)
    assert idle == pytest.approx(4 * IDLE_WATTS, rel=0.01)
    assert joules_between(found, 990.0, 1005.0) is None
    assert joules_between(samples(has_counter=False), 1001.0, 1005.0) is None


def test_a_load_between_silences_has_the_same_joules_in_counter_and_books() -> None:
    records = [record("a", 1006.0, 1010.0, 800.0), record("b", 1006.0, 1008.0, 700.0)]
    burst = 8 * IDLE_WATTS + 4 * (BUSY_WATTS - IDLE_WATTS)
    pair = (books(1000.0, 0.0, 0.0), books(1000.0 + burst, 300.0, 1300.0))
    found = phase_finding(
        "batch 2", (1004.0, 1012.0), samples(), pair, records, SUMMARY
    )
    assert found["counter_over_books"] == pytest.approx(1.0, abs=0.01)
    assert found["active_joules"] == pytest.approx(1600.0, rel=0.02)
    assert (found["prefill_joules"], found["decode_joules"]) == (300.0, 1300.0)
    assert found["in_flight"] == pytest.approx(1.5)
    assert found["request_joules"] == {"mean": 750.0, "min": 700.0, "max": 800.0}
    assert in_flight([]) is None


def test_books_cut_inside_a_window_give_what_a_jump_brought_to_both_sides() -> None:
    def interpolated(at: float) -> dict[str, Any]:
        """Books in windows of 0.5 s, which end 0.1 s after load begins or ends."""
        exact = [(at_, true_joules(at_)) for at_ in np.arange(1000.1, 1020.0, 0.5)]
        return books(float(np.interp(at, *zip(*exact, strict=True))), 0.0, 0.0)

    def true_joules(at: float) -> float:
        return IDLE_WATTS * (at - 1000.0) + (BUSY_WATTS - IDLE_WATTS) * float(
            np.clip(at - 1006.0, 0.0, 4.0)
        )

    silent = interpolated(1012.0)["measured_joules"]
    silent -= interpolated(1004.0)["measured_joules"]
    assert silent == pytest.approx(true_joules(1012.0) - true_joules(1004.0))
    found = at_the_edges(samples(), interpolated, [record("a", 1006.0, 1010.0, 1.0)])
    assert 1.01 < found["counter_over_books"] < 1.06


def test_a_split_is_held_against_what_each_phase_cost_alone() -> None:
    alone = [
        phase("single stream", 1, 100 + 50 * 4.0),
        phase("batch 4", 4, 4 * (100 + 50 * 2.0)),
        phase("prefill alone", 5, 500.0, output_tokens=5),
    ]
    together = phase(
        "mixed", 10, 2700.0, in_flight=2.0, prefill_joules=900.0, decode_joules=1500.0
    )
    found = against_isolated(alone, together)
    assert found["prefill_joules_per_prompt_token"] == 1.0
    assert found["expected_decode_joules"] == pytest.approx(500 * 3.0)
    assert found["prefill_over_expected"] == pytest.approx(0.9)
    assert found["decode_over_expected"] == pytest.approx(1.0)
    assert found["both_over_expected"] == pytest.approx(2700 / 2500)


def test_intervals_are_counted_by_symmetry_and_by_truth() -> None:
    alike = [
        record("a", 0, 1, 90.0, low_joules=80.0, high_joules=99.0),
        record("b", 0, 1, 110.0, low_joules=90.0, high_joules=130.0),
    ]
    found = coverage({"batch 2": alike}, [], {"a": 85.0, "b": 85.0})
    assert found["intervals"] == 2
    assert found["covered_by_symmetry"] == 0.5  # 100 J each
    assert found["covered_by_truth"] == 0.5
    nothing = coverage({"batch 2": [record("a", 0, 1, 90.0)] * 2}, [], {})
    assert nothing == {
        "intervals": 0, "mean_half_width": None, "covered_by_symmetry": None,
        "covered_by_truth": None,
    }  # fmt: skip


def test_a_step_that_fails_or_does_not_fit_ends_no_other(tmp_path: Path) -> None:
    findings = Findings(tmp_path, seconds=100.0)

    def fault() -> object:
        raise RuntimeError("no engine")

    findings.add("run", {"simulated": True, "power": "dcgm", "date": "2026-11-27"})
    findings.step("speed", 10, fault)
    findings.step("mixed", 1000, fault)
    findings.step("idle", 10, lambda: {"read_watts": 70.0, "learnt_watts": None,
                                       "source": "unknown"})  # fmt: skip
    kept = json.loads((tmp_path / "findings.json").read_text())
    assert kept["left_out"]["speed"] == "RuntimeError: no engine"
    assert kept["left_out"]["mixed"].startswith("needs 1000 s")
    page = (tmp_path / "page.md").read_text()
    assert "**Pending: no GPU was available.**" in page
    assert "| idle, engine loaded: read | 70.0 W |" in page
    assert "- Left out: speed: RuntimeError: no engine" in page
    assert page == page_of(kept)


def test_it_runs_whole_on_the_simulated_stack(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_validation", "--simulated", "--quick",
         "--out", str(tmp_path / "found"), "--seconds", "300"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=400,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = json.loads((tmp_path / "found" / "findings.json").read_text())
    assert found.get("left_out", {}) == {}
    expected = (
        "loaded_counter", "idle", "speed", "phase single stream", "phase batch 2",
        "phase prefill alone", "phase decode alone", "mixed", "split", "edges",
        "coverage", "sensor", "calibration",
    )  # fmt: skip
    assert set(expected) <= set(found)
    assert found["mixed"]["requests"] > 0
    assert abs(found["mixed"]["residual_joules"]) < 1e-3
    page = (tmp_path / "found" / "page.md").read_text()
    assert "SIMULATED" in page
    assert "A short try: no figures." in page
