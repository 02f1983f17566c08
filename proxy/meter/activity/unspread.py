"""When the tokens of replies in one piece are put on steps, and which those are.

Rule: the engine's own count of its steps is waited for, and while nobody streams also
the replies before it; a window that cannot wait takes what is known by then.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from proxy.meter.activity.engine_load import GaugeLog
from proxy.meter.activity.prompt_speed import PromptSpeed
from proxy.meter.activity.request import RequestTimeline
from proxy.meter.activity.seen_steps import SeenSteps
from proxy.meter.activity.unseen_steps import UnseenSteps
from proxy.meter.activity.unsettled import UnsettledRequests
from proxy.meter.activity.unstreamed import (
    StepPace,
    arrivals_of,
    first_open,
    prompt_spans,
    spread_on_unseen,
    spread_on_unseen_so_far,
    spread_so_far,
    spread_unstreamed,
    tokens_to_compute,
)
from proxy.wire.events import EngineObserved

PATIENCE_SECONDS = 3.0
"""Replies in one piece wait so long for the facts of those that came before."""

UNSEEN_SECONDS = 30.0
"""After the last stream: since then no step was seen."""


class UnspreadReplies:
    """Replies in one piece whose tokens have no place yet."""

    def __init__(
        self,
        requests: UnsettledRequests,
        seen: SeenSteps,
        gauges: GaugeLog,
        speed: PromptSpeed,
    ) -> None:
        self._requests, self._seen, self._gauges = requests, seen, gauges
        self._speed = speed
        self._pace = StepPace()
        self._unseen = UnseenSteps()
        self._unspread: list[RequestTimeline] = []
        self._streamed_seconds = -math.inf
        """When a stream was opened last."""
        self._last_scrape: EngineObserved | None = None

    def open(self, timeline: RequestTimeline) -> None:
        """A request was forwarded: a stream will show steps."""
        if timeline.is_streamed:
            self._streamed_seconds = max(
                self._streamed_seconds, timeline.arrived_seconds
            )

    def close(self, timeline: RequestTimeline, at_seconds: float) -> None:
        """A reply in one piece has come."""
        self._learn_pace(timeline)
        timeline.is_unspread = True
        self._unspread.append(timeline)
        self.spread(at_seconds)

    def observe(self, event: EngineObserved) -> None:
        """The engine tells how many steps it has made."""
        self._count_steps(event)
        self.spread(event.at_seconds)

    def spread(self, now_seconds: float, until_seconds: float = -math.inf) -> None:
        """Put tokens of replies in one piece where they were, as far as can be known.

        The engine's count of its steps is waited for: the next scrape tells it. While
        nobody streams also those who came before are waited for, for a while: what
        they had to compute was computed first. Up to `until_seconds` nothing is.
        """
        must = until_seconds > -math.inf
        if not self._unspread and not must:
            return
        known_seconds, last = now_seconds, self._last_scrape
        tells_steps = last is not None and last.gauges.steps is not None
        if last is not None and tells_steps and self._gauges.is_alive(now_seconds):
            known_seconds = last.at_seconds
        if not must and (self._unspread[0].closed_seconds or 0.0) > known_seconds:
            return  # nor is any that closed later
        is_unseen = self._is_unseen(now_seconds)
        if is_unseen:
            known_seconds = max(
                min(known_seconds, first_open(self._requests.by_key.values())),
                known_seconds - PATIENCE_SECONDS,
                min(known_seconds, until_seconds),
            )
            if not must:  # seconds of which the engine's count is known, whole
                known_seconds = self._pace.counted_until(known_seconds)
        due = [t for t in self._unspread if (t.closed_seconds or 0.0) <= known_seconds]
        if not due and not must:
            return
        if is_unseen:
            arrivals = arrivals_of(self._requests.by_key.values(), self._unseen)
            self._unseen.advance(known_seconds, arrivals, self._pace.counts)
        token_seconds = self._pace.prompt_token_seconds
        prompts: list[tuple[float, float, float]] = []
        if token_seconds is not None:
            prompts = prompt_spans(self._whole_prompts(), token_seconds)
        for timeline in due:
            timeline.is_unspread = False
            if is_unseen and spread_on_unseen(
                timeline,
                self._unseen,
                self._seen.log,
                settled_seconds=self._seen.settled_seconds,
            ):
                continue
            self._seen.absorb_until(now_seconds)
            spread_unstreamed(
                timeline,
                self._seen.book,
                self._seen.starts,
                self._seen.log,
                pace=self._pace,
                prompt_token_seconds=token_seconds or self._speed.token_seconds,
                settled_seconds=self._seen.settled_seconds,
                prompts=prompts,
            )
        self._unspread = [each for each in self._unspread if each.is_unspread]

    def spread_open(self, end_seconds: float, among: Iterable[RequestTimeline]) -> None:
        """A window cannot wait for a reply in one piece: it decodes, as far as known.

        Its tokens so far are guessed, one in each step; those left come later.
        """
        span = self._seen.settled_seconds, end_seconds
        whole = [
            timeline
            for timeline in among
            if not timeline.is_streamed
            and (timeline.closed_seconds is None or timeline.is_unspread)
        ]
        is_unseen = bool(whole) and self._is_unseen(self._seen.now_seconds)
        for timeline in whole:
            if is_unseen and spread_on_unseen_so_far(
                timeline, self._unseen, self._seen.log, span=span
            ):
                continue
            spread_so_far(
                timeline,
                self._seen.book,
                self._seen.starts,
                self._seen.log,
                pace=self._pace,
                prompt_token_seconds=self._speed.token_seconds,
                span=span,
            )
        if whole:
            self._seen.absorb_until(max(end_seconds, self._seen.until_seconds))

    def _is_unseen(self, now_seconds: float) -> bool:
        """Whether steps are made up, as no stream has shown any for some time."""
        if now_seconds < self._streamed_seconds + UNSEEN_SECONDS or any(
            timeline.is_streamed for timeline in self._requests.by_key.values()
        ):
            self._unseen.restart()
            return False
        return True

    def _whole_prompts(self) -> list[tuple[float, float]]:
        """Arrival and tokens of the prompts of replies in one piece, in order."""
        whole = [
            each
            for each in self._requests.by_key.values()
            if not each.is_streamed and not each.is_refused
        ]
        arrived = (each.arrived_seconds for each in whole)
        return sorted(zip(arrived, tokens_to_compute(whole), strict=True))

    def _learn_pace(self, timeline: RequestTimeline) -> None:
        """A reply in one piece has ended: it took so long for so many tokens."""
        output, closed = timeline.output_tokens, timeline.closed_seconds
        if output and closed is not None and not timeline.is_cut:
            self._pace.reply(
                float(timeline.prompt_tokens or 0),
                output / timeline.sequences,
                closed - timeline.arrived_seconds,
            )

    def _count_steps(self, event: EngineObserved) -> None:
        """What the engine's count of its steps says of their length."""
        last, self._last_scrape = self._last_scrape, event
        if last is None or last.gauges.steps is None or event.gauges.steps is None:
            return
        start_seconds, end_seconds = last.at_seconds, event.at_seconds
        spans = sorted(
            (max(timeline.arrived_seconds, start_seconds), min(left, end_seconds))
            for timeline in self._requests.by_key.values()
            for left in (timeline.left_seconds or end_seconds,)
        )
        busy_seconds, until_seconds = 0.0, start_seconds
        for began, ended in spans:
            busy_seconds += max(ended - max(began, until_seconds), 0.0)
            until_seconds = max(until_seconds, ended)
        steps = event.gauges.steps - last.gauges.steps
        prompts = (event.gauges.prompt_tokens or 0.0) - (last.gauges.prompt_tokens or 0)
        cached = (event.gauges.cached_tokens or 0.0) - (last.gauges.cached_tokens or 0)
        self._pace.count(
            start_seconds, end_seconds, steps, busy_seconds, max(prompts - cached, 0.0)
        )

    def forget(self, before_seconds: float) -> None:
        """Drop steps that were made up, of time that is settled."""
        self._unseen.forget(before_seconds, self._requests.by_key)
