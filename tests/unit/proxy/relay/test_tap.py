"""The time between tokens, as the copy of a reply tells it."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from proxy.engines import DIALECTS
from proxy.process.tally import Tally
from proxy.relay.counters import RelayCounters
from proxy.relay.tap import MeterGuard, Tap
from tests.support.relaying import RecordingMeter

STREAM = [(b"content-type", b"text/event-stream")]


def token(text: str = " word") -> bytes:
    chunk = {"choices": [{"index": 0, "delta": {"content": text}}]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def between_tokens(
    reads: Sequence[tuple[float, bytes]], *, is_one_sequence: bool = True
) -> Tally:
    counters = RelayCounters()
    tap = Tap(
        MeterGuard(RecordingMeter(), counters), DIALECTS["vllm"], counters, 1, 0.0, [],
        wants_stream=True, is_one_sequence=is_one_sequence,
    )  # fmt: skip
    tap.begin(200, STREAM)
    for at_seconds, data in reads:
        tap.add(at_seconds, data)
    tap.close(reads[-1][0], "ok", None)
    return counters.token_seconds


def test_the_first_token_has_no_gap_and_each_later_one_has_its_own() -> None:
    found = between_tokens([(1.0, token()), (1.02, token()), (1.07, token())])
    assert sum(found.counts) == 2
    assert found.total == pytest.approx(0.07)


def test_tokens_of_one_read_share_the_time_since_the_last() -> None:
    found = between_tokens([(1.0, token()), (1.3, token() * 3)])
    assert (sum(found.counts), max(found.counts)) == (3, 3)
    assert found.total == pytest.approx(0.3)


def test_reads_without_a_token_are_no_end_of_a_gap() -> None:
    empty = b'data: {"choices": [], "usage": {"completion_tokens": 1}}\n\n'
    found = between_tokens([(1.0, token()), (1.1, empty), (1.2, token())])
    assert sum(found.counts) == 1
    assert found.total == pytest.approx(0.2)


def test_between_tokens_of_several_sequences_nothing_is_counted() -> None:
    found = between_tokens([(1.0, token()), (1.1, token())], is_one_sequence=False)
    assert sum(found.counts) == 0


def test_parts_of_one_large_read_have_no_time_between_them() -> None:
    found = between_tokens([(1.0, token() * 400), (1.1, token())])
    assert sum(found.counts) == 1
    assert found.total == pytest.approx(0.1)
