"""A plan is used by a process once all can use it; whoever follows does it in order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import ConfigError
from proxy.process.supervise import LoopErrors
from proxy.serve.config import UpstreamConfig
from proxy.serve.orders import Answer, Follower, Offer, Order, Use
from proxy.serve.plan import Changes, Plan

A = UpstreamConfig("a", "http://a", power=("none",))
B = UpstreamConfig("b", "http://b", power=("none",))
C = UpstreamConfig("c", "http://c", power=("none",))
FIRST = Plan.first([A])


class Process:
    """A follower that has nothing but names of upstreams."""

    def __init__(self) -> None:
        self.names = ["a"]
        self.built: list[str] = []
        self.fault: Exception | None = None
        self.errors = LoopErrors()
        self.follower = Follower(Use(FIRST), self.build, self.take, self.errors)

    async def build(self, plan: Plan, changes: Changes) -> Sequence[str]:
        if self.fault is not None:
            raise self.fault
        names = [f"{each.name}/{plan.brought_by[each.name]}" for each in changes.new]
        self.built += names
        return names

    async def take(self, changes: Changes, built: Sequence[str]) -> None:
        assert {name.partition("/")[0] for name in built} == {
            config.name for config in changes.new
        }
        self.names = list(changes.names)

    def told(self, *orders: Order) -> list[Answer]:
        async def tell() -> list[Answer]:
            return [await self.follower.answer(order) for order in orders]

        return asyncio.run(tell())


def test_what_is_offered_is_built_and_used_only_when_told() -> None:
    process, plan = Process(), FIRST.then([A, B])
    assert process.told(Offer(plan)) == [None]
    assert (process.names, process.built) == (["a"], ["b/1"])
    assert process.told(Use(plan, {"used": 1})) == [None]
    assert (process.names, process.built) == (["a", "b"], ["b/1"])
    assert process.follower.use == Use(plan, {"used": 1})


def test_who_was_not_offered_a_plan_builds_it_when_told() -> None:
    process, plan = Process(), FIRST.then([A, B]).then([B])
    assert process.told(Use(plan)) == [None]
    assert (process.names, process.built) == (["b"], ["b/1"])


def test_what_others_refused_is_forgotten() -> None:
    process = Process()
    refused, used = FIRST.then([A, B]), FIRST.then([A, C])
    assert refused.number == used.number
    assert process.told(Offer(refused), Use(FIRST, {"refused": 1})) == [None, None]
    assert process.names == ["a"]
    assert process.told(Offer(refused), Use(used)) == [None, None]
    assert (process.names, process.built) == (["a", "c"], ["b/1", "b/1", "c/1"])


@pytest.mark.parametrize(
    ("fault", "said", "counted"),
    [
        (ConfigError("no such file"), "no such file", {}),
        (OSError("odd"), "an error in the proxy itself: OSError('odd')", {"reload": 1}),
    ],
)
def test_a_process_that_cannot_says_why_and_goes_on(
    fault: Exception, said: str, counted: dict[str, int]
) -> None:
    process, plan = Process(), FIRST.then([B])
    process.fault = fault
    assert process.told(Offer(plan)) == [said]
    assert process.errors.total == counted
    process.fault = None
    assert process.names == ["a"]
    assert process.told(Use(plan)) == [None]
    assert process.names == ["b"]


@given(
    steps=st.lists(
        st.tuples(
            st.lists(st.sampled_from([A, B, C]), min_size=1, unique=True),
            st.booleans(),
            st.booleans(),
        ),
        max_size=8,
    )
)
def test_who_missed_offers_or_plans_has_the_last_that_was_used(
    steps: list[tuple[list[UpstreamConfig], bool, bool]],
) -> None:
    """Each step: the upstreams, whether this process is offered them, and told."""
    process, used = Process(), FIRST
    for upstreams, is_offered, is_told in steps:
        used = used.then(upstreams)
        if is_offered:
            assert process.told(Offer(used)) == [None]
        if is_told:
            assert process.told(Use(used)) == [None]
            assert process.names == [each.name for each in upstreams]
    assert process.told(Use(used)) == [None]
    assert process.names == [each.name for each in used.upstreams]
    assert process.follower.use.plan == used
