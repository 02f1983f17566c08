"""An engine's steps while nobody streams: made up, as its scheduler ran them.

Rule: prompts are computed first come, first served, in steps of at most `STEP_TOKENS`
tokens, beside the replies under way. A step without a prompt lasts so long, a prompt's
token takes so long, and a step with both is the root of the sum of their squares, as in
`prompt_speed`. Both times are learnt from what replies took from their arrival to their
end, and from the engine's own count of its steps; a second gets as many steps as were
counted in it. What was made up once stays, so that replies share steps.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from proxy.meter.activity.prompt_speed import CONTEXT_PART, PROMPT_TOKEN_SECONDS

FloatArray = NDArray[np.float64]
Row = tuple[float, float, float]
"""Start and end of a step, and tokens of a prompt computed in it."""

STEP_TOKENS = 2048.0
"""Tokens that an engine computes in a step at most, as vLLM by default."""

PLAIN_SECONDS = 0.01
"""A step without a prompt, until it is learnt."""

SAMPLES = 256
"""Replies and seconds that are remembered."""
ENOUGH_SAMPLES = 32
"""With fewer, what a stretch teaches is learnt before it is made up for good."""
ROUNDS = 4

PRIOR_PART = 1.0
"""Standard deviation given to what is assumed, by itself."""
MISS_SECONDS, MISS_PART = 0.01, 0.05
"""What the time of a sample is off by: so long, and so much of it."""
FAR_OFF = 2.0
"""Times that: beyond it a sample counts less."""
PARTS = (0.1, 10.0)
"""Of what is assumed: what is believed."""

SECOND_PARTS = (0.6, 1.6)
"""Of a usual step without a prompt: how long such steps of one second may be."""
FEW_STEPS = 0.3
"""Of a second's steps: with fewer that have no prompt all steps are as long as they
must be to be as many as were counted, within `MAX_OFF`."""
MAX_OFF = 1.25

TOLD_PARTS = (0.3, 2.0)
"""Of what a step is thought to take: where it is told when it ended, that is so."""
MAX_LATE_SECONDS = 0.5
CATCH_UP_PART = 0.3
"""Of a step with a prompt: by so much it is made longer or shorter where prompts were
made up too early or too late, as is told of one now and then."""

KEPT_SECONDS = 30.0
"""Steps are remembered longer: replies that end later are learnt from."""

LONGEST_SECONDS = 60.0
"""Of a stretch that nobody asked for any earlier, as the sensor was silent: only its
end is made up, or a reply that runs for hours would hold up everything."""

NOW_SECONDS = 1e-4
"""Who ends so soon takes no further part."""


class Arrival(NamedTuple):
    """A reply in one piece, as far as it is known."""

    at_seconds: float
    key: int
    tokens: float
    """To compute of its prompt."""
    cached_tokens: float
    end_seconds: float
    """inf while it is open."""
    steps: float
    """Tokens of each sequence but the first; nan while that is not known."""
    first_seconds: float
    """When its prompt was done, where that is told; else nan."""


class Count(NamedTuple):
    """The engine's own count of its steps."""

    start_seconds: float
    end_seconds: float
    steps: float
    busy_seconds: float
    """How long somebody was there meanwhile."""


class StepTimes:
    """How long a step without a prompt lasts, and what a prompt's token takes."""

    def __init__(self) -> None:
        self.plain_seconds = PLAIN_SECONDS
        self.token_seconds = PROMPT_TOKEN_SECONDS
        self._samples: deque[Row] = deque(maxlen=SAMPLES)
        """Plain steps, tokens of prompts, and how long they took together."""

    @property
    def are_many(self) -> bool:
        """Whether enough was seen."""
        return len(self._samples) >= ENOUGH_SAMPLES

    def learn(self, plain_steps: float, work: float, seconds: float) -> None:
        """So many steps and tokens of prompts took so long; used from `fit` on."""
        if seconds > 0:
            self._samples.append((max(plain_steps, 0.0), work, seconds))

    def fit(self) -> None:
        """Least squares, drawn toward the usual; samples far off count less."""
        if not self._samples:
            return
        table = np.array(self._samples)
        usual = np.array([PLAIN_SECONDS, PROMPT_TOKEN_SECONDS])
        rows, seconds = table[:, :2] * usual, table[:, 2]
        miss = MISS_SECONDS + MISS_PART * seconds
        drawn = 1 / PRIOR_PART**2
        found = np.array([self.plain_seconds, self.token_seconds]) / usual
        for _ in range(ROUNDS):
            off = np.abs(rows @ found - seconds) / miss
            weights = np.minimum(1.0, FAR_OFF / np.maximum(off, 1e-9)) / miss**2
            squares = (rows.T * weights) @ rows + drawn * np.eye(2)
            products = (rows.T * weights) @ seconds + drawn
            found = np.clip(np.linalg.solve(squares, products), *PARTS)
        self.plain_seconds, self.token_seconds = (found * usual).tolist()


class _Step(NamedTuple):
    start_seconds: float
    end_seconds: float
    work: float
    """Tokens of prompts computed, each longer by what it looks back at."""
    chunks: list[tuple[int, float]]
    """Keys and tokens of those prompts."""
    done: list[int]
    """Keys of the prompts that are whole now."""


@dataclass(slots=True)
class _Waiting:
    """A prompt that is not computed yet."""

    key: int
    tokens: float
    context: float
    first_seconds: float


@dataclass(slots=True)
class _State:
    """What the engine is about to do."""

    at_seconds: float = -math.inf
    waiting: deque[_Waiting] = field(default_factory=deque)
    running: list[int] = field(default_factory=list)
    taken: set[int] = field(default_factory=set)
    """Keys of those that wait or did."""
    late_seconds: float = 0.0
    """Prompts were done so much later than made up, as was told last."""

    def copy(self) -> _State:
        """One that can go on by itself."""
        return replace(
            self,
            waiting=deque(replace(each) for each in self.waiting),
            running=list(self.running),
            taken=set(self.taken),
        )


class UnseenSteps:
    """Steps up to `until_seconds`; later ones are made up as facts come."""

    def __init__(self) -> None:
        self.times = StepTimes()
        self.restart()

    def restart(self) -> None:
        """Forget all steps, but not how long they last."""
        self.until_seconds = -math.inf
        self._state = _State()
        self._steps: list[_Step] = []
        self._ends: list[float] = []
        self._first_seconds: dict[int, float] = {}
        self._rows: dict[int, list[Row]] = {}

    def advance(
        self, until_seconds: float, arrivals: Sequence[Arrival], counts: Iterable[Count]
    ) -> None:
        """Make up the steps to an instant; `arrivals` are all of these, in order."""
        if until_seconds <= self.until_seconds:
            return
        begin = until_seconds - LONGEST_SECONDS
        self._state.at_seconds = max(self._state.at_seconds, begin)
        for _ in range(0 if self.times.are_many else ROUNDS):
            trial = deepcopy(self)
            trial._advance(until_seconds, arrivals, counts)
            self.times.plain_seconds = trial.times.plain_seconds
            self.times.token_seconds = trial.times.token_seconds
        self._advance(until_seconds, arrivals, counts)

    def first_seconds(self, key: int) -> float | None:
        """When a prompt was done; None: it was not among the arrivals, or is not."""
        return self._first_seconds.get(key)

    def prompt_rows(self, key: int) -> Sequence[Row]:
        """The steps that computed a prompt, in order."""
        return self._rows.get(key, [])

    def ends_between(self, start_seconds: float, end_seconds: float) -> list[float]:
        """Ends of steps after one instant, up to the other."""
        first = bisect_right(self._ends, start_seconds)
        return self._ends[first : bisect_right(self._ends, end_seconds)]

    def forget(self, before_seconds: float, keys: Collection[int]) -> None:
        """Drop steps that ended long before, and all prompts but of these keys."""
        count = bisect_right(self._ends, before_seconds - KEPT_SECONDS)
        del self._steps[:count], self._ends[:count]
        if self._state.taken:
            self._state.taken &= set(keys)
        for table in (self._first_seconds, self._rows):
            for key in [key for key in table if key not in keys]:
                del table[key]

    def _advance(
        self, until_seconds: float, arrivals: Sequence[Arrival], counts: Iterable[Count]
    ) -> None:
        ends = {each.key: each.end_seconds for each in arrivals}
        times = self.times
        usual = times.plain_seconds, times.token_seconds
        for count in counts:
            begin, end = count.start_seconds, count.end_seconds
            if begin >= self.until_seconds and end <= until_seconds:
                self._add(_run(self._state, begin, arrivals, ends, usual))
                trial = _run(self._state.copy(), end, arrivals, ends, usual)
                paces = self._second(trial, count)
                self._add(_run(self._state, end, arrivals, ends, paces))
        self._add(_run(self._state, until_seconds, arrivals, ends, usual))
        ended = [
            each
            for each in arrivals
            if self.until_seconds < each.end_seconds <= until_seconds
            and each.steps == each.steps
            and each.key in self._first_seconds
            and each.at_seconds > self._steps[0].start_seconds - NOW_SECONDS
        ]
        if ended:
            self._learn(ended)
        self.until_seconds = until_seconds
        times.fit()

    def _second(self, trial: Sequence[_Step], count: Count) -> tuple[float, float]:
        """How long a plain step and a prompt's token took in a second.

        `trial` are its steps as they would be at the usual pace.
        """
        plain, token_seconds = self.times.plain_seconds, self.times.token_seconds
        if not trial or count.steps < 1:
            return plain, token_seconds
        lasted = np.array([each.end_seconds - each.start_seconds for each in trial])
        has_prompt = np.array([each.work > 0 for each in trial])
        prompts = float(lasted[has_prompt].sum())
        left = count.steps - float(has_prompt.sum())
        self.times.learn(left, prompts / token_seconds, count.busy_seconds)
        if left >= FEW_STEPS * count.steps and not has_prompt.all():
            own = (float(lasted.sum()) - prompts) / left / plain
            low, high = SECOND_PARTS
            return plain * min(max(own, low), high), token_seconds
        off = min(max(len(trial) / count.steps, 1 / MAX_OFF), MAX_OFF)
        return plain * off, token_seconds * off

    def _add(self, steps: Iterable[_Step]) -> None:
        for step in steps:
            self._steps.append(step)
            self._ends.append(step.end_seconds)
            for key, tokens in step.chunks:
                row = step.start_seconds, step.end_seconds, tokens
                self._rows.setdefault(key, []).append(row)
            for key in step.done:
                self._first_seconds[key] = step.end_seconds

    def _learn(self, ended: Sequence[Arrival]) -> None:
        """What replies took from their arrival to their end, and what for.

        The own prompt is theirs also where it was made up to be done after the end.
        """
        starts = np.array([each.start_seconds for each in self._steps])
        ends = np.array(self._ends)
        has_prompt = np.array([each.work > 0 for each in self._steps])
        for each in ended:
            first = self._first_seconds[each.key]
            low, high = each.at_seconds, max(each.end_seconds, first)
            inside = np.clip(np.minimum(ends, high) - np.maximum(starts, low), 0, None)
            is_beside = has_prompt & (ends > first) & (ends <= each.end_seconds)
            before = float(inside[~has_prompt & (ends <= first)].sum())
            self.times.learn(
                each.steps - float(is_beside.sum()) + before / self.times.plain_seconds,
                float(inside[has_prompt].sum()) / self.times.token_seconds,
                each.end_seconds - each.at_seconds,
            )


def work_of(tokens: float, context_tokens: float) -> float:
    """A prompt's tokens after so many of context, in tokens without any."""
    return tokens * (1.0 + CONTEXT_PART * (context_tokens + tokens / 2))


def _run(
    state: _State,
    until_seconds: float,
    arrivals: Sequence[Arrival],
    ends: Mapping[int, float],
    seconds: tuple[float, float],
) -> list[_Step]:
    """Steps that begin before an instant; `state` is then what it was after them.

    `ends` are those of the arrivals by key; `seconds` of a plain step, and of a
    prompt's token.
    """
    at, waiting = state.at_seconds, state.waiting
    plain_seconds, token_seconds = seconds
    running = [(ends.get(key, -math.inf), key) for key in state.running]
    heapq.heapify(running)
    to_come = [each for each in reversed(arrivals) if each.key not in state.taken]
    steps: list[_Step] = []
    while at < until_seconds:
        while running and running[0][0] <= at + NOW_SECONDS:
            heapq.heappop(running)
        if not waiting and not running:
            if not to_come or to_come[-1].at_seconds >= until_seconds:
                break
            at = max(at, to_come[-1].at_seconds)
        while to_come and to_come[-1].at_seconds <= at:
            new = to_come.pop()
            state.taken.add(new.key)
            waiting.append(
                _Waiting(new.key, new.tokens, new.cached_tokens, new.first_seconds)
            )
        step = _next_step(state, at, len(running), plain_seconds, token_seconds)
        for key in step.done:
            heapq.heappush(running, (ends.get(key, -math.inf), key))
        steps.append(step)
        at = step.end_seconds
    state.at_seconds, state.running = at, [key for _, key in running]
    return steps


def _next_step(
    state: _State,
    at_seconds: float,
    running: int,
    plain_seconds: float,
    token_seconds: float,
) -> _Step:
    """As much of the prompts that wait as fits beside those running."""
    room = max(STEP_TOKENS - running, STEP_TOKENS / 2)
    work, told = 0.0, math.nan
    chunks: list[tuple[int, float]] = []
    done: list[int] = []
    while state.waiting and room > 0:
        head = state.waiting[0]
        tokens = min(head.tokens, room)
        work += work_of(tokens, head.context)
        chunks.append((head.key, tokens))
        head.tokens -= tokens
        head.context += tokens
        room -= tokens
        if head.tokens > 0:
            break
        done.append(head.key)
        told = head.first_seconds
        state.waiting.popleft()
    lasts = math.hypot(plain_seconds, token_seconds * work)
    if work > 0:
        most = CATCH_UP_PART * lasts
        mended = min(max(state.late_seconds, -most), most)
        state.late_seconds -= mended
        lasts += mended
    if told == told:
        low, high = TOLD_PARTS
        late = told - at_seconds - lasts
        if low * lasts < lasts + late < high * lasts:
            lasts, late = lasts + late, 0.0
        state.late_seconds = min(max(late, -MAX_LATE_SECONDS), MAX_LATE_SECONDS)
    return _Step(at_seconds, at_seconds + lasts, work, chunks, done)
