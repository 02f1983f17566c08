"""Work that the proxy did not see: the engine's token counters less its own tokens.

Rule: tokens are somebody else's only beyond all that may still be the proxy's: those
around the instant of the scrape, those whose count or time is not told, and a small
part of all. So a load that is fully seen has no external work, exactly. Once some is
proven, each second's difference is taken as it is, until none was proven for a while.
A counter that fell, or rose faster than engines compute, tells nothing.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from proxy.meter.activity.late_reads import BEHIND_SECONDS, Late
from proxy.meter.activity.request import RequestTimeline
from proxy.meter.activity.steps import FloatArray
from proxy.wire.facts import EngineGauges, RequestFacts

FLIGHT_SECONDS = 0.1
"""An engine counts a token, and the proxy reads it, within this of each other."""

UNSURE_PART = 0.02
"""Own tokens may be counted otherwise by so much: an end token, a template."""

UNSURE_TOKENS = 1.0
"""For each own request that ended: the end token may count or not."""

MEMORY_SECONDS = 10.0
"""External work is expected for so long after it was proven last."""

LONGEST_SECONDS = 30.0
"""Scrapes so far apart are not compared: own tokens are not kept for ever."""

MAX_TOKENS_PER_SECOND = 1e7
"""Prompts found in a cache go by at some 100,000 a second and rank; a hundred
ranks."""

CONTEXT_TOKENS = 1024.0
"""Length of an external prompt, and context of an external token, where the proxy has
no requests of its own then; else the mean of their prompts."""

WORK_KEY = 1 << 60
"""Beyond any key of a request, before those of which only the time is known."""


class Excess:
    """One counter's running difference to the proxy's own count.

    While nothing is proven, the difference that means "no external work" lies in
    `[low, high]`: every scrape narrows it, as none is known better than `slack`.
    """

    def __init__(self) -> None:
        self._sum = 0.0
        self._low, self._high = -math.inf, math.inf
        self._level = 0.0
        """Accounted for up to here, while external work is expected."""
        self._since_seconds = -math.inf
        """The last scrape that showed none."""
        self._proof_high = math.inf
        self.proven_seconds = -math.inf

    def is_expected(self, at_seconds: float) -> bool:
        """Whether it was proven a short while before."""
        return at_seconds - self.proven_seconds < MEMORY_SECONDS

    def restart(self) -> None:
        """Nothing is known of the difference any more."""
        self._sum, self._low, self._high = 0.0, -math.inf, math.inf
        self.proven_seconds = -math.inf

    def begin(self, at_seconds: float, slack: float) -> None:
        """The first scrape, where the own count is off by `slack` at most."""
        self.restart()
        self._low, self._high = -slack, slack
        self._since_seconds = at_seconds

    def found(
        self,
        since_seconds: float,
        at_seconds: float,
        difference: float,
        slack: float,
        unsure: float,
        *,
        waiting: float = 0.0,
        unread: float = 0.0,
        ahead: float | None = None,
    ) -> float:
        """External tokens between two scrapes, that far apart from the own ones.

        `slack` is what may be on the other side of the second scrape, `unsure` what
        may have been counted more, or less, for good. Of these `waiting` and `unread`
        are likely own ones: of no such token it is said that it was somebody else's,
        before a later scrape shows it. `ahead` is the part of the slack that was read
        before the engine may have counted it, None: all. What waits makes the sum too
        high, and more no harder to prove.
        """
        was_expected = self.is_expected(since_seconds)
        if math.isinf(unsure):  # own tokens were not told: all may be theirs
            difference, unsure = min(difference, 0.0), 0.0
        self._sum += difference
        low, high = self._sum - slack, self._sum + slack
        proof_high = self._sum - waiting + (slack if ahead is None else ahead)
        if was_expected:
            if low > self._proof_high + unsure:
                self.proven_seconds, self._proof_high = at_seconds, proof_high
            self._level += unread
            rise = max(self._sum - waiting - self._level, 0.0)
            self._level += rise
            if not self.is_expected(at_seconds):
                self._low, self._high = low, max(high, self._level)
                self._since_seconds = at_seconds
            return rise
        self._high += unsure
        if low > self._high:
            self.proven_seconds, self._proof_high = at_seconds, proof_high
            rise = self._sum - (max(self._low, self._high - 2 * slack) + self._high) / 2
            part = (at_seconds - since_seconds) / (at_seconds - self._since_seconds)
            self._level = self._sum
            return max(rise, 0.0) * part
        if high < self._low:  # fewer than the own ones: it counts otherwise
            self._low, self._high = low, high
        else:
            self._low, self._high = max(self._low, low), min(self._high, high)
        if self._sum <= self._high:
            self._since_seconds = at_seconds
        return 0.0


@dataclass(frozen=True, slots=True)
class Scrape:
    """The engine's counters at one moment; which that was is known within `spread`."""

    at_seconds: float
    spread_seconds: float
    gauges: EngineGauges

    @property
    def flight_seconds(self) -> float:
        """Own tokens stamped so close to it may be on its other side."""
        return FLIGHT_SECONDS + self.spread_seconds

    @property
    def known_seconds(self) -> float:
        """When all own tokens that the engine had counted by then have been read."""
        return self.at_seconds + self.flight_seconds + BEHIND_SECONDS

    @property
    def has_tokens(self) -> bool:
        """Whether both counters are told."""
        gauges = self.gauges
        return gauges.prompt_tokens is not None and gauges.output_tokens is not None

    def after(self, lag_seconds: float) -> Scrape:
        """As the proxy's reads, which are late by so much, would show it."""
        at_seconds = self.at_seconds + lag_seconds
        return Scrape(at_seconds, self.spread_seconds, self.gauges)


@dataclass(frozen=True, slots=True)
class OwnTokens:
    """What the proxy knows of the tokens of one kind that the engine counted for it."""

    seconds: FloatArray
    """Stamps, in order."""
    tokens: FloatArray
    spans: FloatArray
    """Shape (n, 3): from, to and how many, of tokens stamped by guess in between."""
    unsure: FloatArray
    """Shape (n, 2): when, and how many more or fewer they may be; inf: not told."""
    unread: FloatArray
    """Shape (n, 2): the same of those that may have been made and were never read."""
    late: Late

    def between(self, start_seconds: float, end_seconds: float) -> float:
        """How many were stamped after one instant, up to another."""
        low, high = np.searchsorted(self.seconds, (start_seconds, end_seconds), "right")
        return float(self.tokens[low:high].sum())

    def slack(self, at_seconds: float, flight_seconds: float) -> float:
        """How many may be on the other side of an instant, that of `late`."""
        before = self.between(at_seconds - flight_seconds, at_seconds)
        around = self._around(at_seconds, flight_seconds)
        return max(self.late.most_tokens, before) + around

    def ahead(self, at_seconds: float, flight_seconds: float) -> float:
        """How many the engine may have counted after an instant, though read before."""
        before = self.between(at_seconds - flight_seconds, at_seconds)
        return before + self._around(at_seconds, flight_seconds)

    def _around(self, at_seconds: float, flight_seconds: float) -> float:
        """How many were stamped by guess, and may be on either side of an instant."""
        is_around = (self.spans[:, 0] - flight_seconds <= at_seconds) & (
            at_seconds <= self.spans[:, 1] + flight_seconds
        )
        return float(self.spans[is_around, 2].sum())

    def unsure_between(self, start_seconds: float, end_seconds: float) -> float:
        """How many may be counted otherwise."""
        is_in = (self.unsure[:, 0] > start_seconds) & (self.unsure[:, 0] <= end_seconds)
        return UNSURE_PART * self.between(start_seconds, end_seconds) + float(
            self.unsure[is_in, 1].sum()
        )

    def unread_between(self, start_seconds: float, end_seconds: float) -> float:
        """How many came that nobody will ever read."""
        is_in = (self.unread[:, 0] > start_seconds) & (self.unread[:, 0] <= end_seconds)
        return float(self.unread[is_in, 1].sum())


@dataclass(frozen=True, slots=True)
class Found:
    """What the engine computed from one scrape to the next beyond the own work."""

    start_seconds: float
    end_seconds: float
    prompt_tokens: float
    """Computed, those found in a cache left out."""
    output_tokens: float

    def after(self, at_seconds: float) -> Found:
        """The part of it after an instant, as if it had been spread evenly."""
        start_seconds = max(self.start_seconds, at_seconds)
        part = (self.end_seconds - start_seconds) / (
            self.end_seconds - self.start_seconds
        )
        return Found(
            start_seconds,
            self.end_seconds,
            self.prompt_tokens * part,
            self.output_tokens * part,
        )

    @property
    def is_nothing(self) -> bool:
        """No external work."""
        return self.prompt_tokens <= 0 and self.output_tokens <= 0


class WorkLog:
    """Scrapes with token counters, compared pair by pair, each pair once."""

    def __init__(self) -> None:
        self._scrapes: list[Scrape] = []
        self._compared = 0
        """Number of the scrape up to which they are."""
        self._prompts, self._outputs = Excess(), Excess()
        self._is_begun = False
        self._newest_seconds = -math.inf
        """When the newest scrape was, as it was stamped."""
        self._lag = ReadLag()
        self._next_lag_seconds = 0.0
        """By so much reads are late, for the next pair."""

    def add(self, scrape: Scrape) -> None:
        """One more scrape, newer than the last one."""
        if not scrape.has_tokens:
            self._scrapes.clear()
            self._compared, self._is_begun = 0, False
            self._prompts.restart()
            self._outputs.restart()
        elif scrape.at_seconds > self._newest_seconds or not self._scrapes:
            self._scrapes.append(scrape)
            self._newest_seconds = scrape.at_seconds

    @property
    def is_told(self) -> bool:
        """Whether the engine tells its tokens."""
        return bool(self._scrapes)

    @property
    def tells_cache(self) -> bool:
        """Whether the engine tells how many prompt tokens it had in a cache."""
        return self.is_told and self._scrapes[-1].gauges.cached_tokens is not None

    @property
    def compared_seconds(self) -> float:
        """The scrape up to which all pairs are compared; -inf before the first."""
        if not self._is_begun:
            return -math.inf
        return self._scrapes[self._compared].at_seconds

    def is_expected(self) -> bool:
        """Whether external work was proven shortly before the last scrape compared."""
        at_seconds = self.compared_seconds
        return self._prompts.is_expected(at_seconds) or self._outputs.is_expected(
            at_seconds
        )

    def next_scrape(self) -> Scrape | None:
        """The second one of the next pair; None: it has not come."""
        return self._told(self._compared + self._is_begun)

    def _told(self, place: int) -> Scrape | None:
        """One of those to compare, as reads show it: each after the one before."""
        if place >= len(self._scrapes):
            return None
        scrape = self._scrapes[place]
        ahead_seconds = self.compared_seconds - scrape.at_seconds
        lag_seconds = max(self._next_lag_seconds, ahead_seconds + MIN_APART_SECONDS)
        return scrape.after(lag_seconds)

    def prompt_rises(self) -> tuple[float, float] | None:
        """How far prompt and cached tokens rise in the next pair; None: not known."""
        scrape = self.next_scrape()
        if scrape is None or not self._is_begun:
            return None
        before = self._scrapes[self._compared]
        rises = _rises(before, scrape)
        cached = _rise(before.gauges.cached_tokens, scrape.gauges.cached_tokens)
        if rises is None or not 0 <= cached <= rises[0]:
            return None
        return rises[0], cached

    def scrape_after(self, at_seconds: float) -> Scrape | None:
        """The first scrape at or after an instant; None: it has not come."""
        stamped = attrgetter("at_seconds")
        first = self._compared + self._is_begun
        if at_seconds <= self.compared_seconds:
            place = bisect_left(self._scrapes, at_seconds, hi=first, key=stamped)
            return self._scrapes[place]
        at_seconds -= self._next_lag_seconds
        return self._told(bisect_left(self._scrapes, at_seconds, lo=first, key=stamped))

    def compare(self, prompts: OwnTokens, outputs: OwnTokens) -> Found | None:
        """The next pair beside the own tokens; None where it tells nothing."""
        scrape = self.next_scrape()
        assert scrape is not None
        at_seconds = scrape.at_seconds
        slacks = [
            own.slack(at_seconds, scrape.flight_seconds) + UNSURE_TOKENS
            for own in (prompts, outputs)
        ]
        place = self._compared + self._is_begun
        raw_seconds = self._scrapes[place].at_seconds
        self._scrapes[place] = scrape
        if not self._is_begun:
            self._is_begun = True
            self._lag.begin(raw_seconds, at_seconds)
            self._prompts.begin(at_seconds, slacks[0])
            self._outputs.begin(at_seconds, slacks[1])
            return None
        before = self._scrapes[self._compared]
        self._compared += 1
        rises = _rises(before, scrape)
        self._lag.learn(raw_seconds, at_seconds, rises, (prompts, outputs))
        self._next_lag_seconds = self._lag.seconds
        if rises is None:
            self._prompts.begin(at_seconds, slacks[0])
            self._outputs.begin(at_seconds, slacks[1])
            return None
        since_seconds = before.at_seconds
        found = [
            excess.found(
                since_seconds,
                at_seconds,
                rise - own.between(since_seconds, at_seconds),
                slack,
                own.unsure_between(since_seconds, at_seconds),
                waiting=own.late.waiting_tokens,
                unread=own.unread_between(since_seconds, at_seconds),
                ahead=own.ahead(at_seconds, scrape.flight_seconds) + UNSURE_TOKENS,
            )
            for excess, own, rise, slack in zip(
                (self._prompts, self._outputs),
                (prompts, outputs),
                rises,
                slacks,
                strict=True,
            )
        ]
        computed = found[0] * _computed_part(before, scrape, rises[0])
        return Found(since_seconds, at_seconds, computed, found[1])

    def forget(self, before_seconds: float) -> None:
        """Drop scrapes that are compared and older than that."""
        drop = 0
        while (
            drop < self._compared
            and self._scrapes[drop + 1].at_seconds <= before_seconds
        ):
            drop += 1
        del self._scrapes[:drop]
        self._compared -= drop


def _rises(before: Scrape, scrape: Scrape) -> tuple[float, float] | None:
    """How far both counters rose; None where that cannot be, or nobody knows."""
    seconds = scrape.at_seconds - before.at_seconds
    if seconds > LONGEST_SECONDS:
        return None
    most = MAX_TOKENS_PER_SECOND * seconds
    prompts = _rise(before.gauges.prompt_tokens, scrape.gauges.prompt_tokens)
    outputs = _rise(before.gauges.output_tokens, scrape.gauges.output_tokens)
    if not (0 <= prompts <= most and 0 <= outputs <= most):
        return None
    return prompts, outputs


def _rise(before: float | None, after: float | None) -> float:
    return math.nan if before is None or after is None else after - before


def _computed_part(before: Scrape, scrape: Scrape, prompts: float) -> float:
    """Part of the prompt tokens that was not found in a cache, 0..1."""
    cached = _rise(before.gauges.cached_tokens, scrape.gauges.cached_tokens)
    if not prompts > 0 or not cached >= 0:
        return 1.0
    return max(1.0 - cached / prompts, 0.0)


LAGS_SECONDS = np.arange(0.0, 0.801, 0.05)
"""Reads may be late by so much, all of them alike; scrapes are a second apart."""

MIN_APART_SECONDS = 1e-3
"""Scrapes are compared in order, also where less of a lag is believed than before."""

LAG_KEEP = 0.97
"""Weight of a pair by the next one's: half a minute."""

LAG_EVIDENCE = 8.0
"""A lag is believed where the counts are exp(this) times as likely with it as with
none, and a third of that keeps it: over a whole load that is seen none ever is."""


class ReadLag:
    """By how much all reads are late: where the engine's count and the own one agree.

    A counter that is ahead of reads by a constant time is ahead by more tokens when
    more come. What others do is there at any lag.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        """0 while none is found."""
        self._pairs = 0.0
        self._squares = np.zeros((2, len(LAGS_SECONDS)))
        """Of what prompts and outputs differ by, tokens^2, fading."""
        self._raw_seconds = self._at_seconds = -math.inf
        self._floors = np.zeros((2, 1))
        self._open: FloatArray | None = None
        """Shape (2, lags): the newest pair's differences, but for what came after."""

    def begin(self, raw_seconds: float, at_seconds: float) -> None:
        """The first scrape, as it was stamped and as it is compared."""
        self._raw_seconds, self._at_seconds = raw_seconds, at_seconds
        self._open = None

    def learn(
        self,
        raw_seconds: float,
        at_seconds: float,
        rises: tuple[float, float] | None,
        own: tuple[OwnTokens, OwnTokens],
    ) -> None:
        """The next scrape: prompts and outputs rose by so much since the last one."""
        is_apart = raw_seconds >= self._raw_seconds + float(LAGS_SECONDS[-1])
        if rises is None or not is_apart:
            self.begin(raw_seconds, at_seconds)
            return
        # what came from the last scrape on, by the time that it may have been late
        since = np.stack([self._came(each) for each in own])
        came = np.array([each.between(self._at_seconds, at_seconds) for each in own])
        if self._open is not None:
            self._add(self._open - since)
        floors = UNSURE_TOKENS + UNSURE_PART * came
        self._floors = floors[:, np.newaxis] ** 2
        self._open = (np.array(rises) - came)[:, np.newaxis] + since
        self._raw_seconds, self._at_seconds = raw_seconds, at_seconds

    def _came(self, own: OwnTokens) -> FloatArray:
        """Own tokens from the last scrape as compared to each lag after its stamp."""
        total = np.concatenate(([0.0], np.cumsum(own.tokens)))
        ends = np.append(self._raw_seconds + LAGS_SECONDS, self._at_seconds)
        reached = total[np.searchsorted(own.seconds, ends, side="right")]
        return np.asarray(reached[:-1] - reached[-1], dtype=np.float64)

    def _add(self, differences: FloatArray) -> None:
        """One pair more, all of it known."""
        squares = differences**2 + self._floors
        self._pairs = LAG_KEEP * self._pairs + 1
        self._squares = LAG_KEEP * self._squares + squares
        worse = 0.5 * self._pairs * np.log(self._squares).sum(axis=0)
        best = int(worse.argmin())
        needed = LAG_EVIDENCE / (3 if self.seconds else 1)
        is_found = bool(worse[0] - worse[best] > needed)
        self.seconds = float(LAGS_SECONDS[best]) if is_found else 0.0


EXTERNAL = RequestFacts("external")

OutputRow = tuple[float, float, float, float]
"""Start, end, output tokens, and how many steps it was where none was seen."""

PromptRow = tuple[float, float, float]
"""Start, end, prompt tokens computed."""

MIN_PROMPT_TOKENS = 16.0
"""Fewer in a step are its jitter, not a prompt."""


class ExternalWork(RequestTimeline):
    """Stands in for all external requests between two scrapes."""

    __slots__ = ("output_rows", "reason")

    def __init__(
        self,
        key: int,
        began: float,
        ended: float,
        rows: tuple[list[PromptRow], list[OutputRow]],
    ) -> None:
        super().__init__(key, began, EXTERNAL)
        self.scheduled_seconds = self.first_token_seconds = began
        self.last_token_seconds = ended
        self.prefill_rows, self.output_rows = rows
        self.reason = "external"
        """Why its joules are unattributed."""
        self.close(ended)


@dataclass(frozen=True, slots=True)
class Ground:
    """Steps seen between two scrapes, and how much of each is spoken for."""

    starts: FloatArray
    ends: FloatArray
    used_seconds: FloatArray
    """What the proxy's own prompts took of each, at the speed learnt."""
    step_seconds: float
    """How long a step lasts where none was seen."""


def work_rows(found: Found, ground: Ground) -> tuple[list[PromptRow], list[OutputRow]]:
    """External work laid on the time between two scrapes.

    Output comes alike in every step, seen or not. Prompts are where time is left that
    neither the own prompts nor a plain step explain; without any they are everywhere
    alike.
    """
    start, end = found.start_seconds, found.end_seconds
    is_in = (
        (ground.ends > start) & (ground.starts < end) & (ground.ends > ground.starts)
    )
    starts = np.maximum(ground.starts[is_in], start)
    ends = np.minimum(ground.ends[is_in], end)
    lasted = (ground.ends - ground.starts)[is_in]
    parts = (ends - starts) / lasted
    gap_starts = np.concatenate(([start], ends))
    gap_ends = np.concatenate((starts, [end]))
    is_gap = gap_ends - gap_starts > ground.step_seconds / 2
    gap_starts, gap_ends = gap_starts[is_gap], gap_ends[is_gap]
    gaps = gap_ends - gap_starts
    plain = float(np.quantile(lasted, 0.25)) if len(lasted) else ground.step_seconds
    spare = parts * np.clip(lasted - ground.used_seconds[is_in] - plain, 0.0, None)
    unseen = gaps / plain
    count = parts.sum() + unseen.sum()
    if count <= 0:
        return (
            [(start, end, found.prompt_tokens)],
            [(start, end, found.output_tokens, 1.0)],
        )
    each = found.output_tokens / count
    room = np.concatenate((spare, gaps))
    if not room.any():
        room = np.concatenate((ends - starts, gaps))
    prompts = found.prompt_tokens * room / room.sum()
    is_prompt = prompts >= min(MIN_PROMPT_TOKENS, prompts.max())
    prompts *= found.prompt_tokens / max(prompts[is_prompt].sum(), 1e-300)
    # alone it makes no more steps than it has tokens, nor than there was time for
    alone = np.minimum(unseen, each * unseen)
    froms, untils = np.append(starts, gap_starts), np.append(ends, gap_ends)
    prompt_table = np.column_stack((froms, untils, prompts))[is_prompt & (prompts > 0)]
    output_table = np.column_stack(
        (
            froms,
            untils,
            np.append(each * parts, each * unseen),
            np.append(0.0 * parts, alone),
        )
    )
    return (
        [(a, b, c) for a, b, c in prompt_table.tolist()],
        [(a, b, c, d) for a, b, c, d in output_table.tolist()],
    )
