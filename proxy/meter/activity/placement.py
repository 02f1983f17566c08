"""When each prompt was computed: first come, first served, in the steps seen.

A prompt ends in the step of its first token. A step's duration tells how many
prompt tokens it had room for, and prompts that arrived earlier took that room
first; so a prompt is placed backwards from its last step into the room left,
and never before it arrived, nor into a step already under way on arrival. How fast
the engine computes prompts, and how many tokens it lets into a step, is learnt from
those it has computed.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from operator import attrgetter

import numpy as np

from proxy.meter.activity.prompt_speed import PromptSpeed
from proxy.meter.activity.request import Pause, RequestTimeline
from proxy.meter.activity.steps import FloatArray, IntArray, Steps
from proxy.meter.activity.token_budget import TokenBudget

MISSED_STEPS = 3
"""So many steps of others without a token: the engine has set the request aside."""
SHORT_MISSED_STEPS = 1
"""The same of pauses that are short, where the engine counts its preemptions: who is
left out of one step has lost its cache."""

WAITED_PART = 0.8
"""Of the room before the step in which it was done: who needed less had waited."""

STEP_TOKENS = 2048.0
"""What an engine lets into a step where that is not learnt: the least of vLLM's
defaults of `max_num_batched_tokens`."""

HIDDEN_TIMES = 2.0
"""By so much more than all room it has to need, or the steps are believed."""


def is_long(pause: Pause, missed_seconds: float) -> bool:
    """Whether a pause is a preemption, where the engine counts none."""
    return not pause.is_short


def missed_steps(request: RequestTimeline) -> int:
    """So many steps of others without a token may be a preemption."""
    return SHORT_MISSED_STEPS if request.notes_short_pauses else MISSED_STEPS


@dataclass(slots=True)
class Seen:
    """Steps not settled yet, and since when; the ground that prompts are put on."""

    steps: Steps
    starts: FloatArray
    """Shape (steps,), see `step_starts`."""
    settled_seconds: float
    """Nothing is placed before this."""
    end_seconds: float
    """Pauses that end later are not looked at yet."""
    was_set_aside: Callable[[Pause, float], bool] = is_long
    """Whether the engine's own count allows that a pause was a preemption, by when the
    first step ended that it missed."""
    window_end_seconds: float = math.inf
    """What is settled now; of pauses that begin later the engine may yet tell."""
    told_seconds: float = math.inf
    """It has told of pauses that end by then, and will of later ones; inf: it will not
    tell more."""
    ends: list[float] = field(init=False)
    """When the steps end: a look-up in a list takes a fifth of one in an array."""

    def __post_init__(self) -> None:
        self.ends = self.steps.end_seconds.tolist()

    def step_at(self, at_seconds: float) -> int:
        """Index of the step that an instant lies in; len(steps) after the last."""
        return bisect_left(self.ends, at_seconds)

    def step_after(self, at_seconds: float) -> int:
        """Index of the first step after the one in which a token was read."""
        step = self.step_at(at_seconds)
        floors = self.steps.floor_seconds
        return step + (step < len(floors) and bool(floors[step] < at_seconds))

    def decodes(self, first: int, stop: int) -> FloatArray:
        """Later tokens than a first one that came in each of some steps."""
        rows = self.steps.first_row
        is_later = self.steps.before[rows[first] : rows[stop]] > 0
        later = np.concatenate(([0.0], np.cumsum(is_later)))
        return np.diff(later[rows[first : stop + 1] - rows[first]])

    def were_late(self, first: int, stop: int) -> bool:
        """Whether reads of a range of steps had waited: more than a token came to
        somebody at once, or steps ran together."""
        rows = self.steps.first_row[first : stop + 1]
        of_range = slice(rows[0], rows[-1])
        if (self.steps.tokens[of_range] > 1).any():
            return True
        step = np.repeat(np.arange(stop - first), np.diff(rows))
        both = np.stack((step, self.steps.keys[of_range]))
        return len(np.unique(both, axis=1).T) < len(both.T)

    def decoding_steps(self, first: int, stop: int) -> int:
        """How many steps of a range gave anybody a later token than the first."""
        rows = self.steps.first_row
        is_later = self.steps.before[rows[first] : rows[stop]] > 0
        step = np.repeat(np.arange(stop - first), np.diff(rows[first : stop + 1]))
        return len(np.unique(step[is_later]))


MAX_PLAIN_STEPS = 1024
"""Without a prompt, of which one median is taken."""


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
        self.budget = TokenBudget()
        self._used: dict[float, float] = {}
        """What of a step's time prompts have taken already, by its end."""
        self._used_tokens: dict[float, float] = {}
        """The same in tokens."""
        self._released_seconds = -np.inf
        self._settled_steps = np.empty((0, 2))
        """Start and end of steps that are settled since a prompt was done last."""

    def restart(self) -> None:
        """What is learnt of the engine came from wrong counts."""
        self.speed.restart()
        self.budget.restart()

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

        def when(job: _Prefill) -> tuple[int, float]:
            return seen.step_at(job.at_seconds), job.arrived_seconds

        for _, tied in groupby(sorted(jobs, key=when), key=when):
            self._place_tied(list(tied), seen)

    def forget(self, before_seconds: float, seen: Seen) -> None:
        """Drop what is known of steps that are settled.

        Those that no prompt was in are kept until the next one comes, so that it does
        not matter to what is learnt of them when settlement ran.
        """
        self._used = {
            end: used for end, used in self._used.items() if end > before_seconds
        }
        self._used_tokens = {
            end: used for end, used in self._used_tokens.items() if end > before_seconds
        }
        self._pass_steps(before_seconds, seen)
        ends = seen.steps.end_seconds
        is_new = (ends > seen.settled_seconds) & (ends <= before_seconds)
        self._settled_steps = self._since_release(
            np.column_stack((seen.starts[is_new], ends[is_new]))
        )

    def _since_release(self, more: FloatArray) -> FloatArray:
        """The first steps since a prompt was done last, settled ones and more."""
        steps = np.concatenate((self._settled_steps, more))
        return steps[steps[:, 0] >= self._released_seconds][:MAX_PLAIN_STEPS]

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
        self._learn_budget(tied, seen)
        spans: dict[tuple[int, int], list[tuple[_Prefill, float]]] = {}
        for job in tied:
            if job.pause is None and job.request.first_token_seconds is None:
                self._place_unanswered(job.request, seen)
            elif not len(seen.starts):  # dropped while nothing was measured
                job.request.scheduled_seconds = job.arrived_seconds
            else:
                span = self._span(job, seen)
                tokens = self._tokens(job, float(seen.starts[span[0]]), seen)
                spans.setdefault(span, []).append((job, tokens))
        self._learn(tied, seen)
        for span, members in sorted(spans.items(), key=_span_of):
            self._fill_tied(span, members, seen)
            self._released_seconds = max(
                self._released_seconds, *(job.at_seconds for job, _ in members)
            )

    def _fill_tied(
        self, span: tuple[int, int], members: list[tuple[_Prefill, float]], seen: Seen
    ) -> None:
        """Place jobs of one span, in proportion to their tokens."""
        total = sum(tokens for _, tokens in members)
        is_again = any(job.pause is not None for job, _ in members)
        cached = max(job.request.uncomputed_tokens for job, _ in members)
        context = 0.0 if is_again else cached
        rows = self._fill(total, context, seen, span, is_again=is_again)
        for job, tokens in members:
            part = tokens / total
            own = [(start, end, taken * part) for start, end, taken in rows]
            _settle_rows(job, own, seen)

    def _span(self, job: _Prefill, seen: Seen) -> tuple[int, int]:
        """First and last step that may have computed it."""
        if job.pause is None:
            last = min(seen.step_at(job.at_seconds), len(seen.starts) - 1)
            return _lowest_step(job.request, seen, last), last
        first = seen.step_after(job.pause.stopped_seconds)
        return first, seen.step_at(job.pause.resumed_seconds)

    def _tokens(self, job: _Prefill, earliest_seconds: float, seen: Seen) -> float:
        """Tokens to compute; where nobody told, what the time allowed for."""
        request = job.request
        if job.pause is not None:
            return request.estimated_prompt_tokens + job.pause.tokens_before
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
        lowest = min(_lowest_step(job.request, seen, last) for job in prompts)
        earliest = max(
            float(seen.starts[lowest]), min(job.arrived_seconds for job in prompts)
        )
        alone_from = max(earliest, seen.settled_seconds, self._released_seconds)
        tokens = sum(
            (job.request.prompt_tokens or 0) - job.request.uncomputed_tokens
            for job in prompts
        )
        end = float(seen.steps.end_seconds[last])
        self.speed.learn(tokens, max(end - alone_from, 0.0))
        self._learn_period(prompts, seen, (lowest, last))

    def _learn_period(
        self, prompts: list[_Prefill], seen: Seen, span: tuple[int, int]
    ) -> None:
        """What steps took for prompts, and how long they last without any.

        Between the last prompt's end and this one's arrival there was none.
        """
        starts, ends = seen.starts, seen.steps.end_seconds
        arrived = min(job.arrived_seconds for job in prompts)
        is_open = ends > seen.settled_seconds
        steps = self._since_release(np.column_stack((starts[is_open], ends[is_open])))
        plain = steps[steps[:, 1] <= arrived]
        self.speed.learn_plain(plain[:, 1] - plain[:, 0])
        lowest, last = span
        first = max(
            lowest,
            seen.step_at(math.nextafter(self.speed.period_end_seconds, math.inf)),
        )
        if float(starts[lowest]) < seen.settled_seconds:
            return  # a part of its steps is not known any more
        took = self.speed.prompt_seconds((ends - starts)[first : last + 1])
        for job in prompts:
            cached = job.request.uncomputed_tokens
            self.speed.learn_period(
                (job.request.prompt_tokens or 0) - cached,
                cached,
                start_seconds=float(starts[lowest]),
                end_seconds=float(ends[last]),
                seconds=float(took.sum()) / len(prompts),
            )

    def _pass_steps(self, until_seconds: float, seen: Seen) -> None:
        """Count steps for the engine's token budget, those up to an instant."""
        ends = seen.steps.end_seconds
        span = self.budget.passed_seconds, until_seconds
        low, high = ends.searchsorted(span, side="right").tolist()
        if low < high:
            starts, ends = seen.starts[low:high], ends[low:high]
            self.budget.pass_steps(starts, ends, seen.decodes(low, high))

    def _learn_budget(self, tied: list[_Prefill], seen: Seen) -> None:
        """Full steps lie between the ends of prompts that follow each other."""
        if not len(seen.starts):
            return
        last = min(seen.step_at(tied[0].at_seconds), len(seen.starts) - 1)
        step = float(seen.starts[last]), float(seen.steps.end_seconds[last])
        self._pass_steps(step[1], seen)
        decodes = float(seen.decodes(last, last + 1)[0])
        for job in tied:
            request = job.request
            told = request.prompt_tokens
            if (
                job.pause is not None
                or told is None
                or request.first_token_seconds is None
                or request.inferred_cached_tokens is not None
            ):
                self.budget.interrupt()
                continue
            tokens = float(told - request.uncomputed_tokens)
            ready = request.waited_until_seconds
            plain = self.speed.longest_plain_seconds
            self.budget.complete(tokens, ready, step, decodes, plain)

    def _fill(
        self,
        tokens: float,
        context_tokens: float,
        seen: Seen,
        span: tuple[int, int],
        *,
        is_again: bool,
    ) -> list[tuple[float, float, float]]:
        """(start, end, tokens) from the last step back to the first one needed.

        An engine computes as much as fits into each step from the first one on, so
        those before the last are full. Where they had room for far more, it waited,
        and began as late as it can have.
        """
        lowest, last = span
        starts, ends = seen.starts[lowest : last + 1], seen.steps.end_seconds
        ends = ends[lowest : last + 1]
        keys = ends.tolist()
        used = np.array([self._used.get(end, 0.0) for end in keys])
        lasted = ends - starts
        took = self.speed.prompt_seconds(lasted)
        if not is_again and self.speed.is_learnt and self.budget.tokens is not None:
            most = self.budget.tokens - seen.decodes(lowest, last + 1)
            filled = self._filled(tokens, context_tokens, most, took, keys)
            if filled is not None:
                return self._taken(filled, context_tokens, starts, keys)
        if is_again:
            filled = self._again(tokens, seen, span)
            return self._taken(filled, context_tokens, starts, keys)
        room = np.maximum(took - used, 0.0)
        needed = self.speed.seconds_for(tokens, context_tokens)
        before = float(room[:-1].sum())
        is_hidden = needed > HIDDEN_TIMES * float(room.sum())
        if is_hidden:  # it left no trace in how long steps last
            room = np.maximum(lasted - used, 0.0)
        if is_hidden or (self.speed.is_learnt and needed < WAITED_PART * before):
            seconds = _from_last(room, needed)
            used += seconds
        else:
            seconds = np.append(room[:-1], max(needed - before, 0.0))
            if seconds[-1] > room[-1]:  # the steps were faster than thought
                seconds[-1] = max(room[-1], self.speed.seconds_for(1.0, context_tokens))
            used[:-1] += room[:-1]
            used[-1] += seconds[-1]
        self._used.update(zip(keys, used.tolist(), strict=True))
        counts = np.zeros(len(keys))
        context = context_tokens
        for step in np.flatnonzero(seconds > 0).tolist():
            counts[step] = self.speed.tokens_in(float(seconds[step]), context)
            context += counts[step]
        counts[-1] = max(counts[-1], 1.0)
        counts = _brought_to(counts, tokens)
        for end, count in zip(keys, counts.tolist(), strict=True):
            self._used_tokens[end] = self._used_tokens.get(end, 0.0) + count
        table = zip(starts.tolist(), keys, counts.tolist(), strict=True)
        return [row for row in table if row[2] > 0][::-1]

    def _again(self, tokens: float, seen: Seen, span: tuple[int, int]) -> FloatArray:
        """Tokens in each step of what is computed again: in the last, if they fit.

        Whoever was set aside is first in the queue, so an engine that has room for it
        computes all of it at once, and it is decoding again after that.
        """
        lowest, last = span
        budget = self.budget.tokens or STEP_TOKENS
        ends = seen.ends[lowest : last + 1]
        used = np.array([self._used_tokens.get(end, 0.0) for end in ends])
        room = np.maximum(budget - seen.decodes(lowest, last + 1) - used, 0.0)
        room[-1] = max(room[-1], 1.0)
        return _brought_to(_from_last(room, tokens), tokens)

    def _filled(
        self,
        tokens: float,
        context_tokens: float,
        most: FloatArray,
        took: FloatArray,
        ends: list[float],
    ) -> FloatArray | None:
        """Tokens in each step where the engine fills steps up to a known budget.

        `most` is what it lets into each beside the decodes, `took` the time that
        prompts took of it. None where the time, or the tokens, say that it was not so.
        """
        used = np.array([self._used_tokens.get(end, 0.0) for end in ends])
        room = np.maximum(most - used, 0.0)
        before = float(room[:-1].sum())
        if before - most[0] > tokens or tokens > float(room.sum()) + most[0]:
            return None
        for seconds, full in zip(took[:-1].tolist(), most[:-1].tolist(), strict=True):
            if self.speed.tokens_in(seconds, context_tokens) < full / 2:
                return None  # no prompt was computed then
        last = max(tokens - before, 1.0)
        early = room[:-1]
        if before > tokens - last:  # those before it had taken more than thought
            early = _from_last(early, tokens - last)
        return _brought_to(np.append(early, last), tokens)

    def _taken(
        self,
        counts: FloatArray,
        context_tokens: float,
        starts: FloatArray,
        ends: list[float],
    ) -> list[tuple[float, float, float]]:
        """Rows of a prompt as `_fill` has them, and what is left for later ones."""
        context = context_tokens
        rows: list[tuple[float, float, float]] = []
        for start, end, count in zip(
            starts.tolist(), ends, counts.tolist(), strict=True
        ):
            if count > 0:
                seconds = self.speed.seconds_for(count, context)
                self._used[end] = self._used.get(end, 0.0) + seconds
                self._used_tokens[end] = self._used_tokens.get(end, 0.0) + count
                context += count
                rows.append((start, end, count))
        return rows[::-1]

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
    """Pauses whose steps are known and that were preemptions; all are ticked off, as
    with long steps every token is a pause.

    A pause counts where others got tokens meanwhile: it was set aside, then computed
    again. One step alone can be long and a prefill can hold up everybody's decode, so
    only steps in which others went on decoding count; and only where the engine itself
    counts tokens is none hidden.
    """
    pauses: list[Pause] = []
    owners: list[RequestTimeline] = []
    for request in requests:
        own = request.pauses
        if not own:
            continue
        # in order of time: those that end later are not touched
        due = len(own)
        if own[-1].resumed_seconds > seen.end_seconds:
            due = bisect_right(own, seen.end_seconds, key=attrgetter("resumed_seconds"))
        pauses += own[:due]
        owners += [request] * due
        del own[:due]
    if not pauses:
        return []
    bounds = np.fromiter(chain.from_iterable(pauses), np.float64).reshape(-1, 4)
    ends = seen.steps.end_seconds
    last = np.searchsorted(ends, bounds[:, 1], side="left")
    is_told = bounds[:, 1] <= seen.told_seconds
    is_due = (last < len(seen.starts)) & (
        is_told | (bounds[:, 0] < seen.window_end_seconds)
    )
    for place in np.flatnonzero(~is_due).tolist()[::-1]:
        owners[place].pauses.insert(0, pauses[place])
    steps = last - np.searchsorted(ends, bounds[:, 0], side="left")
    places = np.flatnonzero(is_due & (steps >= SHORT_MISSED_STEPS))
    found: list[_Prefill] = []
    # by when they ended, so that it does not matter which are looked at together
    for place in places[np.lexsort((bounds[places, 0], bounds[places, 1]))].tolist():
        request, pause = owners[place], pauses[place]
        first, stop = seen.step_after(pause.stopped_seconds), int(last[place])
        if stop - first < missed_steps(request) or not request.has_running_usage:
            continue
        missed = seen.decoding_steps(first, stop)
        if missed < MISSED_STEPS:
            pause = pause._replace(is_short=True)
        if pause.is_short and seen.were_late(max(first - 1, 0), stop + 1):
            continue
        if missed >= missed_steps(request) and seen.was_set_aside(
            pause, seen.ends[first]
        ):
            arrived = request.arrived_seconds
            found.append(_Prefill(pause.resumed_seconds, arrived, request, pause))
    return found


def _from_last(room: FloatArray, needed: float) -> FloatArray:
    """What is taken of the room of each step, as late as it can be."""
    behind = np.append(np.cumsum(room[::-1])[::-1][1:], 0.0)
    return np.asarray(np.clip(needed - behind, 0.0, room), dtype=np.float64)


def _brought_to(counts: FloatArray, tokens: float) -> FloatArray:
    """Tokens of each step, with the right sum.

    Where there are too few, all steps hold more; where too many, those before the last.
    """
    early, last = float(counts[:-1].sum()), float(counts[-1])
    if early + last < tokens or early <= 0:
        return counts * (tokens / (early + last))
    last = min(last, tokens)
    return np.append(counts[:-1] * ((tokens - last) / early), last)


def _span_of(item: tuple[tuple[int, int], object]) -> tuple[int, int]:
    return item[0]


def _settle_rows(
    job: _Prefill, rows: list[tuple[float, float, float]], seen: Seen
) -> None:
    """Write the rows to the request, from when it can have begun at the earliest."""
    request, first = job.request, job.at_seconds
    if job.pause is not None:
        request.resumed_seconds.append(job.pause.resumed_seconds)
        stopped = job.pause.stopped_seconds
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
    ends = seen.ends
    prefill_seconds = request.timely_prefill_seconds
    if prefill_seconds is not None:
        assert request.first_token_seconds is not None
        begin = request.first_token_seconds - prefill_seconds
        # The engine's time ends a little before ours: take the nearer boundary.
        lowest = bisect_right(ends, begin)
        if lowest < last and ends[lowest] - begin < begin - seen.starts[lowest]:
            lowest += 1
        return min(lowest, last)
    lowest = bisect_right(ends, begin)
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
