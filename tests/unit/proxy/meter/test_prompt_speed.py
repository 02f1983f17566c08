"""How long prompts take: learnt from the steps that computed them."""

from __future__ import annotations

import numpy as np
import pytest

from proxy.meter.activity.prompt_speed import PromptSpeed

PLAIN_SECONDS = 0.007
OWN_SECONDS, CONTEXT_SECONDS = 3e-5, 2e-9


def taught(lengths: list[float]) -> PromptSpeed:
    """One that saw each prompt by itself, in one step."""
    speed, clock = PromptSpeed(), 1.0
    speed.learn_plain(np.array([PLAIN_SECONDS] * 5))
    for tokens in lengths:
        seconds = OWN_SECONDS * tokens + CONTEXT_SECONDS * tokens**2 / 2
        step = float(np.hypot(seconds, PLAIN_SECONDS))
        own = float(speed.prompt_seconds(np.array([step]))[0])
        speed.learn_period(
            tokens, 0.0, start_seconds=clock, end_seconds=clock + step, seconds=own
        )
        clock += 1.0
    return speed


def test_both_constants_are_found() -> None:
    speed = taught([500.0 * number for number in range(1, 17)] * 3)
    assert speed.own_seconds == pytest.approx(OWN_SECONDS, rel=0.02)
    assert speed.context_seconds == pytest.approx(CONTEXT_SECONDS, rel=0.1)


def test_prompts_all_alike_say_nothing_about_context() -> None:
    speed = taught([1000.0] * 20)
    took = OWN_SECONDS * 1000 + CONTEXT_SECONDS * 1000**2 / 2
    assert speed.seconds_for(1000.0, 0.0) == pytest.approx(took, rel=0.01)


@pytest.mark.parametrize("context_tokens", [0.0, 6000.0])
def test_tokens_and_their_time_are_each_others_inverse(context_tokens: float) -> None:
    speed = taught([500.0 * number for number in range(1, 17)])
    seconds = speed.seconds_for(1234.0, context_tokens)
    assert speed.tokens_in(seconds, context_tokens) == pytest.approx(1234.0)


def test_a_step_as_long_as_those_without_a_prompt_computed_none() -> None:
    speed = PromptSpeed()
    speed.learn_plain(np.array([PLAIN_SECONDS]))
    assert speed.prompt_seconds(np.array([0.007, 0.008])).tolist() == [0.0, 0.0]


def test_one_prompt_that_waited_changes_little() -> None:
    speed = taught([500.0 * number for number in range(1, 17)] * 3)
    speed.learn_period(1000.0, 0.0, start_seconds=99.0, end_seconds=100.0, seconds=1.0)
    speed.learn_period(1.0, 0.0, start_seconds=101.0, end_seconds=101.1, seconds=0.01)
    assert speed.own_seconds == pytest.approx(OWN_SECONDS, rel=0.03)
