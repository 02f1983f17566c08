"""The proxy's own tokens, counted as the engine counts them: to compare the two.

Rule: vLLM adds a prompt, cached tokens included, when its first token comes, once for
each of `n` outputs, and output as it comes, for whoever asked. What was settled is
kept as it was settled; the rest is counted anew each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from proxy.meter.activity.external import UNSURE_TOKENS, OwnTokens
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

    def forget(self, before_seconds: float) -> None:
        """Drop what was before an instant."""
        self.items = [one for one in self.items if one[0] > before_seconds]
        self.spans = [one for one in self.spans if one[1] > before_seconds]
        self.unsure = [one for one in self.unsure if one[0] > before_seconds]


@dataclass(frozen=True, slots=True)
class Count:
    """The own tokens around some scrapes."""

    prompts: OwnTokens
    outputs: OwnTokens


class OwnCount:
    """Own tokens since the last scrape that was compared."""

    def __init__(self) -> None:
        self._prompts, self._outputs = _Columns(), _Columns()
        self._reads = np.empty((0, 2))

    def settle(
        self,
        requests: Mapping[int, RequestTimeline],
        steps: Steps,
        start_seconds: float,
        end_seconds: float,
    ) -> None:
        """Keep what is known of a stretch that becomes settled."""
        low, high = np.searchsorted(
            steps.seconds, (start_seconds, end_seconds), side="right"
        )
        reads = _reads(
            steps.seconds[low:high],
            steps.keys[low:high],
            steps.tokens[low:high],
            requests,
        )
        self._reads = np.concatenate((self._reads, reads))
        _add_requests(
            self._prompts, self._outputs, requests.values(), start_seconds, end_seconds
        )

    def with_live(
        self,
        requests: Mapping[int, RequestTimeline],
        steps: Steps,
        log: TokenLog,
        settled_seconds: float,
    ) -> Count:
        """All that is known now, settled or not."""
        low = int(np.searchsorted(steps.seconds, settled_seconds, side="right"))
        table = log.table()
        later = table[table[:, 0] > settled_seconds]
        live = _reads(
            np.concatenate((steps.seconds[low:], later[:, 0])),
            np.concatenate((steps.keys[low:], later[:, 1].astype(np.int64))),
            np.concatenate((steps.tokens[low:], later[:, 2])),
            requests,
        )
        prompts = _Columns(
            list(self._prompts.items),
            list(self._prompts.spans),
            list(self._prompts.unsure),
        )
        outputs = _Columns([], list(self._outputs.spans), list(self._outputs.unsure))
        _add_requests(prompts, outputs, requests.values(), settled_seconds, np.inf)
        for request in requests.values():
            if request.closed_seconds is None and not request.is_streamed:
                arrived = request.arrived_seconds
                prompts.spans.append((arrived, np.inf, MAX_PROMPT_TOKENS))
                more = MAX_OUTPUT_TOKENS * request.sequences
                outputs.spans.append((arrived, np.inf, more))
        items = np.array(prompts.items, np.float64).reshape(-1, 2)
        return Count(
            _own(items, prompts), _own(np.concatenate((self._reads, live)), outputs)
        )

    def forget(self, before_seconds: float) -> None:
        """Drop what no later scrape asks for."""
        self._prompts.forget(before_seconds)
        self._outputs.forget(before_seconds)
        self._reads = self._reads[self._reads[:, 0] > before_seconds]


def _reads(
    seconds: FloatArray,
    keys: np.ndarray[tuple[int], np.dtype[np.int64]],
    tokens: FloatArray,
    requests: Mapping[int, RequestTimeline],
) -> FloatArray:
    """Stamps and tokens as the engine counts them, shape (reads, 2)."""
    scales = sorted(
        (key, request.token_scale)
        for key, request in requests.items()
        if request.closed_seconds is not None and request.token_scale != 1.0
    )
    if scales:
        scaled, scale = (
            np.array([key for key, _ in scales], np.int64),
            np.array([scale for _, scale in scales]),
        )
        place = np.minimum(np.searchsorted(scaled, keys), len(scaled) - 1)
        tokens = tokens * np.where(scaled[place] == keys, scale[place], 1.0)
    return np.column_stack((seconds, tokens))


def _own(items: FloatArray, columns: _Columns) -> OwnTokens:
    order = np.argsort(items[:, 0], kind="stable")
    return OwnTokens(
        items[order, 0],
        items[order, 1],
        np.array(columns.spans, np.float64).reshape(-1, 3),
        np.array(columns.unsure, np.float64).reshape(-1, 2),
    )


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
        outputs.unsure.append((closed, _unsure_output(request)))
        if not request.is_streamed:
            arrived = request.arrived_seconds
            prompts.spans.append((arrived, closed, float(told or 0)))
            output = float(request.output_tokens or 0)
            outputs.spans.append((arrived, closed, output))


def _unsure_output(request: RequestTimeline) -> float:
    """How many tokens the engine may have counted more for it, or fewer."""
    unsure = UNSURE_TOKENS * request.sequences
    first, last = request.first_token_seconds, request.last_token_seconds
    if request.is_cut:
        pace = 0.0
        if first is not None and last is not None and last > first:
            pace = request.counted_tokens / (last - first)
        unsure += max(pace * RUN_ON_SECONDS, RUN_ON_TOKENS * request.sequences)
    return unsure
