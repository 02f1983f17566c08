"""Steps of work take turns, and leave turns to the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.relay.turns import STRETCH_SECONDS, STRETCH_STEPS, Turns
from tests.support.relaying import Clock


class Loop:
    """Keeps what is to run in its next turn."""

    def __init__(self) -> None:
        self.due: list[object] = []

    def call_soon(self, call: object) -> None:
        self.due.append(call)

    def turn(self) -> None:
        due, self.due = self.due, []
        for call in due:
            call()  # type: ignore[operator]  # Turns passes a method


def turns(clock: Clock) -> tuple[Turns, Loop]:
    loop = Loop()
    return Turns(cast(asyncio.AbstractEventLoop, loop), clock), loop


def work(name: str, steps: int, done: list[str]) -> Iterator[None]:
    for _ in range(steps):
        done.append(name)
        yield


@given(st.lists(st.integers(0, 300), max_size=6))
def test_all_work_is_done_in_bounded_turns(sizes: list[int]) -> None:
    queue, loop = turns(Clock())
    done: list[str] = []
    for number, steps in enumerate(sizes):
        queue.add(work(str(number), steps, done))
    while loop.due:
        assert len(loop.due) == 1
        before = len(done)
        loop.turn()
        assert len(done) - before <= STRETCH_STEPS
    assert [done.count(str(n)) for n in range(len(sizes))] == sizes
    assert len(queue) == 0


def test_a_stretch_ends_when_its_time_is_over() -> None:
    clock = Clock()
    queue, loop = turns(clock)
    done: list[str] = []

    def slow() -> Iterator[None]:
        for step in work("slow", 3, done):
            clock.now_seconds += STRETCH_SECONDS
            yield step

    queue.add(slow())
    loop.turn()
    assert done == ["slow"]


def test_whoever_brings_much_waits_for_whoever_brings_little() -> None:
    queue, loop = turns(Clock())
    done: list[str] = []
    queue.add(work("much", 1000, done))
    queue.add(work("little", 2, done))
    loop.turn()
    assert done[:4] == ["much", "little", "much", "little"]


def test_a_defect_in_one_work_does_not_end_the_others() -> None:
    queue, loop = turns(Clock())
    done: list[str] = []

    def broken() -> Iterator[None]:
        raise RuntimeError("a defect")
        yield

    queue.add(broken())
    queue.add(work("sound", 2, done))
    with pytest.raises(RuntimeError, match="a defect"):
        loop.turn()
    while loop.due:
        loop.turn()
    assert done == ["sound", "sound"]
