"""The fit of the cost model's constants, on made-up rows with known constants."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.meter.activity.shares import REACH_TOKENS
from proxy.meter.activity.work import SHARED, Activity
from proxy.meter.attribution.evidence import Doubt
from proxy.meter.attribution.fit import (
    Calibration,
    FitRules,
    Learnt,
    moved_joules,
    no_sums,
    spread_of,
    variance_of,
)
from proxy.meter.attribution.forms import CONSTANTS, FORMS, PRIOR
from proxy.meter.attribution.policies import (
    FEATURES,
    CostModel,
    FloatArray,
    by_calibration,
    by_phase,
    by_tokens,
    features_of,
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
        (steps - mixed) * -np.expm1(-batch / tokens)
        + mixed * -np.expm1(-(batch + 300.0) / tokens)
        for tokens in REACH_TOKENS
    ]
    return np.array(
        [
            steps,
            prefill,
            prefill * rng.uniform(50, 2000),
            decode,
            decode * context,
            mixed * batch * context,
            *experts,
            decode,
            decode * context,
        ]
    )


def vars_of(cost: CostModel) -> list[float]:
    """Its constants, in order."""
    return [getattr(cost, name) for name in CONSTANTS]


def learnt_of(work: FloatArray) -> Learnt:
    """A window in which two requests did this, of different kinds."""
    prefill = np.zeros(len(FEATURES))
    prefill[1:3] = work[1:3]
    return Learnt(work, spread_of(np.stack((prefill, work - prefill))))


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
        calibration.learn(learnt_of(work), float(joules), 2.0)
    return calibration


def test_the_constants_of_a_varied_load_are_found_within_their_errors() -> None:
    fit = taught(300).fit
    assert fit is not None
    assert fit.reason is None
    names = ("prefill_token_joules", "prefill_context_joules", "decode_token_joules")
    for name, true in zip(names, (PRIOR * TRUE_RATIOS)[1:4].tolist(), strict=True):
        joules, error, _ = fit.constants[name]
        assert abs(joules - true) <= 4 * error
        assert joules == pytest.approx(true, rel=0.2)


def test_standard_errors_shrink_with_the_square_root_of_the_rows() -> None:
    few, many = taught(100).fit, taught(400).fit
    assert few is not None
    assert many is not None
    assert many.constant_errors[2:] == pytest.approx(
        few.constant_errors[2:] / 2, rel=0.3
    )


def test_the_policy_ranks_by_the_constants_in_use_and_by_phase_without() -> None:
    columns = {field.name: np.array([1.0, 5.0]) for field in fields(Activity)}
    shared = np.ones((2, 2, len(SHARED)))
    did = Activity(**columns | {"shared": shared})
    young, old = taught(3), taught(300)
    assert young.bound(by_tokens) is by_tokens
    assert young.bound(by_calibration)(did).tolist() == by_phase(did).tolist()
    assert old.cost is not None
    expected = features_of(did) @ old.cost.joules
    assert old.bound(by_calibration)(did).tolist() == expected.tolist()
    assert expected.tolist() != by_phase(did).tolist()
    rough = replace(did, shared=None)
    plain = by_phase(did, old.cost.plain).tolist()
    assert old.bound(by_calibration)(rough).tolist() == plain


def test_nothing_is_trusted_before_enough_rows() -> None:
    calibration = taught(9)
    assert calibration.cost is not None  # used, but not trusted
    assert calibration.fit is not None
    assert calibration.fit.reason == "9 of 20 rows of load seen"


def test_a_load_that_never_varies_is_not_trusted() -> None:
    calibration = Calibration()
    work = varied_work(np.random.default_rng(1))
    for number in range(200):
        times = 1.0 + number % 3
        calibration.learn(learnt_of(work * times), 300.0 * times, 2.0)
    fit = calibration.fit
    assert fit is not None
    assert fit.reason is not None
    assert "standard error" in fit.reason
    # what the load does not tell stays at the ratios of `phase`
    assert calibration.cost is not None
    levels = np.array([*vars_of(calibration.cost.plain)]) / PRIOR[:5]
    assert levels == pytest.approx([levels[0]] * 5, rel=0.1)


def test_an_ill_conditioned_load_is_trusted_where_that_moves_no_joules() -> None:
    rng = np.random.default_rng(4)
    calibration = Calibration()
    for _ in range(200):
        work = varied_work(rng)
        work[2] = work[1] * 400  # every prompt looks back as far
        joules = work @ (PRIOR * TRUE_RATIOS) + rng.normal(0, 1.0)
        calibration.learn(learnt_of(work), float(joules), 2.0)
    fit = calibration.fit
    assert fit is not None
    assert fit.condition > 3000
    assert fit.reason is None


def test_energy_that_the_work_does_not_explain_is_not_trusted() -> None:
    fit = taught(300, noise_joules=400.0).fit
    assert fit is not None
    assert fit.reason is not None
    assert "unexplained" in fit.reason


def test_untrusted_constants_are_used_while_they_predict_better_than_phase() -> None:
    joules_each = PRIOR * TRUE_RATIOS * (0.2, *[1.5] * 4, *[1.0] * len(SHARED))
    noisy = taught(60, joules_each=joules_each, noise_joules=60.0)
    assert noisy.fit is not None
    assert noisy.fit.misfit > FitRules().max_misfit
    assert noisy.state.doubt is not None
    assert noisy.cost is not None


def test_constants_that_are_too_uncertain_are_not_trusted() -> None:
    strict = FitRules(max_split_error=1e-4)
    fit = taught(300, rules=strict).fit
    assert fit is not None
    assert fit.doubt is not None
    assert fit.doubt.kind == "uncertain"


def test_old_rows_fade_and_a_changed_engine_is_learnt() -> None:
    rng = np.random.default_rng(2)
    calibration = taught(200, rules=FitRules(max_rows=50))
    for _ in range(400):
        work = varied_work(rng)
        joules = work @ (PRIOR * TRUE_RATIOS * 2) + rng.normal(0, 5.0)
        calibration.learn(learnt_of(work), float(joules), 2.0)
    assert calibration.sums.rows == pytest.approx(50.0)
    assert calibration.fit is not None
    found = calibration.fit.constants["prefill_token_joules"][0]
    assert found == pytest.approx(2 * PRIOR[1] * TRUE_RATIOS[1], rel=0.05)


def test_short_windows_are_added_up_to_a_row() -> None:
    calibration = Calibration(FitRules(row_seconds=2.0, refit_seconds=2.0))
    for _ in range(3):
        calibration.learn(learnt_of(np.ones(len(FEATURES))), 1.0, 0.5)
    assert calibration.sums.rows == 0
    calibration.learn(learnt_of(np.ones(len(FEATURES))), 1.0, 0.5)
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
    assert later.sums.rows == pytest.approx(240.0)


def test_work_that_never_came_does_not_spoil_the_condition() -> None:
    rng = np.random.default_rng(3)
    calibration = Calibration()
    for _ in range(100):
        work = varied_work(rng)
        work[3:6] = work[-2:] = 0.0  # replies of one token: nobody ever decoded
        joules = work @ (PRIOR * TRUE_RATIOS) + rng.normal()
        calibration.learn(learnt_of(work), float(joules), 2.0)
    assert calibration.fit is not None
    assert calibration.fit.reason is None


@pytest.mark.parametrize("joules", [0.0, 10.0])
def test_no_work_or_no_energy_is_no_fit(joules: float) -> None:
    work = (np.ones if not joules else np.zeros)(len(FEATURES))
    calibration = Calibration()
    calibration.learn(learnt_of(work), joules, 2.0)
    assert calibration.fit is None
    assert calibration.state.reason == "no load was measured yet"


def test_an_engine_that_bends_is_found_out_and_a_straight_one_stays_plain() -> None:
    bent = PRIOR * TRUE_RATIOS
    bent[FEATURES.index("reach_16")] = 6.0
    calibration = taught(300, joules_each=bent, noise_joules=20.0)
    assert calibration.fit is not None
    assert calibration.fit.form.startswith("experts")
    assert calibration.fit.joules[FEATURES.index("reach_16")] == pytest.approx(6.0, 0.3)
    straight = taught(300, noise_joules=20.0).fit
    assert straight is not None
    assert not straight.form.startswith("experts")


@pytest.mark.parametrize("tokens", REACH_TOKENS[:2])
def test_an_engine_that_bends_is_found_out_within_twenty_seconds(tokens: float) -> None:
    joules_each = PRIOR * TRUE_RATIOS
    joules_each[FEATURES.index(f"reach_{tokens:.0f}")] = 12.0
    bent = taught(10, joules_each=joules_each).fit
    straight = taught(10).fit
    assert bent is not None
    assert straight is not None
    assert bent.form.startswith("experts")
    assert not straight.form.startswith("experts")


def test_a_form_is_judged_by_rows_that_it_had_not_seen() -> None:
    rng = np.random.default_rng(6)
    calibration = Calibration()
    for _ in range(60):
        before = calibration.state
        work = varied_work(rng)
        joules = float(work @ (PRIOR * TRUE_RATIOS) + rng.normal(0, 5.0))
        calibration.learn(learnt_of(work), joules, 2.0)
        if before.fit is not None and before.trials.rows:
            at = list(FORMS).index(before.fit.form)
            added_error = calibration.trials.errors[at] - before.trials.errors[at]
            missed = joules - float(before.fit.joules_of(work))
            assert added_error == pytest.approx(missed**2)


def test_the_variance_of_work_is_that_of_its_constants() -> None:
    fit = taught(100).fit
    assert fit is not None
    alone = np.zeros(len(FEATURES))
    alone[1] = 1000.0
    error = fit.constants["prefill_token_joules"][1]
    variance = variance_of(alone, fit.covariance)
    assert variance == pytest.approx((1000.0 * error) ** 2)
    several = np.stack((alone, 2 * alone))
    assert variance_of(several, fit.covariance)[1] == pytest.approx(4 * variance)


SPREAD = np.linspace(0.2, 0.8, len(FEATURES)) * PRIOR
"""Standard errors of joules by feature."""


@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 6),
    joules=st.floats(1e-3, 1e4),
    times=st.floats(0.1, 10.0),
)
def test_what_constants_move_is_of_requests_that_differ(
    seed: int, count: int, joules: float, times: float
) -> None:
    rng = np.random.default_rng(seed)
    work = rng.uniform(0, 1, (count, len(FEATURES))) / PRIOR
    charged = joules * rng.dirichlet(np.ones(count))
    covariance = np.diag(SPREAD**2)
    moved = moved_joules(work, charged, covariance)
    assert (moved >= 0).all()
    assert moved_joules(work * times, charged, covariance) == pytest.approx(
        moved * times, rel=1e-6, abs=1e-9
    )
    order = rng.permutation(count)
    assert moved_joules(work[order], charged[order], covariance) == pytest.approx(
        moved[order], rel=1e-6, abs=1e-9
    )
    alike = np.outer(charged / charged.sum(), work.sum(axis=0))
    assert moved_joules(alike, charged, covariance) == pytest.approx(
        np.zeros(count), abs=1e-6
    )
    assert moved_joules(work, charged, np.zeros_like(covariance)).max() == 0.0


def test_what_two_requests_win_and_lose_by_constants_is_the_same() -> None:
    work = np.zeros((2, len(FEATURES)))
    work[0, 1], work[1, 3] = 1000.0, 500.0  # a prompt beside decoded tokens
    moved = moved_joules(work, np.array([30.0, 10.0]), np.diag(SPREAD**2))
    assert moved[0] == pytest.approx(moved[1])
    # of its own constant's error a request has to bear the part that is not its
    prompt, decode = SPREAD[1] * 1000.0 / 4, SPREAD[3] * 500.0 * 3 / 4
    assert moved[0] == pytest.approx((prompt**2 + decode**2) ** 0.5)


def test_nothing_moves_where_nothing_was_charged() -> None:
    work = np.ones((2, len(FEATURES)))
    assert (moved_joules(work, np.zeros(2), np.eye(len(FEATURES))) == 0).all()
    assert len(moved_joules(work[:0], np.zeros(0), np.eye(len(FEATURES)))) == 0


def test_before_the_first_fit_only_the_level_is_known_and_then_errors_shrink() -> None:
    rng = np.random.default_rng(2)
    work = varied_work(rng)
    nothing_known = Calibration().covariance(work, 100.0)
    assert variance_of(work, nothing_known) ** 0.5 > 0.3 * 100.0
    assert (Calibration().covariance(np.zeros(len(FEATURES)), 0.0) == 0).all()
    calibration = taught(100)
    joules = float(work @ (PRIOR * TRUE_RATIOS))
    known = calibration.covariance(work, joules)
    assert variance_of(work, known) ** 0.5 < 0.05 * joules


def test_the_variance_of_a_window_is_what_windows_were_missed_by() -> None:
    calibration = taught(800, noise_joules=8.0)
    assert calibration.window_variance == pytest.approx(64.0, rel=0.3)


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 25))
def test_constants_and_errors_are_never_negative_or_unknown(
    seed: int, rows: int
) -> None:
    rng = np.random.default_rng(seed)
    calibration = Calibration(FitRules(min_rows=1, max_rows=20.0))
    for _ in range(rows):
        work = rng.uniform(0, 1, len(FEATURES)) * (rng.random(len(FEATURES)) < 0.6)
        calibration.learn(learnt_of(work), float(rng.uniform(0, 1e3)), 2.0)
    fit = calibration.fit
    if fit is None:
        return
    for values in (fit.constant_joules, fit.constant_errors):
        assert np.isfinite(values).all()
        assert (values >= 0).all()
    assert (variance_of(np.eye(len(FEATURES)), fit.covariance) >= 0).all()


def test_jitter_of_edges_is_taken_out_and_other_noise_is_not() -> None:
    rng = np.random.default_rng(8)
    jittery, noisy = Calibration(), Calibration()
    edge = 0.0
    for _ in range(300):
        work = varied_work(rng) / 4
        joules = float(work @ (PRIOR * TRUE_RATIOS))
        before, edge = edge, float(rng.normal(0, 15.0))
        jittery.learn(learnt_of(work), joules + edge - before, 0.5)
        noisy.learn(learnt_of(work), joules + float(rng.normal(0, 15.0)), 0.5)
    assert jittery._whitener.theta > 0.6
    assert noisy._whitener.theta < 0.3
    for calibration in (jittery, noisy):
        assert calibration.fit is not None
        found = calibration.fit.constants["prefill_token_joules"][0]
        assert found == pytest.approx(PRIOR[1] * TRUE_RATIOS[1], rel=0.1)


def test_another_process_on_the_board_ends_trust_and_nothing_is_learnt() -> None:
    calibration = taught(100)
    assert calibration.state.is_fitted
    rows = calibration.sums.rows
    calibration.shared_because = "processes beside the engine: 1 on gpu0"
    work = varied_work(np.random.default_rng(1))
    calibration.learn(learnt_of(work), 1e6, 2.0)
    state = calibration.state
    assert state.doubt == Doubt("shared", "processes beside the engine: 1 on gpu0")
    assert calibration.sums.rows == rows
    calibration.shared_because = None
    assert calibration.state.is_fitted


def test_work_that_is_not_known_for_much_of_the_time_ends_trust() -> None:
    calibration = taught(100)
    for _ in range(60):
        calibration.miss(0.5, "work past the proxy was there")
    doubt = calibration.state.doubt
    assert doubt is not None
    assert doubt.kind == "unknown_work"
    assert "past the proxy" in doubt.text


def test_an_engine_that_costs_more_from_one_moment_on_is_learnt_anew() -> None:
    rng = np.random.default_rng(9)
    calibration = taught(100)
    kinds = set()
    for _ in range(60):
        work = varied_work(rng)
        joules = 1.3 * float(work @ (PRIOR * TRUE_RATIOS)) + rng.normal(0, 5.0)
        calibration.learn(learnt_of(work), float(joules), 2.0)
        doubt = calibration.state.doubt
        kinds.add(doubt.kind if doubt else None)
    assert "changed" in kinds
    assert calibration.state.is_fitted
    assert calibration.fit is not None
    found = calibration.fit.constants["prefill_token_joules"][0]
    assert found == pytest.approx(1.3 * PRIOR[1] * TRUE_RATIOS[1], rel=0.05)
