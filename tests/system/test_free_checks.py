"""Checks without a truth: on made-up figures, and on runs where it is known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.attribution.load import load
from benchmarks.attribution.scenarios import Scenario
from benchmarks.attribution.sight import play
from benchmarks.free_checks import (
    Run,
    class_mix_regression,
    counter_period_seconds,
    counter_power_ratio,
    counter_watts,
    homogeneous_spread,
    lag_seconds,
    split_ratios,
)
from proxy.meter.attribution.policies import POLICIES
from proxy.meter.meter import Meter

MIXES = [
    ("talk",) * talk + ("paste",) * paste
    for talk, paste in ((1, 0), (3, 1), (1, 1), (1, 3), (0, 1))
]
KINDS = ("talk", "paste")


def simulated(scenario: Scenario, count: int) -> dict[str, Run]:
    """What every policy charged, in order of arrival; `truth` is the simulator's."""
    made = load(scenario, count)
    records, _ = play(made, scenario, Meter(), 0.001)
    records.sort(key=lambda record: record.arrived_seconds)
    kinds = [record.kind for record in records]
    runs = {
        policy: Run(kinds, [record.energy.policy_joules[policy] for record in records])
        for policy in POLICIES
    }
    truth = [made.done.truth[record.request_id] for record in records]
    true = [each.prefill_joules + each.decode_joules for each in truth]
    return runs | {"truth": Run(kinds, true)}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", KINDS)
def test_like_requests_in_steady_load_get_a_like_share(policy: str, kind: str) -> None:
    scenario = Scenario("alike", 6, (kind,), is_regular=True)
    spread = homogeneous_spread(simulated(scenario, 120)[policy].joules)
    assert spread.median < 0.02
    assert spread.p90 < 0.05


@pytest.fixture(scope="module")
def mixes() -> list[dict[str, Run]]:
    return [
        simulated(Scenario("mix", 6, mix, seed=number), 150)
        for number, mix in enumerate(MIXES, start=1)
    ]


def biases(mixes: list[dict[str, Run]], policy: str) -> list[float]:
    found = class_mix_regression([mix[policy] for mix in mixes], KINDS)
    return [each.bias for each in found]


@pytest.mark.parametrize("policy", ["phase", "calibrated", "truth"])
def test_regression_agrees_with_those_who_know_the_engine(
    mixes: list[dict[str, Run]], policy: str
) -> None:
    assert biases(mixes, policy) == pytest.approx([1.0, 1.0], abs=0.12)


@pytest.mark.parametrize("policy", ["equal", "tokens"])
def test_regression_speaks_against_those_who_do_not(
    mixes: list[dict[str, Run]], policy: str
) -> None:
    assert max(abs(bias - 1) for bias in biases(mixes, policy)) > 0.2


@pytest.mark.parametrize("policy", ["phase", "calibrated"])
def test_halves_cost_what_they_were_charged_together(policy: str) -> None:
    whole = simulated(Scenario("whole", 6, KINDS, seed=1), 300)[policy]
    halves = [
        simulated(Scenario("half", 6, KINDS, seed=seed), 150)[policy] for seed in (2, 3)
    ]
    ratios = split_ratios(whole, halves)
    assert set(ratios) == {"all", *KINDS}
    assert all(ratio == pytest.approx(1.0, abs=0.12) for ratio in ratios.values())


def test_regression_finds_the_cost_of_each_class_and_its_error() -> None:
    rng = np.random.default_rng(1)
    runs = []
    for talks in range(0, 21, 2):
        kinds = ["talk"] * talks + ["paste"] * (20 - talks)
        joules = [30.0 if kind == "talk" else 80.0 for kind in kinds]
        runs.append(Run(kinds, [j + rng.normal(0, 1) for j in joules]))
    talk, paste = class_mix_regression(runs, KINDS)
    assert talk.regressed_joules == pytest.approx(30.0, abs=4 * talk.error_joules)
    assert paste.regressed_joules == pytest.approx(80.0, abs=4 * paste.error_joules)
    assert talk.bias == pytest.approx(1.0, abs=0.05)
    assert talk.sigmas < 4


def test_mixes_that_say_nothing_are_refused() -> None:
    alike = [Run(["talk", "paste"], [1.0, 2.0])] * 5
    with pytest.raises(ValueError, match="alike"):
        class_mix_regression(alike, KINDS)
    with pytest.raises(ValueError, match="3 mixes are too few"):
        class_mix_regression(alike[:3], KINDS)
    with pytest.raises(ValueError, match="19 requests are too few"):
        homogeneous_spread([1.0] * 19)


GRID = np.arange(0.0, 40.0, 0.02)


def busy_every_other_five_seconds() -> np.ndarray:
    return (GRID % 10 >= 5).astype(np.float64)


@pytest.mark.parametrize("late", [0.0, 0.1, 0.5])
def test_the_lag_of_a_sensor_is_found(late: float) -> None:
    busy = busy_every_other_five_seconds()
    watts = 100 + 400 * np.interp(GRID - late, GRID, busy)
    assert lag_seconds(watts, busy, 0.02) == pytest.approx(late, abs=0.021)


def test_without_a_change_of_load_no_lag_is_claimed() -> None:
    with pytest.raises(ValueError, match="never changed"):
        lag_seconds(np.ones(100), np.ones(100), 0.02)


def test_period_and_power_of_a_counter_are_found() -> None:
    watts = 100 + 400 * busy_every_other_five_seconds()
    true = np.concatenate(([0.0], np.cumsum((watts[1:] + watts[:-1]) / 2 * 0.02)))
    shown = np.interp(np.floor(GRID / 0.1 + 1e-9) * 0.1, GRID, true)
    assert counter_period_seconds(GRID, shown) == pytest.approx(0.1, abs=1e-6)
    assert counter_power_ratio(GRID, shown, watts) == pytest.approx(1.0, abs=0.01)
    assert counter_power_ratio(GRID, shown, watts * 0.8) == pytest.approx(
        1.25, abs=0.02
    )
    inside = np.array([2.0, 7.5])
    assert counter_watts(GRID, shown, inside) == pytest.approx([100, 500], rel=0.01)
    with pytest.raises(ValueError, match="changed 0 times"):
        counter_period_seconds(GRID, np.ones_like(GRID))
