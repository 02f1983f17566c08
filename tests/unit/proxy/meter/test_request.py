"""Tokens of one request, counted as they come, and what its stamps are worth."""

from __future__ import annotations

import pytest

from proxy.meter.activity.request import (
    RequestTimeline,
    TokenLog,
)
from proxy.wire.facts import PhaseSeconds, RequestFacts, Update, Usage
from tests.support.timelines import streamed, token


def test_running_usage_counts_exactly_whatever_the_events_carry() -> None:
    request, log = streamed(), TokenLog()
    request.receive(1.0, [Update(usage=Usage(10, 0))], log)  # role only
    request.receive(1.1, [token(1)], log)
    request.receive(1.2, [token(4)], log)  # one event, three tokens
    request.receive(1.3, [token(5), token(7)], log)  # one read, two events
    assert list(log.tokens) == [1.0, 3.0, 1.0, 2.0]
    assert list(log.before) == [0.0, 1.0, 4.0, 5.0]
    assert list(log.seconds) == [1.1, 1.2, 1.3, 1.3]
    assert request.first_token_seconds == 1.1
    assert request.last_token_seconds == 1.3
    assert request.token_scale == 1.0


def test_without_usage_an_event_is_a_token_until_the_usage_corrects_it() -> None:
    request, log = streamed(running_usage=False), TokenLog()
    for number in range(4):
        request.receive(1.0 + number, [token()], log)
    final = Update(is_usage_only=True, usage=Usage(10, 6))
    request.receive(5.0, [final], log)
    assert request.token_scale == 1.0
    request.close(5.0)
    assert list(log.tokens) == [1.0] * 4
    assert request.token_scale == 1.5


def test_an_event_that_counts_its_own_tokens_is_believed() -> None:
    request, log = streamed(running_usage=False), TokenLog()
    request.receive(1.0, [Update(carries_token=True, tokens=3)], log)
    assert list(log.tokens) == [3.0]


def test_usage_on_events_of_parallel_sequences_is_not_their_sum() -> None:
    request, log = streamed(sequences=2), TokenLog()
    request.receive(1.0, [token(1), token(1)], log)
    request.receive(1.1, [token(2), token(2)], log)
    request.receive(1.2, [Update(is_usage_only=True, usage=Usage(10, 4))], log)
    request.close(1.2)
    assert list(log.tokens) == [1.0, 1.0, 1.0, 1.0]
    assert request.output_tokens == 4
    assert request.token_scale == 1.0


def test_usage_forced_by_the_server_is_noticed() -> None:
    request, log = streamed(running_usage=False), TokenLog()
    request.receive(1.0, [token(1)], log)
    request.receive(1.1, [token(3)], log)
    assert list(log.tokens) == [1.0, 2.0]
    assert request.is_exact_so_far


def test_phase_times_and_cached_tokens_are_kept() -> None:
    request, log = streamed(), TokenLog()
    request.receive(1.0, [token(1)], log)
    last = Update(
        is_usage_only=True,
        usage=Usage(100, 1, 64),
        phases=PhaseSeconds(prefill_seconds=0.25),
    )
    request.receive(1.1, [last], log)
    assert (request.prefill_seconds, request.cached_tokens) == (0.25, 64)
    assert request.has_late_facts


def stalled(stopped: float, decode_seconds: float | None) -> RequestTimeline:
    """Ten tokens a tenth apart from 2.0 s; the proxy stood still until `stopped`."""
    facts = RequestFacts("chat", is_stream=True, has_running_usage=True)
    timeline, log = RequestTimeline(1, 1.5, facts), TokenLog()
    for number in range(10):
        at = max(2.0 + number / 10, stopped)
        usage = Usage(100, number + 1, 0)
        timeline.receive(at, (Update(carries_token=True, usage=usage),), log)
    phases = PhaseSeconds(prefill_seconds=0.4, decode_seconds=decode_seconds)
    timeline.receive(2.9, (Update(phases=phases, is_usage_only=True),), log)
    timeline.close(2.9)
    return timeline


def test_a_first_read_that_came_late_is_put_where_the_engine_says() -> None:
    assert stalled(2.25, 0.9).first_token_seconds == pytest.approx(2.0)
    assert stalled(2.25, None).first_token_seconds == 2.25
    assert stalled(0.0, 0.9).first_token_seconds == 2.0


def test_no_record_of_late_reads_is_called_exact() -> None:
    placed = stalled(2.25, 0.9)
    placed.is_placed_as_told = True
    assert not placed.is_scheduled_exact
    in_time = stalled(0.0, 0.9)
    in_time.is_placed_as_told = True
    assert in_time.is_scheduled_exact
