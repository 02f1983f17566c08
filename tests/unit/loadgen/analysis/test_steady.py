"""The steady part of a run, against queues whose transient is known."""

from __future__ import annotations

import numpy as np
import pytest

from loadgen.analysis.steady import SteadyWindow, steady_window

SEEDS = range(60)


def many_servers(
    seed: int, rate: float, mean_seconds: float, seconds: float
) -> tuple[SteadyWindow, float]:
    """A queue that nobody waits in: from empty it fills as 1 - exp(-t / mean).

    The window found, and the mean of the requests in flight inside it.
    """
    draw = np.random.default_rng(seed)
    starts = np.cumsum(draw.exponential(1 / rate, int(rate * seconds)))
    ends = starts + draw.exponential(mean_seconds, len(starts))
    found = steady_window(starts.tolist(), starts.tolist(), ends.tolist())
    at = np.linspace(found.start_seconds, found.end_seconds, 500)
    inside = np.searchsorted(starts, at) - np.searchsorted(np.sort(ends), at)
    return found, float(inside.mean())


def one_server(seed: int, rate: float, busy: float, seconds: float) -> SteadyWindow:
    """A queue of one server that has `busy` of the time it needs."""
    draw = np.random.default_rng(seed)
    starts = np.cumsum(draw.exponential(1 / rate, int(rate * seconds)))
    took = draw.exponential(busy / rate, len(starts))
    ends, free = [], 0.0
    for start, each in zip(starts, took, strict=True):
        free = max(free, start) + each
        ends.append(free)
    return steady_window(starts.tolist(), starts.tolist(), ends)


@pytest.mark.parametrize(("rate", "mean_seconds"), [(4.0, 10.0), (20.0, 5.0)])
def test_the_filling_of_a_queue_is_cut_and_its_level_is_what_is_known(
    rate: float, mean_seconds: float
) -> None:
    runs = [many_servers(s, rate, mean_seconds, 40 * mean_seconds) for s in SEEDS]
    starts = np.array([window.start_seconds for window, _ in runs])
    # after one time constant 63 % are there, after five 99 %
    assert 1.0 * mean_seconds < np.median(starts) < 6 * mean_seconds
    levels = np.array([level for _, level in runs])
    assert np.median(levels) == pytest.approx(rate * mean_seconds, rel=0.03)
    assert sum(window.is_growing for window, _ in runs) <= 0.05 * len(runs)
    steady = [window.is_steady for window, _ in runs]
    assert steady.count(True) >= 0.85 * len(steady)


def test_a_queue_that_keeps_up_is_not_called_saturated() -> None:
    found = [one_server(seed, 5.0, 0.6, 200.0).is_growing for seed in SEEDS]
    assert found.count(True) <= 0.05 * len(found)


def test_a_queue_that_grows_to_the_end_has_no_steady_part() -> None:
    found = [one_server(seed, 5.0, 1.4, 200.0) for seed in SEEDS]
    assert [each.is_growing for each in found].count(True) >= 0.95 * len(found)
    assert "grow to the end" in found[0].rule


def test_the_drain_after_the_last_start_is_never_in_it() -> None:
    window, _ = many_servers(1, 4.0, 10.0, 300.0)
    assert window.end_seconds < 310


def test_all_at_once_is_the_whole_run() -> None:
    found = steady_window([0.0] * 50, [0.0] * 50, [float(n) for n in range(50)])
    assert (found.start_seconds, found.end_seconds) == (0.0, 49.0)
    assert found.is_steady is None


def test_few_requests_or_a_short_run_say_nothing() -> None:
    few = steady_window([0.0, 1.0], [0.0, 1.0], [2.0, 2.0])
    assert (few.start_seconds, few.end_seconds, few.is_steady) == (0.0, 1.0, None)
    starts = [n / 10 for n in range(100)]
    short = steady_window(starts, starts, [at + 30 for at in starts])
    assert short.is_steady is None
    assert "shorter than" in short.rule


def test_nothing_is_a_window_of_nothing() -> None:
    assert steady_window([], [], []).seconds == 0
