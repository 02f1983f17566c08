"""How far a request's joules may be from the truth: an interval and a grade.

Rule: the width comes from what this run's own sensor showed. The cost model predicts
every window from constants learnt before it; by how much the sensor differs is the
error of all requests of the window together. Divided by the root of the sum of their
squares it is the error of one request, as far as errors of requests have nothing to do
with each other. So work that is hidden, misplaced or priced wrongly widens the interval
of every request, though nobody knows which. Added to it, for each request alone:

- its part of what its own windows were off by;
- the edges of its first and last window, uncertain by the sensor's polls;
- its part of what was charged to others than the proxy's requests;
- its prompt, where what of it was cached had to be inferred;
- how far its joules moved when the constants were fitted: a load of ever the same mix
  hides errors of the model's form from the residuals.

The interval lies around the joules of the best model in use and
reaches out to the published ones, where the headline policy is another. The sensor's
own accuracy is a part by itself, see `bounds_of`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

LEVEL = 0.9
"""Probability that the truth is inside, each side out with half of the rest."""
_NORMAL = NormalDist()
_DEVIATIONS = _NORMAL.inv_cdf((1 + LEVEL) / 2)

SIZE_EXPONENT = 0.75
"""A request's error grows with its joules to this power: 0.7 to 0.9 in nearly all
calibration runs; large ones are a sum of parts whose errors cancel."""
RESIDUAL_WEIGHT = 0.5
"""Of the squared residual of its own windows, in the square of the half width."""
SPREAD_FACTOR = 1.1
"""Half width by residual scale: tails of requests are longer than those of windows."""
EXTERNAL_FRACTION = 0.3
"""Half width of the joules charged to others."""
INFERRED_FRACTION = 0.4
"""Half width of a prompt's joules where the engine tells only how much of all prompts
it had cached: the sums are right, so residuals hardly show whose was."""
FORM_FRACTION = 0.2
"""Half width of what fitting the constants moved from one request to others."""
WHOLE_REPLY_DOUBT = 3.0
GUESSED_DOUBT = 2.0
"""Errors of replies that came in one piece, and of those whose counts or stretches the
meter had to guess, by those of streams that were seen."""

ROW_SECONDS = 2.0
"""Residuals are added up so far, as rows of the fit are: tokens read late move work
from one window to the next, and that is no error of a request."""
MAX_ROWS = 25
"""The newest so many: a minute of load."""
FIRST_ROWS = (0.05, 0.1, 0.2, 0.3, 0.4)
"""Taken for rows until the first were seen: errors of a run's first ten seconds, when
neither the engine's speed nor its constants are known."""
LEVEL_KEEP = 0.9
"""Of the model's level per window: clocks and temperature move all requests alike."""
MEAN_KEEP = 0.95


@dataclass(slots=True)
class _Residuals:
    """One cost model against the sensor."""

    joules: float = 0.0
    predicted: float = 0.0
    row_joules: float = 0.0
    rows: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_ROWS))
    """Residual of a row by what one request's relative error would make of it."""
    _scale: float | None = None
    """As of the newest row; asked for with every record."""

    def observe(self, predicted: float, joules: float) -> float:
        """What the sensor showed less what the model said, at the model's level."""
        level = self.joules / self.predicted if self.predicted > 0 else 1.0
        if self.predicted <= 0 and predicted > 0:
            level = joules / predicted
        residual = joules - level * predicted
        self.joules = LEVEL_KEEP * self.joules + joules
        self.predicted = LEVEL_KEEP * self.predicted + predicted
        self.row_joules += residual
        return residual

    def end_row(self, size_joules: float) -> None:
        """`size_joules` is the root of the sum of the requests' squared sizes."""
        if size_joules > 0:
            self.rows.append(abs(self.row_joules) / size_joules)
            self._scale = None
        self.row_joules = 0.0

    @property
    def scale(self) -> float:
        """Standard deviation of a typical request's relative error."""
        if self._scale is None:
            made_up = FIRST_ROWS[len(self.rows) // 2 :]
            self._scale = float(np.quantile([*self.rows, *made_up], 0.68))
        return self._scale


@dataclass(frozen=True, slots=True)
class ErrorScale:
    """Size of errors, as known now."""

    relative: float
    """Half width of a request of typical size whose work was seen, by its joules."""
    typical_joules: float
    """Mean joules of a request, weighted by its joules; 0 before the first."""


class ErrorTracker:
    """Residuals of each cost model of a boundary, window by window."""

    def __init__(self) -> None:
        self._models: dict[str, _Residuals] = {}
        self._keys: list[IntArray] = []
        self._sizes: list[FloatArray] = []
        self._joules: list[FloatArray] = []
        self._seconds = 0.0
        self._typical_joules = 0.0

    def learn(
        self,
        predicted: Mapping[str, float],
        caused_joules: float,
        *,
        seconds: float,
        keys: Sequence[int] | IntArray,
        joules: FloatArray,
        doubts: FloatArray,
    ) -> Mapping[str, float]:
        """A window was settled; what every model's prediction was off by.

        `predicted` are joules by model; `keys`, the active `joules` and the relative
        `doubts` are of all requests in it, shape (requests,).
        """
        found: dict[str, float] = {}
        for model, said in predicted.items():
            residuals = self._models.setdefault(model, _Residuals())
            found[model] = residuals.observe(said, caused_joules)
        self._keys.append(np.asarray(keys, np.int64))
        self._joules.append(joules)
        self._sizes.append(doubts)
        self._seconds += seconds
        if self._seconds >= ROW_SECONDS - 1e-6:
            self._end_row()
        return found

    def scale(self, model: str) -> ErrorScale:
        """Of errors under one model."""
        residuals = self._models.get(model) or _Residuals()
        half = SPREAD_FACTOR * _DEVIATIONS * residuals.scale
        return ErrorScale(half, self._typical_joules)

    def _end_row(self) -> None:
        """Add up the joules of each request, and the residuals by their squares."""
        _, places = np.unique(np.concatenate(self._keys), return_inverse=True)
        joules = np.bincount(places, np.concatenate(self._joules))
        doubt = np.zeros(len(joules))
        np.maximum.at(doubt, places, np.concatenate(self._sizes))
        for column in (self._keys, self._joules, self._sizes):
            column.clear()
        self._seconds = 0.0
        total = float(joules.sum())
        if total > 0:
            mean = float((joules**2).sum()) / total
            last = self._typical_joules or mean
            self._typical_joules = MEAN_KEEP * last + (1 - MEAN_KEEP) * mean
            typical = self._typical_joules
            sizes = doubt * typical * (joules / typical) ** SIZE_EXPONENT
            root = float(np.sqrt((sizes**2).sum()))
        else:
            root = 0.0
        for residuals in self._models.values():
            residuals.end_row(root)


SPREAD, PULL, EDGES, EXTERNAL, FORM, INFERRED, CENTRE = range(7)
"""Columns of what is kept of a request, each a sum over its windows:

joules that its neighbours in the window could have had in its place; its part of the
residuals, signed; squares of its watts in its first and last window; its part of the
joules charged to others; how far its joules differ from those by the constants that
nobody fitted, signed; joules of a prompt whose cached part was inferred; active joules
under the best model."""
DOUBTS = 7


def doubts_of(
    joules: FloatArray,
    *,
    inclusive_joules: FloatArray,
    unfitted_joules: FloatArray,
    inferred_joules: FloatArray,
    doubts: FloatArray,
    residual_joules: float,
    external_joules: float,
    seconds: float,
    began: BoolArray,
    ended: BoolArray,
) -> FloatArray:
    """What a window adds to the doubts of its requests, shape (requests, DOUBTS).

    `joules` are active ones under the best model, `unfitted_joules` those before any
    constants were fitted, `inferred_joules` prompts' whose cached part is a guess,
    `doubts` relative; `began` and
    `ended` tell for whom it was the first and the last window.
    """
    found = np.zeros((len(joules), DOUBTS))
    total = float(inclusive_joules.sum()) + external_joules
    if total <= 0:
        return found
    part = inclusive_joules / total
    sizes = doubts * joules
    squares = sizes**2
    others = 1.0 - squares / max(float(squares.sum()), 1e-12)
    found[:, SPREAD] = sizes * np.sqrt(np.clip(others, 0.0, None))
    found[:, PULL] = part * residual_joules
    watts = part * total / seconds
    found[:, EDGES] = watts**2 * (began.astype(np.float64) + ended)
    if external_joules > 0:
        own = max(total - external_joules, 1e-12)
        found[:, EXTERNAL] = inclusive_joules / own * external_joules
    found[:, FORM] = unfitted_joules - joules
    found[:, INFERRED] = inferred_joules
    found[:, CENTRE] = joules
    return found


@dataclass(frozen=True, slots=True)
class Bounds:
    """The interval of one request's joules, idle share included."""

    low_joules: float
    high_joules: float
    half_fraction: float
    """The wider side by the joules, but for the sensor's own accuracy."""


def bounds_of(
    energy_joules: float,
    active_joules: float,
    doubts: Sequence[float],
    scale: ErrorScale,
    *,
    edge_seconds: float,
    sensor_fraction: float = 0.0,
) -> Bounds:
    """The interval around what one request was charged.

    `doubts` is the sum of `doubts_of` over its windows. The idle share is divided as
    the caused joules are, so it is wrong by the same fraction. `sensor_fraction` is
    what the sensor's readings may be off by, half width by level: of all requests
    alike, and no comparison of windows shows it.
    """
    spread, pull, edges, external, form, inferred, best = doubts
    inclusive = energy_joules / active_joules if active_joules > 0 else 1.0
    centre = best * inclusive if active_joules > 0 else energy_joules
    size = 1.0
    if scale.typical_joules > 0 and best > 0:
        ratio = scale.typical_joules / best
        size = min(max(ratio ** (1 - SIZE_EXPONENT), 1 / MAX_SIZE), MAX_SIZE)
    half = math.sqrt(
        (inclusive * scale.relative * size * spread) ** 2
        + RESIDUAL_WEIGHT * (inclusive * pull) ** 2
        + (inclusive * FORM_FRACTION * form) ** 2
        + (inclusive * INFERRED_FRACTION * inferred) ** 2
        + (_DEVIATIONS * edge_seconds) ** 2 * edges
        + (EXTERNAL_FRACTION * external) ** 2
    )
    below, above = _around(energy_joules - centre, half)
    sensor = sensor_fraction * energy_joules
    return Bounds(
        max(energy_joules - math.hypot(below, sensor), 0.0),
        energy_joules + math.hypot(above, sensor),
        max(below, above) / energy_joules if energy_joules > 0 else 0.0,
    )


MAX_SIZE = 3.0
"""A request of a hundredth of the usual joules; smaller ones are not in the fit."""


def _around(off_joules: float, half_joules: float) -> tuple[float, float]:
    """Widths below and above published joules that are off the best model's.

    Where the published ones are outside the model's interval it reaches out to them,
    and its other side takes all that may be missed.
    """
    beyond = abs(off_joules)
    if beyond <= half_joules:
        near, far = half_joules - beyond, half_joules + beyond
    else:
        deviation = half_joules / _DEVIATIONS
        missed = 1.0 - (_NORMAL.cdf(beyond / deviation) if deviation > 0 else 1.0)
        kept = _NORMAL.inv_cdf(LEVEL + missed)
        near, far = 0.0, beyond + kept * deviation
    return (far, near) if off_joules > 0 else (near, far)


def total_bounds(
    attributed_joules: float, others_joules: float, *, sensor_fraction: float = 0.0
) -> tuple[float, float]:
    """The interval of what all requests together were charged.

    The books close, so what one request was charged too much another one was charged
    too little: of the sum only what others than the proxy's requests took is
    uncertain, and the sensor. Both grow with time, so the interval of a stretch is
    the difference of two.
    """
    half = EXTERNAL_FRACTION * others_joules + sensor_fraction * attributed_joules
    return max(attributed_joules - half, 0.0), attributed_joules + half


GRADES = ("good", "fair", "poor", "unknown")

GOOD_FRACTION = 0.05
GOOD_WITH_SENSOR = 0.075
FAIR_FRACTION = 0.25


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known about a request's surroundings, for its grade."""

    is_cache_told: bool
    """The engine said how many prompt tokens it had cached, or that it had none of
    anybody's."""
    is_alone: bool
    """The engine's gauges were watched, and nobody else ran meanwhile."""
    has_counter: bool
    """The sensor counts energy; averages of power smear it."""
    is_fitted: bool
    """The cost model's constants are this engine's, and trusted."""


NOTHING_KNOWN = Evidence(
    is_cache_told=False, is_alone=False, has_counter=False, is_fitted=False
)


def grade_of(
    energy_joules: float, bounds: Bounds, timing: str, evidence: Evidence
) -> str:
    """How far the joules can be trusted: `good`, `fair` or `poor`.

    `good` needs a narrow interval and every piece of evidence. An interval can only
    be as wide as what the meter saw; the evidence is about what it could not.
    """
    wider = max(bounds.high_joules - energy_joules, energy_joules - bounds.low_joules)
    fraction = wider / energy_joules if energy_joules > 0 else 0.0
    is_narrow = bounds.half_fraction <= GOOD_FRACTION and fraction <= GOOD_WITH_SENSOR
    is_seen = (
        evidence.is_cache_told
        and evidence.is_alone
        and evidence.has_counter
        and evidence.is_fitted
    )
    if is_narrow and is_seen and timing != "unknown":
        return "good"
    return "fair" if fraction <= FAIR_FRACTION else "poor"
