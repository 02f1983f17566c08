"""Idle while requests run: whoever makes the engine busy longer pays for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from proxy.meter.attribution.divide import IdleWatts
from proxy.meter.attribution.policies import POLICIES
from proxy.meter.config import MeterConfig
from tests.support.meter_scenes import Asked, counter, counter_of, settled

STEP_SECONDS = 0.02
PROMPT_SECONDS = 0.4
IDLE = MeterConfig(idle_watts=90.0)


def mixed(count: int) -> list[Asked]:
    """One long reply; beside it prompts that stop it for 0.4 s, then few tokens."""
    long: list[float] = []
    short: list[Asked] = []
    at = 1.0
    for number in range(count):
        if number % 10 == 9:
            arrived, at = at, at + PROMPT_SECONDS
            stamps = [at, *(at + STEP_SECONDS * (1 + n) for n in range(4))]
            short.append(Asked(arrived, stamps, prompt=6000))
        else:
            at += STEP_SECONDS
        long.append(at)
    return [Asked(0.99, long, prompt=40), *short]


def test_both_rules_are_in_the_record() -> None:
    meter, records = settled(mixed(600), counter(40.0), IDLE)
    prompts = [each.energy for name, each in records.items() if name != "r0"]
    late = prompts[-20:-1]
    shares = np.array([each.idle_share_joules for each in late])
    by_time = np.array([each.idle_share_by_time_joules for each in late])
    # They share 0.48 s with the long reply: half of it if all who run pay alike.
    assert by_time == pytest.approx(90.0 * 0.24, rel=0.2)
    # But 0.4 s of it are theirs alone.
    assert shares == pytest.approx(90.0 * (PROMPT_SECONDS + 0.03), rel=0.2)
    assert abs(meter.books_at().residual_joules) < 1e-3


def test_either_rule_gives_out_the_same_joules() -> None:
    meter, records = settled(mixed(200), counter(16.0), IDLE)
    energies = [each.energy for each in records.values()]
    shares = sum(each.idle_share_joules or 0.0 for each in energies)
    by_time = sum(each.idle_share_by_time_joules or 0.0 for each in energies)
    assert shares == pytest.approx(by_time)
    assert shares == pytest.approx(meter.books_at().idle_share_joules)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_rule_of_idle_is_the_same_under_every_headline(policy: str) -> None:
    config = replace(IDLE, policy=policy)
    shares = [
        [each.energy.idle_share_joules for each in records.values()]
        for records in (
            settled(mixed(80), counter(12.0), config)[1],
            settled(mixed(80), counter(12.0), IDLE)[1],
        )
    ]
    assert shares[0] == pytest.approx(shares[1])


REST, WORKING, BUSY = 72.0, 118.0, 300.0


def bursts(lull_seconds: float) -> tuple[list[Asked], list[float]]:
    """Ten seconds of work, a lull and ten more; watts of every 0.1 s."""
    again = 11.0 + lull_seconds
    asked = [
        Asked(at, [at + 0.1 + 0.02 * n for n in range(495)], prompt=20)
        for at in (1.0, again)
    ]
    watts = [REST] * 10 + [BUSY] * 100
    watts += [WORKING if n < 80 else REST for n in range(round(lull_seconds * 10))]
    return asked, [*watts, *[BUSY] * 100, *[WORKING] * 40]


def test_idle_right_after_work_is_apart_from_idle_at_rest() -> None:
    asked, watts = bursts(40.0)
    meter, records = settled(asked, counter_of(watts))
    assert meter.state().idle_watts == pytest.approx(WORKING, rel=0.02)
    assert meter.state().rest_watts == pytest.approx(REST, rel=0.02)
    second = records["r1"].energy.idle_share_joules
    assert second == pytest.approx(WORKING * 10.0, rel=0.05)


def test_until_a_lull_was_seen_idle_is_what_it_was_before_work() -> None:
    asked, watts = bursts(40.0)
    _, records = settled(asked, counter_of(watts))
    first = records["r0"].energy.idle_share_joules
    assert first == pytest.approx(REST * 10.0, rel=0.05)


@pytest.mark.parametrize("since", [6.0, 12.0, 19.0])
def test_nothing_is_learnt_while_a_board_cools(since: float) -> None:
    idle = IdleWatts(None)
    idle.learn(900.0, 10.0, since)
    assert idle.watts is idle.rest_watts is None


def test_what_was_measured_just_before_holds_until_it_is_measured_anew() -> None:
    idle = IdleWatts(None, 80.0)
    assert (idle.watts, idle.source, idle.rest_watts) == (80.0, "measured", None)
    idle.learn(900.0, 10.0, 0.0)
    assert idle.watts == pytest.approx(90.0)
    assert IdleWatts(70.0, 80.0).watts == 70.0
