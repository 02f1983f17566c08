"""Prompts put into steps, and the work that is found there."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.meter.activity.placement import PromptPlacement, Seen, step_starts
from proxy.meter.activity.request import Pause, RequestTimeline, TokenLog
from proxy.meter.activity.steps import StepBook
from proxy.meter.activity.work import (
    Activity,
    activity_between,
    busy_seconds_until,
    population_of,
)
from proxy.wire.facts import PhaseSeconds, Update, Usage
from tests.support.timelines import streamed, token


def scene(
    requests: list[tuple[float, int, list[float]]],
) -> tuple[list[RequestTimeline], StepBook]:
    """(arrived, prompt tokens, token stamps) of each, all finished and placed."""
    log = TokenLog()
    timelines = []
    for key, (arrived, prompt, stamps) in enumerate(requests, start=1):
        request = streamed(key, arrived)
        for count, at in enumerate(stamps, start=1):
            request.receive(at, [token(count, prompt)], log)
        request.close(stamps[-1] if stamps else arrived + 1.0)
        timelines.append(request)
    book = StepBook()
    book.absorb(log, 1e9)
    starts = step_starts(
        book.steps,
        np.array([request.key for request in timelines], np.int64),
        np.array([request.arrived_seconds for request in timelines]),
    )
    seen = Seen(book.steps, starts, -np.inf, np.inf)
    PromptPlacement().place(timelines, seen)
    return timelines, book


def work(
    timelines: list[RequestTimeline], book: StepBook, start: float, end: float
) -> Activity:
    population = population_of(timelines)
    starts = step_starts(book.steps, population.keys, population.arrived_seconds)
    return activity_between(start, end, population, book.steps, starts)


def test_nobody_joins_a_step_that_is_under_way() -> None:
    decoding = [0.1 * number for number in range(1, 30)]
    (_, late), _ = scene([(0.0, 10, decoding), (1.04, 500, [1.3])])
    assert late.scheduled_seconds is not None
    assert late.scheduled_seconds >= 1.1 - 1e-9


def test_a_prompt_behind_another_one_waits_for_it() -> None:
    (first, second), _ = scene([(0.0, 4000, [0.24]), (0.01, 4000, [0.48])])
    assert first.scheduled_seconds == pytest.approx(0.0)
    assert second.scheduled_seconds == pytest.approx(0.24)


def test_prompts_that_end_in_one_step_share_its_room() -> None:
    (first, second), book = scene([(0.0, 1000, [0.2]), (0.0, 1000, [0.2001])])
    did = work([first, second], book, 0.0, 0.3)
    assert did.prefill_tokens.tolist() == pytest.approx([1000.0, 1000.0])
    assert did.prefill_steps.tolist() == pytest.approx([0.5, 0.5])


def chunked(prompts: list[tuple[float, float]]) -> list[tuple[float, int, list[float]]]:
    """A stream, and prompts cut into chunks of 2,000 tokens beside it.

    (arrived, tokens) of each, none in sight of another; a plain step takes 10 ms, a
    token 30 us, and its context 2 ns for each token.
    """
    clock, stamps, asked = 0.0, [], []
    for arrived, tokens in prompts:
        while clock < arrived:
            clock += 0.01
            stamps.append(clock)
        done = 0.0
        while done < tokens:
            chunk = min(2000.0, tokens - done)
            own = 3e-5 * chunk + 2e-9 * chunk * (done + chunk / 2)
            clock += float(np.hypot(own, 0.01))
            stamps.append(clock)
            done += chunk
        asked.append((arrived, int(tokens), [clock]))
    return [(-1.0, 1, stamps), *asked]


def test_chunks_of_a_long_prompt_are_alike_though_later_ones_take_longer() -> None:
    shorter = [(1.0 * number, 150.0 * number) for number in range(1, 25)]
    timelines, _ = scene(chunked([*shorter, (30.0, 8100.0)]))
    rows = sorted(timelines[-1].prefill_rows)
    assert len(rows) == 5
    *chunks, rest = [taken for *_, taken in rows]
    assert chunks == pytest.approx([2000] * 4, rel=0.03)
    assert 0 < rest < 200


def test_a_queue_fills_steps_alike_though_their_stamps_are_late() -> None:
    rng = np.random.default_rng(5)
    lengths = [50.0 * number for number in range(1, 25)]
    lengths += rng.integers(100, 5000, 200).tolist()
    arrived = [1.0 * number for number in range(1, 25)] + [40.0] * 200
    asked, clock, stamps = [], 0.0, [0.01]
    left, number = lengths[0], 0
    while number < len(lengths):
        clock = max(clock, arrived[number])
        while stamps[-1] + 0.01 < clock:
            stamps.append(stamps[-1] + 0.01)
        room, ended = 2000.0, []
        while number < len(lengths) and arrived[number] <= clock and room > 0:
            chunk = min(left, room)
            room, left = room - chunk, left - chunk
            if left <= 0:
                ended.append(number)
                number += 1
                left = lengths[number] if number < len(lengths) else 0.0
        clock += float(np.hypot(3e-5 * (2000.0 - room), 0.01))
        late = clock + rng.uniform(0.0, 0.008)  # of 60 ms
        stamps.append(late)
        for each in ended:
            asked.append((arrived[each], int(lengths[each]), [late]))
    timelines, book = scene([(-1.0, 1, stamps), *asked])
    ends = book.steps.end_seconds
    taken = np.zeros(len(ends))
    for timeline in timelines[1:]:
        for _, end, tokens in timeline.prefill_rows:
            taken[np.searchsorted(ends, end)] += tokens
    full = taken[ends > 43.0][:-1]
    assert len(full) > 150
    assert full[:150] == pytest.approx(np.full(150, 2000.0), rel=0.01)


def test_who_ends_in_the_last_step_of_a_longer_prompt_is_computed_there() -> None:
    shorter = [(1.0 * number, 150.0 * number) for number in range(1, 25)]
    asked = chunked([*shorter, (30.0, 4500.0)])
    end = asked[-1][2][0]
    begun = asked[0][2][-2]  # its last step
    asked.append((begun - 0.001, 400, [end + 0.0002]))
    timelines, _ = scene(asked)
    ((start, _, tokens),) = timelines[-1].prefill_rows
    assert start == pytest.approx(begun)
    assert tokens == pytest.approx(400)


def test_only_uncached_prompt_tokens_are_computed() -> None:
    log, book = TokenLog(), StepBook()
    request = streamed()
    request.receive(0.5, [Update(True, usage=Usage(1000, 1, 900))], log)
    request.close(0.5)
    book.absorb(log, 9.0)
    starts = step_starts(book.steps, np.array([1]), np.array([0.0]))
    PromptPlacement().place([request], Seen(book.steps, starts, -np.inf, np.inf))
    assert work([request], book, 0.0, 1.0).prefill_tokens.tolist() == [100.0]


def test_phase_times_of_the_engine_say_when_a_request_was_scheduled() -> None:
    log, book = TokenLog(), StepBook()
    request = streamed()
    phases = PhaseSeconds(prefill_seconds=0.2)
    request.receive(1.0, [token(1)], log)
    request.receive(1.0, [Update(usage=Usage(10, 1), phases=phases)], log)
    request.close(1.0)
    book.absorb(log, 9.0)
    starts = step_starts(book.steps, np.array([1]), np.array([0.0]))
    PromptPlacement().place([request], Seen(book.steps, starts, -np.inf, np.inf))
    assert request.scheduled_seconds == pytest.approx(0.8)
    assert request.is_scheduled_exact


def test_a_refused_request_never_ran_and_an_unanswered_one_did_a_part() -> None:
    refused, unanswered = streamed(1, 0.0), streamed(2, 2.0)
    refused.close(0.1, is_refused=True)
    unanswered.close(2.01)
    unanswered.prompt_tokens = 10_000
    book = StepBook()
    seen = Seen(book.steps, np.empty(0), -np.inf, np.inf)
    placement = PromptPlacement()
    placement.place([refused, unanswered], seen)
    assert refused.scheduled_seconds == 0.1
    assert refused.prefill_rows == []
    assert unanswered.scheduled_seconds == 2.0
    tokens = unanswered.prefill_rows[0][2]
    assert tokens == pytest.approx(0.01 / placement.speed.token_seconds)


def test_a_pause_while_others_decode_is_a_preemption() -> None:
    others = [0.02 * number for number in range(1, 60)]
    paused = [0.1, 0.12, 0.14, 0.80, 0.82]
    (_, set_aside), book = scene([(0.0, 50, others), (0.05, 800, paused)])
    assert set_aside.stalls
    began, ended = set_aside.stalls[0]
    assert began == pytest.approx(0.14)
    assert 0.7 < ended < 0.80
    did = work(scene([(0.0, 50, others), (0.05, 800, paused)])[0], book, 0.0, 2.0)
    assert did.prefill_tokens[1] == pytest.approx(800 + 803)


def test_what_is_computed_again_fits_into_one_step_and_yields_a_token() -> None:
    others = [0.02 * number for number in range(1, 60)]
    paused = [0.1, 0.12, 0.14, 0.80, 0.82]
    timelines, book = scene([(0.0, 50, others), (0.05, 800, paused)])
    did = work(timelines, book, 0.0, 2.0)
    last = max(timelines[1].prefill_rows)
    assert list(last) == pytest.approx([0.78, 0.80, 803.0])
    # of five tokens, the first and the fourth came out of a prefill
    assert did.decode_tokens[1] == pytest.approx(3)
    assert did.output_tokens[1] == pytest.approx(5)


def test_what_is_too_much_for_a_step_is_computed_again_in_several() -> None:
    others = [0.02 * number for number in range(1, 60)]
    paused = [0.1, 0.12, 0.14, 0.80, 0.82]
    timelines, _ = scene([(0.0, 50, others), (0.05, 5000, paused)])
    rows = [row for row in timelines[1].prefill_rows if row[0] > 0.14]
    assert sum(tokens for *_, tokens in rows) == pytest.approx(5003)
    assert [round(end, 6) for _, end, _ in sorted(rows)] == [0.76, 0.78, 0.8]


@pytest.mark.parametrize("late", [False, True])
def test_a_short_pause_beside_reads_that_had_waited_is_none(*, late: bool) -> None:
    log, timelines = TokenLog(), [streamed(1), streamed(2), streamed(3)]
    paused, beside, steady = timelines
    paused.notes_short_pauses = True
    for number in range(1, 60):
        at = 0.02 * number
        steady.receive(at, [token()], log)
        if number != 40:
            paused.receive(at, [token()], log)
        if not late or number != 40:  # else it is read with the next one
            tokens = 2 if late and number == 41 else 1
            beside.receive(at, [token()] * tokens, log)
    book = StepBook()
    book.absorb(log, 9.0)
    starts = step_starts(book.steps, np.array([1, 2, 3]), np.zeros(3))
    asked: list[Pause] = []

    def note(pause: Pause, missed_seconds: float) -> bool:
        asked.append(pause)
        return True

    seen = Seen(book.steps, starts, -np.inf, np.inf, was_set_aside=note)
    PromptPlacement().place(timelines, seen)
    assert len(asked) == (0 if late else 1)


@given(
    streams=st.lists(
        st.lists(st.booleans(), min_size=60, max_size=60), min_size=3, max_size=6
    ),
    seed=st.integers(0, 99),
)
def test_who_is_left_out_of_a_step_is_known_however_reads_jitter(
    streams: list[list[bool]], seed: int
) -> None:
    """Each stream is left out of some of the steps from the 20th on; one of none."""
    rng = np.random.default_rng(seed)
    takes_part = np.array([[True] * 60, *streams])
    takes_part[:, :20] = True
    log, timelines = TokenLog(), []
    for key, steps in enumerate(takes_part, start=1):
        request = streamed(key)
        request.notes_short_pauses = True
        at = 0.02 * (np.flatnonzero(steps) + 1) + rng.uniform(0, 0.001, steps.sum())
        for count, seconds in enumerate(at.tolist(), start=1):
            request.receive(seconds, [token(count)], log)
        request.close(2.0)
        timelines.append(request)
    book = StepBook()
    book.absorb(log, 9.0)
    keys = np.arange(1, len(takes_part) + 1)
    starts = step_starts(book.steps, keys, np.zeros(len(keys)))
    found: list[tuple[float, float]] = []

    def note(pause: Pause, missed_seconds: float) -> bool:
        found.append((pause.stopped_seconds, missed_seconds))
        return True

    seen = Seen(book.steps, starts, -np.inf, np.inf, was_set_aside=note)
    PromptPlacement().place(timelines, seen)
    missed = []
    for steps in takes_part:
        own = np.flatnonzero(steps)
        missed += [int(step) for step in own[:-1][np.diff(own) > 1]]
    assert sorted(round(stop / 0.02) - 1 for stop, _ in found) == sorted(missed)
    for stop, first in found:
        assert 0.018 < first - stop < 0.022


def test_a_stream_that_is_always_slow_does_not_pause() -> None:
    request, log = streamed(), TokenLog()
    for number in range(20):
        request.receive(0.2 * number, [token()], log)
    request.receive(5.0, [token()], log)
    # the first gap has nothing to be compared with
    assert [stop for stop, *_ in request.pauses] == pytest.approx([0.0, 3.8])


def test_a_pause_that_ends_with_several_tokens_hid_them() -> None:
    log = TokenLog()
    steady, bursty = streamed(1), streamed(2)
    for count in range(1, 60):
        steady.receive(0.02 * count, [token(count)], log)
    bursty.receive(0.02, [token(1)], log)
    bursty.receive(0.80, [token(40)], log)
    assert bursty.pauses == []


# --- activity ------------------------------------------------------------------------


@st.composite
def scenes(draw: st.DrawFn) -> list[tuple[float, int, list[float]]]:
    made = []
    for _ in range(draw(st.integers(1, 5))):
        arrived = draw(st.floats(0.0, 1.0))
        first = arrived + draw(st.floats(0.005, 0.5))
        count = draw(st.integers(1, 30))
        made.append(
            (
                arrived,
                draw(st.integers(1, 3000)),
                [first + 0.021 * number for number in range(count)],
            )
        )
    return made


def totals(did: Activity) -> dict[str, np.ndarray]:
    return {name: getattr(did, name) for name in Activity.__dataclass_fields__}


@given(made=scenes(), cut=st.floats(0.0, 2.0))
def test_an_interval_may_be_cut_anywhere(
    made: list[tuple[float, int, list[float]]], cut: float
) -> None:
    timelines, book = scene(made)
    whole = totals(work(timelines, book, -1.0, 5.0))
    before = totals(work(timelines, book, -1.0, cut))
    after = totals(work(timelines, book, cut, 5.0))
    for name, amounts in whole.items():
        assert before[name] + after[name] == pytest.approx(amounts, abs=1e-6)


@given(made=scenes())
def test_all_work_is_found_and_counted_once(
    made: list[tuple[float, int, list[float]]],
) -> None:
    timelines, book = scene(made)
    did = work(timelines, book, -1.0, 5.0)
    outputs = [len(stamps) for _, _, stamps in made]
    assert did.output_tokens == pytest.approx(outputs)
    assert did.decode_tokens == pytest.approx([count - 1 for count in outputs])
    assert did.prefill_tokens == pytest.approx([prompt for _, prompt, _ in made])
    expected = [
        sum(prompt + position for position in range(1, len(stamps)))
        for _, prompt, stamps in made
    ]
    assert did.kv_tokens == pytest.approx(expected)
    ran = did.prefill_seconds.sum() + did.decode_seconds.sum()
    edges = np.array([-1.0, 5.0])
    assert ran == pytest.approx(
        busy_seconds_until(edges, -1.0, population_of(timelines))[-1]
    )


@given(made=scenes())
def test_nothing_happens_before_scheduling_or_after_the_last_token(
    made: list[tuple[float, int, list[float]]],
) -> None:
    timelines, book = scene(made)
    ends = book.steps.end_seconds
    for index, request in enumerate(timelines):
        assert request.scheduled_seconds is not None
        last_step = ends[np.searchsorted(ends, request.end_seconds)]
        for start, end in (
            (-5.0, request.scheduled_seconds),
            (last_step, 9.0),  # stragglers of its last step may come later
        ):
            did = work(timelines, book, start, end)
            for name, amounts in totals(did).items():
                assert amounts[index] == pytest.approx(0.0, abs=1e-9), name


def test_a_step_belongs_in_equal_parts_to_those_in_it() -> None:
    alone = [0.02, 0.04, 0.06]
    both = [0.08, 0.1, 0.12]
    made = [(0.0, 10, alone + both), (0.045, 10, [0.06, *both])]
    timelines, book = scene(made)
    did = work(timelines, book, 0.06 + 1e-9, 1.0)
    assert did.decode_steps.tolist() == pytest.approx([1.5, 1.5])
    earlier = work(timelines, book, 0.02 + 1e-9, 0.04)
    assert earlier.decode_steps.tolist() == pytest.approx([1.0, 0.0])


def test_steps_that_ran_together_count_as_often_as_they_were_read() -> None:
    quick = [0.05 + 0.001 * number for number in range(10)]  # 1 ms: one cluster
    later = [at + 0.0003 for at in quick]
    timelines, book = scene([(0.0, 10, [0.01, *quick]), (0.0, 10, [0.01, *later])])
    did = work(timelines, book, 0.01 + 1e-9, 1.0)
    assert did.decode_steps.tolist() == pytest.approx([5.0, 5.0])


@given(
    steps=st.integers(1, 40),
    streams=st.integers(1, 8),
    late_seconds=st.floats(0.0, 0.014),
    seed=st.integers(0, 10_000),
)
def test_late_reads_make_no_more_steps_and_no_fewer(
    steps: int, streams: int, late_seconds: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    ends = 0.1 + 0.007 * np.arange(1, steps + 1)
    last = float(ends[-1]) + 0.02  # too soon for a pause
    made = []
    for _ in range(streams):
        reads = np.maximum.accumulate(ends + late_seconds * rng.random(steps))
        # apart, as those of one read are
        reads += 1e-6 * np.arange(steps)
        made.append((0.0, 10, [0.1, *reads.tolist(), last]))
    timelines, book = scene(made)
    did = work(timelines, book, 0.1 + 1e-9, 1.0)
    each = (steps + 1) / streams
    assert did.decode_steps.tolist() == pytest.approx([each] * streams)


def test_who_was_set_aside_is_missed_in_no_step() -> None:
    stamps = [0.1 + 0.02 * number for number in range(20)]
    away = [*stamps[:5], *stamps[15:]]
    timelines, book = scene([(0.0, 10, stamps), (0.0, 10, away)])
    did = work(timelines, book, 0.1 + 1e-9, 1.0)
    assert (did.decode_steps + did.prefill_steps).sum() == pytest.approx(19.0)
