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

from proxy.meter.activity.placement import PromptSpeed
from proxy.meter.activity.request import RequestTimeline
from proxy.meter.activity.steps import FloatArray

MEMORY_SECONDS = 60.0
"""A cache is expected for so long after its last hit that no reply told of."""

PLAIN_QUANTILE = 0.25
"""Of the steps between two scrapes: so long lasts one without any prompt."""


class HiddenCache:
    """Whether the engine has a cache that replies do not tell of."""

    def __init__(self) -> None:
        self._proven_seconds = -math.inf

    def is_hidden(self, at_seconds: float) -> bool:
        """Whether prompts are to be doubted."""
        return at_seconds - self._proven_seconds < MEMORY_SECONDS

    def observe(
        self,
        since_seconds: float,
        at_seconds: float,
        requests: Sequence[RequestTimeline],
        cached: float,
    ) -> bool:
        """Whether tokens were cached between two scrapes and no request told so."""
        del since_seconds
        told = sum(request.cached_tokens or 0 for request in requests)
        is_untold = any(request.cached_tokens is None for request in requests)
        if is_untold and cached > told:
            self._proven_seconds = at_seconds
            return True
        return False

    def infer(
        self,
        requests: Sequence[RequestTimeline],
        starts: FloatArray,
        ends: FloatArray,
        computed: float,
        prompts: float,
        speed: PromptSpeed,
    ) -> None:
        """Give each request that told nothing its `inferred_cached_tokens`.

        `requests` got their first token in one of these steps. Of all `prompts` that
        the engine counted meanwhile it `computed` so many tokens.
        """
        if not len(ends):
            return
        lasted = ends - starts
        spare = np.clip(lasted - np.quantile(lasted, PLAIN_QUANTILE), 0.0, None)
        speed.learn(computed, float(spare.sum()))
        room = spare / speed.token_seconds
        unsure = [
            request
            for request in requests
            if request.cached_tokens is None and request.inferred_cached_tokens is None
        ]
        found: list[tuple[RequestTimeline, float]] = []
        for request in requests:
            if request.cached_tokens is not None:
                told = (request.prompt_tokens or 0) - request.cached_tokens
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
        total = sum(taken for _, taken in found)
        for request, taken in found:
            asked_tokens = float(request.prompt_tokens or 0)
            if total > target:
                taken *= target / total
            elif own > total:
                part = min((target - total) / (own - total), 1.0)
                taken += (asked_tokens - taken) * part
            request.inferred_cached_tokens = max(asked_tokens - max(taken, 1.0), 0.0)


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
