"""Tokens that nobody saw come: of replies in one piece, and of orphans.

Rule: a reply got one token for each of its sequences in every step up to its end, so
its first token lies as many steps back as it has tokens. Those are the steps that
streams beside it show; where none ran they are as long as the engine's steps are on
average, by its own count of them, else by what replies in one piece took for their
prompts and tokens.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from proxy.meter.activity.prompt_speed import PROMPT_TOKEN_SECONDS
from proxy.meter.activity.request import RequestTimeline, TokenLog
from proxy.meter.activity.steps import FloatArray, StepBook
from proxy.meter.activity.unseen_steps import (
    STEP_TOKENS,
    Arrival,
    Count,
    UnseenSteps,
)

STEP_SECONDS = 0.02
"""A decode step of an 8B model with some context, until a better figure is known."""

MIN_STEP_SECONDS, MAX_STEP_SECONDS = 0.001, 0.5

MAX_READS = 4096
"""A longer whole reply is spread with several tokens at each stamp."""

COUNTED, REPLIES = 64, 128
"""So many seconds, and replies, are remembered."""
ENOUGH_REPLIES = 12

ENOUGH_SECONDS = 5
USUAL_STEP_SECONDS = 0.01
COUNT_NOISE = 0.1
"""Of a second: what steps and prompts counted in it may be off by at its ends."""

MAX_FASTER = 5.0
"""Steps without a prompt are not faster than so many on average."""

MISSING_STEPS = 1.5
"""Room for so many between two that are seen: others are made up."""

PROMPT_PARTS = (0.2, 3.0)
"""Of the usual time of a prompt token: what is believed to be its time."""

BUSY_ENOUGH = 0.5
"""Part of a second in which somebody was there: else it tells little of a step."""


class StepPace:
    """How long the engine's steps are where none is seen."""

    def __init__(self) -> None:
        self._counted: deque[tuple[float, float, float]] = deque(maxlen=COUNTED)
        """From, to, and the mean step in between."""
        self._seconds: deque[tuple[float, float, float]] = deque(maxlen=COUNTED)
        """Steps, prompt tokens, and how long somebody was there."""
        self._replies: deque[tuple[float, float, float]] = deque(maxlen=REPLIES)
        self.counts: deque[Count] = deque(maxlen=COUNTED)

    @property
    def is_known(self) -> bool:
        """Whether anything was seen that tells it."""
        return bool(self._counted) or len(self._replies) >= ENOUGH_REPLIES

    def count(
        self,
        start_seconds: float,
        end_seconds: float,
        steps: float,
        busy: float,
        prompt_tokens: float = 0.0,
    ) -> None:
        """The engine made so many steps; somebody was there for so many seconds."""
        if steps > 0 and busy >= BUSY_ENOUGH * (end_seconds - start_seconds):
            self.counts.append(Count(start_seconds, end_seconds, steps, busy))
            self._counted.append((start_seconds, end_seconds, _plausible(busy / steps)))
            self._seconds.append((steps, prompt_tokens, busy))

    def counted_until(self, before_seconds: float) -> float:
        """End of the last second counted before an instant; else that instant."""
        ends = [one.end_seconds for one in self.counts]
        return max(
            (end for end in ends if end <= before_seconds), default=before_seconds
        )

    @property
    def prompt_token_seconds(self) -> float | None:
        """What a prompt token adds to a second of steps; None: that is not known.

        By least squares of the seconds that were counted, drawn toward the usual.
        """
        if len(self._seconds) < ENOUGH_SECONDS:
            return None
        table = np.array(self._seconds)
        rows, busy = table[:, :2] / table[:, 2:], np.ones(len(table))
        usual = np.array([USUAL_STEP_SECONDS, PROMPT_TOKEN_SECONDS])
        rows = rows * usual
        squares = rows.T @ rows + COUNT_NOISE**2 * np.eye(2)
        found = np.linalg.solve(squares, rows.T @ busy + COUNT_NOISE**2)
        return float(np.clip(found[1], *PROMPT_PARTS)) * PROMPT_TOKEN_SECONDS

    def between(
        self,
        start_seconds: float,
        end_seconds: float,
        prompts: Sequence[tuple[float, float, float]] = (),
    ) -> StepClock:
        """Steps counted over a stretch of time.

        By the engine's own count of each second; where it tells none, or not yet, by
        the second before, else by replies, else as assumed. In the spans of `prompts`
        (start, end, steps) there were fewer, the others were the faster.
        """
        known = [one for one in self._counted if one[0] < end_seconds]
        pace = known[-1][2] if known else self._by_replies()
        inside = [one for one in known if one[1] > start_seconds]
        instants, counts = [start_seconds], [0.0]

        def advance(until_seconds: float, step_seconds: float) -> None:
            seconds = until_seconds - instants[-1]
            if seconds > 0:
                counts.append(counts[-1] + seconds / step_seconds)
                instants.append(until_seconds)

        for begin, end, step_seconds in inside:
            for until, lasted in _around_prompts(begin, end, step_seconds, prompts):
                advance(min(until, end_seconds), lasted)
        from_seconds = instants[-1]
        for until, lasted in _around_prompts(from_seconds, end_seconds, pace, prompts):
            advance(until, lasted)
        return StepClock(np.array(instants), np.array(counts))

    def reply(self, prompt_tokens: float, steps: float, seconds: float) -> None:
        """A reply in one piece took so long for its prompt and that many steps."""
        self._replies.append((prompt_tokens, steps, seconds))

    def _by_replies(self) -> float:
        """Seconds a step, from the replies' lengths: the median of what prompts leave.

        Of two replies with prompts alike, the longer one took longer by its steps:
        the median slope of all pairs that differ (Theil and Sen).
        """
        if len(self._replies) < ENOUGH_REPLIES:
            return STEP_SECONDS
        table = np.array(self._replies)
        steps, seconds = table[:, 1], table[:, 2]
        one, two = np.triu_indices(len(table), 1)
        apart = steps[two] - steps[one]
        is_apart = np.abs(apart) >= max(np.ptp(steps) / 4, 1.0)
        if not is_apart.any():
            return STEP_SECONDS
        slopes = (seconds[two] - seconds[one])[is_apart] / apart[is_apart]
        return _plausible(float(np.median(slopes)))


def _around_prompts(
    start_seconds: float,
    end_seconds: float,
    step_seconds: float,
    prompts: Sequence[tuple[float, float, float]],
) -> Iterator[tuple[float, float]]:
    """Until when steps lasted how long: as long on average as is said, longer there."""
    inside = [
        (max(begin, start_seconds), min(end, end_seconds), (end - begin) / steps)
        for begin, end, steps in prompts
        if begin < end_seconds and end > start_seconds and end > begin
    ]
    taken = sum(end - begin for begin, end, _ in inside)
    long = sum((end - begin) / lasted for begin, end, lasted in inside)
    left_seconds = end_seconds - start_seconds - taken
    left_steps = (end_seconds - start_seconds) / step_seconds - long
    plain_seconds = step_seconds
    if left_seconds > 0:
        shortest = max(step_seconds / MAX_FASTER, MIN_STEP_SECONDS)
        plain_seconds = max(left_seconds / max(left_steps, 1e-9), shortest)
        plain_seconds = min(plain_seconds, step_seconds)
    for begin, end, lasted in inside:
        yield begin, plain_seconds
        yield end, max(lasted, plain_seconds)
    yield end_seconds, plain_seconds


def prompt_spans(
    arrivals: Sequence[tuple[float, float]], token_seconds: float
) -> list[tuple[float, float, float]]:
    """When prompts were computed, one after the other: start, end and steps of each.

    `arrivals` are instants and tokens to compute, in order of time.
    """
    found: list[tuple[float, float, float]] = []
    free_seconds = -np.inf
    for arrived, tokens in arrivals:
        begin = max(arrived, free_seconds)
        free_seconds = begin + tokens * token_seconds
        found.append((begin, free_seconds, max(np.ceil(tokens / STEP_TOKENS), 1.0)))
    return found


@dataclass(frozen=True, slots=True)
class StepClock:
    """How many steps passed up to each instant."""

    instants: FloatArray
    counts: FloatArray

    def steps_between(self, starts: FloatArray, ends: FloatArray) -> FloatArray:
        """How many passed in each span."""
        passed = np.interp(ends, self.instants, self.counts)
        return np.asarray(
            passed - np.interp(starts, self.instants, self.counts), np.float64
        )

    def inside(self, start_seconds: float, end_seconds: float) -> FloatArray:
        """Steps that end between two instants which are ends themselves."""
        low, high = np.interp(
            (start_seconds, end_seconds), self.instants, self.counts
        ).tolist()
        count = round(high - low)
        if count < 2:
            return np.empty(0)
        at = low + (high - low) / count * np.arange(1, count)
        return np.asarray(np.interp(at, self.counts, self.instants), np.float64)


USUAL_TOKENS = 500.0
"""Of a prompt, where nobody has told of any."""


def first_open(requests: Iterable[RequestTimeline]) -> float:
    """When the first reply in one piece came of those open; inf without any."""
    return min(
        (
            each.arrived_seconds
            for each in requests
            if not each.is_streamed and each.closed_seconds is None
        ),
        default=math.inf,
    )


def arrivals_of(
    requests: Iterable[RequestTimeline], unseen: UnseenSteps
) -> list[Arrival]:
    """Replies in one piece that have their place among made up steps, or yet none."""
    whole = [
        each
        for each in requests
        if not each.is_streamed
        and (each.closed_seconds is None or each.output_tokens)
        and (
            unseen.first_seconds(each.key) is not None
            or each.is_unspread
            or each.last_token_seconds is None
        )
    ]
    return sorted(
        Arrival(
            _scheduled_at_earliest(each),
            each.key,
            tokens,
            each.uncomputed_tokens,
            *_end_of(each),
        )
        for each, tokens in zip(whole, tokens_to_compute(whole), strict=True)
    )


def tokens_to_compute(requests: Sequence[RequestTimeline]) -> list[float]:
    """Of each prompt; those that nobody told yet are as long as the others are."""
    known = [_computed_tokens(one) for one in requests if one.prompt_tokens is not None]
    usual = sum(known) / len(known) if known else USUAL_TOKENS
    return [
        usual if each.prompt_tokens is None else _computed_tokens(each)
        for each in requests
    ]


def _scheduled_at_earliest(timeline: RequestTimeline) -> float:
    """When it came, or as late as the engine says that it began (TGI)."""
    closed, together = timeline.closed_seconds, timeline.inference_seconds
    if closed is None or together is None:
        return timeline.arrived_seconds
    return max(closed - together, timeline.arrived_seconds)


def _computed_tokens(timeline: RequestTimeline) -> float:
    return max((timeline.prompt_tokens or 0) - timeline.uncomputed_tokens, 1.0)


def _end_of(timeline: RequestTimeline) -> tuple[float, float, float]:
    """End, steps after the first token, and when that came, as far as it is told."""
    closed, output = timeline.closed_seconds, timeline.output_tokens
    if closed is None or not output:
        return math.inf, math.nan, math.nan
    steps = float(max(output // timeline.sequences - 1, 0))
    first = closed if steps == 0 else math.nan
    if timeline.decode_seconds is not None:
        first = max(closed - timeline.decode_seconds, timeline.arrived_seconds)
    return closed, math.nan if timeline.is_cut else steps, first


def spread_on_unseen(
    timeline: RequestTimeline,
    unseen: UnseenSteps,
    log: TokenLog,
    *,
    settled_seconds: float,
) -> bool:
    """Put the tokens of a reply, and its prompt, on steps that were made up.

    False, and nothing is done, where it has no place among them.
    """
    closed, output = timeline.closed_seconds, timeline.output_tokens
    first = unseen.first_seconds(timeline.key)
    if closed is None or not output or first is None:
        return False
    last = timeline.last_token_seconds  # of those that have a place already
    if last is None and timeline.decode_seconds is not None:
        first = closed - timeline.decode_seconds
    first = min(max(first, _scheduled_at_earliest(timeline)), closed)
    ends = unseen.ends_between(first if last is None else last, closed)
    before = closed - unseen.times.plain_seconds / 2
    ends = [*(end for end in ends if first < end < before), closed]
    stamps = np.array(ends)
    if last is None:
        reads = min(max(output // timeline.sequences, 1), MAX_READS)
        if reads == 1:
            first = closed
        place = np.linspace(len(ends) - 1, 0, max(reads - 1, 1))[::-1]
        later = stamps[np.rint(place).astype(np.int64)]
        stamps = later if reads == 1 else np.append(first, later)
        if timeline.inference_seconds is not None and timeline.decode_seconds is None:
            began = _scheduled_at_earliest(timeline)
            timeline.prefill_seconds = float(stamps[0]) - began
    floor = float(np.nextafter(settled_seconds, np.inf))
    timeline.spread_unstreamed(np.maximum(stamps, floor).tolist(), log)
    if last is None and timeline.timely_prefill_seconds is None:
        _place_prompt(timeline, unseen.prompt_rows(timeline.key), floor)
    return True


def _place_prompt(
    timeline: RequestTimeline,
    made: Sequence[tuple[float, float, float]],
    floor_seconds: float,
) -> None:
    """The prompt was computed in those steps, the last one up to the first token."""
    first = timeline.first_token_seconds
    if first is None or first <= floor_seconds:
        return
    rows = [
        (max(start, floor_seconds), min(end, first), tokens)
        for start, end, tokens in made
        if min(end, first) > max(start, floor_seconds)
    ]
    if not rows:
        return
    rows[-1] = rows[-1][0], first, rows[-1][2]
    computed = sum(tokens for *_, tokens in made)
    if timeline.prompt_tokens is not None:
        computed = _computed_tokens(timeline)
    scale = computed / sum(tokens for *_, tokens in rows)
    timeline.estimated_prompt_tokens = computed + timeline.uncomputed_tokens
    timeline.scheduled_seconds = rows[0][0]
    timeline.prefill_rows += [
        (start, end, tokens * scale) for start, end, tokens in reversed(rows)
    ]


def spread_on_unseen_so_far(
    timeline: RequestTimeline,
    unseen: UnseenSteps,
    log: TokenLog,
    *,
    span: tuple[float, float],
) -> bool:
    """As `spread_so_far`, on steps that were made up; False where it has no place."""
    first, last = unseen.first_seconds(timeline.key), timeline.last_token_seconds
    if first is None:
        return False
    begin = max(span[0], math.nextafter(first, 0.0) if last is None else last)
    _add_guessed(timeline, unseen.ends_between(begin, span[1]), log)
    if last is None and timeline.scheduled_seconds is None:
        _place_prompt(timeline, unseen.prompt_rows(timeline.key), span[0])
    return True


def _plausible(seconds: float) -> float:
    return min(max(seconds, MIN_STEP_SECONDS), MAX_STEP_SECONDS)


def spread_unstreamed(
    timeline: RequestTimeline,
    steps: StepBook,
    starts: FloatArray,
    log: TokenLog,
    *,
    pace: StepPace,
    prompt_token_seconds: float,
    settled_seconds: float,
    prompts: Sequence[tuple[float, float, float]] = (),
) -> None:
    """Put the tokens of a reply that came in one piece where they may have been.

    Where the engine told when it decoded, they are in that time. Where it told how
    long it computed in all (TGI), the prompt has what the tokens' steps leave.
    """
    closed, output = timeline.closed_seconds, timeline.output_tokens
    if closed is None or not output:
        return
    arrived, last = timeline.arrived_seconds, timeline.last_token_seconds
    together, decode = timeline.inference_seconds, timeline.decode_seconds
    earliest = _scheduled_at_earliest(timeline)
    prompt_tokens = (timeline.prompt_tokens or 0) - timeline.uncomputed_tokens
    prompt = prompt_tokens * prompt_token_seconds
    reads = min(max(output // timeline.sequences, 1), MAX_READS)
    if decode is None and last is None and not pace.is_known:
        whole = prompt + reads * STEP_SECONDS
        decode = (closed - earliest) * (1 - prompt / whole)
        if together is not None:
            timeline.prefill_seconds = together - decode
    if last is not None:  # a part has its place already
        begin = min(last, closed)
    elif decode is not None:
        begin = max(closed - decode, arrived)
    else:  # its prompt took some time, however many steps would have fitted
        begin = min(earliest + prompt, closed)
    clock = pace.between(begin, closed, prompts)
    if last is None and not pace.is_known:  # then as many as it has tokens
        clock = StepClock(np.array([begin, closed]), np.array([0.0, reads]))
    candidates = step_ends(steps.steps.end_seconds, starts, begin, closed, clock)
    if last is not None:
        reads = len(candidates)
    elif decode is not None:
        candidates = np.concatenate(([begin], candidates))
    else:
        candidates = candidates[-reads:]
        if together is not None:
            timeline.prefill_seconds = float(candidates[0]) - earliest
    place = np.linspace(0, len(candidates) - 1, reads)
    stamps = candidates[np.rint(place).astype(np.int64)]
    floor = np.nextafter(settled_seconds, np.inf)
    timeline.spread_unstreamed(np.maximum(stamps, floor).tolist(), log)


GUESSED_TOKENS = 1000.0
"""Length of a prompt that nobody has told yet."""


def spread_so_far(
    timeline: RequestTimeline,
    steps: StepBook,
    starts: FloatArray,
    log: TokenLog,
    *,
    pace: StepPace,
    prompt_token_seconds: float,
    span: tuple[float, float],
) -> None:
    """Guess the tokens of a reply that has not come, in a span to be settled."""
    begin, end = span
    last = timeline.last_token_seconds
    if last is None:
        prompt_seconds = GUESSED_TOKENS * prompt_token_seconds
        last = timeline.arrived_seconds + prompt_seconds
    begin = max(begin, last)
    if begin >= end:
        return
    clock = pace.between(begin, end)
    stamps = step_ends(steps.steps.end_seconds, starts, begin, end, clock)[:-1]
    _add_guessed(timeline, stamps.tolist(), log)


def _add_guessed(
    timeline: RequestTimeline, stamps: Sequence[float], log: TokenLog
) -> None:
    """A token of each sequence at each instant, of a reply that has not come."""
    if not stamps:
        return
    before = timeline.counted_tokens
    for at_seconds in stamps:
        log.add(at_seconds, timeline.key, float(timeline.sequences), before)
        before += timeline.sequences
    timeline.counted_tokens = before
    if timeline.first_token_seconds is None:
        timeline.first_token_seconds = stamps[0]
    timeline.last_token_seconds = stamps[-1]


def step_ends(
    ends: FloatArray,
    starts: FloatArray,
    start_seconds: float,
    end_seconds: float,
    clock: StepClock,
) -> FloatArray:
    """Ends of steps in a stretch, the last at its end: those seen, and made up ones.

    Steps are made up where none was under way. `starts` and `ends` are of those seen.
    """
    first = int(np.searchsorted(ends, start_seconds, side="right"))
    stop = int(np.searchsorted(ends, end_seconds, side="left"))
    seen, untils = ends[first:stop], np.append(starts[first:stop], end_seconds)
    froms = np.concatenate(([start_seconds], seen))
    parts = [seen, np.array([end_seconds])]
    missing = clock.steps_between(froms, np.maximum(untils, froms))
    for gap in np.flatnonzero(missing >= MISSING_STEPS).tolist():
        made = clock.inside(float(froms[gap]), float(untils[gap]))
        parts.append(made)
    return np.unique(np.concatenate(parts))


def spread_orphan(
    timeline: RequestTimeline, steps: StepBook, log: TokenLog, *, step_seconds: float
) -> None:
    """A token at every step that a request got after its client had left.

    They are not counted as output: nobody received them.
    """
    closed, until = timeline.closed_seconds, timeline.ran_on_seconds
    if closed is None or until is None or timeline.first_token_seconds is None:
        return
    count = max(int((until - closed) / step_seconds), 1)
    stamps = steps.snap(
        np.linspace(closed, until, count + 1)[1:],
        not_before=np.nextafter(closed, until),
    )
    before = timeline.counted_tokens
    for stamp in np.unique(stamps).tolist():
        log.add(stamp, timeline.key, float(timeline.sequences), before)
        before += timeline.sequences
