"""When each prompt was computed: first come, first served, in the steps seen.

A prompt ends in the step of its first token. A step's duration tells how many
prompt tokens it had room for, and prompts that arrived earlier took that room
first; so a prompt is placed backwards from its last step into the room left,
and never before it arrived, nor into a step already under way on arrival.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from proxy.timeline.request import RequestTimeline
from proxy.timeline.steps import FloatArray, IntArray, Steps

PROMPT_TOKEN_SECONDS = 6e-5
"""Until observed: 2 x 8e9 FLOP at half of an A100's or H100's dense bf16 peak
takes 32 to 100 microseconds."""

MEMORY_TOKENS = 200_000
"""Observed speed is that of the last so many prompt tokens."""

REFUSED = 400


class PromptSpeed:
    """Seconds per computed prompt token, learnt from finished prefills."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0

    @property
    def token_seconds(self) -> float:
        """What one prompt token takes; the default until 2,000 were seen."""
        if self._tokens < 2000 or self._seconds <= 0:
            return PROMPT_TOKEN_SECONDS
        return self._seconds / self._tokens

    def learn(self, tokens: float, seconds: float) -> None:
        """A prompt took these seconds alone, or was done in passing (0 seconds)."""
        self._tokens += tokens
        self._seconds += seconds
        if self._tokens > MEMORY_TOKENS:
            shrink = MEMORY_TOKENS / self._tokens
            self._tokens *= shrink
            self._seconds *= shrink


class PromptPlacement:
    """Places prompts in steps, in order of their first tokens, each once."""

    def __init__(self) -> None:
        self.speed = PromptSpeed()
        self._used: dict[float, float] = {}
        self._released_seconds = -np.inf

    def place(
        self,
        requests: Sequence[RequestTimeline],
        steps: Steps,
        starts: FloatArray,
        settled_seconds: float,
    ) -> None:
        """Give every request its `prefill_rows` and `scheduled_seconds`.

        `requests` have a first token or are closed without one, and were not
        placed before. Nothing is placed before `settled_seconds`.
        """
        for request in sorted(requests, key=_order):
            if request.first_token_seconds is None:
                self._place_unanswered(request, steps, starts, settled_seconds)
            else:
                self._place_one(request, steps, starts, settled_seconds)

    def forget(self, before_seconds: float) -> None:
        """Drop what is known of steps that are settled."""
        self._used = {
            end: tokens for end, tokens in self._used.items() if end > before_seconds
        }

    def _place_one(
        self,
        request: RequestTimeline,
        steps: Steps,
        starts: FloatArray,
        settled_seconds: float,
    ) -> None:
        first = request.first_token_seconds
        assert first is not None
        last = min(_step_at(steps, first), len(steps.end_seconds) - 1)
        lowest = self._lowest_step(request, steps, starts, last)
        earliest = max(float(starts[lowest]), request.arrived_seconds, settled_seconds)
        self._learn(request, float(steps.end_seconds[last]), earliest)
        tokens = self._prompt_tokens(request, first - earliest)
        rows = self._fill(tokens, steps, starts, lowest, last)
        request.prefill_rows = rows
        began = max(rows[-1][0], request.arrived_seconds, settled_seconds)
        if request.prefill_seconds is not None:
            began = max(first - request.prefill_seconds, request.arrived_seconds)
            request.is_scheduled_exact = True
        request.scheduled_seconds = min(began, first)
        self._released_seconds = max(self._released_seconds, first)

    def _lowest_step(
        self,
        request: RequestTimeline,
        steps: Steps,
        starts: FloatArray,
        last: int,
    ) -> int:
        """First step that may have computed the request."""
        begin = request.arrived_seconds
        if request.prefill_seconds is not None:
            assert request.first_token_seconds is not None
            # Half a step early: the engine's and our clocks start at other events.
            begin = request.first_token_seconds - request.prefill_seconds
            lowest = int(np.searchsorted(steps.end_seconds, begin, side="right"))
            return min(lowest, last)
        lowest = int(np.searchsorted(steps.end_seconds, begin, side="right"))
        if lowest < last and starts[lowest] < begin:
            lowest += 1  # that step was under way: nobody joins a running step
        return min(lowest, last)

    def _fill(
        self, tokens: float, steps: Steps, starts: FloatArray, lowest: int, last: int
    ) -> list[tuple[float, float, float]]:
        """(start, end, tokens) from the last step back to the first one needed."""
        token_seconds = self.speed.token_seconds
        left = tokens
        rows: list[tuple[float, float, float]] = []
        for step in range(last, lowest - 1, -1):
            start, end = float(starts[step]), float(steps.end_seconds[step])
            used = self._used.get(end, 0.0)
            room = max((end - start) / token_seconds - used, 0.0)
            if step == last:
                room = max(room, 1.0)
            taken = min(room, left)
            if taken <= 0:
                continue
            self._used[end] = used + taken
            rows.append((start, end, taken))
            left -= taken
            if left <= 0:
                return rows
        if left > 0 and rows:  # the steps were faster than thought
            grown = tokens / (tokens - left)
            rows = [(start, end, taken * grown) for start, end, taken in rows]
        return rows or [(float(starts[last]), float(steps.end_seconds[last]), 0.0)]

    def _learn(self, request: RequestTimeline, end: float, earliest: float) -> None:
        if request.prompt_tokens is None:
            return
        computed = request.prompt_tokens - (request.cached_tokens or 0)
        alone_from = max(earliest, self._released_seconds)
        self.speed.learn(computed, max(end - alone_from, 0.0))

    def _prompt_tokens(self, request: RequestTimeline, seconds: float) -> float:
        """Tokens to compute; where nobody told, what the time allowed for."""
        if request.prompt_tokens is None:
            estimate = max(seconds, 0.0) / self.speed.token_seconds
            request.estimated_prompt_tokens = estimate
            return estimate
        request.estimated_prompt_tokens = float(request.prompt_tokens)
        return float(max(request.prompt_tokens - (request.cached_tokens or 0), 1))

    def _place_unanswered(
        self,
        request: RequestTimeline,
        steps: Steps,
        starts: FloatArray,
        settled_seconds: float,
    ) -> None:
        """It got no token: at most the prefill that its turn left time for."""
        closed = request.closed_seconds
        assert closed is not None
        request.scheduled_seconds = closed
        request.prefill_rows = []
        under_way = _step_at(steps, request.arrived_seconds)
        begin = max(request.arrived_seconds, settled_seconds)
        if self._released_seconds < closed:
            begin = max(begin, self._released_seconds)
        if (
            under_way < len(starts)
            and starts[under_way] < request.arrived_seconds
            and steps.end_seconds[under_way] < closed
        ):
            begin = max(begin, float(steps.end_seconds[under_way]))
        if begin >= closed or request.is_refused:
            return
        allowed = (closed - begin) / self.speed.token_seconds
        known = request.prompt_tokens
        tokens = allowed if known is None else min(allowed, float(known))
        request.estimated_prompt_tokens = tokens if known is None else float(known)
        request.scheduled_seconds = begin
        request.prefill_rows = [(begin, closed, tokens)]
        self._released_seconds = closed


def _order(request: RequestTimeline) -> tuple[float, float, int]:
    at = request.first_token_seconds
    if at is None:
        at = request.closed_seconds or 0.0
    return at, request.arrived_seconds, request.serial


def _step_at(steps: Steps, at_seconds: float) -> int:
    """Index of the step that an instant lies in; len(steps) after the last."""
    return int(np.searchsorted(steps.end_seconds, at_seconds, side="left"))


def step_starts(steps: Steps, serials: IntArray, arrived: FloatArray) -> FloatArray:
    """Start of each step, shape (steps,): the previous end, or the first arrival.

    A step in which everybody got a first token may follow a pause; it began when
    the first of them arrived. `serials` is sorted, `arrived` belongs to it.
    """
    if not len(steps.end_seconds):
        return np.empty(0)
    position = np.searchsorted(serials, steps.serials)
    position = np.minimum(position, max(len(serials) - 1, 0))
    known = len(serials) > 0
    at = arrived[position] if known else np.full(len(steps.serials), -np.inf)
    at = np.where(steps.before > 0, -np.inf, at)
    earliest = np.minimum.reduceat(at, steps.first_row[:-1])
    starts = np.maximum(steps.floor_seconds, earliest)
    return np.asarray(np.minimum(starts, steps.end_seconds), dtype=np.float64)
