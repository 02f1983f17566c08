"""What every request did in an interval: the only input of a policy.

Rule: work done in a step is spread evenly over the step's duration, so an
interval may be cut anywhere; running time counts from scheduled to last token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from proxy.timeline.request import RequestTimeline
from proxy.timeline.steps import FloatArray, IntArray, Steps


@dataclass(frozen=True, slots=True)
class Activity:
    """Work per request in one interval, every array of shape (requests,), >= 0."""

    prefill_seconds: FloatArray
    """Time in prefill, each moment divided by the number then running."""
    decode_seconds: FloatArray
    """As above, from the first token on."""
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
    """As above, with decode."""


@dataclass(frozen=True, slots=True)
class Population:
    """The requests of an accounting period as columns, sorted by serial."""

    serials: IntArray
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

    def during(self, start_seconds: float, end_seconds: float) -> IntArray:
        """Positions of those that ran at some time in the interval."""
        ran = (self.scheduled_seconds < end_seconds) & (
            self.end_seconds > start_seconds
        )
        return np.flatnonzero(ran)

    def only(self, positions: IntArray) -> Population:
        """The same columns for some of them; `positions` rise."""
        place = np.full(len(self.serials), -1, np.int64)
        place[positions] = np.arange(len(positions))
        kept = np.flatnonzero(place[self.row_request] >= 0)
        return Population(
            self.serials[positions],
            self.arrived_seconds[positions],
            self.scheduled_seconds[positions],
            self.first_token_seconds[positions],
            self.end_seconds[positions],
            self.context_tokens[positions],
            self.cached_tokens[positions],
            self.token_scale[positions],
            self.sequences[positions],
            row_request=place[self.row_request[kept]],
            row_seconds=self.row_seconds[kept],
            row_tokens=self.row_tokens[kept],
        )


INFINITY = float("inf")


def population(requests: Sequence[RequestTimeline]) -> Population:
    """Columns of requests that come in order of their serials."""
    rows = [
        (position, start, end, tokens)
        for position, request in enumerate(requests)
        for start, end, tokens in request.prefill_rows
    ]
    table = np.array(rows, np.float64).reshape(len(rows), 4)
    columns = np.array(
        [
            (
                request.arrived_seconds,
                _or_inf(request.scheduled_seconds),
                _or_inf(request.first_token_seconds),
                request.end_seconds,
                request.estimated_prompt_tokens,
                request.cached_tokens or 0.0,
                request.token_scale,
                request.sequences,
            )
            for request in requests
        ],
        np.float64,
    ).reshape(len(requests), 8)
    return Population(
        np.array([request.serial for request in requests], np.int64),
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
    )


def _or_inf(seconds: float | None) -> float:
    return INFINITY if seconds is None else seconds


def activity_between(
    start_seconds: float,
    end_seconds: float,
    people: Population,
    steps: Steps,
    starts: FloatArray,
) -> Activity:
    """Work of every request of `people` in an interval.

    `starts` are the steps' starts, shape (steps,). Steps and requests outside
    the interval contribute nothing.
    """
    prefill_seconds, decode_seconds = _shared_seconds(
        start_seconds, end_seconds, people
    )
    count = len(people.serials)
    first, stop = np.searchsorted(
        steps.end_seconds, (start_seconds, end_seconds), side="right"
    )
    stop = min(int(stop) + 1, len(steps.end_seconds))
    parts = _overlap(
        starts[first:stop], steps.end_seconds[first:stop], start_seconds, end_seconds
    )
    reads = _reads(int(first), stop, people, steps)
    rows = _prefill_rows(int(first), stop, people, steps)
    present = _sum_by(reads.step, reads.presence, len(parts))
    present += _sum_by(rows.step, rows.presence, len(parts))
    share = parts / np.maximum(present, 1.0)
    tokens = reads.tokens * parts[reads.step]
    decoded = reads.decoded * parts[reads.step]
    row_tokens = people.row_tokens * _overlap(
        people.row_seconds[:, 0], people.row_seconds[:, 1], start_seconds, end_seconds
    )
    look_back = (people.context_tokens + people.cached_tokens) / 2
    prefill_tokens = _sum_by(people.row_request, row_tokens, count)
    return Activity(
        prefill_seconds=prefill_seconds,
        decode_seconds=decode_seconds,
        prefill_tokens=prefill_tokens,
        prefill_context_tokens=prefill_tokens * look_back,
        output_tokens=_sum_by(reads.request, tokens, count),
        decode_tokens=_sum_by(reads.request, decoded, count),
        kv_tokens=_sum_by(reads.request, decoded * reads.context, count),
        prefill_steps=_sum_by(rows.request, rows.presence * share[rows.step], count),
        decode_steps=_sum_by(reads.request, reads.presence * share[reads.step], count),
    )


def busy_seconds_until(
    at_seconds: FloatArray, start_seconds: float, people: Population
) -> FloatArray:
    """Time since `start_seconds` in which anybody ran, at each later instant."""
    edges, running = _running(start_seconds, float(at_seconds[-1]), people)
    busy = np.concatenate(([0.0], np.cumsum(np.diff(edges) * (running > 0))))
    return np.asarray(np.interp(at_seconds, edges, busy), dtype=np.float64)


def _running(
    start_seconds: float, end_seconds: float, people: Population
) -> tuple[FloatArray, IntArray]:
    """Instants at which the number running changes, and the number after each."""
    began = np.clip(people.scheduled_seconds, start_seconds, end_seconds)
    ended = np.clip(people.end_seconds, began, end_seconds)
    edges = np.unique(np.concatenate((began, ended, [start_seconds, end_seconds])))
    change = np.zeros(len(edges), np.int64)
    np.add.at(change, np.searchsorted(edges, began), 1)
    np.add.at(change, np.searchsorted(edges, ended), -1)
    return edges, np.cumsum(change)[:-1]


def _shared_seconds(
    start_seconds: float, end_seconds: float, people: Population
) -> tuple[FloatArray, FloatArray]:
    """Every moment divided equally among those running, by phase."""
    edges, running = _running(start_seconds, end_seconds, people)
    grown = np.diff(edges) / np.maximum(running, 1) * (running > 0)
    integral = np.concatenate(([0.0], np.cumsum(grown)))
    began = np.clip(people.scheduled_seconds, start_seconds, end_seconds)
    ended = np.clip(people.end_seconds, began, end_seconds)
    turned = np.clip(people.first_token_seconds, began, ended)
    at_begin, at_turn, at_end = (
        np.interp(instants, edges, integral) for instants in (began, turned, ended)
    )
    return at_turn - at_begin, at_end - at_turn


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
    """Reads of known requests in a range of steps, or their prefill rows."""

    request: IntArray
    step: IntArray
    presence: FloatArray
    tokens: FloatArray
    decoded: FloatArray
    context: FloatArray


def _reads(first: int, stop: int, people: Population, steps: Steps) -> _Reads:
    low, high = steps.first_row[first], steps.first_row[stop]
    serials = steps.serials[low:high]
    request = np.searchsorted(people.serials, serials)
    request = np.minimum(request, max(len(people.serials) - 1, 0))
    is_known = np.zeros(len(serials), np.bool_)
    if len(people.serials):
        is_known = people.serials[request] == serials
    request = request[is_known]
    step = np.repeat(
        np.arange(stop - first), np.diff(steps.first_row[first : stop + 1])
    )[is_known]
    scale = people.token_scale[request]
    before = steps.before[low:high][is_known]
    counted = steps.tokens[low:high][is_known]
    is_first = before <= 0
    tokens = counted * scale
    # A first read of k tokens came out of the prefill with one, k - 1 followed.
    sequences = people.sequences[request]
    decoded = np.where(is_first, np.maximum(tokens - sequences, 0.0), tokens)
    middle = before * scale + (tokens - 1) / 2
    context = people.context_tokens[request] + np.maximum(middle / sequences, 0.0)
    stamps = steps.seconds[low:high][is_known]
    presence = _presence(request, step, stamps, is_first)
    return _Reads(request, step, presence, tokens, decoded, context)


def _presence(
    request: IntArray, step: IntArray, stamps: FloatArray, is_first: np.ndarray
) -> FloatArray:
    """1 per request and step, put on one of its reads; a first read is prefill."""
    order = np.lexsort((stamps, is_first, request, step))
    is_new = np.ones(len(order), np.bool_)
    is_new[1:] = (np.diff(step[order]) != 0) | (np.diff(request[order]) != 0)
    presence = np.zeros(len(order))
    presence[order] = is_new & ~is_first[order]
    return presence


def _prefill_rows(first: int, stop: int, people: Population, steps: Steps) -> _Reads:
    """Presence of prefill in the same range of steps."""
    ends = steps.end_seconds[first:stop]
    step = np.searchsorted(ends, people.row_seconds[:, 1], side="left")
    floor = steps.floor_seconds[first] if stop > first else INFINITY
    inside = (step < stop - first) & (people.row_seconds[:, 1] > floor)
    step, request = step[inside], people.row_request[inside]
    none = np.zeros(len(step))
    return _Reads(request, step, np.ones(len(step)), none, none, none)
