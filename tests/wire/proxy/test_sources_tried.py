"""`metering-proxy sources` tries every source that is there."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from proxy.cli import cli
from proxy.power.probe import MEASURES, describe_sources, find_sources, probe
from proxy.power.sources import SOURCES
from tests.support.power_benches import BENCHES, HttpBench, zone


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


def test_addresses_stay_in_one_piece_on_a_narrow_terminal() -> None:
    text = describe_sources(find_sources([], ()), 40)
    assert "'prometheus=http://host:8888/metrics#joules=METRIC&boundary=host'" in text
