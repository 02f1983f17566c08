"""Loops that live on: what goes wrong in them is counted, and logged now and then."""

from __future__ import annotations

import asyncio
import logging

import pytest

from proxy.process.supervise import LoopErrors, Seldom
from proxy.process.systemd import Supervisor, supervisor


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_what_happens_often_is_logged_seldom_with_how_often_it_was() -> None:
    clock = Clock()
    seldom = Seldom(10.0, clock)
    assert seldom.count("a") == 1
    assert [seldom.count("a") for _ in range(5)] == [None] * 5
    assert seldom.count("b") == 1
    clock.seconds = 10.0
    assert seldom.count("a") == 6


def test_names_of_strangers_do_not_pile_up() -> None:
    seldom = Seldom(10.0, Clock())
    for number in range(100_000):
        seldom.count(f"10.0.{number}")
    assert len(seldom._due) <= 1000


def test_an_error_ends_the_turn_and_not_the_loop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    errors = LoopErrors(Clock())
    with caplog.at_level(logging.ERROR):
        for _ in range(100):
            with errors.caught("beat"):
                raise OverflowError("a value that nobody thought of")
    assert errors.total == {"beat": 100}
    assert len(caplog.records) == 1
    assert "a value that nobody thought of" in caplog.text


def test_a_loop_that_fails_or_ends_is_begun_again() -> None:
    errors, begun = LoopErrors(Clock()), 0

    async def run() -> None:
        nonlocal begun
        begun += 1
        if begun == 2:
            return
        if begun == 4:
            raise asyncio.CancelledError
        raise ValueError("bad page")

    async def main() -> None:
        await errors.keep("watch", run, pause_seconds=0)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert begun == 4
    assert errors.total == {"watch": 2}


def test_the_watchdog_of_another_process_is_not_ours() -> None:
    assert supervisor({"WATCHDOG_USEC": "5", "WATCHDOG_PID": "1"}) == Supervisor()
