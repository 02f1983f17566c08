"""The proxy's own tokens, counted as the engine counts them: to compare the two.

Rule: vLLM adds a prompt, cached tokens included, when its first token comes, once for
each of `n` outputs, and output as it comes, for whoever asked. What was settled is
kept as it was settled; the rest is counted anew each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from proxy.meter.activity.external import UNSURE_TOKENS, OwnTokens
from proxy.meter.activity.late_reads import (
    STEP_PACE,
    Instant,
    Late,
    Reads,
    late_output,
    late_prompts,
    no_reads,
    order_of_keys,
    unread_tokens,
)
from proxy.meter.activity.request import RequestTimeline, TokenLog
from proxy.meter.activity.steps import FloatArray, Steps

RUN_ON_SECONDS = 0.5
"""An engine that notices that a client left has stopped by then (0.2 to 0.3 s)."""

RUN_ON_TOKENS = 16.0
"""Computed meanwhile by one that had given few tokens or none."""

MAX_PROMPT_TOKENS, MAX_OUTPUT_TOKENS = 32_768.0, 8_192.0
"""Of a reply in one piece that has not come: nobody knows more of it."""


@dataclass(slots=True)
class _Columns:
    """Tokens of one kind, in no order."""

    items: list[tuple[float, float]] = field(default_factory=list)
    """When, and how many."""
    spans: list[tuple[float, float, float]] = field(default_factory=list)
    unsure: list[tuple[float, float]] = field(default_factory=list)
    unread: list[tuple[float, float]] = field(default_factory=list)
    """Of these the ones that were made and never read."""

    def copied(self) -> _Columns:
        """The same, to add to."""
        return _Columns(
            list(self.items), list(self.spans), list(self.unsure), list(self.unread)
        )

    def own(self, seconds: FloatArray, tokens: FloatArray, late: Late) -> OwnTokens:
        """Tokens in order of time, beside what is known of them."""
        return OwnTokens(
            seconds,
            tokens,
            np.array(self.spans, np.float64).reshape(-1, 3),
            np.array(self.unsure, np.float64).reshape(-1, 2),
            np.array(self.unread, np.float64).reshape(-1, 2),
            late,
        )

    def forget(self, before_seconds: float) -> None:
        """Drop what was before an instant."""
        self.items = [one for one in self.items if one[0] > before_seconds]
        self.spans = [one for one in self.spans if one[1] > before_seconds]
        self.unsure = [one for one in self.unsure if one[0] > before_seconds]
        self.unread = [one for one in self.unread if one[0] > before_seconds]


@dataclass(frozen=True, slots=True)
class Count:
    """The own tokens around some scrapes."""

    prompts: OwnTokens
    outputs: OwnTokens


class OwnCount:
    """Own tokens since the last scrape that was compared."""

    def __init__(self) -> None:
        self._prompts, self._outputs = _Columns(), _Columns()
        self._reads = no_reads()
        self._left: dict[int, RequestTimeline] = {}
        """Requests that left, and closed after the last scrape that was compared."""

    def leave(self, request: RequestTimeline) -> None:
        """A request has its record; a scrape of its time may still be compared."""
        self._left[request.key] = request

    def settle(
        self,
        requests: Mapping[int, RequestTimeline],
        steps: Steps,
        start_seconds: float,
        end_seconds: float,
    ) -> None:
        """Keep what is known of a stretch that becomes settled."""
        requests = {**self._left, **requests}
        low, high = np.searchsorted(
            steps.seconds, (start_seconds, end_seconds), side="right"
        )
        self._reads += _scaled(_reads_of(steps, int(low), int(high)), requests)
        _add_requests(
            self._prompts, self._outputs, requests.values(), start_seconds, end_seconds
        )

    def with_live(
        self,
        requests: Mapping[int, RequestTimeline],
        steps: Steps,
        log: TokenLog,
        settled_seconds: float,
        at: Instant,
    ) -> Count:
        """All that is known now, settled or not, to compare at a scrape."""
        requests = {**self._left, **requests}
        low = int(np.searchsorted(steps.seconds, settled_seconds, side="right"))
        table = log.table()
        later = table[table[:, 0] > settled_seconds]
        logged = Reads(
            later[:, 0], later[:, 2], later[:, 1].astype(np.int64), later[:, 3]
        )
        live = _scaled(_reads_of(steps, low) + logged, requests)
        prompts, outputs = self._prompts.copied(), self._outputs.copied()
        _add_requests(prompts, outputs, requests.values(), settled_seconds, np.inf)
        for request in requests.values():
            if request.closed_seconds is None and not request.is_streamed:
                arrived = request.arrived_seconds
                prompts.spans.append((arrived, np.inf, MAX_PROMPT_TOKENS))
                more = MAX_OUTPUT_TOKENS * request.sequences
                outputs.spans.append((arrived, np.inf, more))
        reads = self._reads + live
        reads = reads.by_time()
        output = late_output(reads, _unread(requests.values(), at), at)
        items = np.array(prompts.items, np.float64).reshape(-1, 2)
        items = items[np.argsort(items[:, 0], kind="stable")]
        return Count(
            prompts.own(
                items[:, 0],
                items[:, 1],
                late_prompts(items[:, 0], items[:, 1], output.behind_until_seconds, at),
            ),
            outputs.own(reads.seconds, reads.tokens, output.late),
        )

    def forget(
        self, requests: Mapping[int, RequestTimeline], before_seconds: float
    ) -> None:
        """Drop what no later scrape asks for; the newest read of who is there stays."""
        self._prompts.forget(before_seconds)
        self._outputs.forget(before_seconds)
        self._left = {
            key: request
            for key, request in self._left.items()
            if (request.closed_seconds or 0.0) > before_seconds
        }
        reads = self._reads
        is_kept = reads.seconds > before_seconds
        if is_kept.all():
            return
        old = np.flatnonzero(~is_kept)
        old = old[order_of_keys(reads.keys[old])]
        newest = old[np.diff(reads.keys[old], append=-1) != 0]
        there = [
            key
            for key, request in {**self._left, **requests}.items()
            if request.closed_seconds is None or request.closed_seconds > before_seconds
        ]
        newest = newest[np.isin(reads.keys[newest], np.array(there, np.int64))]
        is_kept[newest] = True
        self._reads = reads.of(is_kept)


def _reads_of(steps: Steps, low: int, high: int | None = None) -> Reads:
    return Reads(
        steps.seconds[low:high],
        steps.tokens[low:high],
        steps.keys[low:high],
        steps.before[low:high],
    )


def _scaled(reads: Reads, requests: Mapping[int, RequestTimeline]) -> Reads:
    """The same with tokens as the engine counts them."""
    scales = sorted(
        (key, request.token_scale)
        for key, request in requests.items()
        if request.closed_seconds is not None and request.token_scale != 1.0
    )
    if not scales:
        return reads
    scaled, scale = (
        np.array([key for key, _ in scales], np.int64),
        np.array([scale for _, scale in scales]),
    )
    place = np.minimum(np.searchsorted(scaled, reads.keys), len(scaled) - 1)
    factor = np.where(scaled[place] == reads.keys, scale[place], 1.0)
    return replace(reads, tokens=reads.tokens * factor)


def _unread(
    requests: Iterable[RequestTimeline], at: Instant
) -> Iterator[RequestTimeline]:
    """Streams of which tokens may have been waiting at an instant, still unread."""
    for request in requests:
        closed = request.closed_seconds
        read_until = at.seconds if request.is_cut else at.known_seconds
        if request.is_streamed and (closed is None or closed > read_until):
            yield request


def _add_requests(
    prompts: _Columns,
    outputs: _Columns,
    requests: Iterable[RequestTimeline],
    start_seconds: float,
    end_seconds: float,
) -> None:
    """What is known of whole requests: prompts, guesses and doubts of a stretch."""
    for request in requests:
        if request.is_refused:
            continue
        closed = request.closed_seconds
        first = request.first_token_seconds
        computed = closed if first is None else first
        told = request.prompt_tokens
        if computed is not None and start_seconds < computed <= end_seconds:
            if told is None:
                prompts.unsure.append((computed, np.inf))
            elif first is not None or not request.is_cut:
                prompts.items.append((computed, float(told)))
                more = (request.sequences - 1.0) * told
                prompts.unsure.append((computed, more + UNSURE_TOKENS))
            else:
                prompts.unsure.append((computed, float(told)))
        if closed is None or not start_seconds < closed <= end_seconds:
            continue
        unread = _unread_output(request)
        outputs.unread.append((closed, unread))
        outputs.unsure.append((closed, _unsure_output(request) + unread))
        if not request.is_streamed:
            arrived = request.arrived_seconds
            prompts.spans.append((arrived, closed, float(told or 0)))
            output = float(request.output_tokens or 0)
            outputs.spans.append((arrived, closed, output))


def _pace_of(request: RequestTimeline) -> float | None:
    """Tokens a second, as they were read; None: it had too few."""
    first, last = request.first_token_seconds, request.last_token_seconds
    if first is None or last is None or last <= first:
        return None
    return request.counted_tokens / (last - first)


def _unread_output(request: RequestTimeline) -> float:
    """How many tokens of one that broke off came while nobody read them."""
    last, closed = request.last_token_seconds, request.closed_seconds
    if not request.is_cut or not request.is_streamed or last is None or closed is None:
        return 0.0
    pace = _pace_of(request) or STEP_PACE * request.sequences
    return unread_tokens(pace, closed - last)


def _unsure_output(request: RequestTimeline) -> float:
    """How many tokens the engine may have counted more for it, or fewer."""
    unsure = UNSURE_TOKENS * request.sequences
    if request.is_cut:
        pace = _pace_of(request) or 0.0
        unsure += max(pace * RUN_ON_SECONDS, RUN_ON_TOKENS * request.sequences)
    return unsure
