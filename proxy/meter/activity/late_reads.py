"""Own tokens that the engine had made at an instant, and the proxy read later.

Rule: a read empties the socket, so of a stream that is read in step with its engine
only tokens close to the instant are in doubt. One that was silent then (its proxy stood
still, its client had stopped reading) may have had waiting all that it was read next;
until it is read, or if it never is, as many as it makes in that time at its pace. One
that comes in bursts is not read in step, and in doubt for `BEHIND_SECONDS`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from proxy.meter.activity.request import RequestTimeline
from proxy.meter.activity.steps import (
    STEP_GAP_SECONDS,
    BoolArray,
    FloatArray,
    IntArray,
)

BEHIND_SECONDS = 1.0
"""A proxy that is behind is so by no more, unless it reads nothing at all."""

BURST_SECONDS = 0.1
"""Tokens that came at once, and took so long to make, had waited to be read."""

PACE_FACTOR = 1.5
"""Nobody sees how fast a stream is made that is not read: so much faster at most."""

STEP_PACE = 50.0
"""Tokens a second of one that has shown no pace."""

MAX_UNREAD_TOKENS = 8_192.0
"""No reply has more of them."""

SHORT = 1 << 16


@dataclass(frozen=True, slots=True)
class Instant:
    """When the engine's count was told, and until when reads are known."""

    seconds: float
    flight_seconds: float
    """Engine and proxy count a token within this of each other."""
    known_seconds: float
    """Later reads are left out, so that whoever asks later is told the same."""
    stalled_until_seconds: float = -math.inf
    """The proxy stood still then, and until when; -inf: it did not."""


@dataclass(frozen=True, slots=True)
class Reads:
    """Reads in order of time; arrays of shape (reads,)."""

    seconds: FloatArray
    tokens: FloatArray
    keys: IntArray
    before: FloatArray
    """Tokens of the request before this read; 0 marks its first."""

    def of(self, is_of: BoolArray) -> Reads:
        """Some of them."""
        return Reads(
            self.seconds[is_of],
            self.tokens[is_of],
            self.keys[is_of],
            self.before[is_of],
        )

    def __add__(self, later: Reads) -> Reads:
        return Reads(
            np.concatenate((self.seconds, later.seconds)),
            np.concatenate((self.tokens, later.tokens)),
            np.concatenate((self.keys, later.keys)),
            np.concatenate((self.before, later.before)),
        )

    def by_time(self) -> Reads:
        """In order of time, as they mostly are."""
        if (self.seconds[1:] >= self.seconds[:-1]).all():
            return self
        return self.in_order(np.argsort(self.seconds, kind="stable"))

    def in_order(self, rows: IntArray) -> Reads:
        """These rows, in this order."""
        return Reads(
            self.seconds[rows], self.tokens[rows], self.keys[rows], self.before[rows]
        )


def order_of_keys(keys: IntArray) -> IntArray:
    """Rows by key; those of one key stay in order.

    Keys close to each other, as those of requests that run side by side are, are
    sorted as short numbers: numpy is ten times as fast with them.
    """
    if not len(keys):
        return keys
    least = keys.min()
    if keys.max() - least < SHORT:
        return np.argsort((keys - least).astype(np.uint16), kind="stable")
    return np.argsort(keys, kind="stable")


def no_reads() -> Reads:
    """Before the first one."""
    none = np.empty(0)
    return Reads(none, none, np.empty(0, np.int64), none)


@dataclass(frozen=True, slots=True)
class Late:
    """Tokens of one kind that were read after an instant."""

    most_tokens: float = 0.0
    """The engine may have made so many before it."""
    waiting_tokens: float = 0.0
    """Of these the ones that look as if they had waited: nobody else made them."""


@dataclass(frozen=True, slots=True)
class LateOutput:
    """What of the output was late at an instant."""

    late: Late
    behind_until_seconds: float
    """Until when the proxy was behind; -inf: it was not."""


def late_output(
    reads: Reads, streams: Iterable[RequestTimeline], at: Instant
) -> LateOutput:
    """What was late at an instant; `streams` are those that may not be read to the end.

    `reads` have the newest one of each of them before the instant.
    """
    at_seconds = at.seconds
    shown = reads.of(reads.seconds <= at.known_seconds)
    shown = shown.in_order(order_of_keys(shown.keys))
    if not len(shown.keys):
        return LateOutput(Late(), at.stalled_until_seconds)
    firsts = np.flatnonzero(np.diff(shown.keys, prepend=-1))
    ends = np.append(firsts[1:], len(shown.keys))
    stream = np.repeat(np.arange(len(firsts)), ends - firsts)
    paces = _paces(shown, firsts, ends)

    is_after = shown.seconds > at_seconds
    nexts = firsts + np.bincount(stream[~is_after], minlength=len(firsts))
    is_silent = nexts >= ends
    next_rows = np.where(is_silent, -1, nexts)
    next_seconds = np.append(shown.seconds, np.inf)[next_rows]
    was_running = np.append(shown.before, 0.0)[next_rows] > 0

    is_near = np.abs(shown.seconds - at_seconds) <= BEHIND_SECONDS
    is_behind = np.full(len(firsts), at.stalled_until_seconds > at_seconds)
    is_behind[stream[is_near & _are_bursts(shown, stream, paces)]] = True
    behind_until = np.maximum(next_seconds, at_seconds + BEHIND_SECONDS)[
        is_behind & ~is_silent
    ].max(initial=at.stalled_until_seconds)
    until = np.where(
        is_behind, np.maximum(next_seconds, at_seconds + BEHIND_SECONDS), next_seconds
    )
    # first tokens: those that are read next, and come beside streams that are behind
    begun = shown.seconds[is_after].min(initial=np.inf)
    if begun > at_seconds + BEHIND_SECONDS:
        begun = -np.inf
    until = np.where(was_running, until, max(behind_until, begun))
    is_late = is_after & (shown.seconds <= (until + at.flight_seconds)[stream])
    late = np.bincount(stream[is_late], shown.tokens[is_late], len(firsts))

    silent = {
        int(shown.keys[firsts[number]]): (
            float(paces[number]),
            at_seconds - float(shown.seconds[ends[number] - 1]),
        )
        for number in np.flatnonzero(is_silent)
    }
    unread = sum(
        unread_tokens(*silent[timeline.key])
        for timeline in streams
        if timeline.key in silent
    )
    waiting = float(late[is_behind & was_running].sum())
    return LateOutput(
        Late(float(late.sum()) + unread, waiting + unread), float(behind_until)
    )


def late_prompts(
    seconds: FloatArray, tokens: FloatArray, behind_until_seconds: float, at: Instant
) -> Late:
    """What of the prompts was late: their first tokens, in order of time, came so.

    What is read next may have been done before, all of it that comes at once.
    """
    came = np.concatenate(([0.0], np.cumsum(tokens)))
    place = int(np.searchsorted(seconds, at.seconds, side="right"))
    until = max(behind_until_seconds, at.seconds)
    if place < len(seconds) and seconds[place] <= at.seconds + BEHIND_SECONDS:
        until = max(until, float(seconds[place]))
    most, waiting = (
        float(came[np.searchsorted(seconds, min(end, at.known_seconds), side="right")])
        for end in (until + at.flight_seconds, behind_until_seconds)
    )
    return Late(most - float(came[place]), max(waiting - float(came[place]), 0.0))


def unread_tokens(pace: float, silent_seconds: float) -> float:
    """How many tokens a stream may have made since it was read last."""
    return min(PACE_FACTOR * pace * max(silent_seconds, 0.0), MAX_UNREAD_TOKENS)


def _paces(reads: Reads, firsts: IntArray, ends: IntArray) -> FloatArray:
    """Tokens a second of every stream, as far as its reads show."""
    came = np.concatenate(([0.0], np.cumsum(reads.tokens)))
    tokens = came[ends] - came[np.minimum(firsts + 1, ends)]
    seconds = reads.seconds[ends - 1] - reads.seconds[firsts]
    has_pace = seconds > BURST_SECONDS
    paces = np.divide(tokens, seconds, out=np.zeros(len(firsts)), where=has_pace)
    usual = float(np.median(paces[has_pace])) if has_pace.any() else STEP_PACE
    return np.where(has_pace, paces, max(usual, STEP_PACE))


def _are_bursts(reads: Reads, stream: IntArray, paces: FloatArray) -> BoolArray:
    """Of every read, whether it is in a burst: tokens that took long came at once."""
    is_new = np.diff(stream, prepend=-1) != 0
    is_new |= np.diff(reads.seconds, prepend=-np.inf) > STEP_GAP_SECONDS
    burst = np.cumsum(is_new) - 1
    tokens = np.bincount(burst, reads.tokens)[burst]
    return np.asarray((tokens >= 2) & (tokens >= BURST_SECONDS * paces[stream]))
