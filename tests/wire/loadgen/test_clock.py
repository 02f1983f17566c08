from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from loadgen.replay.clock import Clock, LoopMonitor, SystemClock
from tests.support.virtual_time import VirtualClock, run_virtually


@pytest.mark.parametrize("ahead_seconds", [-1.0, 0.0, 0.0001, 0.0021])
def test_the_system_clock_never_returns_early(ahead_seconds: float) -> None:
    async def overshoot_seconds() -> float:
        clock = SystemClock()
        due = clock.now() + ahead_seconds
        await clock.sleep_until(due)
        return clock.now() - due

    assert asyncio.run(overshoot_seconds()) >= 0


def test_the_system_clock_is_the_monotonic_one() -> None:
    before = time.monotonic()
    now = SystemClock().now()
    assert before <= now <= time.monotonic()


async def monitored(clock: Clock, work_seconds: list[float]) -> LoopMonitor:
    """A monitor that ran while virtual callbacks held the loop that long."""
    monitor = LoopMonitor(clock, period_seconds=0.05)
    task = asyncio.create_task(monitor.watch())
    loop = asyncio.get_running_loop()
    for seconds in work_seconds:
        await asyncio.sleep(0.0499)
        loop._jumping.now_seconds += seconds  # type: ignore[attr-defined]
    await asyncio.sleep(0.2)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return monitor


def test_work_on_the_loop_shows_as_lag() -> None:
    lag = run_virtually(monitored(VirtualClock(), [0.03])).lag()
    assert lag.max_seconds == pytest.approx(0.0299, abs=1e-6)
    assert lag.p50_seconds == pytest.approx(0, abs=1e-6)


def test_a_stall_is_one_sample_and_not_many() -> None:
    calm = run_virtually(monitored(VirtualClock(), [0.0])).lag()
    stalled = run_virtually(monitored(VirtualClock(), [5.0])).lag()
    assert stalled.max_seconds is not None
    assert stalled.max_seconds > 4.9
    assert stalled.samples <= calm.samples + 1


def test_a_loop_nobody_watched_has_no_lag_figures() -> None:
    lag = LoopMonitor(SystemClock()).lag()
    assert (lag.samples, lag.p50_seconds, lag.max_seconds) == (0, None, None)
