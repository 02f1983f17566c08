"""When each prompt was computed: first come, first served, in the steps seen.

A prompt ends in the step of its first token. A step's duration tells how many
prompt tokens it had room for, and prompts that arrived earlier took that room
first; so a prompt is placed backwards from its last step into the room left,
and never before it arrived, nor into a step already under way on arrival.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from proxy.timeline.request import RequestTimeline
from proxy.timeline.steps import FloatArray, IntArray, Steps

PROMPT_TOKEN_SECONDS = 6e-5
"""Until observed: 2 x 8e9 FLOP at half of an A100's or H100's dense bf16 peak
takes 32 to 100 microseconds."""

MISSED_STEPS = 3
"""So many steps of others without a token: the engine has set the request aside."""

Pause = tuple[float, float, float]
"""Last token, next token, tokens before that one."""

SAMPLES = 64
SAMPLE_TOKENS = 4096
ENOUGH_SAMPLES = 3


class PromptSpeed:
    """Seconds per computed prompt token, learnt from finished prefills.

    Each sample is the time of some prompts by their tokens: of several, because
    prompts that share a step take its time once. The median is believed, because
    a prompt that waited for memory makes its sample many times too slow.
    """

    def __init__(self) -> None:
        self.token_seconds = PROMPT_TOKEN_SECONDS
        self._samples: deque[float] = deque(maxlen=SAMPLES)
        self._tokens = 0.0
        self._seconds = 0.0

    def learn(self, tokens: float, seconds: float) -> None:
        """A prompt took these seconds alone, or was done in passing (0 seconds)."""
        self._tokens += tokens
        self._seconds += seconds
        if self._tokens < SAMPLE_TOKENS or self._seconds <= 0:
            return
        self._samples.append(self._seconds / self._tokens)
        self._tokens = self._seconds = 0.0
        if len(self._samples) >= ENOUGH_SAMPLES:
            self.token_seconds = median(self._samples)


@dataclass(frozen=True, slots=True)
class Seen:
    """Steps not settled yet, and since when; the ground that prompts are put on."""

    steps: Steps
    starts: FloatArray
    """Shape (steps,), see `step_starts`."""
    settled_seconds: float
    """Nothing is placed before this."""
    end_seconds: float
    """Pauses that begin later are not looked at yet."""

    def step_at(self, at_seconds: float) -> int:
        """Index of the step that an instant lies in; len(steps) after the last."""
        ends = self.steps.end_seconds
        return int(np.searchsorted(ends, at_seconds, side="left"))

    def has(self, pause: Pause) -> bool:
        """Whether the pause has begun, and the step that ended it is known."""
        stopped, resumed, _ = pause
        return stopped < self.end_seconds and self.step_at(resumed) < len(self.starts)

    def decoding_steps(self, first: int, stop: int) -> int:
        """How many steps of a range gave anybody a later token than the first."""
        rows = self.steps.first_row
        is_later = self.steps.before[rows[first] : rows[stop]] > 0
        step = np.repeat(np.arange(stop - first), np.diff(rows[first : stop + 1]))
        return len(np.unique(step[is_later]))


class PromptPlacement:
    """Places prompts in steps, in order of their completion, each once."""

    def __init__(self) -> None:
        self.speed = PromptSpeed()
        self._used: dict[float, float] = {}
        self._released_seconds = -np.inf

    def place(self, requests: Sequence[RequestTimeline], seen: Seen) -> None:
        """Give each request its `prefill_rows`, `stalls` and `scheduled_seconds`.

        Those already placed get rows for what was computed again since: a request
        that the engine set aside for others lost its cache.
        """
        jobs: list[tuple[float, float, int, RequestTimeline, Pause | None]] = []
        for request in requests:
            arrived, serial = request.arrived_seconds, request.serial
            if request.scheduled_seconds is None:
                at = request.first_token_seconds or request.closed_seconds or arrived
                jobs.append((at, arrived, serial, request, None))
            due = [pause for pause in request.pauses if seen.has(pause)]
            jobs += [(pause[1], arrived, serial, request, pause) for pause in due]
            request.pauses = request.pauses[len(due) :]
        for *_, request, paused in sorted(jobs, key=lambda job: job[:3]):
            if paused is not None:
                self._place_again(request, paused, seen)
            elif request.first_token_seconds is None:
                self._place_unanswered(request, seen)
            else:
                self._place_one(request, seen)

    def forget(self, before_seconds: float) -> None:
        """Drop what is known of steps that are settled."""
        self._used = {
            end: tokens for end, tokens in self._used.items() if end > before_seconds
        }

    def _place_one(self, request: RequestTimeline, seen: Seen) -> None:
        first = request.first_token_seconds
        assert first is not None
        arrived = request.arrived_seconds
        if not len(seen.starts):  # its steps were dropped while nothing was measured
            request.scheduled_seconds = arrived
            return
        last = min(seen.step_at(first), len(seen.starts) - 1)
        lowest = _lowest_step(request, seen, last)
        earliest = max(float(seen.starts[lowest]), arrived, seen.settled_seconds)
        self._learn(request, float(seen.steps.end_seconds[last]), earliest)
        tokens = self._prompt_tokens(request, first - earliest)
        rows = self._fill(tokens, seen, lowest, last)
        began = max(rows[-1][0], arrived, seen.settled_seconds)
        if request.prefill_seconds is not None:
            began = max(first - request.prefill_seconds, arrived)
            request.is_scheduled_exact = True
        request.scheduled_seconds = began = min(began, first)
        request.prefill_rows = [
            (max(start, began), end, taken) for start, end, taken in rows if end > began
        ] or [(began, first, tokens)]
        self._released_seconds = max(self._released_seconds, first)

    def _place_again(self, request: RequestTimeline, pause: Pause, seen: Seen) -> None:
        """A pause in which others got tokens: set aside, then computed again.

        One step alone can be long and a prefill can hold up everybody's decode, so
        only steps count in which others went on decoding; and only where the engine
        itself counts tokens is a pause known not to be a hidden token.
        """
        stopped, resumed, before = pause
        if not request.has_running_usage:
            return
        first = seen.step_at(math.nextafter(stopped, math.inf))
        last = seen.step_at(resumed)
        if last - first < MISSED_STEPS or (
            seen.decoding_steps(first, last) < MISSED_STEPS
        ):
            return
        tokens = request.estimated_prompt_tokens + before
        rows = self._fill(tokens, seen, first, last)
        began = max(rows[-1][0], stopped, seen.settled_seconds)
        request.prefill_rows += [
            (max(start, began), end, taken) for start, end, taken in rows if end > began
        ]
        if began > stopped:
            request.stalls.append((stopped, began))
        self._released_seconds = max(self._released_seconds, resumed)

    def _fill(
        self, tokens: float, seen: Seen, lowest: int, last: int
    ) -> list[tuple[float, float, float]]:
        """(start, end, tokens) from the last step back to the first one needed."""
        token_seconds = self.speed.token_seconds
        left = tokens
        rows: list[tuple[float, float, float]] = []
        for step in range(last, lowest - 1, -1):
            start, end = float(seen.starts[step]), float(seen.steps.end_seconds[step])
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
        # The steps were faster than thought: all of them hold more.
        grown = tokens / (tokens - left)
        return [(start, end, taken * grown) for start, end, taken in rows]

    def _learn(self, request: RequestTimeline, end: float, earliest: float) -> None:
        if request.prompt_tokens is None:
            return
        computed = request.prompt_tokens - (request.cached_tokens or 0)
        alone_from = max(earliest, self._released_seconds)
        self.speed.learn(computed, max(end - alone_from, 0.0))

    def _prompt_tokens(self, request: RequestTimeline, seconds: float) -> float:
        """Tokens to compute; where nobody told, what the time allowed for."""
        if request.prompt_tokens is None:
            estimate = max(seconds / self.speed.token_seconds, 1.0)
            request.estimated_prompt_tokens = estimate
            return estimate
        request.estimated_prompt_tokens = float(request.prompt_tokens)
        return float(max(request.prompt_tokens - (request.cached_tokens or 0), 1))

    def _place_unanswered(self, request: RequestTimeline, seen: Seen) -> None:
        """It got no token: at most the prefill that its turn left time for."""
        closed = request.closed_seconds
        assert closed is not None
        request.scheduled_seconds = closed
        under_way = seen.step_at(request.arrived_seconds)
        begin = max(request.arrived_seconds, seen.settled_seconds)
        if self._released_seconds < closed:
            begin = max(begin, self._released_seconds)
        if (
            under_way < len(seen.starts)
            and seen.starts[under_way] < request.arrived_seconds
            and seen.steps.end_seconds[under_way] < closed
        ):
            begin = max(begin, float(seen.steps.end_seconds[under_way]))
        if begin >= closed or request.is_refused:
            return
        allowed = (closed - begin) / self.speed.token_seconds
        known = request.prompt_tokens
        tokens = allowed if known is None else min(allowed, float(known))
        request.estimated_prompt_tokens = tokens if known is None else float(known)
        request.scheduled_seconds = begin
        request.prefill_rows = [(begin, closed, tokens)]
        self._released_seconds = closed


def _lowest_step(request: RequestTimeline, seen: Seen, last: int) -> int:
    """First step that may have computed the request."""
    begin = request.arrived_seconds
    ends = seen.steps.end_seconds
    if request.prefill_seconds is not None:
        assert request.first_token_seconds is not None
        begin = request.first_token_seconds - request.prefill_seconds
        # The engine's time ends a little before ours: take the nearer boundary.
        lowest = int(np.searchsorted(ends, begin, side="right"))
        if lowest < last and ends[lowest] - begin < begin - seen.starts[lowest]:
            lowest += 1
        return min(lowest, last)
    lowest = int(np.searchsorted(ends, begin, side="right"))
    if lowest < last and seen.starts[lowest] < begin:
        lowest += 1  # that step was under way: nobody joins a running step
    return min(lowest, last)


def step_starts(steps: Steps, serials: IntArray, arrived: FloatArray) -> FloatArray:
    """Start of each step, shape (steps,): the previous end, or the first arrival.

    A step that follows a pause began when the first of those in it arrived.
    `serials` is sorted, `arrived` belongs to it; a request that is not among them
    was there before.
    """
    if not len(steps.end_seconds):
        return np.empty(0)
    at = np.full(len(steps.serials), -np.inf)
    if len(serials):
        position = np.searchsorted(serials, steps.serials)
        position = np.minimum(position, len(serials) - 1)
        at = np.where(serials[position] == steps.serials, arrived[position], at)
    earliest = np.minimum.reduceat(at, steps.first_row[:-1])
    starts = np.minimum(np.maximum(steps.floor_seconds, earliest), steps.end_seconds)
    return np.asarray(
        np.where(np.isfinite(starts), starts, steps.end_seconds), dtype=np.float64
    )
