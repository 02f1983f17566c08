"""Fits the constants of the cost model to what the sensor counted, window by window.

Rule: the constants in use for a window come from windows settled before it, and
from nothing else; what is kept is sums of fixed size, however long the run.

Each row is a stretch of about two seconds of settled windows: what all requests did
in it (steps, prompt tokens, ...) against the joules that they caused. The constants
of each form of the model are its least squares, none below 0, drawn toward the ratios
of `phase` as far as the load did not show better (ridge). Every form predicts each row
before it learns from it, and the simplest that none beats by more than chance is used.
Until it can be trusted, `phase` is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from proxy.meter.activity.work import Activity
from proxy.meter.attribution.forms import (
    FORMS,
    PLAIN,
    PRIOR,
    Form,
    nonnegative_least_squares,
)
from proxy.meter.attribution.policies import (
    FEATURES,
    CostModel,
    FittedCost,
    FloatArray,
    Policy,
    by_calibration,
    features_of,
)


@dataclass(frozen=True, slots=True)
class FitRules:
    """When a fit is trusted, and how much is remembered."""

    row_seconds: float = 2.0
    """Windows are added up so far: an edge that is 10 ms late moves joules from one
    window to the next, which cancels within a row."""
    min_rows: int = 10
    max_rows: float = 600.0
    """Older rows fade: twenty minutes of load, so that a new clock limit or
    engine setting is learnt."""
    resumed_rows: float = 60.0
    """What an earlier run saw weighs so much at most: it may have been another GPU."""
    prior_spread: float = 0.5
    """Standard deviation given to `phase`'s ratios, as a fraction of each: data
    sheets and the simulated hardware differ from them by up to 40 %."""
    max_split_error: float = 0.05
    """A constant's standard error may move so much of the energy."""
    max_misfit: float = 0.1
    """Root mean square of what is left, by the mean row: 0.07 at most in the
    simulator, 0.14 where preemption hides work from the proxy."""

    min_trials: float = 15.0
    """Rows that a form has to have predicted before it is preferred."""
    better_errors: float = 2.0
    """A form is preferred to a simpler one where its squared errors are less by so
    many standard errors of their difference; half of it keeps it."""


@dataclass(frozen=True, slots=True)
class Sums:
    """All that is kept of the rows, fading; work in units of `PRIOR`."""

    rows: float
    squares: FloatArray
    """Shape (features, features): sum of work x work."""
    products: FloatArray
    """Shape (features,): sum of work x joules."""
    work: FloatArray
    """Shape (features,): sum of work."""
    joules: float
    square_joules: float
    form: str = PLAIN
    """The form in use when they were taken."""


@dataclass(frozen=True, slots=True)
class Fit:
    """One form's constants as fitted, and what speaks for or against them."""

    form: str
    """A key of `FORMS`."""
    joules: FloatArray
    """Shape (constants of the form,), >= 0."""
    error_joules: FloatArray
    """Standard error of each."""
    features: FittedCost
    """The same as joules by feature, for the policies."""
    covariance: FloatArray
    """Shape (features, features): of the joules by feature, J^2."""
    rows: float
    condition: float
    misfit: float
    """Root mean square of the residual, by the mean row."""
    row_variance: float
    """J^2 that a row differs by from what the constants say."""
    reason: str | None
    """Why it is not trusted; None where it is."""

    @property
    def constants(self) -> dict[str, tuple[float, float, str]]:
        """Joules, standard error and unit, by name."""
        form = FORMS[self.form]
        return {
            name: (joules, error, unit)
            for name, joules, error, unit in zip(
                form.constants,
                self.joules.tolist(),
                self.error_joules.tolist(),
                form.units,
                strict=True,
            )
        }

    def joules_of(self, work: FloatArray) -> FloatArray:
        """What work costs by these constants; `work` has shape (..., features)."""
        return np.asarray(work @ self.features.joules, dtype=np.float64)

    def variance_of(self, work: FloatArray) -> FloatArray:
        """Variance of that, J^2, from the uncertainty of the constants alone.

        `work` is shape (..., features), the order of `FEATURES`: of one request, or of
        a difference such as a request's own less its part of the window's, for what
        the division of known joules is uncertain by. Neither the sensor's noise nor
        that of edges is in it: see `Calibration.window_variance`.
        """
        found = np.einsum("...i,ij,...j->...", work, self.covariance, work)
        return np.asarray(np.maximum(found, 0.0), dtype=np.float64)


def no_sums() -> Sums:
    """Before the first row."""
    size = len(FEATURES)
    return Sums(0.0, np.zeros((size, size)), np.zeros(size), np.zeros(size), 0.0, 0.0)


def work_of(activity: Activity) -> FloatArray:
    """What all requests of a window did, shape (features,)."""
    return np.asarray(features_of(activity).sum(axis=(0, 1)), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Trials:
    """How well each form predicted rows that it had not seen, fading; J^2."""

    rows: float
    errors: FloatArray
    """Shape (forms,): sum of squared errors."""
    products: FloatArray
    """Shape (forms, forms): sum of products of squared errors."""

    def with_row(self, squared: FloatArray, max_rows: float) -> Trials:
        """One row more; beyond `max_rows` the older ones fade."""
        keep = min(1.0, (max_rows - 1) / self.rows) if self.rows else 1.0
        return Trials(
            keep * self.rows + 1,
            keep * self.errors + squared,
            keep * self.products + np.outer(squared, squared),
        )

    def lead(self, one: int, other: int) -> float:
        """By how many standard errors one form's squared errors are less."""
        if self.rows <= 1:
            return 0.0
        mean = (self.errors[other] - self.errors[one]) / self.rows
        square = self.products[other, other] + self.products[one, one]
        square -= 2 * self.products[one, other]
        variance = square / self.rows - mean**2
        if variance <= 0:
            return 0.0
        return float(mean / np.sqrt(variance / (self.rows - 1)))


def no_trials() -> Trials:
    """Before the first row."""
    count = len(FORMS)
    return Trials(0.0, np.zeros(count), np.zeros((count, count)))


def preferred(trials: Trials, used: str, rules: FitRules) -> str:
    """The simplest form that none predicts better than by more than chance."""
    names = list(FORMS)
    if trials.rows < rules.min_trials:
        return used
    best = 0
    for number, name in enumerate(names):
        needed = rules.better_errors / (2 if name == used else 1)
        if number and trials.lead(number, best) > needed:
            best = number
    return names[best]


@dataclass(frozen=True, slots=True)
class CalibrationState:
    """The calibration as users see it, and as it is saved."""

    model: str | None
    """None before the first request."""
    row_seconds: float
    sums: Sums
    fit: Fit | None
    trials: Trials

    @property
    def is_fitted(self) -> bool:
        """Whether the policy `calibrated` uses the fitted constants."""
        return self.reason is None

    @property
    def reason(self) -> str | None:
        """Why they are not used; None where they are."""
        return self.fit.reason if self.fit else "no load was measured yet"

    @property
    def form_errors(self) -> dict[str, float]:
        """What each form missed rows by that it had not seen, by the mean row."""
        if self.trials.rows <= 0 or self.sums.joules <= 0:
            return {}
        missed = np.sqrt(self.trials.errors / self.trials.rows)
        mean = self.sums.joules / self.sums.rows
        return dict(zip(FORMS, (missed / mean).tolist(), strict=True))


class Calibration:
    """Constants of one engine and model, fitted as its windows are settled."""

    def __init__(
        self,
        rules: FitRules | None = None,
        saved: Mapping[str, Sums] | None = None,
    ) -> None:
        """`saved` is what earlier runs of this engine saw, by model."""
        self.rules = rules or FitRules()
        self.model: str | None = None
        self.sums = no_sums()
        self.trials = no_trials()
        self.fit: Fit | None = None
        """Of the form in use, from the rows so far; None before the first."""
        self.window_variance: float | None = None
        """J^2 that a window of usual width differs by from what the constants in use
        had said: jitter of edges and all that the model leaves out. None: not known."""
        self._fits: dict[str, Fit] = {}
        self._saved = dict(saved or {})
        self._work = np.zeros(len(FEATURES))
        self._joules = 0.0
        self._seconds = 0.0
        self._windows = 0.0

    @property
    def cost(self) -> FittedCost | None:
        """The constants to use now; None: not trusted, use those of `phase`."""
        if self.fit is None or self.fit.reason is not None:
            return None
        return self.fit.features

    @property
    def state(self) -> CalibrationState:
        """One consistent picture."""
        return CalibrationState(
            self.model, self.rules.row_seconds, self.sums, self.fit, self.trials
        )

    def bound(self, policy: Policy) -> Policy:
        """The policy as it ranks now: `by_calibration` with the constants in use."""
        if policy is by_calibration:
            return partial(by_calibration, cost=self.cost)
        return policy

    def serve(self, model: str) -> None:
        """The engine serves this model: go on from what an earlier run saw of it.

        One engine serves one model; other names that come later (adapters) count
        as the first.
        """
        if self.model is not None:
            return
        self.model = model
        if model in self._saved:
            self.sums = faded(self._saved[model], self.rules.resumed_rows)
            self._fit()

    def learn(self, work: FloatArray, joules: float, seconds: float) -> None:
        """A window was settled: this work, shape (features,), caused these joules."""
        self._watch_window(work, joules)
        self._work = self._work + work * PRIOR
        self._joules += joules
        self._seconds += seconds
        if self._seconds < self.rules.row_seconds:
            return
        if self._fits:
            self._try()
        self.sums = added(self.sums, self._work, self._joules, self.rules.max_rows)
        self._fit()
        self._work = np.zeros(len(FEATURES))
        self._joules = self._seconds = 0.0

    def _watch_window(self, work: FloatArray, joules: float) -> None:
        if self.fit is None or joules <= 0:
            return
        self._windows = min(self._windows + 1, WINDOWS_REMEMBERED)
        square = (joules - float(self.fit.joules_of(work))) ** 2
        before = self.window_variance or 0.0
        self.window_variance = before + (square - before) / self._windows

    def _try(self) -> None:
        """Every form predicts the row before anything is learnt from it."""
        work = self._work / PRIOR
        missed = [
            self._joules - float(fit.joules_of(work)) for fit in self._fits.values()
        ]
        squared = np.array(missed) ** 2
        self.trials = self.trials.with_row(squared, self.rules.max_rows)
        form = preferred(self.trials, self.sums.form, self.rules)
        self.sums = replace(self.sums, form=form)

    def _fit(self) -> None:
        self._fits = fits_of(self.sums, self.rules, self._fits)
        self.fit = self._fits.get(self.sums.form)


WINDOWS_REMEMBERED = 300
"""Two minutes and a half of load: what a window differs by changes with the load."""


def faded(sums: Sums, max_rows: float) -> Sums:
    """The same, weighing `max_rows` at most."""
    keep = min(1.0, max_rows / sums.rows) if sums.rows else 1.0
    return Sums(
        keep * sums.rows,
        keep * sums.squares,
        keep * sums.products,
        keep * sums.work,
        keep * sums.joules,
        keep * sums.square_joules,
        sums.form,
    )


def added(sums: Sums, work: FloatArray, joules: float, max_rows: float) -> Sums:
    """One row more; beyond `max_rows` the older ones fade."""
    old = faded(sums, max_rows - 1)
    return Sums(
        old.rows + 1,
        old.squares + np.outer(work, work),
        old.products + work * joules,
        old.work + work,
        old.joules + joules,
        old.square_joules + joules**2,
        sums.form,
    )


def fits_of(
    sums: Sums, rules: FitRules, before: Mapping[str, Fit] | None = None
) -> dict[str, Fit]:
    """Constants of every form from the rows so far, by name.

    Empty while they hold no work or no energy. The fits from a row `before` save time.
    """
    before = before or {}
    plain = sums.work @ FORMS[PLAIN].matrix
    if sums.joules <= 0 or plain.sum() <= 0:
        return {}
    level = float(sums.joules / plain.sum())
    found: dict[str, Fit] = {}
    for name, form in FORMS.items():
        found[name] = _fitted(
            sums, form, level, rules, plain=found.get(PLAIN), before=before.get(name)
        )
    return found


def fitted(sums: Sums, rules: FitRules) -> Fit | None:
    """Constants of the form in use; None while rows hold no work or no energy."""
    return fits_of(sums, rules).get(sums.form)


def _fitted(
    sums: Sums,
    form: Form,
    level: float,
    rules: FitRules,
    *,
    plain: Fit | None,
    before: Fit | None,
) -> Fit:
    """Least squares of one form, drawn toward what is usual at this level."""
    matrix = form.matrix
    squares, products = matrix.T @ sums.squares @ matrix, matrix.T @ sums.products
    size = len(products)
    mean_joules = sums.joules / sums.rows
    tiny = 1e-9 * float(np.trace(squares)) * np.eye(size)
    near = before.joules if before else None
    free = nonnegative_least_squares(squares + tiny, products, near)
    left = sums.square_joules - 2 * free @ products + free @ squares @ free
    degrees = max(sums.rows - size, 1.0)
    variance = max(float(left) / degrees, (MIN_NOISE * mean_joules) ** 2)
    ridge = variance / (rules.prior_spread * level) ** 2 * np.eye(size)
    drawn = products + np.diag(ridge) * level * form.usual
    ratios = nonnegative_least_squares(squares + ridge, drawn, free)
    covariance = variance * np.linalg.inv(squares + ridge)
    errors = np.sqrt(np.diag(covariance))
    misfit = float(np.sqrt(variance)) / mean_joules
    by_feature = matrix @ ratios * PRIOR
    scaled = PRIOR[:, np.newaxis] * matrix
    costs = (
        plain.features.plain if plain else CostModel(*(ratios * form.scale).tolist())
    )
    moved = dict(
        zip(form.constants, errors * (sums.work @ matrix) / sums.joules, strict=True)
    )
    return Fit(
        form=form.name,
        joules=ratios * form.scale,
        error_joules=errors * form.scale,
        features=FittedCost(by_feature, costs),
        covariance=scaled @ covariance @ scaled.T,
        rows=sums.rows,
        condition=_condition(squares),
        misfit=misfit,
        row_variance=variance,
        reason=_distrust(sums.rows, misfit, moved, rules),
    )


MIN_NOISE = 1e-3
"""No sensor's row is better than that; keeps a perfect fit from being certain."""


def _condition(squares: FloatArray) -> float:
    """Condition of the matrix with unit columns; work that never came is left out."""
    lengths = np.sqrt(np.maximum(np.diag(squares), 0.0))  # rounding may be below 0
    came = np.flatnonzero(lengths > 0)
    units = squares[np.ix_(came, came)] / np.outer(lengths[came], lengths[came])
    return float(np.linalg.cond(units))


def _distrust(
    rows: float, misfit: float, moved: Mapping[str, float], rules: FitRules
) -> str | None:
    """One line why the constants are not used yet, None where they are.

    `moved` is what part of the energy the standard error of each constant moves.
    """
    if rows < rules.min_rows:
        return f"{rows:.0f} of {rules.min_rows} rows of load seen"
    if misfit > rules.max_misfit:
        return (
            f"the model leaves {misfit:.0%} of a row's energy unexplained, "
            f"trusted up to {rules.max_misfit:.0%}"
        )
    worst = max(moved, key=lambda name: moved[name])
    if moved[worst] > rules.max_split_error:
        return (
            f"the standard error of {worst} moves {moved[worst]:.0%} of the "
            f"energy, trusted up to {rules.max_split_error:.0%}"
        )
    return None
