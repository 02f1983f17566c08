"""The hardware section's arithmetic, on simulated readings: no GPU is at hand here."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest

from benchmarks.free_checks import ClassCost, Spread
from benchmarks.gpu_findings import (
    BEGIN,
    END,
    Division,
    Samples,
    division_lines,
    sensor_lines,
    sensor_of,
    with_section,
)
from benchmarks.gpu_validation import Probe
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
    shown = "\n".join(sensor_lines(bare))
    assert "| counter updates every | unknown |" in shown
    assert "| idle, engine loaded | 100 W |" in shown


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


def test_the_probe_sums_boards_and_never_a_part_of_them() -> None:
    source = TwoBoards()
    probe = Probe(source, lambda: None)
    probe.start()
    assert source.was_read.wait(10)
    found = probe.finish()
    assert found.watts is not None
    assert set(found.watts.tolist()) == {150.0}
    assert found.joules is None
    assert found.average_watts is None
