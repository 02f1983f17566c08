"""Warm-up: known transients are found, noise and a run that fills up are not."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from loadgen.analysis.warmup import (
    BATCH,
    CLOCK,
    MIN_BATCHES,
    POWER,
    TEMPERATURE,
    TTFT,
    Signal,
    WarmUp,
    degrades,
    in_flight,
    mser,
    warm_up,
)

FloatArray = NDArray[np.float64]
SEEDS = range(100)


def noisy(seed: int, count: int, spread: float, alike: float = 0.0) -> FloatArray:
    """Noise about 0 whose neighbours resemble each other by this much (AR 1)."""
    draw = np.random.default_rng(seed).normal(0.0, 1.0, count)
    for index in range(1, count):
        draw[index] = alike * draw[index - 1] + np.sqrt(1 - alike**2) * draw[index]
    return np.asarray(spread * draw)


def found_in(signal: Signal, values: FloatArray, **how: object) -> WarmUp | None:
    seconds = np.arange(len(values), dtype=np.float64).tolist()
    return warm_up(signal, seconds, values.tolist(), **how)  # type: ignore[arg-type]  # passed on as it came


def warming(seed: int, count: int, part: float, tau: float) -> FloatArray:
    """Watts that begin a part below 400 W and come near with a time constant."""
    at = np.arange(count)
    return np.asarray(
        400 * (1 - part * np.exp(-at / tau)) * np.exp(noisy(seed, count, 0.05))
    )


def test_mser_cuts_what_a_step_makes_unlike() -> None:
    rest = np.random.default_rng(1).normal(10.0, 0.1, 100)
    assert mser(np.concatenate([np.full(12, 30.0), rest])) == 12
    assert mser(np.full(50, 3.0)) == 0
    assert mser(np.arange(60.0)) is None  # it drifts to the end


@pytest.mark.parametrize(("count", "tau"), [(120, 10.0), (120, 20.0), (600, 20.0)])
def test_an_exponential_transient_is_found_and_its_length_is_a_few_time_constants(
    count: int, tau: float
) -> None:
    found = [found_in(POWER, warming(seed, count, 0.5, tau)) for seed in SEEDS]
    lengths = [each.seconds for each in found if each is not None]
    assert len(lengths) >= 0.95 * len(SEEDS)
    assert tau <= np.median(lengths) <= 5 * tau
    shifts = [each.mean_shift for each in found if each is not None]
    # the mean of exp(-t / tau) over the run, as far as the cut holds it
    assert np.median(shifts) == pytest.approx(-0.5 * tau / count, rel=0.5)


@pytest.mark.parametrize("count", [40, 60, 120, 600])
@pytest.mark.parametrize(
    ("signal", "spread", "alike"),
    [(POWER, 0.1, 0.0), (POWER, 0.05, 0.8), (TTFT, 0.5, 0.0), (CLOCK, 0.03, 0.8)],
    ids=["noise", "slow noise", "ttft", "clock"],
)
def test_of_steady_runs_at_most_one_in_twenty_seems_to_warm_up(
    count: int, signal: Signal, spread: float, alike: float
) -> None:
    false = [
        found_in(signal, np.exp(noisy(seed, count, spread, alike))) for seed in SEEDS
    ]
    assert sum(each is not None for each in false) <= 0.05 * len(SEEDS)


def test_a_first_request_that_compiles_is_found_in_the_times_to_first_token() -> None:
    ttft = 0.06 * np.exp(noisy(3, 300, 0.2))
    ttft[:4] = [9.0, 7.0, 4.0, 2.0]
    found = found_in(TTFT, ttft)
    assert found is not None
    assert found.seconds == BATCH
    assert found.before > 10 * found.after


def ramp(seed: int, count: int = 120) -> tuple[FloatArray, FloatArray]:
    """Requests in flight that rise to about 30, and the watts that this takes."""
    load = 30 * (1 - np.exp(-np.arange(count) / 15.0)) + noisy(seed, count, 3.0, 0.8)
    load = np.clip(load, 0.0, None)
    return load, np.asarray(
        (150 + 40 * np.sqrt(load)) * np.exp(noisy(seed, count, 0.02))
    )


def test_a_run_that_fills_up_is_no_machine_that_warms_up() -> None:
    false = 0
    for seed in SEEDS:
        load, watts = ramp(seed)
        drivers = [load.tolist(), np.sqrt(load).tolist()]
        assert found_in(POWER, watts) is not None
        false += found_in(POWER, watts, drivers=drivers) is not None
    assert false <= 0.05 * len(SEEDS)


def test_a_warm_up_is_found_beside_what_load_explains() -> None:
    at = np.arange(300)
    found = 0
    for seed in SEEDS:
        load = np.clip(30 + noisy(seed, 300, 8.0, 0.8), 1.0, None)
        watts = (150 + 40 * np.sqrt(load)) * (1 - 0.3 * np.exp(-at / 20.0))
        watts *= np.exp(noisy(seed + 1000, 300, 0.01))
        drivers = [load.tolist(), np.sqrt(load).tolist()]
        found += found_in(POWER, watts, drivers=drivers) is not None
    assert found >= 0.95 * len(SEEDS)


def test_a_drift_to_the_end_is_told_apart_and_held_against_nobody() -> None:
    found = found_in(POWER, np.linspace(200.0, 400.0, 200))
    assert found is not None
    assert not found.is_steady
    assert not degrades(found)


def test_a_smooth_curve_is_cut_where_it_is_flat_enough() -> None:
    at = np.arange(300)
    found = found_in(POWER, 400 * (1 - 0.3 * np.exp(-at / 20.0)))
    assert found is not None
    assert found.is_steady
    assert 20 < found.seconds < 100


def test_temperature_is_shown_in_degrees_and_degrades_nothing() -> None:
    celsius = 65 - 25 * np.exp(-np.arange(200) / 15.0) + noisy(1, 200, 0.5)
    found = found_in(TEMPERATURE, celsius)
    assert found is not None
    assert found.after == pytest.approx(65, abs=1)
    assert found.mean_shift < -1
    assert not degrades(found)


def test_a_short_run_says_nothing() -> None:
    values = warming(1, BATCH * MIN_BATCHES - 1, 0.9, 5.0)
    assert found_in(POWER, values) is None
    assert found_in(POWER, np.array([])) is None


def test_a_drift_that_hardly_moves_the_mean_does_not_degrade() -> None:
    brief = found_in(POWER, warming(2, 600, 0.5, 3.0))
    long = found_in(POWER, warming(2, 120, 0.5, 20.0))
    assert brief is not None
    assert long is not None
    assert not degrades(brief)
    assert degrades(long)


def test_requests_in_flight_at_instants() -> None:
    assert in_flight([0.5, 1.0, 2.5, 9.0], [1.0, 2.0], [3.0, 4.0]) == [0, 1, 2, 0]
