"""Where the tokens of a reply in one piece are put."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.meter.activity.unstreamed import (
    STEP_SECONDS,
    StepPace,
    prompt_spans,
    step_ends,
)


def test_steps_are_as_long_as_the_engine_counted_them_that_second() -> None:
    pace = StepPace()
    pace.count(0.0, 1.0, 100, 1.0)
    pace.count(1.0, 2.0, 25, 1.0)
    clock = pace.between(0.5, 2.5)
    spans = clock.steps_between(np.array([0.5, 1.0, 2.0]), np.array([1.0, 2.0, 2.5]))
    assert spans == pytest.approx([50.0, 25.0, 12.5])


def test_a_second_in_which_hardly_anybody_was_there_tells_nothing() -> None:
    pace = StepPace()
    pace.count(0.0, 1.0, 10, 0.1)
    assert not pace.is_known


def test_the_engines_count_tells_what_prompts_take() -> None:
    pace = StepPace()
    rng = np.random.default_rng(3)
    for second in range(20):
        tokens = float(rng.uniform(0, 20_000))
        steps = (1.0 - 3e-5 * tokens) / 0.008
        pace.count(second, second + 1.0, steps, 1.0, tokens)
    assert pace.prompt_token_seconds == pytest.approx(3e-5, rel=0.1)


def test_prompts_follow_each_other() -> None:
    spans = prompt_spans([(1.0, 1000.0), (1.01, 5000.0), (9.0, 100.0)], 1e-4)
    assert [begin for begin, *_ in spans] == pytest.approx([1.0, 1.1, 9.0])
    assert [end for _, end, _ in spans] == pytest.approx([1.1, 1.6, 9.01])
    assert [steps for *_, steps in spans] == [1.0, 3.0, 1.0]


def test_steps_are_few_while_a_prompt_is_computed_and_as_many_in_all() -> None:
    pace = StepPace()
    pace.count(0.0, 1.0, 60, 1.0)
    clock = pace.between(0.0, 1.0, [(0.2, 0.6, 4.0)])
    edges = np.array([0.0, 0.2, 0.6, 1.0])
    steps = clock.steps_between(edges[:-1], edges[1:])
    assert steps[1] == pytest.approx(4.0)
    assert steps.sum() == pytest.approx(60.0)
    assert steps[0] == pytest.approx(steps[2] / 2)


def test_without_a_count_replies_tell_by_their_lengths() -> None:
    pace = StepPace()
    rng = np.random.default_rng(7)
    for tokens in range(20, 220, 10):
        prompt = float(rng.integers(100, 1000))
        pace.reply(prompt, tokens, 0.05 + prompt * 1e-5 + 0.008 * tokens)
    clock = pace.between(0.0, 1.0)
    (steps,) = clock.steps_between(np.array([0.0]), np.array([1.0]))
    assert steps == pytest.approx(125.0, rel=0.05)


def test_without_anything_a_step_is_assumed() -> None:
    clock = StepPace().between(0.0, 1.0)
    (steps,) = clock.steps_between(np.array([0.0]), np.array([1.0]))
    assert steps == pytest.approx(1 / STEP_SECONDS)


def test_steps_seen_are_taken_and_others_made_up_where_none_was_under_way() -> None:
    seen = np.array([1.0, 1.05, 1.1])
    starts = np.array([0.95, 1.0, 1.05])
    clock = StepPace().between(0.8, 1.2)
    found = step_ends(seen, starts, 0.85, 1.2, clock)
    assert set(seen) <= set(found.tolist())
    assert found[-1] == 1.2
    assert (found[(found > 1.0) & (found <= 1.1)] == [1.05, 1.1]).all()
    assert ((found > 0.85) & (found < 0.95)).sum() == 4


@given(
    lengths=st.lists(st.floats(0.003, 0.3), max_size=20),
    start=st.floats(0.0, 3.0),
    seconds=st.floats(0.001, 4.0),
    rates=st.lists(st.floats(5, 300), max_size=4),
)
def test_steps_lie_in_the_stretch_and_the_last_ends_it(
    lengths: list[float], start: float, seconds: float, rates: list[float]
) -> None:
    pace = StepPace()
    for second, rate in enumerate(rates):
        pace.count(second, second + 1.0, rate, 1.0)
    ends = np.cumsum(lengths)
    end = start + seconds
    found = step_ends(ends, ends - lengths, start, end, pace.between(start, end))
    assert found[-1] == end
    assert (found > start).all()
    assert (np.diff(found) > 0).all()
