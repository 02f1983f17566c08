"""When each prompt was computed: first come, first served, in the steps seen.

A prompt ends in the step of its first token. A step's duration tells how many
prompt tokens it had room for, and prompts that arrived earlier took that room
first; so a prompt is placed backwards from its last step into the room left,
and never before it arrived, nor into a step already under way on arrival. How fast
the engine computes prompts is learnt from those it has computed.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from operator import itemgetter
from statistics import median

import numpy as np

from proxy.meter.activity.request import RequestTimeline
from proxy.meter.activity.steps import FloatArray, IntArray, Steps

PROMPT_TOKEN_SECONDS = 6e-5
"""Until observed: 2 x 8e9 FLOP at half of an A100's or H100's dense bf16 peak
takes 32 to 100 microseconds."""

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
        self._samples: deque[float] = deque(maxlen=SAMPLES)
        self.restart()

    def restart(self) -> None:
        """Nothing is learnt yet, or it was from wrong counts."""
        self.token_seconds = PROMPT_TOKEN_SECONDS
        self._samples.clear()
        self._tokens = self._seconds = 0.0

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


MISSED_STEPS = 3
"""So many steps of others without a token: the engine has set the request aside."""

Pause = tuple[float, float, float]
"""Last token, next token, tokens before that one."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Steps not settled yet, and since when; the ground that prompts are put on."""

    steps: Steps
    starts: FloatArray
    """Shape (steps,), see `step_starts`."""
    settled_seconds: float
    """Nothing is placed before this."""
    end_seconds: float
    """Pauses that end later are not looked at yet."""
    was_calm: Callable[[float, float], bool] = lambda start, end: False
    """Whether the engine itself says that it set nobody aside in between."""

    def step_at(self, at_seconds: float) -> int:
        """Index of the step that an instant lies in; len(steps) after the last."""
        ends = self.steps.end_seconds
        return int(ends.searchsorted(at_seconds, side="left"))

    def decoding_steps(self, first: int, stop: int) -> int:
        """How many steps of a range gave anybody a later token than the first."""
        rows = self.steps.first_row
        is_later = self.steps.before[rows[first] : rows[stop]] > 0
        step = np.repeat(np.arange(stop - first), np.diff(rows[first : stop + 1]))
        return len(np.unique(step[is_later]))


@dataclass(frozen=True, slots=True)
class _Prefill:
    """A prompt to place, or what was computed again after a pause."""

    at_seconds: float
    """When it was done: the request's first token, the next one, or its close."""
    arrived_seconds: float
    request: RequestTimeline
    pause: Pause | None


class PromptPlacement:
    """Places prompts in steps, in order of their completion, each once."""

    def __init__(self) -> None:
        self.speed = PromptSpeed()
        self._used: dict[float, float] = {}
        self._released_seconds = -np.inf

    def place(
        self,
        requests: Sequence[RequestTimeline],
        seen: Seen,
        paused: Sequence[RequestTimeline] = (),
    ) -> None:
        """Give each request its `prefill_rows`, `stalls` and `scheduled_seconds`.

        Those `paused` have them already, and get rows for what was computed again
        since: a request that the engine set aside for others lost its cache.
        """
        jobs: list[_Prefill] = []
        for request in requests:
            arrived = request.arrived_seconds
            if request.scheduled_seconds is None:
                at = request.first_token_seconds or request.left_seconds or arrived
                jobs.append(_Prefill(at, arrived, request, None))
        jobs += _set_aside([*requests, *paused], seen)
        for _, tied in groupby(sorted(jobs, key=_when), key=_when):
            self._place_tied(list(tied), seen)

    def forget(self, before_seconds: float) -> None:
        """Drop what is known of steps that are settled."""
        self._used = {
            end: tokens for end, tokens in self._used.items() if end > before_seconds
        }

    def taken_seconds(
        self, requests: Sequence[RequestTimeline], seen: Seen
    ) -> FloatArray:
        """Time of each step that the prompts of some requests took, shape (steps,)."""
        starts, ends = seen.starts, seen.steps.end_seconds
        left = ends - starts
        taken = np.zeros(len(ends))
        for request in requests:
            first = request.first_token_seconds
            if first is None or request.prompt_tokens is None:
                continue
            computed = request.prompt_tokens - request.uncomputed_tokens
            seconds = computed * self.speed.token_seconds
            step = seen.step_at(first)
            while 0 <= step < len(ends) and seconds > 0:
                if ends[step] <= request.arrived_seconds:
                    break
                part = min(seconds, float(left[step]))
                left[step] -= part
                taken[step] += part
                seconds -= part
                step -= 1
        return taken

    def _place_tied(self, tied: list[_Prefill], seen: Seen) -> None:
        """Jobs of one instant fill the same room, in proportion to their tokens."""
        spans: dict[tuple[int, int], list[tuple[_Prefill, float]]] = {}
        for job in tied:
            if job.pause is None and job.request.first_token_seconds is None:
                self._place_unanswered(job.request, seen)
            elif not len(seen.starts):  # dropped while nothing was measured
                job.request.scheduled_seconds = job.arrived_seconds
            elif (span := self._span(job, seen)) is not None:
                tokens = self._tokens(job, float(seen.starts[span[0]]), seen)
                spans.setdefault(span, []).append((job, tokens))
        self._learn(tied, seen)
        for (lowest, last), members in sorted(spans.items(), key=_span_of):
            total = sum(tokens for _, tokens in members)
            rows = self._fill(total, seen, lowest, last)
            for job, tokens in members:
                part = tokens / total
                own = [(start, end, taken * part) for start, end, taken in rows]
                _settle_rows(job, own, seen)
            self._released_seconds = max(self._released_seconds, tied[0].at_seconds)

    def _span(self, job: _Prefill, seen: Seen) -> tuple[int, int] | None:
        """First and last step that may have computed it; None: nothing was.

        A pause counts where others got tokens meanwhile: it was set aside, then
        computed again. One step alone can be long and a prefill can hold up
        everybody's decode, so only steps in which others went on decoding count;
        and only where the engine itself counts tokens is none hidden.
        """
        if job.pause is None:
            last = min(seen.step_at(job.at_seconds), len(seen.starts) - 1)
            return _lowest_step(job.request, seen, last), last
        stopped, resumed, _ = job.pause
        first = seen.step_at(math.nextafter(stopped, math.inf))
        last = seen.step_at(resumed)
        if last - first < MISSED_STEPS or not job.request.has_running_usage:
            return None
        if seen.decoding_steps(first, last) < MISSED_STEPS:
            return None
        return first, last

    def _tokens(self, job: _Prefill, earliest_seconds: float, seen: Seen) -> float:
        """Tokens to compute; where nobody told, what the time allowed for."""
        request = job.request
        if job.pause is not None:
            return request.estimated_prompt_tokens + job.pause[2]
        if request.prompt_tokens is not None:
            request.estimated_prompt_tokens = float(request.prompt_tokens)
            return max(request.prompt_tokens - request.uncomputed_tokens, 1.0)
        earliest = max(earliest_seconds, job.arrived_seconds, seen.settled_seconds)
        allowed = (job.at_seconds - earliest) / self.speed.token_seconds
        request.estimated_prompt_tokens = max(allowed, 1.0)
        return request.estimated_prompt_tokens

    def _learn(self, tied: list[_Prefill], seen: Seen) -> None:
        """The time from the previous prompt's end to this one's, by its tokens."""
        prompts = [
            job
            for job in tied
            if job.pause is None
            and job.request.first_token_seconds is not None
            and job.request.prompt_tokens is not None
        ]
        if not prompts or not len(seen.starts):
            return
        if any(job.request.inferred_cached_tokens is not None for job in prompts):
            return  # a guess teaches nothing
        last = min(seen.step_at(tied[0].at_seconds), len(seen.starts) - 1)
        earliest = min(
            max(
                float(seen.starts[_lowest_step(job.request, seen, last)]),
                job.arrived_seconds,
            )
            for job in prompts
        )
        alone_from = max(earliest, seen.settled_seconds, self._released_seconds)
        tokens = sum(
            (job.request.prompt_tokens or 0) - job.request.uncomputed_tokens
            for job in prompts
        )
        end = float(seen.steps.end_seconds[last])
        self.speed.learn(tokens, max(end - alone_from, 0.0))

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

    def _place_unanswered(self, request: RequestTimeline, seen: Seen) -> None:
        """It got no token: at most the prefill that its turn left time for."""
        closed = request.left_seconds
        assert closed is not None
        request.scheduled_seconds = closed
        ready = request.waited_until_seconds
        under_way = seen.step_at(ready)
        begin = max(ready, seen.settled_seconds)
        if self._released_seconds < closed:
            begin = max(begin, self._released_seconds)
        if (
            under_way < len(seen.starts)
            and seen.starts[under_way] < ready
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


def _set_aside(requests: Sequence[RequestTimeline], seen: Seen) -> list[_Prefill]:
    """Pauses whose steps are known and in which others took several; all are ticked
    off, as with long steps every token is a pause."""
    pauses: list[Pause] = []
    owners: list[RequestTimeline] = []
    for request in requests:
        own = request.pauses
        if not own:
            continue
        # in order of time: those that end later are not touched
        due = len(own)
        if own[-1][1] > seen.end_seconds:
            due = bisect_right(own, seen.end_seconds, key=itemgetter(1))
        pauses += own[:due]
        owners += [request] * due
        del own[:due]
    if not pauses:
        return []
    bounds = np.fromiter(chain.from_iterable(pauses), np.float64).reshape(-1, 3)
    ends = seen.steps.end_seconds
    first = np.searchsorted(ends, bounds[:, 0], side="right")
    last = np.searchsorted(ends, bounds[:, 1], side="left")
    is_due = last < len(seen.starts)
    is_long = is_due & (last - first >= MISSED_STEPS)
    for place in np.flatnonzero(~is_due).tolist()[::-1]:
        owners[place].pauses.insert(0, pauses[place])
    return [
        _Prefill(pause[1], request.arrived_seconds, request, pause)
        for place in np.flatnonzero(is_long).tolist()
        for request, pause in ((owners[place], pauses[place]),)
        if not seen.was_calm(*pause[:2])  # its reads were late
    ]


def _when(job: _Prefill) -> tuple[float, float]:
    return job.at_seconds, job.arrived_seconds


def _span_of(item: tuple[tuple[int, int], object]) -> tuple[int, int]:
    return item[0]


def _settle_rows(
    job: _Prefill, rows: list[tuple[float, float, float]], seen: Seen
) -> None:
    """Write the rows to the request, from when it can have begun at the earliest."""
    request, first = job.request, job.at_seconds
    if job.pause is not None:
        stopped = job.pause[0]
        began = max(rows[-1][0], stopped, seen.settled_seconds)
        if began > stopped:
            request.stalls.append((stopped, began))
    else:
        ready = request.waited_until_seconds
        began = max(rows[-1][0], ready, seen.settled_seconds)
        prefill_seconds = request.timely_prefill_seconds
        if prefill_seconds is not None:
            began = max(first - prefill_seconds, job.arrived_seconds)
            request.is_placed_as_told = True
        began = min(began, first)
        request.scheduled_seconds = began
    tokens = sum(taken for *_, taken in rows)
    if not request.is_streamed and rows[0][1] > began:
        # its steps are made up, as short ones: it was in one long step, or in few
        request.prefill_rows.append((began, rows[0][1], tokens))
        return
    request.prefill_rows += [
        (max(start, began), end, taken) for start, end, taken in rows if end > began
    ] or [(began, first, tokens)]


def _lowest_step(request: RequestTimeline, seen: Seen, last: int) -> int:
    """First step that may have computed the request."""
    begin = request.waited_until_seconds
    ends = seen.steps.end_seconds
    prefill_seconds = request.timely_prefill_seconds
    if prefill_seconds is not None:
        assert request.first_token_seconds is not None
        begin = request.first_token_seconds - prefill_seconds
        # The engine's time ends a little before ours: take the nearer boundary.
        lowest = int(ends.searchsorted(begin, side="right"))
        if lowest < last and ends[lowest] - begin < begin - seen.starts[lowest]:
            lowest += 1
        return min(lowest, last)
    lowest = int(ends.searchsorted(begin, side="right"))
    if lowest < last and seen.starts[lowest] < begin:
        lowest += 1  # that step was under way: nobody joins a running step
    return min(lowest, last)


def step_starts(steps: Steps, keys: IntArray, arrived: FloatArray) -> FloatArray:
    """Start of each step, shape (steps,): the previous end, or the first arrival.

    A step that follows a pause began when the first of those in it arrived.
    `keys` is sorted, `arrived` belongs to it; a request that is not among them
    was there before.
    """
    if not len(steps.end_seconds):
        return np.empty(0)
    at = np.full(len(steps.keys), -np.inf)
    if len(keys):
        position = np.searchsorted(keys, steps.keys)
        position = np.minimum(position, len(keys) - 1)
        at = np.where(keys[position] == steps.keys, arrived[position], at)
    earliest = np.minimum.reduceat(at, steps.first_row[:-1])
    starts = np.minimum(np.maximum(steps.floor_seconds, earliest), steps.end_seconds)
    return np.asarray(
        np.where(np.isfinite(starts), starts, steps.end_seconds), dtype=np.float64
    )
