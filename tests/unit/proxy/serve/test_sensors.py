"""Sensors side by side: one of each boundary, each on a thread of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.errors import ConfigError
from proxy.power.sensors import plan_sensors, try_sensors

HOST = "prometheus=http://127.0.0.1:9/m#watts=x&boundary=host"


def test_each_source_says_its_boundary_without_being_read(tmp_path: Path) -> None:
    recording = tmp_path / "node.csv"
    recording.write_text("# boundary=node\nseconds,watts\n0,800\n60,800\n")
    found = plan_sensors(["nvml", HOST, f"csv={recording}"], ())
    assert [(sensor.source, sensor.boundary) for sensor in found] == [
        ("nvml", "gpu"), ("prometheus", "host"), ("csv", "node"),
    ]  # fmt: skip
    assert plan_sensors(["none"], ()) == []


@pytest.mark.parametrize(
    ("powers", "complaint"),
    [
        (["nvml", "dcgm=http://h/metrics"], "nvml and dcgm both measure"),
        (["rapl", HOST], "the boundary 'host': two figures of the same joules"),
        (["dcgm=http://a/m", "dcgm=http://b/m"], "dcgm and dcgm both measure"),
        (["nvml", "none"], "leave it out beside nvml"),
        (["nvml", "wattmeter"], "unknown power source 'wattmeter'"),
    ],
)
def test_what_can_never_be_metered_together_is_refused(
    powers: list[str], complaint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_sensors(powers, ())
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_gpus_are_chosen_only_where_there_are_some() -> None:
    plan_sensors(["nvml", HOST], ("0",))
    (sensor,) = plan_sensors(["rapl"], ("0",))
    with pytest.raises(ConfigError, match="--gpus is not for it"):
        try_sensors([sensor])
