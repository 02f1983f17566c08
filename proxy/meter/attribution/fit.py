"""Fits the constants of the cost model to what the sensor counted, window by window.

Rule: the constants in use for a window come from windows settled before it, and
from nothing else; what is kept is sums of fixed size, however long the run.

A row is a window: what all requests did in it (steps, prompt tokens, ...) against the
joules that they caused, freed of what the jitter of edges moves between neighbours.
The constants of each form of the model are its least squares, none below 0, drawn
toward the ratios of `phase` as far as the load did not show better (ridge). Every form
predicts two seconds before it learns from them; another than the usual one has to be
better by more than chance. Until constants are trusted they are used all the same,
being the better guess, and the reason is told.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from proxy.meter.activity.work import Activity
from proxy.meter.attribution.evidence import Doubt, Evidence
from proxy.meter.attribution.forms import (
    FORMS,
    PLAIN,
    PRIOR,
    USUAL,
    Form,
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
from proxy.process.least_squares import nonnegative_least_squares


@dataclass(frozen=True, slots=True)
class FitRules:
    """When a fit is trusted, and how much is remembered."""

    row_seconds: float = 0.4
    """Windows that are shorter are added up."""
    refit_seconds: float = 2.0
    """So often constants are fitted anew, and the rows since then judged as one: an
    edge that is 10 ms late moves joules from one window to the next."""
    min_used_rows: float = 6.0
    """From so many on the constants are used: they differ from `phase` as far as the
    rows say so for sure, so they are the better guess long before they are trusted."""
    min_rows: int = 20
    max_rows: float = 2400.0
    """Older rows fade: twenty minutes of load, so that a new clock limit or
    engine setting is learnt."""
    resumed_rows: float = 240.0
    """What an earlier run saw weighs so much at most: it may have been another GPU."""
    prior_spread: float = 0.7
    """Standard deviation given to `phase`'s ratios, as a fraction of each: engines that
    are no 8B-class dense model differ from them by more than half."""
    max_split_error: float = 0.05
    """What the constants' uncertainty moves between requests may be so much of their
    energy (root mean square, window by window)."""
    max_misfit: float = 0.1
    """Root mean square of what two seconds are missed by, by their energy: 0.03 in the
    simulator, 0.13 where preemption hides work from the proxy. Beyond it nothing is
    trusted, and constants are used only as long as they predict better than `phase`."""
    min_tried_rows: float = 20.0
    """No form is judged by what it says after fewer."""
    min_trials: float = 12.0
    """Stretches that a form has to have predicted before they decide."""
    better_evidence: float = 3.0
    """Until then a form is preferred to a simpler one where the rows so far are
    exp(this) times as likely under it, whatever its constants; a third keeps it."""
    max_missed_part: float = 0.3
    """Of the busy time: windows that teach nothing, as work in them is not known."""
    better_errors: float = 2.0
    """A form is preferred to a simpler one where its squared errors are less by so
    many standard errors of their difference; half of it keeps it."""


@dataclass(frozen=True, slots=True)
class Sums:
    """All that is kept of the rows, fading; work in units of `PRIOR`.

    Rows are freed of what the jitter of edges gives to one window and takes from the
    next, see `Whitener`; `work` and `joules` are as they were.
    """

    rows: float
    squares: FloatArray
    """Shape (features, features): sum of work x work."""
    products: FloatArray
    """Shape (features,): sum of work x joules."""
    work: FloatArray
    """Shape (features,): sum of work."""
    joules: float
    square_joules: float
    spread: FloatArray
    """Shape (features, features): how differently requests use the features, see
    `spread_of`."""
    square_window_joules: float
    """Sum of the squared joules of windows, of which `spread` is."""
    form: str = USUAL
    """The form in use when they were taken."""


@dataclass(frozen=True, slots=True)
class Fit:
    """One form's constants as fitted, and what speaks for or against them."""

    form: str
    """A key of `FORMS`."""
    constant_joules: FloatArray
    """Shape (constants of the form,), >= 0."""
    constant_errors: FloatArray
    """Standard error of each, J."""
    cost: FittedCost
    """The same as joules by feature, for the policies."""
    covariance: FloatArray
    """Shape (features, features): of the joules by feature, J^2."""
    rows: float
    condition: float
    misfit: float
    """Root mean square of what two seconds are missed by, by their energy."""
    row_variance: float
    """J^2 that a row differs by from what the constants say."""
    split_error: float
    """What the covariance moves between requests, by their energy."""
    evidence: float
    """Logarithm of how likely the rows are under the form, whatever its constants, up
    to a sum that is the same for all forms."""
    doubt: Doubt | None
    """Why it is not trusted; None where it is."""

    @property
    def reason(self) -> str | None:
        """The doubt's line."""
        return self.doubt.text if self.doubt else None

    @property
    def joules(self) -> FloatArray:
        """Joules of each feature, shape (features,)."""
        return self.cost.joules

    @property
    def constants(self) -> dict[str, tuple[float, float, str]]:
        """Joules, standard error and unit, by name."""
        form = FORMS[self.form]
        return {
            name: (joules, error, unit)
            for name, joules, error, unit in zip(
                form.constants,
                self.constant_joules.tolist(),
                self.constant_errors.tolist(),
                form.units,
                strict=True,
            )
        }

    def joules_of(self, work: FloatArray) -> FloatArray:
        """What work costs by these constants; `work` has shape (..., features)."""
        return np.asarray(work @ self.joules, dtype=np.float64)


def no_sums() -> Sums:
    """Before the first row."""
    size = len(FEATURES)
    square, line = np.zeros((size, size)), np.zeros(size)
    return Sums(0.0, square, line, line, 0.0, 0.0, square, 0.0)


def spread_of(work: FloatArray) -> FloatArray:
    """How differently the requests of a window use the features.

    `work` is shape (requests, features). With x of a request, X of all and p, the
    part that is its by `phase`, the sum of (x - p X)(x - p X)^T / p: constants off by
    e move p J of each request by e (x - p X), so the mean square of what they move,
    by energy, is the trace of their covariance times this, over J^2.
    """
    parts = work @ (PRIOR * FORMS[PLAIN].matrix.sum(axis=1))
    took = work[parts > 0]
    parts = parts[parts > 0]
    if not len(parts):
        return np.zeros((work.shape[1], work.shape[1]))
    whole = took.sum(axis=0)
    found = (took / (parts / parts.sum())[:, np.newaxis]).T @ took
    return np.asarray(found - np.outer(whole, whole), dtype=np.float64)


def work_of(activity: Activity) -> FloatArray:
    """What each request did, shape (requests, features)."""
    features = features_of(activity)
    return np.asarray(features[:, 0] + features[:, 1], dtype=np.float64)


def variance_of(work: FloatArray, covariance: FloatArray) -> FloatArray:
    """Variance of what work costs, J^2, from the constants' uncertainty alone.

    `work` is shape (..., features), the order of `FEATURES`, `covariance` of the joules
    by feature. Neither the sensor's noise nor that of edges is in it: see
    `Calibration.window_variance`.
    """
    found = ((work @ covariance) * work).sum(axis=-1)
    return np.asarray(np.maximum(found, 0.0), dtype=np.float64)  # may round below


def moved_joules(
    work: FloatArray, joules: FloatArray, covariance: FloatArray
) -> FloatArray:
    """Standard deviation of what uncertain constants move to each request or from it.

    Shape (requests,), as `joules`, which `work` of shape (requests, features) was
    charged; `covariance` is of the joules by feature. The sum is known, so constants
    that are off by e move e (x - p X) of a request: x is its work, X that of all, p
    its part. Who is alone, and who does just what all do, has nothing moved.
    """
    total = float(joules.sum())
    if total <= 0:
        return np.zeros(len(joules))
    apart = work - np.outer(joules / total, work.sum(axis=0))
    return np.sqrt(variance_of(apart, covariance))


@dataclass(frozen=True, slots=True)
class Learnt:
    """What a window teaches."""

    work: FloatArray
    """Shape (features,): what all requests did."""
    spread: FloatArray
    """Shape (features, features): see `spread_of`."""

    @classmethod
    def of(cls, work: FloatArray) -> Learnt:
        """What all requests did, and how differently; `work` is of each, `work_of`."""
        return cls(work.sum(axis=0), spread_of(work))

    @classmethod
    def nothing(cls) -> Learnt:
        """Nobody ran."""
        size = len(FEATURES)
        return cls(np.zeros(size), np.zeros((size, size)))


@dataclass(frozen=True, slots=True)
class Trials:
    """How well each form predicted rows that it had not seen, fading; J^2."""

    rows: float
    errors: FloatArray
    """Shape (forms,): sum of squared errors."""
    products: FloatArray
    """Shape (forms, forms): sum of products of squared errors."""
    joules: float
    """Sum of the joules of those rows."""

    def with_row(self, squared: FloatArray, joules: float, max_rows: float) -> Trials:
        """One row more; beyond `max_rows` the older ones fade."""
        keep = min(1.0, (max_rows - 1) / self.rows) if self.rows else 1.0
        return Trials(
            keep * self.rows + 1,
            keep * self.errors + squared,
            keep * self.products + np.outer(squared, squared),
            keep * self.joules + joules,
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
    return Trials(0.0, np.zeros(count), np.zeros((count, count)), 0.0)


def preferred(
    trials: Trials, used: str, rules: FitRules, evidence: Mapping[str, float]
) -> str:
    """The usual form, unless others are better by more than chance.

    Better is who predicted better; until there are enough predictions, under which the
    rows are likelier by themselves. That is known from the first rows on, and believes
    too much in the end, when every form is a little wrong.
    """
    names = list(FORMS)
    usual = best = names.index(USUAL)
    is_tried = trials.rows >= rules.min_trials
    for number, name in enumerate(names):
        if number == usual:
            continue
        if is_tried:
            needed = rules.better_errors / (2 if name == used else 1)
            is_better = trials.lead(number, best) > needed
        else:
            needed = rules.better_evidence / (3 if name == used else 1)
            is_better = evidence[name] - evidence[names[best]] > needed
        if is_better:
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
    outside: Doubt | None = None
    """Why nothing learnt is trusted now, whatever the fit says."""
    evidence: Evidence = field(default_factory=Evidence)
    lag_seconds: float | None = None
    """How late the sensor shows power, where it is late."""

    @property
    def is_fitted(self) -> bool:
        """Whether the fitted constants are trusted."""
        return self.reason is None

    @property
    def reason(self) -> str | None:
        """Why they are not; None where they are."""
        return self.doubt.text if self.doubt else None

    @property
    def doubt(self) -> Doubt | None:
        """The first of all reasons not to trust them."""
        return _first_doubt(self.outside, self.fit, self.evidence)

    @property
    def form_errors(self) -> dict[str, float]:
        """What each form missed two seconds by that it had not seen, by their mean."""
        trials = self.trials
        if trials.rows <= 0 or trials.joules <= 0:
            return {}
        missed = np.sqrt(trials.errors / trials.rows)
        mean = trials.joules / trials.rows
        return dict(zip(FORMS, (missed / mean).tolist(), strict=True))


def _first_doubt(
    outside: Doubt | None, fit: Fit | None, evidence: Evidence
) -> Doubt | None:
    none = Doubt("rows", "no load was measured yet")
    return outside or (none if fit is None else fit.doubt) or evidence.doubt


class Calibration:
    """Constants of one engine and model, fitted as its windows are settled."""

    def __init__(
        self,
        rules: FitRules | None = None,
        saved: Mapping[str, Sums] | None = None,
        stale_models: frozenset[str] = frozenset(),
    ) -> None:
        """`saved` is what earlier runs of this engine saw, by model.

        Of `stale_models` something was saved that cannot be used.
        """
        self.rules = rules or FitRules()
        self.model: str | None = None
        self.sums = no_sums()
        self.trials = no_trials()
        self.fit: Fit | None = None
        """Of the form in use, from the rows so far; None before the first."""
        self.window_variance: float | None = None
        """J^2 that a window of usual width differs by from what the constants in use
        had said: jitter of edges and all that the model leaves out. None: not known."""
        self.evidence = Evidence()
        self.shared_because: str | None = None
        """Why the joules are not this engine's alone; nothing is learnt meanwhile."""
        self.lag_seconds: float | None = None
        """How late the sensor shows power, where it averages: steps are not told apart
        by it, whatever is undone."""
        self._changed: str | None = None
        self._missed: dict[str, float] = {}
        """Busy seconds that taught nothing, by reason, fading."""
        self._learnt_seconds = 0.0
        self._fits: dict[str, Fit] = {}
        self._saved = dict(saved or {})
        self._stale_models = stale_models
        self._row = self._stretch = Row.empty()
        self._whitener = Whitener()
        self._windows = 0.0
        self._missed_squares = np.zeros(3)
        """Stretches, and what fitted constants and `phase` missed them by, fading."""
        self._is_resumed = False
        """An earlier run has chosen the form; who predicts better may change it."""

    @property
    def cost(self) -> FittedCost | None:
        """The constants to use now; None: use those of `phase`."""
        fit, rules = self.fit, self.rules
        if fit is None or fit.rows < rules.min_used_rows:
            return None
        is_better = fit.misfit <= rules.max_misfit or self._is_ahead
        return fit.cost if is_better else None

    def covariance(self, work: FloatArray, joules: float) -> FloatArray:
        """Of the joules by feature, J^2, shape (features, features).

        As fitted; before the first fit `phase`'s ratios are all that is known, and
        that `work` of all, shape (features,), caused these joules.
        """
        if self.fit is not None:
            return self.fit.covariance
        usual = PRIOR * FORMS[PLAIN].matrix.sum(axis=1)
        worked = float(work @ usual)
        level = joules / worked if worked > 0 else 0.0
        return np.diag((self.rules.prior_spread * level * usual) ** 2)

    @property
    def _is_ahead(self) -> bool:
        """Whether fitted constants predicted better than those of `phase`."""
        rows, fitted, usual = self._missed_squares
        return bool(rows >= MIN_AHEAD_ROWS and fitted < usual)

    @property
    def state(self) -> CalibrationState:
        """One consistent picture."""
        return CalibrationState(
            self.model,
            self.rules.row_seconds,
            self.sums,
            self.fit,
            self.trials,
            self._outside(),
            self.evidence,
            self.lag_seconds,
        )

    @property
    def doubt(self) -> Doubt | None:
        """The first of all reasons not to trust the constants, as in `state`."""
        return _first_doubt(self._outside(), self.fit, self.evidence)

    def _outside(self) -> Doubt | None:
        """Why nothing learnt is trusted now, whatever the fit says."""
        if self.shared_because is not None:
            return Doubt("shared", self.shared_because)
        if self.lag_seconds is not None:
            return Doubt(
                "unresolved",
                f"the sensor averages, and shows power {self.lag_seconds:.2g} s late: "
                "it does not tell steps apart",
            )
        if self._changed is not None and self.sums.rows < self.rules.min_rows:
            return Doubt("changed", self._changed)
        if self.model in self._stale_models and self.sums.rows < self.rules.min_rows:
            return Doubt(
                "rows",
                "the saved calibration is of another version, and learnt anew: "
                f"{self.sums.rows:.0f} of {self.rules.min_rows} rows of load seen",
            )
        missed = sum(self._missed.values())
        part = missed / max(missed + self._learnt_seconds, 1e-9)
        if missed >= self.rules.refit_seconds and part > self.rules.max_missed_part:
            worst = max(self._missed, key=lambda why: self._missed[why])
            return Doubt("unknown_work", f"{worst} in {part:.0%} of the busy time")
        return None

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
            self._is_resumed = True
            self._fit()

    def learn(self, learnt: Learnt, joules: float, seconds: float) -> None:
        """A window was settled: this work caused these joules."""
        if self.shared_because is not None:
            return
        self._pass(seconds)
        self._learnt_seconds += seconds
        self._watch_window(learnt.work, joules)
        self._row = row = self._row.with_window(learnt, joules, seconds)
        if row.seconds < self.rules.row_seconds:
            return
        self._row = Row.empty()
        white = self._whitener.whitened(row, self.fit)
        self.sums = added(self.sums, row, white, self.rules.max_rows)
        self._stretch = stretch = self._stretch.plus(row)
        if stretch.seconds >= self.rules.refit_seconds or not self._fits:
            self._stretch = Row.empty()
            self._compare(stretch)
            if self._fits and self.sums.rows >= self.rules.min_tried_rows:
                self._try(stretch)
                self._weigh(stretch)
            self._fit()

    def miss(self, seconds: float, because: str) -> None:
        """A busy window was settled that teaches nothing, as its work is not known."""
        self._pass(seconds)
        self._whitener.interrupt()
        self._missed[because] = self._missed.get(because, 0.0) + seconds

    def _pass(self, seconds: float) -> None:
        keep = max(1.0 - seconds / MISSED_SECONDS, 0.0)
        self._learnt_seconds *= keep
        self._missed = {why: keep * missed for why, missed in self._missed.items()}

    def _watch_window(self, work: FloatArray, joules: float) -> None:
        if self.fit is None or joules <= 0:
            return
        self._windows = min(self._windows + 1, WINDOWS_REMEMBERED)
        expected_joules = float(self.fit.joules_of(work))
        square = (joules - expected_joules) ** 2
        before = self.window_variance or 0.0
        self.window_variance = before + (square - before) / self._windows

    def _try(self, row: Row) -> None:
        """Every form predicts two seconds before anything is learnt from them."""
        costs = np.stack([fit.joules for fit in self._fits.values()]) / PRIOR
        squared = (row.joules - costs @ row.work) ** 2
        self.trials = self.trials.with_row(squared, row.joules, MAX_TRIALS)

    def _compare(self, row: Row) -> None:
        """Whether fitted constants or those of `phase` had predicted a row better."""
        if self.fit is None:
            return
        plain = FORMS[PLAIN].matrix.sum(axis=1)
        worked = float(self.sums.work @ plain)
        if worked <= 0:
            return  # nothing was ever computed
        level = self.sums.joules / worked
        usual = row.joules - level * float(row.work @ plain)
        fitted = row.joules - float(self.fit.joules_of(row.work / PRIOR))
        news = np.array([1.0, fitted**2, usual**2])
        self._missed_squares = AHEAD_KEEP * self._missed_squares + news

    def _weigh(self, row: Row) -> None:
        """Whether what is left is noise, and the engine still what it was."""
        if self.fit is None or row.joules <= 0:
            return
        work = row.work
        missed_joules = row.joules - float(self.fit.joules_of(work / PRIOR))
        self.evidence = self.evidence.with_row(
            missed_joules / row.joules,
            batch=float(work[_ROWS] / PRIOR[_ROWS] / max(work[0] / PRIOR[0], 1e-9)),
            mix=float(work[1:3].sum() / max(work[:5].sum(), 1e-9)),
        )
        drift = self.evidence.drift
        if drift is not None:
            self._changed = f"the joules of the same work {drift}: they are learnt anew"
            self.restart()

    def restart(self) -> None:
        """What was learnt is not true any more; but for the form."""
        self.sums = replace(no_sums(), form=self.sums.form)
        self._is_resumed = False
        self._whitener.interrupt()
        self._row = self._stretch = Row.empty()
        self.trials, self.evidence = no_trials(), Evidence()

    def _fit(self) -> None:
        missed = self.evidence.missed
        self._fits = fits_of(self.sums, self.rules, missed=missed, before=self._fits)
        is_tried = self.trials.rows >= self.rules.min_trials
        if self._fits and (is_tried or not self._is_resumed):
            evidence = {name: fit.evidence for name, fit in self._fits.items()}
            form = preferred(self.trials, self.sums.form, self.rules, evidence)
            self.sums = replace(self.sums, form=form)
        self.fit = self._fits.get(self.sums.form)


_ROWS = FEATURES.index("decode_rows")

MIN_AHEAD_ROWS, AHEAD_KEEP = 3.0, 0.97
"""So many stretches say who predicts better; a minute of load is remembered."""

MAX_TRIALS = 600.0
"""Twenty minutes of load."""

MISSED_SECONDS = 60.0
"""Time in which other work that has ended is forgotten."""

WINDOWS_REMEMBERED = 300
"""Two minutes and a half of load: what a window differs by changes with the load."""


@dataclass(frozen=True, slots=True)
class Row:
    """Windows added up; work in units of `PRIOR`."""

    work: FloatArray
    joules: float
    seconds: float
    spread: FloatArray
    square_window_joules: float

    @classmethod
    def empty(cls) -> Row:
        """Before its first window."""
        nothing = Learnt.nothing()
        return cls(nothing.work, 0.0, 0.0, nothing.spread, 0.0)

    def with_window(self, learnt: Learnt, joules: float, seconds: float) -> Row:
        """One window more."""
        return Row(
            self.work + learnt.work * PRIOR,
            self.joules + joules,
            self.seconds + seconds,
            self.spread + learnt.spread * np.outer(PRIOR, PRIOR),
            self.square_window_joules + joules**2,
        )

    def plus(self, other: Row) -> Row:
        """Both."""
        return Row(
            self.work + other.work,
            self.joules + other.joules,
            self.seconds + other.seconds,
            self.spread + other.spread,
            self.square_window_joules + other.square_window_joules,
        )


@dataclass(frozen=True, slots=True)
class White:
    """A row whose noise has nothing in common with that of the row before."""

    work: FloatArray
    joules: float


class Whitener:
    """Frees rows of what an edge's jitter gives to one window and takes from the next.

    The noise of a window is m + e - e', that of its own and of its two edges: a moving
    average of order one, whose innovations are x + theta * (the innovation before),
    with theta from the correlation of neighbouring residuals, -theta / (1 + theta^2).
    Where edges are all the noise theta goes to 1, and stretches are fitted.
    """

    def __init__(self) -> None:
        size = len(FEATURES)
        self._work = np.zeros(size)
        self._joules = 0.0
        self._last = 0.0
        self._square = 0.0
        self._product = 0.0

    @property
    def theta(self) -> float:
        """0: nothing in common, 1: all."""
        if self._square <= 0:
            return USUAL_THETA
        correlation = min(max(-self._product / self._square, 0.0), 0.5)
        if correlation < 1e-6:
            return 0.0
        root = float(np.sqrt(1 - 4 * correlation**2))
        return min((1 - root) / (2 * correlation), MAX_THETA)

    def whitened(self, row: Row, fit: Fit | None) -> White:
        """The row, as the one that follows those before; `fit` as known before it."""
        if fit is not None:
            left = row.joules - float(fit.joules_of(row.work / PRIOR))
            keep = 1 - 1 / WINDOWS_REMEMBERED
            self._square = keep * self._square + left**2
            self._product = keep * self._product + left * self._last
            self._last = left
        theta = self.theta
        self._work = row.work + theta * self._work
        self._joules = row.joules + theta * self._joules
        return White(self._work, self._joules)

    def interrupt(self) -> None:
        """The next row does not follow the last one."""
        self._work = np.zeros(len(FEATURES))
        self._joules = self._last = 0.0


USUAL_THETA = 0.5
MAX_THETA = 0.9


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
        keep * sums.spread,
        keep * sums.square_window_joules,
        sums.form,
    )


def added(sums: Sums, row: Row, white: White, max_rows: float) -> Sums:
    """One row more; beyond `max_rows` the older ones fade."""
    old = faded(sums, max_rows - 1)
    return Sums(
        old.rows + 1,
        old.squares + np.outer(white.work, white.work),
        old.products + white.work * white.joules,
        old.work + row.work,
        old.joules + row.joules,
        old.square_joules + white.joules**2,
        old.spread + row.spread,
        old.square_window_joules + row.square_window_joules,
        sums.form,
    )


def fits_of(
    sums: Sums,
    rules: FitRules,
    *,
    missed: float | None = None,
    before: Mapping[str, Fit] | None = None,
) -> dict[str, Fit]:
    """Constants of every form from the rows so far, by name.

    Empty while they hold no work or no energy. `missed` is what two seconds were missed
    by before they were learnt from, None: not known. The fits `before` save time.
    """
    before = before or {}
    plain = sums.work @ FORMS[PLAIN].matrix
    if sums.joules <= 0 or plain.sum() <= 0:
        return {}
    level = float(sums.joules / plain.sum())
    found: dict[str, Fit] = {}
    for name, form in FORMS.items():
        found[name] = _fitted(
            sums,
            form,
            level,
            rules,
            plain=found.get(PLAIN),
            before=before.get(name),
            missed=missed,
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
    missed: float | None,
) -> Fit:
    """Least squares of one form, drawn toward what is usual at this level."""
    matrix = form.matrix
    squares, products = matrix.T @ sums.squares @ matrix, matrix.T @ sums.products
    size = len(products)
    mean_joules = sums.joules / sums.rows
    tiny = 1e-9 * float(np.trace(squares)) * np.eye(size)
    near = before.constant_joules if before else None
    free = nonnegative_least_squares(squares + tiny, products, near)
    left = sums.square_joules - 2 * free @ products + free @ squares @ free
    expected = USUAL_ROWS * (USUAL_NOISE * mean_joules) ** 2
    degrees = max(sums.rows - size, 0.0) + USUAL_ROWS
    variance = max(
        (max(float(left), 0.0) + expected) / degrees, (MIN_NOISE * mean_joules) ** 2
    )
    ridge = variance / (rules.prior_spread * level) ** 2 * np.eye(size)
    drawn = products + np.diag(ridge) * level * form.usual
    ratios = nonnegative_least_squares(squares + ridge, drawn, free)
    apart = (ratios - level * form.usual) / (rules.prior_spread * level)
    evidence = _evidence(
        sums, squares, products, ratios, apart, ridge, expected, mean_joules
    )
    covariance = variance * np.linalg.inv(squares + ridge)
    errors = np.sqrt(
        np.maximum(np.diag(covariance), 0.0)
    )  # rounding, where nearly singular
    # until stretches were predicted: four rows have half of one row's relative noise
    misfit = 0.5 * float(np.sqrt(variance)) / mean_joules if missed is None else missed
    by_feature = matrix @ ratios * PRIOR
    scaled = PRIOR[:, np.newaxis] * matrix
    costs = plain.cost.plain if plain else CostModel(*(ratios * form.scale).tolist())
    moved = float(np.einsum("ij,ji->", covariance, matrix.T @ sums.spread @ matrix))
    split = np.sqrt(max(moved, 0.0) / max(sums.square_window_joules, 1e-300))
    return Fit(
        form=form.name,
        constant_joules=ratios * form.scale,
        constant_errors=errors * form.scale,
        cost=FittedCost(by_feature, costs),
        covariance=scaled @ covariance @ scaled.T,
        rows=sums.rows,
        condition=_condition(squares),
        misfit=misfit,
        row_variance=variance,
        split_error=float(split),
        evidence=evidence,
        doubt=_distrust(sums.rows, misfit, float(split), rules),
    )


def _evidence(
    sums: Sums,
    squares: FloatArray,
    products: FloatArray,
    ratios: FloatArray,
    apart: FloatArray,
    ridge: FloatArray,
    expected: float,
    mean_joules: float,
) -> float:
    """Logarithm of the marginal likelihood of the rows, noise of any size.

    The usual one of a linear model with a normal prior on its constants, at the noise
    that fits best (its own prior is `expected`); `apart` is by how many of the prior's
    standard deviations the constants are off.
    """
    rows = sums.rows + USUAL_ROWS
    left = float(sums.square_joules - 2 * ratios @ products + ratios @ squares @ ratios)
    variance = (max(left, 0.0) + expected) / rows
    variance = max(variance, (MIN_NOISE * mean_joules) ** 2)
    _, sharper = np.linalg.slogdet(squares + ridge)
    narrowed = sharper - float(np.log(np.diag(ridge)).sum())
    return -0.5 * float(rows * math.log(variance) + apart @ apart + narrowed)


USUAL_NOISE = 0.03
USUAL_ROWS = 2.0
"""Rows are expected to be missed by so much before any were seen, with the weight of so
many: the first few may fit by chance."""

MIN_NOISE = 1e-3
"""No sensor's row is better than that; keeps a perfect fit from being certain."""


def _condition(squares: FloatArray) -> float:
    """Condition of the matrix with unit columns; work that never came is left out."""
    lengths = np.sqrt(np.maximum(np.diag(squares), 0.0))  # rounding may be below 0
    came = np.flatnonzero(lengths > 0)
    if not len(came):
        return math.inf
    units = squares[np.ix_(came, came)] / np.outer(lengths[came], lengths[came])
    return float(np.linalg.cond(units))


def _distrust(
    rows: float, misfit: float, split_error: float, rules: FitRules
) -> Doubt | None:
    """Why the constants are not trusted yet, None where they are."""
    if rows < rules.min_rows:
        return Doubt("rows", f"{rows:.0f} of {rules.min_rows} rows of load seen")
    if misfit > rules.max_misfit:
        return Doubt(
            "misfit",
            f"the model leaves {misfit:.0%} of the energy of two seconds unexplained, "
            f"trusted up to {rules.max_misfit:.0%}",
        )
    if split_error > rules.max_split_error:
        return Doubt(
            "uncertain",
            f"the constants' standard errors move {split_error:.0%} of the energy "
            f"between requests, trusted up to {rules.max_split_error:.0%}",
        )
    return None
