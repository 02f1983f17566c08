"""How far a request's joules may be from the truth: an interval and a grade.

Rule: the width comes from what this run's own sensor showed. The cost model predicts
every window from constants learnt before it; by how much the sensor differs is the
error of all requests of the window together, and from it follows that of one. Errors
of requests that have nothing to do with each other (where a prompt was computed) add
up as the root of the sum of their squares, those that all have in common (what a token
costs) as their sum, and most of what they have in common the division takes out again:
see `CORRELATION`. What the edges of the window and the constants' own standard errors
explain of it is taken off first: they are parts by themselves. The newest residuals
count most, as constants are learnt meanwhile. So work that is hidden, misplaced or
priced wrongly widens the interval of every request, though nobody knows which. Added
to it, for each request alone:

- what the constants' standard errors move between it and others, by how it differs
  from them in its work: a small prompt by itself in a step rests on other constants
  than a load of long ones has shown;
- its part of what its own windows were off by;
- the edges of its first and last window, uncertain by the sensor's polls;
- the stamps of its first and last token, late by as much as the loop stood still;
- the part of its tokens that were read together, as late ones are;
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
RESIDUAL_WEIGHT = 0.4
"""Of the squared residual of its own windows, in the square of the half width."""
CORRELATION = 0.1
"""Of the errors of two requests: a window of N alike is missed by sqrt(N) times the
error of one where they have nothing in common, by N times where all is."""
EXTERNAL_FRACTION = 0.2
"""Half width of the joules charged to others."""
UNWATCHED_DOUBT = 1.5
"""Errors of requests to an engine whose gauges were not seen, by those of others: a
load past the proxy that is always there looks like higher constants."""
LATE_DOUBT = 1.2
"""More of a request's half width by the root of the part of its tokens that were read
late: sums over a window hardly show in which of its steps they were made."""
INFERRED_FRACTION = 0.4
"""Half width of a prompt's joules where the engine tells only how much of all prompts
it had cached: the sums are right, so residuals hardly show whose was."""
FORM_FRACTION = 0.1
"""Half width of what fitting the constants moved from one request to others."""
TAILS = 1.5
"""Nine errors of ten are within so much more than they would be if normal: a few rows
do not tell their size for sure, and it differs from request to request."""
CONSTANTS_PART = 0.6
"""Of what the constants' standard errors move, added up as if every window's moved the
same way, which is the most that they can."""
WHOLE_REPLY_DOUBT = 3.0
GUESSED_DOUBT = 2.0
"""Errors of replies that came in one piece, and of those whose counts or stretches the
meter had to guess, by those of streams that were seen."""

ROW_SECONDS = 2.0
"""Residuals are added up so far, as rows of the fit are: tokens read late move work
from one window to the next, and that is no error of a request."""
ROW_KEEP = 0.5
"""Weight of a row by that of the next: half of it is of the newest two seconds of
load. Errors are largest while the engine's speed is not known, and old ones would widen
the intervals of what comes once it is."""
MAX_ROWS = 25
"""The newest so many: a minute of load. Their median is the least, as a few rows may
fit by chance."""
FIRST_ROW = 0.05
"""Taken for a row until others were seen: what of a run's first seconds is not
explained by constants that are not known yet."""
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

    def end_row(self, size_joules: float, explained_square: float) -> None:
        """`size_joules` is what the row is missed by if each request is by its size.

        Of its square `explained_square` is no error of the requests' places.
        """
        if size_joules > 0:
            left = max(self.row_joules**2 - explained_square, 0.0)
            self.rows.append(math.sqrt(left) / size_joules)
            self._scale = None
        self.row_joules = 0.0

    @property
    def scale(self) -> float:
        """Standard deviation of a typical request's relative error."""
        if self._scale is None:
            count = len(self.rows)
            weights = ROW_KEEP ** np.arange(count - 1.0, -1.0, -1.0)
            newest = _weighted_quantile(
                np.array([*self.rows, FIRST_ROW]),
                np.append(weights, ROW_KEEP**count),
                0.68,
            )
            least = float(np.median(self.rows)) if count else 0.0
            self._scale = max(newest, least)
        return self._scale


def _weighted_quantile(
    values: FloatArray, weights: FloatArray, quantile: float
) -> float:
    """Interpolated between the middles of the values' weights."""
    order = np.argsort(values)
    middles = np.cumsum(weights[order]) - weights[order] / 2
    return float(np.interp(quantile, middles / weights.sum(), values[order]))


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
        self._external_joules = 0.0
        self._caused_joules = 0.0
        self._constants_joules = 0.0
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
        external_joules: float = 0.0,
        constants_joules: float = 0.0,
        edge_seconds: float = 0.0,
    ) -> Mapping[str, float]:
        """A window was settled; what every model's prediction was off by.

        `predicted` are joules by model; `keys`, the active `joules` and the relative
        `doubts` are of all requests in it, shape (requests,). What was charged to
        others is one more, as large as `external_joules`. Two standard deviations are
        of no request's error: of the predictions by the constants' standard errors,
        `constants_joules`, and of the instant of an edge, `edge_seconds`.
        """
        found: dict[str, float] = {}
        for model, said in predicted.items():
            residuals = self._models.setdefault(model, _Residuals())
            found[model] = residuals.observe(said, caused_joules)
        self._keys.append(np.asarray(keys, np.int64))
        self._joules.append(joules)
        self._sizes.append(doubts)
        self._external_joules += external_joules
        self._caused_joules += caused_joules
        self._constants_joules += constants_joules
        self._seconds += seconds
        if self._seconds >= ROW_SECONDS - 1e-6:
            self._end_row(edge_seconds)
        return found

    def scale(self, model: str) -> ErrorScale:
        """Of errors under one model."""
        residuals = self._models.get(model) or _Residuals()
        return ErrorScale(TAILS * _DEVIATIONS * residuals.scale, self._typical_joules)

    def _end_row(self, edge_seconds: float) -> None:
        """Add up the joules of each request, and what they are missed by together."""
        _, places = np.unique(np.concatenate(self._keys), return_inverse=True)
        joules = np.bincount(places, np.concatenate(self._joules))
        doubt = np.zeros(len(joules))
        np.maximum.at(doubt, places, np.concatenate(self._sizes))
        for column in (self._keys, self._joules, self._sizes):
            column.clear()
        edge_joules = edge_seconds * self._caused_joules / self._seconds
        explained = 2 * edge_joules**2 + self._constants_joules**2
        self._seconds = self._caused_joules = self._constants_joules = 0.0
        total = float(joules.sum())
        if total > 0:
            mean = float((joules**2).sum()) / total
            last = self._typical_joules or mean
            self._typical_joules = MEAN_KEEP * last + (1 - MEAN_KEEP) * mean
            typical = self._typical_joules
            joules = np.append(joules, self._external_joules)
            doubt = np.append(doubt, 1.0)
            sizes = doubt * typical * (joules / typical) ** SIZE_EXPONENT
            alike, apart = float(sizes.sum()) ** 2, float((sizes**2).sum())
            size = math.sqrt(CORRELATION * alike + (1 - CORRELATION) * apart)
        else:
            size = 0.0
        self._external_joules = 0.0
        for residuals in self._models.values():
            residuals.end_row(size, explained)


SPREAD, PULL, EDGES, EXTERNAL, FORM, INFERRED, CENTRE, LATE, CONSTANTS = range(9)
"""Columns of what is kept of a request, each a sum over its windows:

joules that its neighbours in the window could have had in its place; its part of the
residuals, signed; squares of its watts in its first and last window; its part of the
joules charged to others; how far its joules differ from those by the constants that
nobody fitted, signed; joules of a prompt whose cached part was inferred; active joules
under the best model; squares of its watts in its first and last window times how late
their stamps are, J^2; what the constants' standard errors move to it or from it."""
DOUBTS = 9


def doubts_of(
    joules: FloatArray,
    *,
    inclusive_joules: FloatArray,
    unfitted_joules: FloatArray,
    inferred_joules: FloatArray,
    constants_joules: FloatArray,
    doubts: FloatArray,
    residual_joules: float,
    external_joules: float,
    seconds: float,
    began: BoolArray,
    ended: BoolArray,
    late_square: float = 0.0,
) -> FloatArray:
    """What a window adds to the doubts of its requests, shape (requests, DOUBTS).

    `joules` are active ones under the best model, `unfitted_joules` those before any
    constants were fitted, `inferred_joules` prompts' whose cached part is a guess,
    `constants_joules` what the constants' standard errors move, `doubts` relative;
    `began` and
    `ended` tell for whom it was the first and the last window. `late_square` is the
    mean square of how late stamps in the window are, s^2.
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
    found[:, LATE] = found[:, EDGES] * late_square
    if external_joules > 0:
        own = max(total - external_joules, 1e-12)
        found[:, EXTERNAL] = inclusive_joules / own * external_joules
    found[:, FORM] = unfitted_joules - joules
    found[:, INFERRED] = inferred_joules
    found[:, CENTRE] = joules
    found[:, CONSTANTS] = constants_joules
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
    doubts: Sequence[float] | FloatArray,
    scale: ErrorScale,
    *,
    edge_seconds: float,
    sensor_fraction: float = 0.0,
    is_watched: bool = True,
    late_part: float = 0.0,
) -> Bounds:
    """The interval around what one request was charged.

    `doubts` is the sum of `doubts_of` over its windows. The idle share is divided as
    the caused joules are, so it is wrong by the same fraction. `sensor_fraction` is
    what the sensor's readings may be off by, half width by level: of all requests
    alike, and no comparison of windows shows it. `is_watched` tells that the engine's
    gauges were, so that nobody else can have run for long unseen. `late_part` of its
    tokens were read late, 0..1.
    """
    spread, pull, edges, external, form, inferred, best, late, constants = doubts
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
        + (inclusive * CONSTANTS_PART * _DEVIATIONS * constants) ** 2
        + (_DEVIATIONS * edge_seconds) ** 2 * edges
        + _DEVIATIONS**2 * late
        + (EXTERNAL_FRACTION * external) ** 2
    )
    if not is_watched:
        half *= UNWATCHED_DOUBT
    half *= 1.0 + LATE_DOUBT * math.sqrt(late_part)
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

GOOD_FRACTION = 0.02
"""Of ten thousand intervals so wide hardly one is off by a tenth."""
GOOD_WITH_SENSOR = 0.06
FAIR_FRACTION = 0.25


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known about a request's surroundings, for its grade."""

    is_cache_told: bool
    """The engine said how many prompt tokens it had cached, or that it had none of
    anybody's."""
    is_cache_inferred: bool
    """What was cached was worked out from the engine's counters of all prompts."""
    is_seen: bool
    """Its reply was streamed, and nothing of it had to be guessed."""
    is_watched: bool
    """The engine's gauges were."""
    is_alone: bool
    """They were, and nobody else ran meanwhile."""
    has_counter: bool
    """The sensor counts energy; averages of power smear it."""
    distrust: str | None
    """Why the constants of the cost model are not trusted, as `/calibration` names it,
    or the name of a form that only comes near; None where they are."""


NOTHING_KNOWN = Evidence(
    is_cache_told=False,
    is_cache_inferred=False,
    is_seen=False,
    is_watched=False,
    is_alone=False,
    has_counter=False,
    distrust="rows",
)


def grade_reasons(
    energy_joules: float, bounds: Bounds, timing: str, evidence: Evidence
) -> tuple[str, ...]:
    """Why the joules of a request are not `good`, in words of `GRADE_REASONS`.

    `good` needs a narrow interval and every piece of evidence. An interval can only
    be as wide as what the meter saw; the evidence is about what it could not.
    """
    found: list[str] = []
    if bounds.half_fraction > GOOD_FRACTION:
        found.append("wide")
    elif _wider(energy_joules, bounds) > GOOD_WITH_SENSOR:
        found.append("sensor")
    if timing == "unknown":
        found.append("timing")
    if not evidence.is_seen:
        found.append("guessed")
    if not evidence.is_cache_told:
        is_inferred = evidence.is_cache_inferred
        found.append("cache_inferred" if is_inferred else "cache_unknown")
    if not evidence.is_watched:
        found.append("unwatched")
    elif not evidence.is_alone:
        found.append("others")
    if not evidence.has_counter:
        found.append("no_counter")
    if evidence.distrust is not None:
        is_shared = evidence.distrust == "shared"
        found.append("shared" if is_shared else "constants")
    return tuple(found)


GRADE_REASONS = {
    "wide": "the interval is wider than 2 %",
    "sensor": "with the sensor's own accuracy it is wider than 6 %",
    "timing": "it is not known who ran when",
    "guessed": "its reply came in one piece, or some of its work had to be guessed",
    "cache_inferred": "cached tokens were inferred, and not told",
    "cache_unknown": "nobody told what of the prompt was cached",
    "unwatched": "the engine's gauges were not seen",
    "others": "work past the proxy, or unread, took part",
    "no_counter": "the sensor has no energy counter",
    "constants": "the fitted constants are not trusted, or of a form for mixtures of "
    "experts, which only comes near; see /calibration",
    "shared": "another process is on the board",
}
"""Reasons why a record is not `good`."""


def grade_of(energy_joules: float, bounds: Bounds, reasons: Sequence[str]) -> str:
    """How far the joules can be trusted: `good`, `fair` or `poor`.

    `reasons` are those of `grade_reasons`.
    """
    if not reasons:
        return "good"
    if "shared" in reasons:  # whose joules those are no interval knows
        return "poor"
    return "fair" if _wider(energy_joules, bounds) <= FAIR_FRACTION else "poor"


def _wider(energy_joules: float, bounds: Bounds) -> float:
    """The wider side of an interval by the joules, the sensor's accuracy in it."""
    if energy_joules <= 0:
        return 0.0
    above = bounds.high_joules - energy_joules
    return max(above, energy_joules - bounds.low_joules) / energy_joules
