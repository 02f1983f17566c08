"""Prompts that a cache held a part of, where the engine tells only the sum.

vLLM without `--enable-prompt-tokens-details` puts no cached tokens into a reply; its
counters tell how many prompt tokens of all were computed. Rule: the steps say who was
computed, the counters how much. A step that lasts as long as those around it computed
no prompt, however long the prompt was that ended in it; what steps last beyond that
is divided as prompts can have filled it, and the sum is brought to the engine's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

import numpy as np

from proxy.meter.activity.prompt_speed import LONG, PromptSpeed
from proxy.meter.activity.request import RequestTimeline
from proxy.meter.activity.steps import FloatArray

MEMORY_SECONDS = 60.0
"""A cache is expected for so long after its last hit that no reply told of."""

PLAIN_QUANTILE = 0.25
"""Of the steps between two scrapes: so long lasts one without any prompt."""

EDGE_SECONDS = 0.01
"""A first token so close to a scrape may have been counted on its other side."""

OVERLAP = 1.0
"""Plain steps that a step with a prompt lasts before it computes the prompt. Less
(reading the weights and computing go on at once) makes hits of the cache look computed
where a step with any prompt costs more; the sum is the engine's either way."""


class HiddenCache:
    """Whether the engine has a cache that replies do not tell of."""

    def __init__(self) -> None:
        self._proven_seconds = -math.inf

    def is_hidden(self, at_seconds: float) -> bool:
        """Whether prompts are to be doubted."""
        return at_seconds - self._proven_seconds < MEMORY_SECONDS

    def observe(
        self,
        at_seconds: float,
        requests: Sequence[RequestTimeline],
        cached: float,
    ) -> bool:
        """Whether tokens were cached up to a scrape and no request told so."""
        told = sum(
            request.uncomputed_tokens
            for request in requests
            if not request.has_unknown_cache
        )
        is_untold = any(request.has_unknown_cache for request in requests)
        if is_untold and cached > told:
            self._proven_seconds = at_seconds
            return True
        return False

    def infer(
        self,
        span: tuple[float, float],
        requests: Sequence[RequestTimeline],
        starts: FloatArray,
        ends: FloatArray,
        computed: float,
        prompts: float,
        speed: PromptSpeed,
    ) -> None:
        """Give each request that told nothing its `inferred_cached_tokens`.

        `requests` got their first token in the span between two scrapes. Of all
        `prompts` that the engine counted meanwhile it `computed` so many tokens.
        """
        if not len(ends):
            return
        lasted = ends - starts
        plain = float(np.quantile(lasted, PLAIN_QUANTILE))
        spare = np.where(lasted > LONG * plain, lasted - OVERLAP * plain, 0.0)
        speed.learn(computed, float(spare.sum()))
        room = spare / speed.token_seconds
        unsure = [
            request
            for request in requests
            if request.has_unknown_cache and request.inferred_cached_tokens is None
        ]
        found: list[tuple[RequestTimeline, float]] = []
        for request in requests:
            if not request.has_unknown_cache:
                told = (request.prompt_tokens or 0) - request.uncomputed_tokens
                _take(request, told, room, ends)
        for _, tied in groupby(sorted(unsure, key=_first), key=_first):
            group = list(tied)
            asked = [float(request.prompt_tokens or 0) for request in group]
            taken = _take(group[0], sum(asked), room, ends)
            found += [
                (request, taken * own / max(sum(asked), 1.0))
                for request, own in zip(group, asked, strict=True)
            ]
        own = sum(float(request.prompt_tokens or 0) for request in unsure)
        others = max(prompts - own, 0.0)
        target = computed * own / max(own + others, 1.0)
        guessed = np.array([one for _, one in found], np.float64)
        most = np.array([float(request.prompt_tokens or 0) for request, _ in found])
        first = np.array([_first(request) for request, _ in found])
        is_near = np.abs(first[:, np.newaxis] - span).min(axis=1, initial=1) < (
            EDGE_SECONDS
        )
        slack = float(most[is_near].sum())
        target = float(np.clip(guessed.sum(), target - slack, target + slack))
        filled = brought_to(guessed, most, target)
        for (request, _), computed in zip(found, filled.tolist(), strict=True):
            whole = float(request.prompt_tokens or 0)
            request.inferred_cached_tokens = max(whole - max(computed, 1.0), 0.0)


def brought_to(taken: FloatArray, most: FloatArray, target: float) -> FloatArray:
    """The same in proportion, none above its `most`, with `target` as the sum.

    What the proportion leaves open goes to those below theirs.
    """
    total = taken.sum()
    if total <= 0 or total >= target:
        return taken * (target / total if total > 0 else 0.0)
    scaled = np.minimum(taken * (target / total), most)
    room = most - scaled
    left = target - scaled.sum()
    if left <= 0 or not room.any():
        return np.asarray(scaled, np.float64)
    return np.asarray(scaled + room * min(left / room.sum(), 1.0), np.float64)


def _first(request: RequestTimeline) -> float:
    return request.first_token_seconds or 0.0


def _take(
    request: RequestTimeline, tokens: float, room: FloatArray, ends: FloatArray
) -> float:
    """Fill the room from the step of the first token back to the arrival."""
    step = min(int(np.searchsorted(ends, _first(request))), len(ends) - 1)
    left = tokens
    while step >= 0 and ends[step] > request.arrived_seconds and left > 0:
        part = min(left, float(room[step]))
        room[step] -= part
        left -= part
        step -= 1
    return tokens - left
