"""`metering-proxy sources`: every source described, whatever this host lacks."""

from __future__ import annotations

import pytest

from proxy.errors import ConfigError
from proxy.power.energy_source import SourceOptions
from proxy.power.probe import MEASURES, describe, find_sources, probe
from proxy.power.sources import SOURCES
from proxy.wire.facts import Reading


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


def test_what_a_library_throws_is_a_reason_and_not_a_crash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def throws(options: SourceOptions) -> None:
        raise ZeroDivisionError("driver of the day")

    monkeypatch.setitem(SOURCES, "rapl", throws)
    found = probe("rapl", ())
    assert not found.is_available
    assert found.missing == "rapl failed: ZeroDivisionError: driver of the day"


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown power source 'wattmeter'"):
        find_sources(["wattmeter"], ())
