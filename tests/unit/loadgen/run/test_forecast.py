"""A plan on the simulated engine in virtual time: what a run would take."""

from __future__ import annotations

from typing import Any

import pytest

from loadgen.plan.plan import PlannedSession, PlannedTurn
from loadgen.run.forecast import MAX_REQUESTS, forecast
from loadgen.simulator.core.config import EngineConfig
from loadgen.simulator.core.engine import simulate
from loadgen.simulator.core.presets import GPUS, MODELS
from loadgen.simulator.core.scheduler import SimRequest

CONFIG = EngineConfig(
    gpu=GPUS["h100"], model=MODELS["llama-3.1-8b"], prefix_cache=False,
    track_truth=False,
)  # fmt: skip


def session(number: int, start: float, *turns: dict[str, Any]) -> PlannedSession:
    return PlannedSession(
        session_id=f"s{number}",
        start_seconds=start,
        turns=[
            PlannedTurn(request_id=f"r{number}-{n}", **turn)
            for n, turn in enumerate(turns)
        ],
    )


def test_single_requests_take_what_the_simulator_takes() -> None:
    lengths = [(100 + 37 * n, 10 + n, 0.3 * n) for n in range(40)]
    planned = [
        session(n, at, {"input_tokens": i, "output_tokens": o})
        for n, (i, o, at) in enumerate(lengths)
    ]
    found = forecast(planned, CONFIG)
    known = simulate(
        [SimRequest(str(n), at, i, o) for n, (i, o, at) in enumerate(lengths)], CONFIG
    )
    assert found is not None
    assert found.run_seconds == pytest.approx(known.end_seconds)
    assert found.joules == pytest.approx(known.total_joules, rel=1e-6)


def test_a_turn_waits_for_the_one_before_and_carries_its_history() -> None:
    turn = {"input_tokens": 200, "output_tokens": 20}
    later = turn | {"think_seconds": 5.0, "history": "append"}
    alone = forecast([session(0, 0.0, turn)], CONFIG)
    both = forecast([session(0, 0.0, turn, later)], CONFIG)
    assert alone is not None
    assert both is not None
    assert both.run_seconds > 2 * alone.run_seconds + 5.0
    assert both.joules > 2 * alone.joules + 5.0 * CONFIG.idle_watts


def test_a_closed_loop_has_so_many_in_flight() -> None:
    turn = {"input_tokens": 50, "output_tokens": 50}
    planned = [session(n, 0.0, turn) for n in range(8)]
    one, four, alone = (
        forecast(planned, CONFIG, max_concurrency=1),
        forecast(planned, CONFIG, max_concurrency=4),
        forecast(planned[:1], CONFIG),
    )
    assert one is not None
    assert four is not None
    assert alone is not None
    assert one.run_seconds == pytest.approx(8 * alone.run_seconds)
    assert four.run_seconds < one.run_seconds / 3


@pytest.mark.parametrize(
    "turn",
    [
        {"prompt": "text", "output_tokens": 3},
        {"input_tokens": 3},
        {"input_tokens": 10_000_000, "output_tokens": 3},
    ],
    ids=["text", "no reply length", "too long"],
)
def test_what_is_not_known_is_not_forecast(turn: dict[str, Any]) -> None:
    assert forecast([session(0, 0.0, turn)], CONFIG) is None


def test_a_long_plan_is_not_forecast() -> None:
    turn = {"input_tokens": 3, "output_tokens": 1}
    planned = [session(n, 0.0, turn) for n in range(MAX_REQUESTS + 1)]
    assert forecast(planned, CONFIG) is None


def test_nothing_takes_nothing() -> None:
    found = forecast([], CONFIG)
    assert found is not None
    assert found.joules == found.run_seconds == 0
