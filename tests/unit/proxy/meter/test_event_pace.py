"""Events that are read together: late steps, or one step that put out several."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from proxy.meter.activity.event_pace import EVIDENCE_READS, EventPace
from proxy.meter.activity.request import TokenLog
from tests.support.timelines import streamed, token


def read_all(
    pace: EventPace, stamps: np.ndarray, events: np.ndarray, first_seconds: float
) -> None:
    """Feed the reads of one stream, as a request does: those of several events."""
    last, before = first_seconds, 1
    for at, count in zip(stamps.tolist(), events.tolist(), strict=True):
        if count > 1 and before > 1:
            usual = (last - first_seconds) / (before - 1)
            pace.add(count, at - last, usual)
        last, before = at, before + count


@given(
    seed=st.integers(0, 10_000),
    step_seconds=st.floats(0.003, 0.2),
    late_steps=st.floats(1.0, 6.0),
    streams=st.integers(1, 20),
    prompts_part=st.floats(0.0, 0.1),
)
def test_events_that_a_late_loop_reads_together_are_steps(
    seed: int,
    step_seconds: float,
    late_steps: float,
    streams: int,
    prompts_part: float,
) -> None:
    rng, pace = np.random.default_rng(seed), EventPace()
    # steps with a long prompt take as ten plain ones
    lasted = np.where(rng.random(400) < prompts_part, 10.0, 1.0) * step_seconds
    ends = np.cumsum(lasted)
    turns = rng.exponential(late_steps * step_seconds, 4000).cumsum()
    seen = turns[np.searchsorted(turns, ends)]
    stamps, events = np.unique(seen, return_counts=True)
    for _ in range(streams):
        read_all(pace, stamps, events, first_seconds=0.0)
    assert pace.are_steps


@given(
    seed=st.integers(0, 10_000),
    step_seconds=st.floats(0.003, 0.2),
    most=st.integers(3, 8),
    jitter_part=st.floats(0.0, 0.3),
)
def test_events_that_one_step_puts_out_are_none(
    seed: int, step_seconds: float, most: int, jitter_part: float
) -> None:
    rng, pace = np.random.default_rng(seed), EventPace()
    ends = step_seconds * np.arange(1, 401) + jitter_part * step_seconds * rng.random(
        400
    )
    for _ in range(4):
        read_all(pace, ends, rng.integers(1, most + 1, 400), first_seconds=0.0)
    assert not pace.are_steps


def test_a_few_reads_are_no_evidence() -> None:
    pace = EventPace()
    for number in range(int(EVIDENCE_READS)):
        assert not pace.are_steps
        pace.add(2.0 + number, 0.01 * (2 + number), 0.01)
    assert pace.are_steps


def test_what_was_long_ago_fades() -> None:
    pace = EventPace()
    for number in range(10_000):
        pace.add(2.0 + number % 5, 0.01 * (2 + number % 5), 0.01)
    assert pace.are_steps
    for number in range(10_000):  # the engine speculates from now on
        pace.add(2.0 + number % 5, 0.04, 0.01)
    assert not pace.are_steps


def test_a_read_of_several_steps_is_a_row_for_each() -> None:
    log, request = TokenLog(), streamed()
    at, count = 0.0, 0
    for events in (1, 1, 1, *range(2, 12), 3):
        at += 0.01 * events
        counts = range(count + 1, count + events + 1)
        count += events
        request.receive(at, [token(number) for number in counts], log)
    rows = log.table()
    assert rows[:, 2].sum() == count  # each token once
    assert np.all(np.diff(rows[:, 3]) > 0)
    newest = rows[-3:]
    assert newest[:, 2].tolist() == [1.0, 1.0, 1.0]
    assert newest[:, 3].tolist() == [count - 3, count - 2, count - 1]
    assert newest[0, 0] == at
    assert 0 < newest[-1, 0] - at < 1e-5


def late_log() -> TokenLog:
    """Of an engine whose events are known to be steps each."""
    log = TokenLog()
    for number in range(20):
        log.pace.add(2.0 + number, 0.01 * (2 + number), 0.01)
    assert log.pace.are_steps
    return log


def test_events_of_parallel_sequences_are_one_step() -> None:
    log, request = late_log(), streamed(running_usage=False, sequences=4)
    for step in range(40):
        request.receive(0.01 * (step + 1), [token() for _ in range(4)], log)
    assert len(np.unique(log.seconds)) == 40
    assert request.late_part == 0.0


def test_the_part_read_late_is_what_came_behind_its_read() -> None:
    log, request = late_log(), streamed(running_usage=False)
    request.receive(0.01, [token()], log)
    request.receive(0.05, [token() for _ in range(3)], log)
    request.receive(0.06, [token()], log)
    assert request.late_part == 2 / 5
