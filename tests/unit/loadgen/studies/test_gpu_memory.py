"""One server has freed the boards before the next one starts: bounded, and told."""

from __future__ import annotations

from collections.abc import Callable

from loadgen.studies.gpu_memory import SLACK_BYTES, Used, wait_until_freed

GIB = 1 << 30


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def read(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def freed_after(seconds: float, clock: Clock) -> Callable[[], Used]:
    return lambda: {"0": GIB if clock.now >= seconds else 40 * GIB}


def waited(before: Used, now: Callable[[Clock], Callable[[], Used]]) -> str | None:
    clock = Clock()
    return wait_until_freed(
        before, now(clock), seconds=60, clock=clock.read, sleep=clock.sleep
    )


def test_it_waits_until_the_memory_is_back() -> None:
    assert waited({"0": GIB}, lambda clock: freed_after(30, clock)) is None


def test_memory_that_never_comes_back_is_told_with_its_board() -> None:
    said = waited({"0": GIB}, lambda clock: freed_after(90, clock))
    assert said is not None
    assert said.startswith("GPU 0 still holds 41.9 GB more than before")


def test_what_others_take_meanwhile_is_not_waited_for() -> None:
    assert waited({"0": GIB}, lambda _: lambda: {"0": GIB + SLACK_BYTES}) is None


def test_without_nvml_there_is_nothing_to_wait_for() -> None:
    assert waited({}, lambda _: lambda: {}) is None
    assert waited({}, lambda _: lambda: {"0": GIB}) is None
