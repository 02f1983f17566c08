"""The engine in aggregates takes the time and the joules of the engine in steps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.simulator.core.aggregate import (
    FloatArray,
    IntArray,
    Workload,
    run_aggregate,
    step_cost,
)
from loadgen.simulator.core.config import BLOCK_TOKENS, EngineConfig
from loadgen.simulator.core.engine import simulate
from loadgen.simulator.core.presets import GPUS, MODELS, PRESETS
from loadgen.simulator.core.scheduler import SimRequest


def engine(preset: str = "h100-8b", *, seqs: int = 256) -> EngineConfig:
    gpu, model, boards = PRESETS[preset]
    return EngineConfig(
        gpu=GPUS[gpu],
        model=MODELS[model],
        n_gpus=boards,
        track_truth=False,
        max_num_seqs=seqs,
    )


def workload(
    starts: FloatArray, prompts: IntArray, outputs: IntArray, cached: int = 0
) -> Workload:
    return Workload(starts, prompts, np.full(len(starts), cached), outputs)


def drawn(count: int, rate: float, seed: int = 3) -> Workload:
    rng = np.random.default_rng(seed)
    starts = np.cumsum(rng.exponential(1 / rate, count))
    prompts = np.clip(rng.lognormal(6.8, 1.0, count), 8, 8192).astype(np.int64)
    outputs = np.clip(rng.lognormal(3.0, 1.0, count), 1, 200).astype(np.int64)
    return workload(starts, prompts, outputs)


def stepwise(work: Workload, config: EngineConfig) -> tuple[FloatArray, float]:
    """First and last token of each request, shape (2, requests), and the joules."""
    requests = [
        SimRequest(
            f"r{n}", float(work.start_seconds[n]), int(work.prompt_tokens[n]),
            int(work.output_tokens[n]),
        )
        for n in range(len(work))
    ]  # fmt: skip
    trace = simulate(requests, config)
    stamps = [trace.token_seconds[f"r{n}"] for n in range(len(work))]
    return np.array([[s[0], s[-1]] for s in stamps]).T, trace.total_joules


@pytest.mark.parametrize("preset", ["h100-8b", "a6000-8b", "a100-70b", "h100-350w-8b"])
@pytest.mark.parametrize("rate", [1.0, 20.0])
def test_times_and_joules_are_those_of_the_engine_in_steps(
    preset: str, rate: float
) -> None:
    work, config = drawn(60, rate), engine(preset)
    found, cost = run_aggregate(work, step_cost(config)), step_cost(config)
    stamps, joules = stepwise(work, config)
    assert found.joules(cost) == pytest.approx(joules, rel=1e-3)
    assert found.first_token_seconds == pytest.approx(stamps[0], abs=0.05)
    assert found.last_token_seconds == pytest.approx(stamps[1], abs=0.05)


def test_a_small_batch_limit_makes_requests_wait_as_there() -> None:
    work, config = drawn(40, 50.0), engine(seqs=3)
    found = run_aggregate(work, step_cost(config))
    stamps, _ = stepwise(work, config)
    assert found.first_token_seconds == pytest.approx(stamps[0], abs=0.05)


@given(
    lengths=st.lists(
        st.tuples(st.integers(1, 9000), st.integers(1, 60), st.floats(0, 3)),
        min_size=1,
        max_size=12,
    )
)
def test_every_request_gets_its_tokens_in_order(
    lengths: list[tuple[int, int, float]],
) -> None:
    prompts, outputs, gaps = zip(*lengths, strict=True)
    work = workload(np.cumsum(gaps), np.array(prompts), np.array(outputs))
    found = run_aggregate(work, step_cost(engine()))
    assert (found.first_token_seconds > found.start_seconds).all()
    assert (found.last_token_seconds >= found.first_token_seconds).all()
    assert found.sums[1] == sum(prompts)
    assert found.sums[4] == sum(outputs) - len(outputs)
    assert found.busy_seconds <= found.end_seconds + 1e-9


def test_a_later_turn_starts_after_the_reply_and_its_think_time() -> None:
    work = Workload(
        np.array([1.0, 0.0, 1.5]), np.array([100, 400, 50]), np.array([0, 96, 0]),
        np.array([20, 20, 20]), np.array([1, -1, -1]), np.array([0.0, 2.0, 0.0]),
        np.array([False, True, False]),
    )  # fmt: skip
    found = run_aggregate(work, step_cost(engine()))
    assert found.start_seconds[1] == pytest.approx(found.last_token_seconds[0] + 2.0)
    assert found.sums[1] == 100 + (400 - 96) + 50


def test_a_request_that_never_fits_is_left_out_and_counted() -> None:
    config = EngineConfig(kv_blocks=4, track_truth=False)
    room = 4 * BLOCK_TOKENS
    work = workload(
        np.array([0.0, 0.1, 0.2]), np.array([room, 10, 20]), np.array([5, 5, 5])
    )
    found = run_aggregate(work, step_cost(config))
    assert found.unfit == 1
    assert np.isnan(found.first_token_seconds).tolist() == [True, False, False]


def test_an_engine_without_room_lets_requests_wait() -> None:
    config = EngineConfig(kv_blocks=10, track_truth=False)
    work = workload(np.zeros(3), np.full(3, 80), np.full(3, 10))
    found = run_aggregate(work, step_cost(config))
    order = np.sort(found.first_token_seconds)
    assert (np.diff(order) > 0).all()
    assert found.unfit == 0
