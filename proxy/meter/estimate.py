"""What a request has consumed so far, before its last windows are closed.

Rule: nothing here changes any book. What is settled is taken as it stands there.
The rest, from the last closed window to now, is measured up to the newest edge and
goes on at the newest power; the headline policy divides it among all who ran, over
one rough `Activity` of the whole stretch instead of step by step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from proxy.meter.activity.request import RequestTimeline, TokenLog
from proxy.meter.activity.steps import FloatArray, StepBook
from proxy.meter.activity.timeline import EngineTimeline
from proxy.meter.activity.unstreamed import STEP_SECONDS
from proxy.meter.activity.work import (
    Activity,
    Population,
    population_of,
    shared_seconds,
)
from proxy.meter.attribution.divide import split_idle
from proxy.meter.attribution.interval import NOTHING_KNOWN, grade_of, grade_reasons
from proxy.meter.attribution.policies import attribute
from proxy.meter.boundary import Boundary
from proxy.meter.curve import STALE_PERIODS, STALE_SECONDS
from proxy.meter.ledger import RequestEnergy, unknown_energy


@dataclass(frozen=True, slots=True)
class EnergySoFar:
    """What a request cost, as far as that is known now."""

    energy: RequestEnergy
    is_settled: bool
    """No later answer will differ; then None is for good."""


def estimated_energy(
    own: RequestTimeline,
    timeline: EngineTimeline,
    boundary: Boundary,
    *,
    at_seconds: float,
) -> RequestEnergy:
    """Settled joules of a request, and its rough part of what is not settled yet.

    Unknown where the sensor has a gap, or the request began before its first edge.
    """
    ledger = boundary.ledger
    measured = measured_until(boundary, at_seconds)
    if (
        measured is None
        or own.arrived_seconds < boundary.measured_from_seconds
        or own.key in boundary.energies.with_gap
    ):
        return unknown_energy(ledger.headline)
    among = [
        each
        for each in timeline.requests.in_order()
        if each.end_seconds > measured[0][0]
    ]
    by_policy, idle_share = ledger.entry(own.key)
    parts = np.array([*by_policy[ledger.policies.index(ledger.headline)], idle_share])
    settled_joules = float(parts[:2].sum())
    if own in among:
        shares = unsettled_shares(*measured, among, timeline, boundary)
        parts += shares[among.index(own)]
    prefill, decode, idle_share = parts.tolist()
    energy, active = prefill + decode + idle_share, prefill + decode
    bounds = boundary.energies.bounds(
        own.key,
        energy,
        active,
        guessed_joules=active - settled_joules,
        is_watched=timeline.gauges.is_alive(at_seconds),
    )
    reasons = grade_reasons(energy, bounds, "estimated", NOTHING_KNOWN)
    return RequestEnergy(
        prefill_joules=prefill,
        decode_joules=decode,
        idle_share_joules=idle_share,
        energy_joules=energy,
        policy=ledger.headline,
        timing="estimated",
        low_joules=bounds.low_joules,
        high_joules=bounds.high_joules,
        grade=grade_of(energy, bounds, reasons),
        grade_reasons=reasons,
    )


def unsettled_shares(
    edges: FloatArray,
    joules: FloatArray,
    among: Sequence[RequestTimeline],
    timeline: EngineTimeline,
    boundary: Boundary,
) -> FloatArray:
    """Prefill, decode and idle share joules of each, shape (requests, 3)."""
    token_seconds = timeline.prompt_token_seconds
    population = population_until(float(edges[-1]), among, token_seconds)
    tokens = tokens_since(
        float(edges[0]), population, timeline.seen.book, timeline.seen.log
    )
    activity = rough_activity(edges, population, tokens, among, token_seconds)
    _, shared, caused = split_idle(
        edges, np.diff(joules), population, boundary.learnt.idle.watts
    )
    policy = boundary.learnt.bound(boundary.config.policies[boundary.config.policy])
    idle_shares = attribute(shared, activity, boundary.learnt.idle_policy).sum(axis=1)
    return np.column_stack((attribute(caused, activity, policy), idle_shares))


def measured_until(
    boundary: Boundary, at_seconds: float
) -> tuple[FloatArray, FloatArray] | None:
    """Edges since the last closed window and cumulative joules there.

    The last edge is made up: it lies at `at_seconds`, the newest watts before it.
    None where part of it is a gap, or the sensor has been silent for too long.
    """
    curve, settled_seconds = boundary.curve, boundary.settled_seconds
    newest = curve.end_seconds
    if settled_seconds == -math.inf or newest is None:
        return None
    silent = max(at_seconds - newest, 0.0)
    limit = max(STALE_SECONDS, STALE_PERIODS * (curve.period_seconds or 0.0))
    watts = [device.watts for device in curve.devices.values()]
    if silent > limit or None in watts:
        return None
    edges = np.array([settled_seconds])
    joules = curve.joules_at(edges)
    if newest > settled_seconds:
        window = curve.next_window(settled_seconds, newest - settled_seconds)
        if window is None or window.gap_reason or window.end_seconds < newest:
            return None
        edges, joules = window.edges_seconds, window.joules
    if silent > 0:
        power = sum(one for one in watts if one is not None)
        edges = np.append(edges, at_seconds)
        joules = np.append(joules, joules[-1] + silent * power)
    return edges, joules


def population_until(
    at_seconds: float, among: Sequence[RequestTimeline], token_seconds: float
) -> Population:
    """Who ran up to an instant, those included whose prompt is not placed yet."""
    population = population_of(among)
    began = population.scheduled_seconds
    for position in np.flatnonzero(np.isinf(began)).tolist():
        timeline = among[position]
        first = timeline.first_token_seconds
        if first is not None:
            began[position] = timeline.arrived_seconds
            if timeline.prompt_tokens is not None:
                computed = timeline.prompt_tokens - (timeline.cached_tokens or 0)
                alone = first - max(computed, 1) * token_seconds
                began[position] = max(timeline.arrived_seconds, alone)
        elif not timeline.is_streamed and not timeline.is_refused:
            began[position] = timeline.arrived_seconds  # nobody tells more of it
    return replace(
        population, end_seconds=np.minimum(population.end_seconds, at_seconds)
    )


def tokens_since(
    settled_seconds: float, population: Population, book: StepBook, log: TokenLog
) -> FloatArray:
    """Tokens that each of a population received since an instant, as counted."""
    steps = book.steps
    table = log.table()
    seconds = np.concatenate((steps.seconds, table[:, 0]))
    keys = np.concatenate((steps.keys, table[:, 1].astype(np.int64)))
    tokens = np.concatenate((steps.tokens, table[:, 2]))
    position = np.searchsorted(population.keys, keys)
    position = np.minimum(position, len(population.keys) - 1)
    is_theirs = (population.keys[position] == keys) & (seconds > settled_seconds)
    sums = np.bincount(
        position[is_theirs], tokens[is_theirs], minlength=len(population.keys)
    )
    return np.asarray(sums, dtype=np.float64)


def rough_activity(
    edges: FloatArray,
    population: Population,
    tokens: FloatArray,
    among: Sequence[RequestTimeline],
    token_seconds: float,
) -> Activity:
    """Everybody's work in a stretch, each phase as if spread evenly over its time."""
    start, end = float(edges[0]), float(edges[-1])
    began, ended = population.scheduled_seconds, population.end_seconds
    first = np.minimum(population.first_token_seconds, ended)
    prefill_shared, decode_shared = shared_seconds(start, end, population)
    prefill_own = np.clip(np.minimum(first, end) - np.maximum(began, start), 0, None)
    decode_own = np.clip(np.minimum(ended, end) - np.maximum(first, start), 0, None)
    has_first = (first > start) & (population.first_token_seconds <= end)
    # A whole reply tells its tokens at its end; until then it may have had so many.
    is_hidden = np.array(
        [not t.is_streamed and t.closed_seconds is None for t in among]
    )
    tokens = np.where(is_hidden, prefill_own / STEP_SECONDS, tokens * _scale(among))
    prompt = prompt_tokens(population, among, token_seconds)
    computed = np.maximum(prompt - population.cached_tokens, 0.0)
    part = prefill_own / np.maximum(first - began, 1e-9)
    part = np.where(has_first, np.clip(part, 0.0, 1.0), 0.0)
    decoded = np.where(
        has_first, np.maximum(tokens - population.sequences, 0.0), tokens
    )
    received = np.array([t.counted_tokens for t in among]) * _scale(among)
    middle = np.maximum(received - tokens / 2, 0.0) / population.sequences
    return Activity(
        prefill_seconds=prefill_shared,
        decode_seconds=decode_shared,
        prefill_tokens=computed * part,
        prefill_context_tokens=computed
        * part
        * (prompt + population.cached_tokens)
        / 2,
        output_tokens=tokens,
        decode_tokens=decoded,
        kv_tokens=decoded * (prompt + middle),
        prefill_steps=part * _alone(prefill_shared, prefill_own),
        decode_steps=decoded / population.sequences * _alone(decode_shared, decode_own),
    )


def prompt_tokens(
    population: Population, among: Sequence[RequestTimeline], token_seconds: float
) -> FloatArray:
    """As the engine told; else the mean of those, if there was time for so many."""
    told = np.array(
        [np.nan if t.prompt_tokens is None else t.prompt_tokens for t in among]
    )
    is_told = np.isfinite(told)
    waited = population.first_token_seconds - population.arrived_seconds
    guess = np.where(np.isinf(waited), 0.0, waited) / token_seconds
    if is_told.any():
        guess = np.minimum(guess, told[is_told].mean())
    return np.where(is_told, told, guess)


def _scale(among: Sequence[RequestTimeline]) -> FloatArray:
    """Tokens by counted ones, where the engine has told its count."""
    return np.array(
        [
            t.output_tokens / t.counted_tokens
            if t.output_tokens and t.counted_tokens
            else 1.0
            for t in among
        ]
    )


def _alone(shared: FloatArray, own: FloatArray) -> FloatArray:
    """One by the number present, on average over one's own time; 1 if that is 0."""
    return np.where(own > 0, shared / np.where(own > 0, own, 1.0), 1.0)
