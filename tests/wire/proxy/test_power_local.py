"""Sensors of this host: RAPL's files, AMD's module, ipmitool, recordings."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import ConfigError, SensorError
from proxy.power.energy_source import SourceOptions
from proxy.power.sampler import Sampler
from proxy.power.sources import source_opener
from proxy.power.sources.amdsmi import open_amdsmi
from proxy.power.sources.csv import Recording, parse_recording
from proxy.power.sources.ipmi import parse_dcmi, parse_sensor
from proxy.power.sources.rapl import RaplSource
from proxy.wire.events import PowerSampled
from proxy.wire.facts import Reading
from tests.support.power_benches import (
    ChildSource,
    amdsmi_module,
    child,
    executable,
    zone,
)

PATIENCE_SECONDS = 20
RANGE_MICROJOULES = 262143328850


def test_rapl_reads_packages_and_memory_and_counts_nothing_twice(
    tmp_path: Path,
) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 3_000_000)
    zone(tmp_path, "intel-rapl:0:1", "uncore", 1_000_000)
    zone(tmp_path, "intel-rapl:0:2", "dram", 700_000)
    zone(tmp_path, "intel-rapl:1", "package-1", 6_000_000)
    zone(tmp_path, "intel-rapl:2", "psys", 90_000_000)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 5_000_000)
    assert RaplSource(tmp_path).read() == [
        Reading("package-0", 5.0),
        Reading("package-0-dram", 0.7),
        Reading("package-1", 6.0),
    ]


def test_rapl_counts_a_mirrored_package_once_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    zone(tmp_path, "intel-rapl:0:0", "dram", 700_000)
    zone(tmp_path, "intel-rapl:1", "package-0", 5_000_000)
    zone(tmp_path, "intel-rapl:1:0", "dram", 700_000)
    (tmp_path / "intel-rapl:2").symlink_to(tmp_path / "intel-rapl:0")
    found = {r.device: r.joules for r in RaplSource(tmp_path).read()}
    assert found == {"package-0": 5.0, "package-0-dram": 0.7}
    assert sum("a second time" in r.getMessage() for r in caplog.records) == 3


def test_rapl_of_an_amd_processor_has_packages_by_die(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0-die-0", 1_000_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 1_000_000)
    zone(tmp_path, "intel-rapl:1", "package-0-die-1", 2_000_000)
    devices = [reading.device for reading in RaplSource(tmp_path).read()]
    assert devices == ["package-0-die-0", "package-0-die-1"]


@given(
    start=st.integers(0, RANGE_MICROJOULES - 1),
    steps=st.lists(st.integers(0, RANGE_MICROJOULES // 3), max_size=12),
)
def test_rapl_joules_never_fall_when_the_counter_wraps(
    start: int, steps: list[int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = zone(Path(folder), "intel-rapl:0", "package-0", start) / "energy_uj"
        source = RaplSource(Path(folder))
        first = last = source.read()[0].joules
        total = start
        for step in steps:
            total += step
            file.write_text(str(total % RANGE_MICROJOULES))
            now = source.read()[0].joules
            assert first is not None
            assert last is not None
            assert now is not None
            assert now >= last
            assert now - first == pytest.approx((total - start) / 1e6, abs=1e-3)
            last = now


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root reads every file: give the right up while it matters."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_rapl_that_only_root_may_read_says_how_to_allow_it() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        file = zone(Path(folder), "intel-rapl:0", "package-0", 1) / "energy_uj"
        file.chmod(0o000 if os.geteuid() else 0o400)
        source = RaplSource(Path(folder))
        with as_nobody(), pytest.raises(SensorError, match="sudo chmod a\\+r"):
            source.read()


def test_rapl_that_is_missing_or_broken_says_so(tmp_path: Path) -> None:
    with pytest.raises(SensorError, match="no package zone under"):
        RaplSource(tmp_path)
    folder = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    (folder / "energy_uj").write_text("many\n")
    source = RaplSource(tmp_path)
    with pytest.raises(SensorError, match="'many', expected microjoules"):
        source.read()


def amd_reading(tmp_path: Path, *gpus: str, **state: object) -> list[Reading]:
    environment = amdsmi_module(tmp_path)
    (tmp_path / "state").write_text(json.dumps({"joules": 0} | state))
    with child(**environment) as process:
        source = ChildSource(process, " ".join(("amdsmi", *gpus)))
        readings = list(source.read())
        source.close()
    return readings


def test_an_amd_counter_that_agrees_with_power_is_trusted(tmp_path: Path) -> None:
    (reading,) = amd_reading(tmp_path, watts=250, is_running=True)
    assert reading.joules is not None
    assert reading.joules > 0
    assert reading.watts == 250


def test_an_amd_counter_that_stands_still_leaves_watts_only(tmp_path: Path) -> None:
    assert amd_reading(tmp_path, watts=250, joules=7, is_running=False) == [
        Reading("gpu0", None, 250.0)
    ]


def test_amd_gpus_are_chosen_by_index(tmp_path: Path) -> None:
    (reading,) = amd_reading(tmp_path, "1", watts=250, is_running=True, boards=2)
    assert reading.device == "gpu1"
    with pytest.raises(ConfigError, match="expected an index below 2"):
        amd_reading(tmp_path, "2", watts=250, is_running=True, boards=2)


def test_an_amd_driver_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SensorError) as caught:
        amd_reading(tmp_path, error="43 | AMDSMI_STATUS_NO_DRV")
    assert "Error code: 43 | AMDSMI_STATUS_NO_DRV; is the amdgpu" in str(caught.value)


def test_an_amd_package_without_its_library_says_so_and_prints_nothing(
    tmp_path: Path,
) -> None:
    environment = amdsmi_module(tmp_path)
    (tmp_path / "amdsmi.py").write_text(
        "print('Unable to find libamd_smi.so')\n{}['libamd_smi.so']\n"
    )
    with child(**environment) as process, pytest.raises(SensorError) as caught:
        ChildSource(process, "amdsmi")
    assert str(caught.value).startswith("amdsmi cannot load libamd_smi.so: install")


@pytest.mark.parametrize(
    ("current", "average", "shown"),
    [("N/A", 90, 90), (0, 90, 90), (0xFFFFFFFF, 90, 90), (310, 300, 310), (0, 0, 0)],
)
def test_amd_watts_are_those_of_the_field_that_the_board_fills(
    tmp_path: Path, current: object, average: object, shown: float
) -> None:
    readings = amd_reading(tmp_path, watts=average, current=current, is_running=False)
    assert readings == [Reading("gpu0", None, shown)]


def test_amd_without_its_package_says_what_to_install() -> None:
    with pytest.raises(SensorError, match=r"pip install servewatt\[amd\]"):
        open_amdsmi(SourceOptions())


def test_dcmi_power_counts_only_while_it_is_measured() -> None:
    text = (
        "    Instantaneous power reading:              {:8d} Watts\n"
        "    Minimum during sampling period:                 31 Watts\n"
        "    Power reading state is:                   {}\n"
    )
    assert parse_dcmi(text.format(220, "activated")) == 220.0
    assert parse_dcmi(text.format(0, "deactivated")) is None
    assert parse_dcmi("") is None
    assert parse_sensor("Pwr Consumption  | 412\n") == 412.0
    assert parse_sensor("Pwr Consumption  | na\n") is None


SHOWS_HOW_IT_WAS_CALLED = """#!/bin/sh
echo "$@" > "$0.argv"; echo "$IPMI_PASSWORD" > "$0.password"
echo "Pwr | 412"
"""


def test_an_ipmi_password_is_never_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = executable(tmp_path / "ipmitool", SHOWS_HOW_IT_WAS_CALLED)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("BMC_USER", "meter")
    monkeypatch.setenv("BMC_PASSWORD", "s3cret")
    power = "ipmi=bmc#user-env=BMC_USER&password-env=BMC_PASSWORD&sensor=Pwr"
    (reading,) = source_opener(power, ())().read()
    assert (reading.device, reading.watts) == ("bmc", 412.0)
    argv = Path(f"{tool}.argv").read_text()
    assert argv == "-I lanplus -H bmc -E -U meter sensor reading Pwr\n"
    assert Path(f"{tool}.password").read_text() == "s3cret\n"


def test_ipmi_without_its_program_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    source = source_opener("ipmi", ())()
    with pytest.raises(SensorError, match="install the package ipmitool"):
        source.read()


def recording(*lines: str) -> Recording:
    return parse_recording("r.csv", lines)


def test_a_recording_counts_from_its_first_row_with_unknown_fields_left_open() -> None:
    played = recording(
        "# boundary=node simulated=yes",
        "unix_seconds,device,joules,watts",
        "1700000000.5,psu0,,400",
        "1700000000.5,psu1,10,",
        "1700000002.5,psu0,,410",
    )
    assert played.seconds == {"psu0": [0.0, 2.0], "psu1": [0.0]}
    assert played.readings["psu1"] == [Reading("psu1", 10.0, None)]
    assert played.end_seconds == 2.0
    assert played.boundary == "node"
    assert played.is_simulated


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (["seconds,watts"], "r.csv holds no samples"),
        (["seconds,volts", "0,1"], "r.csv:1: columns are 'seconds,volts'"),
        (["device,watts", "a,1"], "expected seconds (or unix_seconds)"),
        (["seconds,watts", "0,1", "1,much"], "r.csv:3: '1,much' is not a row"),
        (["seconds,watts", "0,1,2"], "r.csv:2: '0,1,2' is not a row"),
        (["seconds,watts", "nan,1"], "r.csv:2: 'nan,1' is not a row"),
        (["seconds,watts", "1,1", "0,1"], "the rows of all are not in order"),
        (["# boundary=moon", "seconds,watts", "0,1"], "has boundary 'moon'"),
    ],
)
def test_a_bad_recording_is_refused_with_its_line(
    lines: list[str], complaint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        recording(*lines)
    assert complaint in str(caught.value)


def test_a_recording_ends_once_and_does_not_start_over(tmp_path: Path) -> None:
    file = tmp_path / "recorded.csv"
    rows = [f"{number / 1000},{number}" for number in range(100)]
    file.write_text("\n".join(["seconds,joules", *rows]))
    events: list[PowerSampled] = []
    ended_twice = threading.Event()

    def deliver(event: PowerSampled) -> None:
        events.append(event)
        if sum(event.gap_reason is not None for event in events) == 2:
            ended_twice.set()

    sampler = Sampler(source_opener(f"csv={file}#boundary=gpu", ()), 0.001, deliver)
    sampler.start()
    assert ended_twice.wait(PATIENCE_SECONDS)
    sampler.stop()
    has_failed = [event.gap_reason is not None for event in events]
    assert has_failed == sorted(has_failed)
    last = events[-1]
    assert last.gap_reason is not None
    assert last.gap_reason == "csv: recording ended after 0.099 s"
    shown = [e.readings[0].joules for e in events if e.gap_reason is None]
    assert shown == sorted(shown, key=float)  # type: ignore[arg-type]
    stamps = [e.at_seconds for e in events if e.gap_reason is None]
    assert stamps == sorted(stamps)


def test_a_recording_without_a_boundary_asks_for_it(tmp_path: Path) -> None:
    file = tmp_path / "recorded.csv"
    file.write_text("seconds,watts\n0,1\n")
    with pytest.raises(ConfigError, match="does not say its boundary"):
        source_opener(f"csv={file}", ())()
    assert source_opener(f"csv={file}#boundary=host", ())().boundary == "host"
