"""The simulated board beside its power: warm under load, slow under a cap."""

from __future__ import annotations

import pytest

from loadgen.simulator.core.config import EngineConfig
from loadgen.simulator.core.engine import simulate
from loadgen.simulator.core.hardware import (
    AIR_CELSIUS,
    GPU_IDLE,
    MOST_SECONDS,
    RISE_KELVIN,
    SW_POWER_CAP,
    Board,
)
from loadgen.simulator.core.presets import GPUS
from loadgen.simulator.core.scheduler import SimRequest
from loadgen.simulator.core.sensor import PowerCurve

H100 = GPUS["h100"]


def board(watts: float = 700.0, seconds: float = 1000.0) -> Board:
    curve = PowerCurve(H100.idle_watts)
    found = Board(H100, curve, cap_watts=700.0, n_gpus=1)
    curve.extend(0.0, seconds, watts * seconds)
    return found


def test_it_warms_with_load_and_cools_when_idle() -> None:
    under_load = board()
    readings = [under_load.read(at, 1.0) for at in (0.5, 5.0, 20.0, 49.0)]
    warming = [reading.temperature_celsius for reading in readings]
    assert warming == sorted(warming)
    assert warming[-1] == pytest.approx(AIR_CELSIUS + RISE_KELVIN, abs=1.0)
    for at in range(50, 1100, 1):
        under_load.read(float(at), None)
    idle = AIR_CELSIUS + RISE_KELVIN * H100.idle_watts / H100.tdp_watts
    assert under_load.read(1100.0, None).temperature_celsius == pytest.approx(
        idle, abs=0.1
    )


def test_after_a_long_silence_only_the_last_minute_counts() -> None:
    found = board().read(20 * MOST_SECONDS, 1.0).temperature_celsius
    assert found == pytest.approx(AIR_CELSIUS + RISE_KELVIN, abs=1.0)


def test_its_clock_falls_as_its_steps_take_longer() -> None:
    full, slowed = board().read(1.0, 1.0), board().read(1.0, 0.5)
    assert full.sm_clock_hertz == H100.sm_clock_hertz
    assert slowed.sm_clock_hertz == 0.5 * H100.sm_clock_hertz
    assert (full.reason_bits, slowed.reason_bits) == (0, SW_POWER_CAP)
    assert board().read(1.0, None).reason_bits == GPU_IDLE


def test_it_is_shown_anew_twice_a_second() -> None:
    found = board()
    first = found.read(1.0, 1.0)
    assert found.read(1.4, 0.5) is first
    assert found.read(1.5, 0.5).reason_bits == SW_POWER_CAP


def slowest(gpu: str) -> float:
    config = EngineConfig(gpu=GPUS[gpu], prefix_cache=False)
    requests = [SimRequest(str(i), 0.0, 4000, 20, ()) for i in range(4)]
    return min(step.speed_fraction for step in simulate(requests, config).steps)


def test_a_board_with_a_lowered_limit_is_slowed_by_it_and_the_full_one_hardly() -> None:
    assert slowest("h100-350w") < 0.5
    assert 0.9 < slowest("h100") <= 1.0
    assert EngineConfig(gpu=GPUS["h100-350w"]).cap_watts == 350
    capped = EngineConfig(gpu=GPUS["h100-350w"], power_cap_watts=500.0)
    assert capped.cap_watts == 500.0
