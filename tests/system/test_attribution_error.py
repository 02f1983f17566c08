"""The accuracy that the documentation claims, on a small run in virtual time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.attribution.scenarios import Scenario
from benchmarks.attribution_error import Row, learnt, rows_of
from proxy.meter.attribution.policies import by_calibration


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, str], Row]:
    scenario = Scenario("mixed, 8 req/s", 8)
    found = rows_of(scenario, 400, jitter_seconds=0.001)
    return {(row.policy, row.view): row for row in found}


def test_the_books_close_to_the_millijoule(rows: dict[tuple[str, str], Row]) -> None:
    assert all(row.residual_joules < 1e-3 for row in rows.values())


@pytest.mark.parametrize("view", ["active", "inclusive"])
def test_phase_is_within_fifteen_percent_of_the_truth(
    rows: dict[tuple[str, str], Row], view: str
) -> None:
    assert rows["phase", view].median_error <= 0.15
    for bias in rows["phase", view].bias.values():
        assert bias == pytest.approx(1.0, abs=0.10)


def test_calibrated_learns_the_engine_to_five_percent(
    rows: dict[tuple[str, str], Row],
) -> None:
    fitted = rows["calibrated", "active"]
    assert fitted.median_error <= 0.05
    assert fitted.median_error < rows["phase", "active"].median_error
    for bias in fitted.bias.values():
        assert bias == pytest.approx(1.0, abs=0.05)


def test_idle_hardly_makes_the_published_figure_worse(
    rows: dict[tuple[str, str], Row],
) -> None:
    active = rows["calibrated", "active"].median_error
    assert rows["calibrated", "inclusive"].median_error <= 1.3 * active


def test_what_a_run_learnt_serves_the_next_one_from_its_first_request() -> None:
    scenario = Scenario("mixed, 8 req/s", 8)
    calibrations = learnt(replace(scenario, seed=2), 300, jitter_seconds=0.001)
    policies = {"calibrated": by_calibration}
    found = rows_of(scenario, 60, 0.001, policies, calibrations)
    fitted = next(row for row in found if row.view == "active")
    assert fitted.trusted_fraction == 1.0
    assert fitted.median_error <= 0.05


def test_phase_is_better_than_policies_that_ignore_the_engine(
    rows: dict[tuple[str, str], Row],
) -> None:
    assert rows["phase", "active"].median_error < rows["tokens", "active"].median_error
    assert rows["phase", "active"].median_error < rows["equal", "active"].median_error


def test_replies_in_one_piece_are_told_apart_though_nobody_streams() -> None:
    scenario = Scenario("any", 6.0, board="dense", whole_fraction=1.0, seed=3)
    found = rows_of(scenario, 150, jitter_seconds=0.001)
    fitted = next(
        row for row in found if (row.policy, row.view) == ("calibrated", "active")
    )
    assert fitted.median_error <= 0.08
    for bias in fitted.bias.values():
        assert bias == pytest.approx(1.0, abs=0.05)
