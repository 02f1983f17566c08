"""The requests of an accounting period as columns, and who ran when.

Rule: a request runs from scheduled to its last token, less the stretches in which
the engine had set it aside; a moment is divided by the number then running.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from proxy.meter.activity.request import RequestTimeline
from proxy.meter.activity.steps import FloatArray, IntArray


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


INFINITY = float("inf")


def population_of(
    requests: Sequence[RequestTimeline], let_in: Collection[int] = ()
) -> Population:
    """Columns of requests that come in order of their keys.

    Those `let_in` have no place yet and count as running since they arrived.
    """
    rows = [
        (position, start, end, tokens)
        for position, request in enumerate(requests)
        for start, end, tokens in request.prefill_rows
    ]
    table = np.array(rows, np.float64).reshape(len(rows), 4)
    stalls = np.array(
        [
            (position, began, ended)
            for position, request in enumerate(requests)
            for began, ended in request.stalls
        ],
        np.float64,
    ).reshape(-1, 3)
    columns = np.array(
        [
            (
                request.arrived_seconds,
                request.arrived_seconds
                if request.key in let_in
                else _or_inf(request.scheduled_seconds),
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
        np.array([request.key for request in requests], np.int64),
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
        stall_request=stalls[:, 0].astype(np.int64),
        stall_seconds=stalls[:, 1:3],
    )


def _or_inf(seconds: float | None) -> float:
    return INFINITY if seconds is None else seconds


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
