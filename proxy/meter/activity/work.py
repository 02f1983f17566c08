"""What every request did in an interval: the only input of a policy.

Rule: a request runs from scheduled to its last token, less the stretches in which the
engine had set it aside; a moment is divided by the number then running. Work done in
a step is spread evenly over the step's duration, so an interval may be cut anywhere.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from proxy.meter.activity.external import WORK_KEY, ExternalWork
from proxy.meter.activity.request import INFINITY, RequestTimeline
from proxy.meter.activity.shares import (
    MIXED,
    REACH,
    REACH_TOKENS,
    StepPlayers,
    beside_prompts,
    reach_shares,
)
from proxy.meter.activity.steps import BoolArray, FloatArray, IntArray, Steps


@dataclass(frozen=True, slots=True)
class Population:
    """The requests of an accounting period as columns, sorted by key."""

    keys: IntArray
    arrived_seconds: FloatArray
    scheduled_seconds: FloatArray
    """inf where it never ran, or is not known to."""
    first_token_seconds: FloatArray
    """inf before it."""
    end_seconds: FloatArray
    """When it stopped running; inf while open."""
    context_tokens: FloatArray
    """Prompt length, cached part included."""
    cached_tokens: FloatArray
    token_scale: FloatArray
    sequences: FloatArray
    row_request: IntArray
    """Prefill rows, as `PromptPlacement` made them: position of the request."""
    row_seconds: FloatArray
    """Shape (rows, 2): start and end of the step."""
    row_tokens: FloatArray
    stall_request: IntArray
    """Stretches between two tokens in which the engine had set it aside."""
    stall_seconds: FloatArray
    """Shape (stalls, 2)."""
    resume_request: IntArray = field(default_factory=lambda: np.empty(0, np.int64))
    """Tokens that came out of what was computed again: position of the request."""
    resume_seconds: FloatArray = field(default_factory=lambda: np.empty(0))
    """When each was read."""
    work_request: IntArray = field(default_factory=lambda: np.empty(0, np.int64))
    """Output without stamps, of those that no proxy saw: position of the request."""
    work_rows: FloatArray = field(default_factory=lambda: np.empty((0, 4)))
    """Shape (rows, 4), see `OutputRow`."""


MAX_CELLS = 16
"""Cells by read of a table of requests and steps; a larger one is slower than none."""


def population_of(
    requests: Sequence[RequestTimeline],
    let_in: Collection[int] = (),
    since_seconds: float = -INFINITY,
) -> Population:
    """Columns of requests that come in order of their keys.

    Those `let_in` have no place yet and count as running since they arrived.
    Prefill rows and stalls that end by `since_seconds` are left out.
    """
    rows: list[float] = []
    stalls: list[float] = []
    resumes: list[float] = []
    cells: list[float] = []
    keys: list[int] = []
    for position, request in enumerate(requests):  # in one loop: there are many
        key = request.key
        keys.append(key)
        for start, end, tokens in request.prefill_rows:
            if end > since_seconds:
                rows += (position, start, end, tokens)
        for start, end in request.stalls:
            if end > since_seconds:
                stalls += (position, start, end)
        for at_seconds in request.resumed_seconds:
            if at_seconds > since_seconds:
                resumes += (position, at_seconds)
        is_open = request.closed_seconds is None
        scheduled = request.scheduled_seconds
        first = request.first_token_seconds
        if key in let_in:
            scheduled = request.arrived_seconds
        has_cache = request.cached_tokens or request.inferred_cached_tokens
        cells += (
            request.arrived_seconds,
            INFINITY if scheduled is None else scheduled,
            INFINITY if first is None else first,
            INFINITY if is_open else request.end_seconds,
            request.estimated_prompt_tokens,
            request.uncomputed_tokens if has_cache else 0.0,
            1.0 if is_open else request.token_scale,
            request.sequences,
        )
    table = np.array(rows, np.float64).reshape(-1, 4)
    stalled = np.array(stalls, np.float64).reshape(-1, 3)
    resumed = np.array(resumes, np.float64).reshape(-1, 2)
    columns = np.array(cells, np.float64).reshape(len(requests), 8)
    output = [
        (position, *row)
        for position in range(bisect_left(keys, WORK_KEY), len(keys))
        if isinstance(request := requests[position], ExternalWork)
        for row in request.output_rows
    ]
    unseen = np.array(output, np.float64).reshape(len(output), 5)
    return Population(
        np.array(keys, np.int64),
        arrived_seconds=columns[:, 0],
        scheduled_seconds=columns[:, 1],
        first_token_seconds=columns[:, 2],
        end_seconds=columns[:, 3],
        context_tokens=columns[:, 4],
        cached_tokens=columns[:, 5],
        token_scale=columns[:, 6],
        sequences=columns[:, 7],
        row_request=table[:, 0].astype(np.int64),
        row_seconds=table[:, 1:3],
        row_tokens=table[:, 3],
        stall_request=stalled[:, 0].astype(np.int64),
        stall_seconds=stalled[:, 1:3],
        resume_request=resumed[:, 0].astype(np.int64),
        resume_seconds=resumed[:, 1],
        work_request=unseen[:, 0].astype(np.int64),
        work_rows=unseen[:, 1:],
    )


def busy_seconds_until(
    at_seconds: FloatArray, start_seconds: float, population: Population
) -> FloatArray:
    """Time since `start_seconds` in which anybody ran, at each later instant."""
    edges, running = _running(start_seconds, float(at_seconds[-1]), population)
    busy = np.concatenate(([0.0], np.cumsum(np.diff(edges) * (running > 0))))
    return np.asarray(np.interp(at_seconds, edges, busy), dtype=np.float64)


def _running(
    start_seconds: float, end_seconds: float, population: Population
) -> tuple[FloatArray, IntArray]:
    """Instants at which the number running changes, and the number after each."""
    began = np.clip(population.scheduled_seconds, start_seconds, end_seconds)
    ended = np.clip(population.end_seconds, began, end_seconds)
    stalls = np.clip(population.stall_seconds, start_seconds, end_seconds)
    plus = np.concatenate((began, stalls[:, 1]))
    minus = np.concatenate((ended, stalls[:, 0]))
    edges = np.unique(np.concatenate((plus, minus, [start_seconds, end_seconds])))
    change = np.bincount(np.searchsorted(edges, plus), minlength=len(edges))
    change -= np.bincount(np.searchsorted(edges, minus), minlength=len(edges))
    return edges, np.cumsum(change)[:-1]


def shared_seconds(
    start_seconds: float, end_seconds: float, population: Population
) -> tuple[FloatArray, FloatArray]:
    """Every moment divided equally among those running, by phase."""
    edges, running = _running(start_seconds, end_seconds, population)
    grown = np.diff(edges) / np.maximum(running, 1) * (running > 0)
    integral = np.concatenate(([0.0], np.cumsum(grown)))
    began = np.clip(population.scheduled_seconds, start_seconds, end_seconds)
    ended = np.clip(population.end_seconds, began, end_seconds)
    turned = np.clip(population.first_token_seconds, began, ended)
    at_begin, at_turn, at_end = (
        np.interp(instants, edges, integral) for instants in (began, turned, ended)
    )
    stalls = np.clip(population.stall_seconds, start_seconds, end_seconds)
    stalled = np.diff(np.interp(stalls, edges, integral), axis=1)[:, 0]
    lost = np.bincount(population.stall_request, stalled, len(began))
    decoding = np.maximum(at_end - at_turn - lost, 0.0)
    return at_turn - at_begin, np.asarray(decoding, dtype=np.float64)


SHARED = (MIXED, *REACH, "decode_rows", "kv_rows")
"""Columns of `Activity.shared`: parts of steps that are divided by rules of their own,
then the sequences decoded, step by step, and the context that they read. These are less
than tokens where a step yields several of a sequence (speculative decoding)."""


@dataclass(frozen=True, slots=True)
class Activity:
    """Work per request in one interval, arrays of shape (requests,), >= 0."""

    prefill_seconds: FloatArray
    """Time in prefill, each moment divided by the number then running."""
    decode_seconds: FloatArray
    """Time in decode, divided alike: from the first token on."""
    prefill_tokens: FloatArray
    """Prompt tokens computed, cached ones excluded."""
    prefill_context_tokens: FloatArray
    """Sum over those tokens of how many tokens each one looked back at."""
    output_tokens: FloatArray
    """Tokens received."""
    decode_tokens: FloatArray
    """Tokens received but the first, which comes out of the prefill."""
    kv_tokens: FloatArray
    """Sum over the decode tokens of the context each one read."""
    prefill_steps: FloatArray
    """Steps taken part in with prefill, each divided by the number present."""
    decode_steps: FloatArray
    """Steps taken part in with decode, divided alike."""
    shared: FloatArray | None = None
    """Shape (requests, 2, len(SHARED)): prefill and decode; None where only sums are
    known."""


def activity_between(
    start_seconds: float,
    end_seconds: float,
    population: Population,
    steps: Steps,
    starts: FloatArray,
) -> Activity:
    """Work of every request of a population in an interval.

    `starts` are the steps' starts, shape (steps,). Steps and requests outside
    the interval contribute nothing.
    """
    prefill_seconds, decode_seconds = shared_seconds(
        start_seconds, end_seconds, population
    )
    count = len(population.keys)
    first, stop = np.searchsorted(
        steps.end_seconds, (start_seconds, end_seconds), side="right"
    )
    stop = min(int(stop) + 1, len(steps.end_seconds))
    reads = _reads(int(first), stop, population, steps)
    row, row_step = _prefill_rows(
        population, steps.end_seconds[first:stop], starts[first:stop]
    )
    often = _often(int(first), stop, reads, population, steps)
    # A request that came during its first step takes part from then on only.
    began = np.maximum(
        starts[first:stop][reads.step], population.scheduled_seconds[reads.request]
    )
    ended = steps.end_seconds[first:stop][reads.step]
    parts = _overlap(np.minimum(began, ended), ended, start_seconds, end_seconds)
    unseen, unseen_parts, alone = _unseen_output(
        start_seconds,
        end_seconds,
        population,
        steps.end_seconds[first:stop],
        starts[first:stop],
    )
    reads, parts = _joined(reads, unseen), np.concatenate((parts, unseen_parts))
    share = _step_shares(often, reads, row_step)
    tokens, decoded = reads.tokens * parts, reads.decoded * parts
    row_parts = _overlap(
        population.row_seconds[:, 0],
        population.row_seconds[:, 1],
        start_seconds,
        end_seconds,
    )
    look_back = (population.context_tokens + population.cached_tokens) / 2
    prefill_tokens = _sum_by(
        population.row_request, population.row_tokens * row_parts, count
    )
    sequences = population.sequences[reads.request]
    players = StepPlayers(
        often,
        _sum_by(reads.step, reads.presence * sequences, len(often)),
        row_step,
        population.row_tokens[row],
    )
    shared = _shared(
        players, reads, parts, population.row_request[row], row_parts[row], population
    )
    shared += alone.shared
    return Activity(
        prefill_seconds=prefill_seconds,
        decode_seconds=decode_seconds,
        prefill_tokens=prefill_tokens,
        prefill_context_tokens=prefill_tokens * look_back,
        output_tokens=_sum_by(reads.request, tokens, count) + alone.tokens,
        decode_tokens=_sum_by(reads.request, decoded, count) + alone.tokens,
        kv_tokens=_sum_by(reads.request, decoded * reads.context, count)
        + alone.tokens * population.context_tokens,
        prefill_steps=_sum_by(
            population.row_request[row], row_parts[row] * share[row_step], count
        ),
        decode_steps=_sum_by(
            reads.request, reads.presence * parts * share[reads.step], count
        )
        + alone.steps,
        shared=shared,
    )


def _shared(
    players: StepPlayers,
    reads: _Reads,
    parts: FloatArray,
    row_request: IntArray,
    row_parts: FloatArray,
    population: Population,
) -> FloatArray:
    """Shares of each request in the parts of steps that do not simply add up."""
    count, step, row_step = len(population.keys), reads.step, players.row_step
    sequences = population.sequences[reads.request]
    rows = reads.presence * sequences
    found = np.zeros((count, 2, len(SHARED)))

    def put(name: str, prompts: FloatArray | None, decodes: FloatArray | None) -> None:
        column = SHARED.index(name)
        if prompts is not None:
            found[:, 0, column] = _sum_by(row_request, prompts * row_parts, count)
        if decodes is not None:
            found[:, 1, column] = _sum_by(reads.request, decodes * parts, count)

    put("decode_rows", None, rows)
    put("kv_rows", None, rows * reads.context)
    if len(row_step):
        kept, taken = beside_prompts(players)
        read = reads.decoded * reads.context
        of_step = _sum_by(step, read, len(kept))
        put(MIXED, (of_step * taken)[row_step], read * kept[step])
    of_sequence, of_prompt = reach_shares(players)
    decodes = _sum_by_step(reads.request, step, rows * parts, of_sequence, count)
    for column, name in enumerate(REACH):
        put(name, of_prompt[:, column], None)
        found[:, 1, SHARED.index(name)] = decodes[:, column]
    return found


def _sum_by_step(
    request: IntArray,
    step: IntArray,
    values: FloatArray,
    of_step: FloatArray,
    count: int,
) -> FloatArray:
    """Sum of the values of each request, times each column of what its step has.

    `of_step` is shape (steps, columns), the result (requests, columns).
    """
    width = len(of_step)
    if count * width > MAX_CELLS * len(values):  # few requests in each of many steps
        columns = [
            _sum_by(request, values * column[step], count) for column in of_step.T
        ]
        return np.stack(columns, axis=1)
    cells = np.bincount(request * width + step, values, count * width)
    return np.asarray(cells.reshape(count, width) @ of_step, dtype=np.float64)


PASSED_STEPS = 4.0
"""Steps that a stream may be passed by, as its reads are later than others', before it
is taken for one that the engine had set aside."""


def _often(
    first: int, stop: int, reads: _Reads, population: Population, steps: Steps
) -> FloatArray:
    """How many steps each cluster is: its reads by the number decoding then.

    In each step all that decode get tokens. So a cluster with one read of each is one
    step and with two reads of each it is two; where late reads of one step made two
    clusters of it, each is a part. Where nobody decodes it is one. Who was passed by
    steps that no later read makes up for had been set aside meanwhile.
    """
    clusters = _Clusters(
        steps.seconds[steps.first_row[first:stop]], steps.end_seconds[first:stop]
    )
    is_own = population.keys < WORK_KEY
    came = clusters.after(population.first_token_seconds)
    left = clusters.after(population.end_seconds)
    aside_seconds, back_seconds = population.stall_seconds.T
    resumed = clusters.of(population.resume_seconds)
    there = clusters.number(came[is_own], left[is_own])
    there -= clusters.number(
        clusters.after(aside_seconds), clusters.after(back_seconds)
    )
    there -= clusters.number(resumed, resumed + 1)
    read = _sum_by(reads.step, reads.presence, len(there))
    often = _by_number(read, there)
    if (often == 1.0).all():
        return often
    there -= clusters.number(*_passed(reads, came, left, often))
    is_read = np.bincount(reads.request, minlength=len(is_own)) > 0
    is_silent = is_own & ~is_read
    there -= clusters.number(came[is_silent], left[is_silent])
    return _by_number(read, there)


def _passed(
    reads: _Reads, came: IntArray, left: IntArray, often: FloatArray
) -> tuple[IntArray, IntArray]:
    """Where streams were passed by steps: the first cluster of each, the one after it.

    `came` and `left` are those in which each request's decoding began, and had ended.
    """
    is_read = reads.presence > 0
    request, step, rows = (
        column[is_read] for column in (reads.request, reads.step, reads.presence)
    )
    order = np.lexsort((step, request))
    request, step, rows = request[order], step[order], rows[order]
    is_first = np.diff(request, prepend=-1) != 0
    is_last = np.diff(request, append=-1) != 0
    # from where each began to its first read, and from each read to the next, or on
    since = np.concatenate((came[request[is_first]], step + 1))
    until = np.concatenate(
        (step[is_first], np.where(is_last, left[request], np.roll(step, -1)))
    )
    made_up = np.concatenate(
        (rows[is_first], np.where(is_last, 0.0, np.roll(rows, -1)))
    )
    counted = np.concatenate(([0.0], np.cumsum(often)))
    end = np.minimum(until + 1, len(often))
    missed = counted[end] - counted[np.minimum(since, end)] - made_up
    is_passed = missed >= PASSED_STEPS
    return since[is_passed], until[is_passed]


@dataclass(frozen=True, slots=True)
class _Clusters:
    """Consecutive clusters of reads, by when they begin and end."""

    begin_seconds: FloatArray
    end_seconds: FloatArray

    def after(self, at_seconds: FloatArray) -> IntArray:
        """The first one that begins later."""
        found = np.searchsorted(self.begin_seconds, at_seconds, side="right")
        return np.asarray(found, dtype=np.int64)

    def of(self, at_seconds: FloatArray) -> IntArray:
        """Those that these instants lie in; who lies in none is left out."""
        cluster = self.after(at_seconds) - 1
        is_in = (cluster >= 0) & (at_seconds <= self.end_seconds[cluster])
        return cluster[is_in]

    def number(self, since: IntArray, until: IntArray) -> IntArray:
        """How many are there in each, who come in one and have left before another."""
        came = np.bincount(since, minlength=len(self.begin_seconds) + 1)
        left = np.bincount(np.maximum(until, since), minlength=len(came))
        return np.cumsum(came - left)[:-1]


def _by_number(read: FloatArray, there: IntArray) -> FloatArray:
    is_known = (there > 0) & (read > 0)
    return np.where(is_known, read / np.maximum(there, 1), 1.0)


def _step_shares(often: FloatArray, reads: _Reads, row_step: IntArray) -> FloatArray:
    """What one presence in each step is of it: the step by the number present."""
    present = _sum_by(reads.step, reads.presence, len(often))
    present += np.bincount(row_step, minlength=len(often))
    return np.asarray(often / np.maximum(present, 1.0), dtype=np.float64)


def _sum_by(index: IntArray, values: FloatArray, count: int) -> FloatArray:
    return np.asarray(np.bincount(index, values, count), dtype=np.float64)


def _overlap(
    starts: FloatArray, ends: FloatArray, start_seconds: float, end_seconds: float
) -> FloatArray:
    """Part of each span that lies in the interval, 0..1; the end belongs to it."""
    spans = ends - starts
    inside = np.minimum(ends, end_seconds) - np.maximum(starts, start_seconds)
    is_point = spans <= 0
    parts = np.clip(inside, 0.0, None) / np.where(is_point, 1.0, spans)
    at_point = (ends > start_seconds) & (ends <= end_seconds)
    return np.asarray(np.where(is_point, at_point, parts), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class _Reads:
    """Reads of known requests in a range of steps."""

    request: IntArray
    step: IntArray
    presence: FloatArray
    tokens: FloatArray
    decoded: FloatArray
    context: FloatArray


@dataclass(frozen=True, slots=True)
class _Alone:
    """Work in time without a step of anybody else's, every first axis (requests,)."""

    tokens: FloatArray
    steps: FloatArray
    shared: FloatArray


def _joined(left: _Reads, right: _Reads) -> _Reads:
    return _Reads(
        *(
            np.concatenate((getattr(left, name), getattr(right, name)))
            for name in ("request", "step", "presence", "tokens", "decoded", "context")
        )
    )


def _unseen_output(
    start_seconds: float,
    end_seconds: float,
    population: Population,
    ends: FloatArray,
    starts: FloatArray,
) -> tuple[_Reads, FloatArray, _Alone]:
    """Output of those that no proxy saw: as reads of steps seen, their parts, the rest.

    Each token in a step stands for a sequence that was present.
    """
    rows, request = population.work_rows, population.work_request
    count = len(population.keys)
    parts = _overlap(rows[:, 0], rows[:, 1], start_seconds, end_seconds)
    step = np.searchsorted(ends, rows[:, 1], side="left")
    is_in = (np.append(starts, np.inf)[step] < rows[:, 1]) & (rows[:, 2] > 0)
    tokens = rows[is_in, 2]
    reads = _Reads(
        request[is_in],
        step[is_in],
        tokens,
        tokens,
        tokens,
        population.context_tokens[request[is_in]],
    )
    of, tokens = request[~is_in], (rows[:, 2] * parts)[~is_in]
    alone = (rows[:, 3] * parts)[~is_in]
    shared = np.zeros((count, 2, len(SHARED)))
    at_once = tokens / np.where(alone > 0, alone, 1.0)
    for name, work in (
        ("decode_rows", tokens),
        ("kv_rows", tokens * population.context_tokens[of]),
        *(
            (name, -np.expm1(-at_once / constant) * alone)
            for name, constant in zip(REACH, REACH_TOKENS, strict=True)
        ),
    ):
        shared[:, 1, SHARED.index(name)] = _sum_by(of, work, count)
    return (
        reads,
        parts[is_in],
        _Alone(_sum_by(of, tokens, count), _sum_by(of, alone, count), shared),
    )


def _reads(first: int, stop: int, population: Population, steps: Steps) -> _Reads:
    low, high = steps.first_row[first], steps.first_row[stop]
    keys = steps.keys[low:high]
    request = np.searchsorted(population.keys, keys)
    request = np.minimum(request, max(len(population.keys) - 1, 0))
    found = np.zeros(len(keys), np.bool_)
    if len(population.keys):
        found = population.keys[request] == keys
    is_known = slice(None) if found.all() else found  # the usual case copies nothing
    request = request[is_known]
    step = np.repeat(
        np.arange(stop - first), np.diff(steps.first_row[first : stop + 1])
    )[is_known]
    scale = population.token_scale[request]
    before = steps.before[low:high][is_known]
    counted = steps.tokens[low:high][is_known]
    tokens = counted * scale
    stamps = steps.seconds[low:high][is_known]
    # The first token of each sequence came out of the prefill, the others followed,
    # but for the one that came out of what was computed again.
    sequences = population.sequences[request]
    is_first = before < sequences
    decoded = np.clip(before * scale + tokens - sequences, 0.0, tokens)
    resumes = zip(
        population.resume_request.tolist(),
        np.searchsorted(stamps, population.resume_seconds, side="left").tolist(),
        np.searchsorted(stamps, population.resume_seconds, side="right").tolist(),
        strict=True,
    )
    for place, begin, end in resumes:
        is_resumed = request[begin:end] == place
        is_first[begin:end] |= is_resumed
        decoded[begin:end][is_resumed] = 0.0
    middle = before * scale + (tokens - np.where(before <= 0, 0.0, 1.0)) / 2
    context = population.context_tokens[request] + np.maximum(middle / sequences, 0.0)
    with_first = is_first | (stamps <= population.first_token_seconds[request])
    presence = _presence(request, step, stamps, with_first, counted / sequences)
    return _Reads(request, step, presence, tokens, decoded, context)


def _presence(
    request: IntArray,
    step: IntArray,
    stamps: FloatArray,
    with_first: BoolArray,
    tokens_each: FloatArray,
) -> FloatArray:
    """How often a request was read in a step, put on one of the reads.

    1 unless steps ran together in one cluster. Reads with the same stamp are one,
    and no step is counted without a token for each sequence: parallel ones may come
    one by one or together. The first stamp is the prefill's.
    """
    presence = np.zeros(len(stamps))
    if not _has_repeats(request, step):
        presence[~with_first] = 1.0
        return presence
    order = np.lexsort((stamps, request, step))
    order = order[~with_first[order]]
    if not len(order):
        return presence
    is_new = np.ones(len(order), np.bool_)
    is_new[1:] = (np.diff(step[order]) != 0) | (np.diff(request[order]) != 0)
    is_other = is_new.copy()
    is_other[1:] |= np.diff(stamps[order]) != 0
    places = np.flatnonzero(is_new)
    reads = np.add.reduceat(is_other, places).astype(np.float64)
    tokens = np.add.reduceat(tokens_each[order], places)
    presence[order[is_new]] = np.maximum(np.rint(np.minimum(reads, tokens)), 1.0)
    return presence


def _has_repeats(request: IntArray, step: IntArray) -> bool:
    """Whether a request may have been read more than once in some step."""
    if not len(request):
        return False
    width = int(request.max()) + 1
    if (int(step.max()) + 1) * width > MAX_CELLS * len(request):
        return True
    return bool(np.bincount(step * width + request).max() > 1)


def _prefill_rows(
    population: Population, ends: FloatArray, starts: FloatArray
) -> tuple[IntArray, IntArray]:
    """Prefill rows that lie in some of these steps, and the step of each."""
    if not len(ends):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    until = population.row_seconds[:, 1]
    step = np.searchsorted(ends, until, side="left")
    place = np.minimum(step, len(ends) - 1)
    row = np.flatnonzero((step < len(ends)) & (until > starts[place]))
    return row, step[row]
