"""Sensors side by side, each on a thread of its own."""

from __future__ import annotations

import queue
from pathlib import Path

from proxy.meter.config import MeterConfig
from proxy.meter.meter import Meter
from proxy.power.sensors import Sensors, plan_sensors
from proxy.wire.events import HardwareObserved, PowerSampled
from tests.support.power_benches import serving

PATIENCE_SECONDS = 20


def test_a_sensor_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    for name, text in (
        ("name", "package-0"), ("energy_uj", "1"), ("max_energy_range_uj", "99"),
    ):  # fmt: skip
        (zone / name).write_text(text)
    watts = iter(range(100, 10**6))

    def page() -> tuple[int, str, dict[str, str]]:
        return 200, f'DCGM_FI_DEV_POWER_USAGE{{gpu="0"}} {next(watts)}\n', {}

    events: queue.Queue[PowerSampled | HardwareObserved] = queue.Queue()
    with serving({"/metrics": page}) as url:
        powers = [
            f"dcgm={url}/metrics",
            f"rapl={tmp_path}",
            "redfish=http://127.0.0.1:9",
        ]
        planned = plan_sensors(powers, ())
        boundaries = Meter(MeterConfig(boundaries=tuple(s.boundary for s in planned)))
        sensors = Sensors(planned, 0.005)
        sensors.start(events.put)
        (zone / "energy_uj").unlink()

        def seen(boundary: str) -> int:
            return boundaries.state_of(boundary).samples_total

        while seen("gpu") < 20 or not all(
            boundaries.state_of(b).gaps_total for b in ("host", "node")
        ):
            boundaries.feed(events.get(timeout=PATIENCE_SECONDS))
        sensors.stop()
    gpu, host, node = (sensors.stats_of(b) for b in ("gpu", "host", "node"))
    assert gpu is not None
    assert gpu.is_up
    assert host is not None
    assert "energy_uj" in str(host.last_error)
    assert node is not None
    assert "redfish" in str(node.last_error)
    assert boundaries.state_of("gpu").gaps_total == 0
    assert sensors.stats_of("moon") is None
