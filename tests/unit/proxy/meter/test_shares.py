"""Shares in what a step costs jointly, held against all orders of arrival."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.meter.activity.shares import (
    REACH_TOKENS,
    FloatArray,
    StepPlayers,
    beside_prompts,
    reach_shares,
)


@dataclass(frozen=True)
class Member:
    """One that is computed in a step: a sequence that decodes, or a prompt."""

    tokens: float
    is_prompt: bool = False
    work: float = 0.0


Game = Callable[[tuple[Member, ...]], float]


def shapley(members: list[Member], game: Game) -> FloatArray:
    """The mean of what each adds, over all orders."""
    added = np.zeros(len(members))
    for order in permutations(range(len(members))):
        came: tuple[Member, ...] = ()
        for place in order:
            now = (*came, members[place])
            added[place] += game(now) - game(came)
            came = now
    return added / math.factorial(len(members))


def players_of(decodes: int, prompts: list[float], often: float = 1.0) -> StepPlayers:
    """One step."""
    return StepPlayers(
        np.array([often]),
        np.array([often * decodes]),
        np.zeros(len(prompts), np.int64),
        np.array(prompts),
    )


steps = st.tuples(
    st.integers(0, 3), st.lists(st.floats(1.0, 3000.0), min_size=0, max_size=2)
).filter(lambda step: step[0] + len(step[1]) > 0)


@given(step=steps, column=st.integers(0, len(REACH_TOKENS) - 1))
def test_what_tokens_reach_is_divided_by_the_shapley_value(
    step: tuple[int, list[float]], column: int
) -> None:
    decodes, prompts = step
    members = [Member(1.0)] * decodes + [Member(tokens) for tokens in prompts]

    def reached(came: tuple[Member, ...]) -> float:
        tokens = sum(member.tokens for member in came)
        return -math.expm1(-tokens / REACH_TOKENS[column])

    expected = shapley(members, reached)
    sequence, prompt = reach_shares(players_of(decodes, prompts))
    found = [*[sequence[0, column]] * decodes, *prompt[:, column]]
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert sum(found) == pytest.approx(reached(tuple(members)))


def test_a_prompt_beside_many_decodes_gets_its_shapley_share() -> None:
    decodes, constant = 200, REACH_TOKENS[1]
    _, prompt = reach_shares(players_of(decodes, [2000.0]))
    # the prompt is everything that is left to reach when it comes after k decodes
    share = np.mean([math.exp(-k / constant) for k in range(decodes + 1)])
    assert prompt[0, 1] == pytest.approx(share, rel=1e-3)


def test_steps_that_ran_together_count_as_so_many() -> None:
    once_sequence, once_prompt = reach_shares(players_of(3, [100.0]))
    sequence, prompt = reach_shares(players_of(3, [100.0], often=4.0))
    assert sequence == pytest.approx(once_sequence)
    assert prompt == pytest.approx(4.0 * once_prompt)


@given(
    works=st.lists(st.floats(0.0, 1e5), min_size=1, max_size=4),
    prompts=st.integers(0, 2),
)
def test_what_costs_otherwise_beside_a_prompt_is_divided_by_the_shapley_value(
    works: list[float], prompts: int
) -> None:
    members = [Member(1.0, work=work) for work in works]
    members += [Member(100.0, is_prompt=True)] * prompts

    def mixed(came: tuple[Member, ...]) -> float:
        is_mixed = any(member.is_prompt for member in came)
        return sum(member.work for member in came) if is_mixed else 0.0

    kept, taken = beside_prompts(players_of(len(works), [100.0] * prompts))
    found = [work * kept[0] for work in works] + [sum(works) * taken[0]] * prompts
    assert found == pytest.approx(shapley(members, mixed), abs=1e-6)
