"""Steps of an engine that nobody streams from."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.meter.activity.unseen_steps import STEP_TOKENS, Arrival, Count, UnseenSteps

PLAIN, TOKEN = 0.008, 3e-5


def arrival(
    at_seconds: float, key: int, tokens: float, end: float = math.inf
) -> Arrival:
    return Arrival(at_seconds, key, tokens, 0.0, end, math.nan, math.nan)


def engine(
    load: list[tuple[float, float, int]],
) -> tuple[list[Arrival], list[float], list[float]]:
    """A load (arrival, prompt, output) computed first come, first served.

    What is seen of it, when prompts were done, and when steps ended.
    """
    at, waiting = 0.0, [[at, prompt] for at, prompt, _ in load]
    left = [output for *_, output in load]
    firsts, ends, steps = [math.nan] * len(load), [math.nan] * len(load), []
    while any(left):
        running = [n for n, first in enumerate(firsts) if first <= at and left[n]]
        came = [n for n, one in enumerate(waiting) if one[0] <= at and one[1] > 0]
        if not running and not came:
            at = min(one[0] for one in waiting if one[1] > 0)
            continue
        room, taken, done = STEP_TOKENS - len(running), 0.0, []
        for n in came:
            part = min(waiting[n][1], room)
            waiting[n][1] -= part
            room, taken = room - part, taken + part
            if waiting[n][1] <= 0:
                done.append(n)
        at += math.hypot(PLAIN, TOKEN * taken)
        steps.append(at)
        for n in (*running, *done):
            left[n] -= 1
            if n in done:
                firsts[n] = at
            if not left[n]:
                ends[n] = at
    seen = [
        Arrival(came, n, prompt, 0.0, ends[n], output - 1.0, math.nan)
        for n, (came, prompt, output) in enumerate(load)
    ]
    return seen, firsts, steps


def some_load(seed: int, count: int, rate: float) -> list[tuple[float, float, int]]:
    rng = np.random.default_rng(seed)
    at = np.cumsum(rng.exponential(1 / rate, count))
    prompts = rng.integers(50, 6000, count)
    outputs = rng.geometric(1 / 30, count)
    return list(zip(at.tolist(), prompts.tolist(), outputs.tolist(), strict=True))


def counts_of(steps: list[float]) -> list[Count]:
    edges = np.arange(0.0, steps[-1])
    return [
        Count(float(begin), float(begin + 1), float(made), 1.0)
        for begin, made in zip(edges, np.histogram(steps, edges)[0], strict=False)
    ]


@pytest.mark.parametrize("is_counted", [False, True], ids=["alone", "counted"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_prompts_are_done_when_an_engine_did_them(seed: int, is_counted: bool) -> None:
    seen, firsts, steps = engine(some_load(seed, 120, 6.0))
    unseen = UnseenSteps()
    counts = counts_of(steps) if is_counted else []
    for until in np.arange(1.0, steps[-1] + 1.0):
        known = [
            each if each.end_seconds <= until else each._replace(steps=math.nan)
            for each in seen
            if each.at_seconds <= until
        ]
        unseen.advance(float(until), known, counts)
    late = [
        abs((unseen.first_seconds(n) or math.inf) - first)
        for n, first in enumerate(firsts)
        if first < steps[-1] - 1.0
    ]
    assert np.median(late) < PLAIN
    assert np.quantile(late, 0.9) < 5 * PLAIN
    assert unseen.times.plain_seconds == pytest.approx(PLAIN, rel=0.2)
    # beside attention's part, which this engine does not have
    assert unseen.times.token_seconds == pytest.approx(TOKEN, rel=0.2)


def test_a_second_has_as_many_steps_as_the_engine_counted() -> None:
    unseen = UnseenSteps()
    arrivals = [arrival(0.5, 1, 1000.0, 9.0)]
    counts = [Count(second, second + 1.0, 70.0, 1.0) for second in range(1, 8)]
    unseen.advance(8.0, arrivals, counts)
    made = len(unseen.ends_between(2.0, 3.0))
    assert made == pytest.approx(70, abs=1)


def test_a_long_prompt_takes_several_steps_and_the_next_one_waits() -> None:
    unseen = UnseenSteps()
    unseen.advance(9.0, [arrival(1.0, 1, 5000.0), arrival(1.01, 2, 100.0)], [])
    rows = unseen.prompt_rows(1)
    assert [tokens for *_, tokens in rows] == [2048.0, 2048.0, 904.0]
    assert rows[0][0] == 1.0
    assert unseen.first_seconds(1) == rows[-1][1]
    assert unseen.prompt_rows(2)[0][:2] == rows[-1][:2]


def test_a_prompt_ends_when_it_is_told_that_it_did() -> None:
    unseen = UnseenSteps()
    told = arrival(1.0, 1, 1000.0, 2.0)._replace(first_seconds=1.05)
    unseen.advance(9.0, [told], [])
    assert unseen.first_seconds(1) == pytest.approx(1.05)


@given(
    gaps=st.lists(st.floats(0.0, 0.5), min_size=1, max_size=12),
    prompts=st.lists(st.floats(1.0, 9000.0), min_size=12, max_size=12),
    stays=st.lists(st.floats(0.0, 3.0), min_size=12, max_size=12),
    cuts=st.lists(st.floats(0.0, 8.0), max_size=5),
)
def test_no_step_is_made_up_twice_and_every_prompt_is_computed_once(
    gaps: list[float], prompts: list[float], stays: list[float], cuts: list[float]
) -> None:
    at = np.cumsum(gaps).tolist()
    load = [arrival(came, n, prompts[n], came + stays[n]) for n, came in enumerate(at)]
    unseen = UnseenSteps()
    for until in (*sorted(cuts), 60.0):
        unseen.advance(until, [one for one in load if one.at_seconds <= until], [])
    ends = unseen.ends_between(-math.inf, math.inf)
    assert (np.diff(ends) > 0).all()
    for one in load:
        rows = unseen.prompt_rows(one.key)
        assert sum(tokens for *_, tokens in rows) == pytest.approx(one.tokens)
        assert rows[0][0] >= one.at_seconds
        assert unseen.first_seconds(one.key) == rows[-1][1]


def test_steps_that_are_settled_for_long_are_forgotten() -> None:
    unseen = UnseenSteps()
    unseen.advance(100.0, [arrival(1.0, 1, 1000.0, 99.0)], [])
    unseen.forget(90.0, [1])
    assert 58.0 < unseen.ends_between(0.0, 100.0)[0] < 62.0
    assert unseen.first_seconds(1) is not None
    unseen.forget(90.0, [])
    assert unseen.first_seconds(1) is None


def test_only_the_end_of_a_stretch_of_hours_is_made_up() -> None:
    unseen = UnseenSteps()
    unseen.advance(1.0, [arrival(0.5, 1, 1000.0)], [])
    unseen.advance(1e6, [arrival(0.5, 1, 1000.0)], [])
    assert unseen.ends_between(2.0, 1e6)[0] > 1e6 - 61.0


def test_a_prompt_of_any_length_ends_where_time_does() -> None:
    unseen = UnseenSteps()
    unseen.advance(3.0, [arrival(1.0, 1, 1e15), arrival(1.1, 2, 10.0)], [])
    assert unseen.first_seconds(1) is None
    assert unseen.first_seconds(2) is None
