"""How many tokens fit into a step: learnt where prompts queue, or not at all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.meter.activity.token_budget import MAX_WIDTH, TokenBudget

STEP_SECONDS, PLAIN_SECONDS = 0.05, 0.01


def chunked(lengths: list[int], budget: int, decodes: list[int]) -> list[list[int]]:
    """Numbers of the prompts that are done in each step, first come, first served."""
    done: list[list[int]] = []
    number, left = 0, lengths[0]
    while number < len(lengths):
        room, ended = budget - decodes[len(done) % len(decodes)], []
        while number < len(lengths) and left <= room:
            room -= left
            ended.append(number)
            number += 1
            left = lengths[number] if number < len(lengths) else 0
        left -= room
        done.append(ended)
    return done


def taught(
    lengths: list[int],
    done: list[list[int]],
    decodes: list[int],
    *,
    ready_seconds: float = 0.0,
) -> TokenBudget:
    """One that saw these prompts end; all of them had arrived before."""
    found = TokenBudget()
    for step, ended in enumerate(done):
        start, end = step * STEP_SECONDS, (step + 1) * STEP_SECONDS
        count = float(decodes[step % len(decodes)])
        found.pass_steps(np.array([start]), np.array([end]), np.array([count]))
        for number in ended:
            found.complete(
                lengths[number], ready_seconds, (start, end), count, PLAIN_SECONDS
            )
    return found


@given(
    budget=st.integers(512, 16_384),
    lengths=st.lists(st.integers(1, 8000), min_size=2, max_size=60),
    decodes=st.lists(st.integers(0, 200), min_size=1, max_size=9),
)
def test_what_is_believed_is_near_the_engines_budget(
    budget: int, lengths: list[int], decodes: list[int]
) -> None:
    found = taught(lengths * 4, chunked(lengths * 4, budget, decodes), decodes)
    if found.tokens is not None:
        assert found.tokens == pytest.approx(budget, rel=0.6 * MAX_WIDTH)


@pytest.mark.parametrize("budget", [1024, 2048, 8192])
def test_a_long_queue_tells_it(budget: int) -> None:
    rng = np.random.default_rng(1)
    lengths = rng.integers(50, 4000, 600).tolist()
    decodes = rng.integers(10, 40, 7).tolist()
    found = taught(lengths, chunked(lengths, budget, decodes), decodes)
    assert found.tokens == pytest.approx(budget, rel=0.01)


def test_a_burst_of_short_prompts_tells_it_and_is_kept_by_its_steps() -> None:
    lengths = [20] * 10_000
    found = taught(lengths, chunked(lengths, 8192, [0]), [0])
    assert found.tokens == pytest.approx(8192, rel=0.05)
    assert found.rows_kept <= len(lengths) * 20 / 8192 + 2


def test_prompts_computed_whole_have_no_budget() -> None:
    rng = np.random.default_rng(2)
    lengths = rng.integers(50, 8000, 600).tolist()
    done = [[number] for number in range(600)]
    assert taught(lengths, done, [0]).tokens is None


def test_prompts_that_come_one_by_one_tell_nothing() -> None:
    lengths = [3000] * 200
    done = chunked(lengths, 2048, [0])
    late = STEP_SECONDS * len(done)
    assert taught(lengths, done, [0], ready_seconds=late).tokens is None


def test_steps_without_a_prompt_end_a_stretch() -> None:
    lengths = [3000] * 200
    done = chunked(lengths, 2048, [0])
    found = TokenBudget()
    for step, ended in enumerate(done):
        start, end = step * STEP_SECONDS, (step + 1) * STEP_SECONDS
        middle = end - PLAIN_SECONDS  # a plain one between any two
        starts, ends = np.array([start, middle]), np.array([middle, end])
        found.pass_steps(starts, ends, np.zeros(2))
        for number in ended:
            found.complete(lengths[number], 0.0, (middle, end), 0.0, PLAIN_SECONDS)
    assert found.tokens is None


def test_nothing_is_known_after_a_restart() -> None:
    lengths = [3000, 500, 1700, 90] * 100
    found = taught(lengths, chunked(lengths, 2048, [3]), [3])
    assert found.tokens is not None
    found.restart()
    assert found.tokens is None
