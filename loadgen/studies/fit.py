"""An engine's costs, fitted to the records of a run: joules and seconds of a step.

Rule: what is fitted is linear in what a request did, with coefficients that are not
negative and have units. Active joules (prefill and decode) of a request are

    a x steps + b x prompt tokens computed + c x their context + d x tokens written
    + e x context read while writing

where its part of a step is one over the requests in the step: that is how energy falls
with the batch. The durations of replies give the seconds of the same features, so that
the batch of another load can be played in virtual time (`simulator.core.aggregate`).
Idle watts are those of the run. Intervals come from blocks of sessions drawn again; the
cross-validated error from blocks left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadgen.analysis.resampling import blocks_of, student_97_5
from loadgen.analysis.tally import RunWindow
from loadgen.errors import RunError
from loadgen.results import measures
from loadgen.results.results import Result
from proxy.process.least_squares import nonnegative_least_squares

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

ENERGY_TERMS = {
    "step": "J per step of the engine",
    "prefill_token": "J per prompt token computed",
    "prefill_pair": "J per pair of a computed token and one before it",
    "cached_token": "J per cached prompt token",
    "output_token": "J per token written",
    "context_token": "J per token of context read",
}
TIME_TERMS = {
    "step": "s per step of the engine",
    "prefill_token": "s per prompt token computed",
    "output_token": "s per sequence in a step",
    "context_token": "s per token of context read",
}
FEWEST_REQUESTS = 40
FOLDS = 8
DRAWS = 200
SEED = 20_251_127
_GROUP_OVER_BATCH, _FEWEST_GROUPS = 2, 12
"""Neighbours that are summed: so many times those in flight, and so many sums."""
_ONE_READ_SECONDS = 1e-4
_PREFILL_CHUNK = 2048
"""Tokens of a step that reads prompts, as far as the number of steps is counted."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The answered requests of a run, one value each, in order of start."""

    sent_seconds: FloatArray
    first_seconds: FloatArray
    last_seconds: FloatArray
    prompt_tokens: FloatArray
    cached_tokens: FloatArray
    output_tokens: FloatArray
    active_joules: FloatArray
    block: IntArray
    """The stretch of consecutive sessions that it belongs to."""

    def __len__(self) -> int:
        return len(self.sent_seconds)

    @property
    def computed_tokens(self) -> FloatArray:
        """Prompt tokens that were not cached."""
        return np.maximum(self.prompt_tokens - self.cached_tokens, 1.0)


@dataclass(frozen=True, slots=True)
class Fit:
    """Coefficients of one kind, by term, with their intervals."""

    values: FloatArray
    low: FloatArray
    high: FloatArray
    seen: NDArray[np.bool_]
    """Terms that any row has something of; the others are not known."""
    draws: FloatArray
    """Shape (draws, terms): the coefficients of each draw of blocks."""
    error_fraction: float
    """Cross-validated: root mean square of the relative error of a left out block."""
    bias_fraction: float
    """Mean of the same errors, signed."""
    median_error_fraction: float
    """Cross-validated: of single requests, half are nearer."""


def rows_of(name: str, results: Sequence[Result], window: RunWindow) -> Rows:
    """The rows of a run. Raises RunError where there are too few with joules."""
    kept: list[tuple[float, ...]] = []
    sessions: list[str] = []
    answered = 0
    for result in results:
        if not window.holds(result) or not measures.is_ok(result):
            continue
        answered += 1
        joules = measures.active_joules(result)
        given, written = result.prompt_tokens, result.output_tokens
        first, last = result.first_token_seconds, result.last_token_seconds
        sent = result.sent_seconds
        if None in (joules, given, written, first, last, sent) or not written:
            continue
        assert joules is not None
        assert given is not None
        assert first is not None
        assert last is not None
        assert sent is not None
        kept.append(
            (sent, first, last, given, result.cached_tokens or 0, written, joules)
        )
        sessions.append(result.session_id)
    if len(kept) < FEWEST_REQUESTS:
        raise RunError(
            f"{name}: {len(kept)} of {answered} answered requests have joules, lengths "
            f"and token times; a fit needs {FEWEST_REQUESTS}: was the run metered?"
        )
    table = np.array(kept, dtype=np.float64)
    order = np.argsort(table[:, 0], kind="stable")
    table = table[order]
    starts: dict[str, int] = {}
    for place in order.tolist():
        starts.setdefault(sessions[place], len(starts))
    count = blocks_of(len(starts))
    block = np.array(
        [starts[sessions[place]] * count // len(starts) for place in order.tolist()]
    )
    sent, first, last, prompts, cached, written, joules = table.T
    return Rows(sent, first, last, prompts, cached, written, joules, block)


def energy_features(rows: Rows) -> FloatArray:
    """What each request did, shape (requests, energy terms)."""
    computed = rows.computed_tokens
    pairs = computed * (rows.cached_tokens + (computed + 1) / 2)
    written = rows.output_tokens
    context = (written - 1) * rows.prompt_tokens + written * (written - 1) / 2
    return np.column_stack(
        [shared_steps(rows), computed, pairs, rows.cached_tokens, written, context]
    )


def time_features(rows: Rows) -> tuple[FloatArray, FloatArray]:
    """What happened while each reply was written, and for how long.

    Shapes (replies, time terms) and (replies,): those of `is_timed`. A prompt counts
    where its first token came.
    """
    many = is_timed(rows)
    begin, end = rows.first_seconds[many], rows.last_seconds[many]
    steps = rows.output_tokens[many] - 1
    order = np.argsort(rows.first_seconds, kind="stable")
    firsts = rows.first_seconds[order]
    prompts = np.concatenate([[0.0], np.cumsum(rows.computed_tokens[order])])
    read = (
        prompts[np.searchsorted(firsts, end, side="right")]
        - prompts[np.searchsorted(firsts, begin, side="right")]
    )
    rates = steps / (end - begin)
    contexts = rates * (rows.prompt_tokens[many] + rows.output_tokens[many] / 2)
    written = _integral(begin, end, rates)
    context = _integral(begin, end, contexts)
    features = np.column_stack(
        [
            steps,
            read,
            written(end) - written(begin),
            context(end) - context(begin),
        ]
    )
    return features, end - begin


def is_timed(rows: Rows) -> NDArray[np.bool_]:
    """Replies whose tokens came in more than one read, so that they have a pace."""
    spans = rows.last_seconds - rows.first_seconds
    return (rows.output_tokens > 1) & (spans > _ONE_READ_SECONDS)


def shared_steps(rows: Rows) -> FloatArray:
    """The steps that are a request's own: each counts one over those who shared it."""
    begin, end = rows.first_seconds, rows.last_seconds
    spans = np.maximum(end - begin, 0.0)
    at = np.unique(np.concatenate([begin, end]))
    running = _running(at, begin, end)
    gaps = np.diff(at)
    shares = np.concatenate([[0.0], np.cumsum(gaps / np.maximum(running[:-1], 1.0))])
    alone = np.interp(end, at, shares) - np.interp(begin, at, shares)
    steps = rows.output_tokens - 1
    decode = np.where(spans > 0, steps * alone / np.maximum(spans, 1e-12), 0.0)
    beside = running[np.searchsorted(at, begin)]
    chunks = np.ceil(rows.computed_tokens / _PREFILL_CHUNK)
    return decode + chunks / np.maximum(beside, 1.0)


def fit_energy(rows: Rows) -> Fit:
    """Joules of each term, fitted to sums over neighbours.

    A sum over requests that ran at the same time holds what the engine drew whatever
    policy divided it among them, so a policy's bias does not become a coefficient.
    """
    features, joules = energy_features(rows), rows.active_joules
    span = rows.last_seconds.max() - rows.sent_seconds.min()
    in_flight = float((rows.last_seconds - rows.sent_seconds).sum()) / float(span)
    size = max(round(_GROUP_OVER_BATCH * in_flight), 1)
    groups = max(len(rows) // size, min(len(rows), _FEWEST_GROUPS))
    group = np.arange(len(rows)) * groups // len(rows)
    sums = np.zeros((groups, features.shape[1]))
    np.add.at(sums, group, features)
    drawn = np.bincount(group, joules).astype(np.float64)
    block = rows.block[np.searchsorted(group, np.arange(groups))]
    return _fit(
        Table(sums, drawn, block), _by_root(drawn), Table(features, joules, rows.block)
    )


def fit_time(rows: Rows) -> Fit:
    """Seconds of each term, fitted to the durations of the replies.

    Raises RunError where replies have no duration.
    """
    features, seconds = time_features(rows)
    if len(seconds) < FEWEST_REQUESTS:
        raise RunError(
            f"{len(seconds)} replies came token by token, a fit needs "
            f"{FEWEST_REQUESTS}: replay with streamed replies of two tokens and more"
        )
    table = Table(features, seconds, rows.block[is_timed(rows)])
    return _fit(table, _by_root(seconds), table)


def _by_root(values: FloatArray) -> FloatArray:
    """Weights of rows whose variance grows as they do."""
    return np.asarray(1 / np.sqrt(np.maximum(values, 1e-9)), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows to fit: features, what they took, and their blocks of sessions."""

    features: FloatArray
    values: FloatArray
    block: IntArray


def _fit(rows: Table, weights: FloatArray, singles: Table) -> Fit:
    scale = np.maximum(np.abs(rows.features).max(axis=0), 1e-300)
    scaled = rows.features / scale * weights[:, None]
    aims = rows.values * weights
    count = int(singles.block.max()) + 1
    squares = np.zeros((count, len(scale), len(scale)))
    products = np.zeros((count, len(scale)))
    for at in range(count):
        inside = rows.block == at
        squares[at] = scaled[inside].T @ scaled[inside]
        products[at] = scaled[inside].T @ aims[inside]

    def solved(times: FloatArray) -> FloatArray:
        square = np.tensordot(times, squares, axes=1)
        tiny = 1e-10 * float(np.trace(square)) / len(scale) * np.eye(len(scale))
        found = nonnegative_least_squares(square + tiny, times @ products)
        return np.asarray(found / scale, dtype=np.float64)

    whole = solved(np.ones(count))
    rng = np.random.default_rng(SEED)
    times = rng.multinomial(count, np.full(count, 1 / count), DRAWS)
    draws = np.array([solved(each.astype(np.float64)) for each in times])
    low, high = np.quantile(draws, (0.025, 0.975), axis=0)
    blocks, requests = _left_out(singles, count, solved)
    return Fit(
        values=whole,
        low=np.minimum(low, whole),
        high=np.maximum(high, whole),
        seen=np.asarray(rows.features.any(axis=0), np.bool_),
        draws=draws,
        error_fraction=float(np.sqrt(np.mean(np.square(blocks)))),
        bias_fraction=float(np.mean(blocks)),
        median_error_fraction=float(np.median(np.abs(requests))),
    )


def _left_out(
    rows: Table, count: int, solved: Callable[[FloatArray], FloatArray]
) -> tuple[FloatArray, FloatArray]:
    """Relative errors of stretches of sessions left out, and of their requests."""
    folds = min(FOLDS, count)
    fold_of = np.arange(count) * folds // count
    of_folds, of_requests = [], []
    for fold in range(folds):
        kept = fold_of != fold
        outside = ~kept[rows.block]
        if not kept.any() or not outside.any():
            continue
        predicted = rows.features[outside] @ solved(kept.astype(np.float64))
        real = rows.values[outside]
        of_folds.append(predicted.sum() / real.sum() - 1)
        of_requests.append(predicted / np.maximum(real, 1e-12) - 1)
    if not of_folds:
        return np.array([math.nan]), np.array([math.nan])
    return np.array(of_folds), np.concatenate(of_requests)


def reach(fit: Fit, relative_errors: FloatArray, blocks: int) -> float:
    """Half width of a 95 % interval, as a fraction of what is predicted.

    Of the coefficients' chance (`relative_errors`, one per draw) and of what the form
    of the fit misses, as left out blocks showed it.
    """
    chance = float(np.std(relative_errors))
    return student_97_5(max(blocks - 1, 7)) * math.hypot(chance, fit.error_fraction)


def _running(at: FloatArray, begin: FloatArray, end: FloatArray) -> FloatArray:
    """How many spans hold each instant, their beginning included and not their end."""
    opened = np.searchsorted(np.sort(begin), at, side="right")
    closed = np.searchsorted(np.sort(end), at, side="right")
    return (opened - closed).astype(np.float64)


class _integral:
    """The integral over time of a sum of steady rates, each over its own span."""

    def __init__(self, begin: FloatArray, end: FloatArray, rates: FloatArray) -> None:
        at = np.concatenate([begin, end])
        steps = np.concatenate([rates, -rates])
        order = np.argsort(at, kind="stable")
        self._at = at[order]
        rate = np.cumsum(steps[order])
        grown = np.cumsum(rate[:-1] * np.diff(self._at))
        self._grown = np.concatenate([[0.0], grown])

    def __call__(self, at_seconds: FloatArray) -> FloatArray:
        found = np.interp(at_seconds, self._at, self._grown)
        return np.asarray(found, dtype=np.float64)
