"""`metering-proxy sources`: every source described, whatever this host lacks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from proxy.cli import cli
from proxy.errors import ConfigError
from proxy.power.energy_source import SourceOptions
from proxy.power.probe import MEASURES, describe, describe_sources, find_sources, probe
from proxy.power.sources import SOURCES
from proxy.wire.facts import Reading
from tests.support.power_benches import BENCHES, HttpBench, zone


def test_every_source_is_described() -> None:
    assert set(MEASURES) == set(SOURCES)


def test_the_resolution_is_what_was_seen() -> None:
    rows = [(t / 100, Reading("gpu0", t // 10 * 12.5, 300.0)) for t in range(100)]
    device = describe("gpu0", rows)
    assert device.kind == "counter"
    assert device.changes == 9
    assert device.period_seconds == pytest.approx(0.1)
    assert device.step_joules == 12.5


def test_a_reset_is_no_step_and_power_has_none() -> None:
    joules = [10.0, 5.0, 7.0]
    device = describe("a", [(i, Reading("a", j)) for i, j in enumerate(joules)])
    assert device.step_joules == 2.0
    power = describe("a", [(i, Reading("a", watts=10.0 * i)) for i in range(3)])
    assert (power.kind, power.step_joules, power.period_seconds) == ("power", None, 1)
    still = describe("a", [(i, Reading("a", watts=1.0)) for i in range(3)])
    assert (still.changes, still.period_seconds) == (0, None)


def test_this_host_is_described_without_a_crash() -> None:
    shown = CliRunner().invoke(cli, ["sources"], env={"COLUMNS": "100"})
    assert shown.exit_code == 0, shown.output
    for name in SOURCES:
        assert f"\n{name} " in shown.output
    as_lines = CliRunner().invoke(cli, ["sources", "--json"])
    found = json.loads(as_lines.output)
    assert [source["name"] for source in found] == list(MEASURES)
    for source in found:
        assert source["is_available"] is (source["missing"] is None)
    assert {s["name"] for s in found if s["needs_address"]} == {
        "dcgm", "zeusd", "redfish", "prometheus", "csv",
    }  # fmt: skip


def test_what_a_library_throws_is_a_reason_and_not_a_crash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def throws(options: SourceOptions) -> None:
        raise ZeroDivisionError("driver of the day")

    monkeypatch.setitem(SOURCES, "rapl", throws)
    found = probe("rapl", ())
    assert not found.is_available
    assert found.missing == "rapl failed: ZeroDivisionError: driver of the day"


def test_a_source_with_an_address_is_tried_and_its_devices_shown(
    tmp_path: Path,
) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    text = describe_sources(find_sources([f"rapl={tmp_path}"], ()), 100)
    assert "rapl        host      yes" in text
    assert "package-0: counter, did not change in 3" in text


def test_a_remote_clock_is_shown(tmp_path: Path) -> None:
    with BENCHES["zeusd"](tmp_path) as bench:
        assert isinstance(bench, HttpBench)
        text = describe_sources([probe(bench.power, ())], 100)
    assert "its clock is +0.000 s from ours" in text


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown power source 'wattmeter'"):
        find_sources(["wattmeter"], ())


def test_addresses_stay_in_one_piece_on_a_narrow_terminal() -> None:
    text = describe_sources(find_sources([], ()), 40)
    assert "'prometheus=http://host:8888/metrics#joules=METRIC&boundary=host'" in text
