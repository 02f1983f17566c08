"""The fit of the cost model's constants, on made-up rows with known constants."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.meter.activity.shares import EXPERT_TOKENS
from proxy.meter.activity.work import SHARED, Activity
from proxy.meter.attribution.fit import (
    Calibration,
    FitRules,
    added,
    fitted,
    no_sums,
)
from proxy.meter.attribution.forms import CONSTANTS, PLAIN, PRIOR
from proxy.meter.attribution.policies import (
    FEATURES,
    FloatArray,
    by_calibration,
    by_phase,
    by_tokens,
)

TRUE_RATIOS = np.array([1.07, 0.72, 0.8, 0.6, 1.03, *[0.0] * len(SHARED)])


def varied_work(rng: np.random.Generator) -> FloatArray:
    """Two seconds of a varied load, in natural units, in the order of `FEATURES`."""
    steps = rng.uniform(20, 250)
    batch = rng.uniform(1, 60)
    mixed = steps * rng.uniform(0, 0.5)
    prefill = mixed * rng.uniform(50, 500)
    decode, context = steps * batch, rng.uniform(100, 3000)
    experts = [
        (steps - mixed) * -np.expm1(-batch / tokens) + mixed for tokens in EXPERT_TOKENS
    ]
    mixed_decode = mixed * batch
    return np.array(
        [
            steps,
            prefill,
            prefill * rng.uniform(50, 2000),
            decode,
            decode * context,
            mixed,
            mixed_decode,
            mixed_decode * context,
            *experts,
            decode,
            decode * context,
        ]
    )


def taught(
    rows: int,
    *,
    noise_joules: float = 5.0,
    rules: FitRules | None = None,
    joules_each: FloatArray = PRIOR * TRUE_RATIOS,
) -> Calibration:
    """A calibration that has seen rows of an engine with `TRUE_RATIOS`."""
    rng = np.random.default_rng(5)
    calibration = Calibration(rules)
    for _ in range(rows):
        work = varied_work(rng)
        joules = work @ joules_each + rng.normal(0, noise_joules)
        calibration.learn(work, float(joules), 2.0)
    return calibration


def test_the_constants_of_a_varied_load_are_found_within_their_errors() -> None:
    fit = taught(300).fit
    assert fit is not None
    assert fit.reason is None
    assert fit.form == PLAIN
    off = np.abs(fit.joules - (PRIOR * TRUE_RATIOS)[:5])
    assert (off <= 4 * fit.error_joules).all()
    assert fit.joules[:2] == pytest.approx((PRIOR * TRUE_RATIOS)[:2], rel=0.02)


def test_standard_errors_shrink_with_the_square_root_of_the_rows() -> None:
    few, many = taught(100).fit, taught(400).fit
    assert few is not None
    assert many is not None
    assert many.error_joules == pytest.approx(few.error_joules / 2, rel=0.25)


def test_the_policy_ranks_by_the_constants_in_use_and_by_phase_without() -> None:
    columns = {field.name: np.array([1.0, 5.0]) for field in fields(Activity)}
    shared = np.ones((2, 2, len(SHARED)))
    did = Activity(**columns | {"shared": shared})
    young, old = taught(5), taught(300)
    assert young.bound(by_tokens) is by_tokens
    assert young.bound(by_calibration)(did).tolist() == by_phase(did).tolist()
    assert old.cost is not None
    expected = by_phase(did, old.cost.plain)
    assert old.bound(by_calibration)(did) == pytest.approx(expected)
    assert expected.tolist() != by_phase(did).tolist()


def test_nothing_is_trusted_before_enough_rows() -> None:
    calibration = taught(9)
    assert calibration.cost is None
    assert calibration.fit is not None
    assert calibration.fit.reason == "9 of 10 rows of load seen"


def test_a_load_that_never_varies_is_not_trusted() -> None:
    calibration = Calibration()
    work = varied_work(np.random.default_rng(1))
    for number in range(200):
        calibration.learn(work * (1 + number % 3), 300.0 * (1 + number % 3), 2.0)
    fit = calibration.fit
    assert fit is not None
    assert fit.reason is not None
    assert "standard error" in fit.reason
    assert calibration.cost is None
    # what the load does not tell stays at the ratios of `phase`
    assert fit.joules / PRIOR[:5] == pytest.approx([fit.joules[0] / PRIOR[0]] * 5, 0.1)


def test_an_ill_conditioned_load_is_trusted_where_that_moves_no_joules() -> None:
    rng = np.random.default_rng(4)
    calibration = Calibration()
    for _ in range(200):
        work = varied_work(rng)
        work[2] = work[1] * 400  # every prompt looks back as far
        joules = work @ (PRIOR * TRUE_RATIOS) + rng.normal(0, 1.0)
        calibration.learn(work, float(joules), 2.0)
    fit = calibration.fit
    assert fit is not None
    assert fit.condition > 3000
    assert fit.reason is None


def test_energy_that_the_work_does_not_explain_is_not_trusted() -> None:
    fit = taught(300, noise_joules=400.0).fit
    assert fit is not None
    assert fit.reason is not None
    assert "unexplained" in fit.reason


def test_a_constant_that_is_too_uncertain_is_named() -> None:
    strict = FitRules(max_split_error=1e-4)
    fit = taught(300, rules=strict).fit
    assert fit is not None
    assert fit.reason is not None
    assert any(name in fit.reason for name in CONSTANTS)


def test_old_rows_fade_and_a_changed_engine_is_learnt() -> None:
    rng = np.random.default_rng(2)
    calibration = taught(200, rules=FitRules(max_rows=50))
    for _ in range(400):
        work = varied_work(rng)
        joules = work @ (PRIOR * TRUE_RATIOS * 2) + rng.normal(0, 5.0)
        calibration.learn(work, float(joules), 2.0)
    assert calibration.sums.rows == pytest.approx(50.0)
    assert calibration.fit is not None
    assert calibration.fit.joules[0] == pytest.approx(
        2 * PRIOR[0] * TRUE_RATIOS[0], rel=0.05
    )


def test_short_windows_are_added_up_to_a_row() -> None:
    calibration = Calibration(FitRules(row_seconds=2.0))
    for _ in range(3):
        calibration.learn(np.ones(len(FEATURES)), 1.0, 0.5)
    assert calibration.sums.rows == 0
    calibration.learn(np.ones(len(FEATURES)), 1.0, 0.5)
    assert calibration.sums.rows == 1
    assert calibration.sums.joules == 4.0
    assert calibration.sums.work == pytest.approx(4 * PRIOR)


def test_a_known_model_goes_on_from_what_was_saved() -> None:
    earlier = taught(50)
    later = Calibration(saved={"llama": earlier.sums, "other": no_sums()})
    later.serve("llama")
    later.serve("an-adapter")
    assert later.model == "llama"
    assert later.fit is not None
    assert earlier.fit is not None
    assert later.fit.joules.tolist() == earlier.fit.joules.tolist()


def test_an_unknown_model_begins_anew() -> None:
    later = Calibration(saved={"llama": taught(50).sums})
    later.serve("mistral")
    assert later.fit is None
    assert later.state.reason == "no load was measured yet"


def test_what_was_saved_is_soon_outweighed() -> None:
    later = Calibration(saved={"llama": taught(600).sums})
    later.serve("llama")
    assert later.sums.rows == pytest.approx(60.0)


def test_work_that_never_came_does_not_spoil_the_condition() -> None:
    rng = np.random.default_rng(3)
    sums = no_sums()
    for _ in range(100):
        work = varied_work(rng) * PRIOR
        work[3:5] = work[6:] = 0.0  # replies of one token: nobody ever decoded
        sums = added(sums, work, float(work @ TRUE_RATIOS + rng.normal()), 600.0)
    fit = fitted(sums, FitRules())
    assert fit is not None
    assert fit.reason is None


@pytest.mark.parametrize("joules", [0.0, 10.0])
def test_no_work_or_no_energy_is_no_fit(joules: float) -> None:
    work = (np.ones if not joules else np.zeros)(len(FEATURES))
    assert fitted(added(no_sums(), work, joules, 600.0), FitRules()) is None


def test_an_engine_that_bends_is_found_out_and_a_straight_one_stays_plain() -> None:
    bent = PRIOR * TRUE_RATIOS
    bent[FEATURES.index("experts_16")] = 6.0
    calibration = taught(300, joules_each=bent, noise_joules=20.0)
    assert calibration.fit is not None
    assert calibration.fit.form == "experts"
    at = FEATURES.index("experts_16")
    assert calibration.fit.features.joules[at] == pytest.approx(6.0, rel=0.3)
    straight = taught(300, noise_joules=20.0).fit
    assert straight is not None
    assert straight.form == PLAIN


def test_a_form_is_judged_by_rows_that_it_had_not_seen() -> None:
    rng = np.random.default_rng(6)
    calibration = Calibration()
    for _ in range(40):
        before = calibration.state
        work = varied_work(rng)
        joules = float(work @ (PRIOR * TRUE_RATIOS) + rng.normal(0, 5.0))
        calibration.learn(work, joules, 2.0)
        if before.fit is not None and before.trials.rows:
            added_error = calibration.trials.errors[0] - before.trials.errors[0]
            if before.fit.form == PLAIN:
                missed = joules - float(before.fit.joules_of(work))
                assert added_error == pytest.approx(missed**2)


def test_the_variance_of_work_is_that_of_its_constants() -> None:
    fit = taught(100).fit
    assert fit is not None
    alone = np.zeros(len(FEATURES))
    alone[1] = 1000.0
    assert fit.variance_of(alone) == pytest.approx((1000.0 * fit.error_joules[1]) ** 2)
    several = np.stack((alone, 2 * alone))
    assert fit.variance_of(several)[1] == pytest.approx(4 * fit.variance_of(alone))


def test_the_variance_of_a_window_is_what_windows_were_missed_by() -> None:
    calibration = taught(800, noise_joules=8.0)
    assert calibration.window_variance == pytest.approx(64.0, rel=0.3)


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 40))
def test_constants_and_errors_are_never_negative_or_unknown(
    seed: int, rows: int
) -> None:
    rng = np.random.default_rng(seed)
    sums = no_sums()
    for _ in range(rows):
        work = rng.uniform(0, 1, len(FEATURES)) * (rng.random(len(FEATURES)) < 0.6)
        sums = added(sums, work, float(rng.uniform(0, 1e3)), 20.0)
    fit = fitted(sums, replace(FitRules(), min_rows=1))
    if fit is None:
        return
    for values in (fit.joules, fit.error_joules):
        assert np.isfinite(values).all()
        assert (values >= 0).all()
    assert (fit.variance_of(np.eye(len(FEATURES))) >= 0).all()
