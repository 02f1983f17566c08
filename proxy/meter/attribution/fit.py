"""Fits the constants of the cost model to what the sensor counted, window by window.

Rule: the constants in use for a window come from windows settled before it, and
from nothing else; what is kept is sums of fixed size, however long the run.

Each row is a stretch of about two seconds of settled windows: what all requests did
in it (steps, prompt tokens, ...) against the joules that they caused. The constants
are its least squares, none below 0, drawn toward the ratios of `phase` as far as
the load did not show better (ridge). Until they can be trusted, `phase` is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from itertools import combinations

import numpy as np

from proxy.meter.activity.work import Activity
from proxy.meter.attribution.policies import (
    CostModel,
    FloatArray,
    Policy,
    by_calibration,
)

CONSTANTS = tuple(field.name for field in fields(CostModel))
"""Names of the fitted constants, the order of every array here."""

UNITS = dict(
    zip(
        CONSTANTS,
        (
            "J per step",
            "J per prefill token",
            "J per prefill token and context token",
            "J per decode token",
            "J per KV token read",
        ),
        strict=True,
    )
)
PRIOR = np.array([getattr(CostModel(), name) for name in CONSTANTS])
"""What `phase` uses; work is counted in what it costs by these, so that the fit's
variables are near 1."""


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
    max_condition: float = 3000.0
    """Condition of the rows' matrix, unit columns: 90 to 830 after two minutes of
    conversation, code or reasoning in the simulator, above while it is the same."""
    max_split_error: float = 0.05
    """A constant's standard error may move so much of the energy."""
    max_misfit: float = 0.1
    """Root mean square of what is left, by the mean row: 0.07 at most in the
    simulator, 0.14 where preemption hides work from the proxy."""


@dataclass(frozen=True, slots=True)
class Sums:
    """All that is kept of the rows, fading; work in units of `PRIOR`."""

    rows: float
    squares: FloatArray
    """Shape (5, 5): sum of work x work."""
    products: FloatArray
    """Shape (5,): sum of work x joules."""
    work: FloatArray
    """Shape (5,): sum of work."""
    joules: float
    square_joules: float


@dataclass(frozen=True, slots=True)
class Fit:
    """Constants as fitted, and what speaks for or against them."""

    joules: FloatArray
    """Shape (5,), in the order of `CONSTANTS`, >= 0."""
    error_joules: FloatArray
    """Standard error of each."""
    rows: float
    condition: float
    misfit: float
    """Root mean square of the residual, by the mean row."""
    reason: str | None
    """Why it is not trusted; None where it is."""

    @property
    def cost(self) -> CostModel:
        """The constants as the policies take them."""
        return CostModel(*self.joules.tolist())


def no_sums() -> Sums:
    """Before the first row."""
    size = len(CONSTANTS)
    return Sums(0.0, np.zeros((size, size)), np.zeros(size), np.zeros(size), 0.0, 0.0)


def work_of(activity: Activity) -> FloatArray:
    """What all requests of a window did, in the order of `CONSTANTS`, shape (5,)."""
    return np.array(
        [
            activity.prefill_steps.sum() + activity.decode_steps.sum(),
            activity.prefill_tokens.sum(),
            activity.prefill_context_tokens.sum(),
            activity.decode_tokens.sum(),
            activity.kv_tokens.sum(),
        ],
        np.float64,
    )


@dataclass(frozen=True, slots=True)
class CalibrationState:
    """The calibration as users see it, and as it is saved."""

    model: str | None
    """None before the first request."""
    row_seconds: float
    sums: Sums
    fit: Fit | None

    @property
    def is_fitted(self) -> bool:
        """Whether the policy `calibrated` uses the fitted constants."""
        return self.reason is None

    @property
    def reason(self) -> str | None:
        """Why they are not used; None where they are."""
        return self.fit.reason if self.fit else "no load was measured yet"


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
        self.fit: Fit | None = None
        """From the rows so far; None before the first."""
        self._saved = dict(saved or {})
        self._work = np.zeros(len(CONSTANTS))
        self._joules = 0.0
        self._seconds = 0.0

    @property
    def cost(self) -> CostModel | None:
        """The constants to use now; None: not trusted, use those of `phase`."""
        if self.fit is None or self.fit.reason is not None:
            return None
        return self.fit.cost

    @property
    def state(self) -> CalibrationState:
        """One consistent picture."""
        return CalibrationState(self.model, self.rules.row_seconds, self.sums, self.fit)

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
            self.fit = fitted(self.sums, self.rules)

    def learn(self, work: FloatArray, joules: float, seconds: float) -> None:
        """A window was settled: this work caused these joules."""
        self._work = self._work + work * PRIOR
        self._joules += joules
        self._seconds += seconds
        if self._seconds < self.rules.row_seconds:
            return
        self.sums = added(self.sums, self._work, self._joules, self.rules.max_rows)
        self.fit = fitted(self.sums, self.rules)
        self._work = np.zeros(len(CONSTANTS))
        self._joules = self._seconds = 0.0


def faded(sums: Sums, max_rows: float) -> Sums:
    """The same, weighing `most_rows` at most."""
    keep = min(1.0, max_rows / sums.rows) if sums.rows else 1.0
    return Sums(
        keep * sums.rows,
        keep * sums.squares,
        keep * sums.products,
        keep * sums.work,
        keep * sums.joules,
        keep * sums.square_joules,
    )


def added(sums: Sums, work: FloatArray, joules: float, max_rows: float) -> Sums:
    """One row more; beyond `most_rows` the older ones fade."""
    old = faded(sums, max_rows - 1)
    return Sums(
        old.rows + 1,
        old.squares + np.outer(work, work),
        old.products + work * joules,
        old.work + work,
        old.joules + joules,
        old.square_joules + joules**2,
    )


def fitted(sums: Sums, rules: FitRules) -> Fit | None:
    """Constants of the rows so far; None while they hold no work or no energy."""
    level = sums.joules / sums.work.sum() if sums.work.sum() > 0 else 0.0
    if level <= 0:
        return None
    mean_joules = sums.joules / sums.rows
    tiny = 1e-9 * float(np.trace(sums.squares)) * np.eye(len(CONSTANTS))
    free = nonnegative_least_squares(sums.squares + tiny, sums.products)
    left = sums.square_joules - 2 * free @ sums.products + free @ sums.squares @ free
    degrees = max(sums.rows - len(CONSTANTS), 1.0)
    variance = max(float(left) / degrees, (MIN_NOISE * mean_joules) ** 2)
    ridge = variance / (rules.prior_spread * level) ** 2 * np.eye(len(CONSTANTS))
    squares = sums.squares + ridge
    drawn = sums.products + np.diag(ridge) * level
    ratios = nonnegative_least_squares(squares, drawn)
    errors = np.sqrt(variance * np.diag(np.linalg.inv(squares)))
    condition = _condition(sums.squares)
    misfit = float(np.sqrt(variance)) / mean_joules
    split = errors * sums.work / sums.joules
    return Fit(
        joules=ratios * PRIOR,
        error_joules=errors * PRIOR,
        rows=sums.rows,
        condition=condition,
        misfit=misfit,
        reason=_distrust(sums.rows, condition, misfit, split, rules),
    )


MIN_NOISE = 1e-3
"""No sensor's row is better than that; keeps a perfect fit from being certain."""


def nonnegative_least_squares(squares: FloatArray, products: FloatArray) -> FloatArray:
    """The x >= 0 that minimises x @ squares @ x - 2 x @ products, exactly.

    `squares` is positive definite, so the best of all sets of variables that are
    allowed to differ from 0 is the solution; with five there are 32 sets.
    """
    size = len(products)
    best, least = np.zeros(size), 0.0
    for count in range(size, 0, -1):
        for chosen in combinations(range(size), count):
            found = np.zeros(size)
            block = np.ix_(chosen, chosen)
            found[list(chosen)] = np.linalg.solve(
                squares[block], products[list(chosen)]
            )
            if (found < 0).any():
                continue
            if count == size:
                return found
            cost = float(found @ squares @ found - 2 * found @ products)
            if cost < least:
                best, least = found, cost
    return best


def _condition(squares: FloatArray) -> float:
    """Condition of the matrix with unit columns; work that never came is left out."""
    lengths = np.sqrt(np.diag(squares))
    came = np.flatnonzero(lengths > 0)
    units = squares[np.ix_(came, came)] / np.outer(lengths[came], lengths[came])
    return float(np.linalg.cond(units))


def _distrust(
    rows: float, condition: float, misfit: float, split: FloatArray, rules: FitRules
) -> str | None:
    """One line why the constants are not used yet, None where they are."""
    if rows < rules.min_rows:
        return f"{rows:.0f} of {rules.min_rows} rows of load seen"
    if condition > rules.max_condition:
        return (
            f"the load has not varied enough: condition {condition:.0f}, "
            f"trusted up to {rules.max_condition:.0f}"
        )
    if misfit > rules.max_misfit:
        return (
            f"the model leaves {misfit:.0%} of a row's energy unexplained, "
            f"trusted up to {rules.max_misfit:.0%}"
        )
    worst = int(np.argmax(split))
    if split[worst] > rules.max_split_error:
        return (
            f"the standard error of {CONSTANTS[worst]} moves {split[worst]:.0%} of the "
            f"energy, trusted up to {rules.max_split_error:.0%}"
        )
    return None
