"""The engine in virtual time: schedule, roofline, KV cache, prefix cache, books."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.errors import UsageError
from loadgen.simulator.core.config import BLOCK_TOKENS, EngineConfig
from loadgen.simulator.core.engine import EngineSimulator, Trace, simulate
from loadgen.simulator.core.presets import GPUS, MODELS, PRESETS
from loadgen.simulator.core.scheduler import SimRequest
from tests.support.profiles import examples

H100 = EngineConfig()


@st.composite
def workloads(draw: st.DrawFn) -> list[SimRequest]:
    count = draw(st.integers(1, 12))
    shapes = st.tuples(st.floats(0, 0.5), st.integers(1, 300), st.integers(1, 40))
    return [
        SimRequest(f"r{index}", *draw(shapes), tuple(range(draw(st.integers(0, 18)))))
        for index in range(count)
    ]


@st.composite
def configs(draw: st.DrawFn) -> EngineConfig:
    return EngineConfig(
        max_num_seqs=draw(st.integers(1, 8)),
        max_num_batched_tokens=draw(st.integers(1, 256)),
        kv_blocks=draw(st.integers(22, 60)),
        prefix_cache=draw(st.booleans()),
        power_cap_watts=draw(st.sampled_from([None, 250.0])),
    )


def run(*requests: SimRequest, config: EngineConfig = H100) -> Trace:
    return simulate(requests, config)


@given(workloads(), configs())
@examples(60)
def test_every_joule_of_the_power_curve_is_somebodys_or_idle(
    requests: list[SimRequest], config: EngineConfig
) -> None:
    trace = simulate(requests, config)
    charged = sum(truth.energy_joules for truth in trace.truth.values())
    idle = trace.idle_joules
    assert charged + idle == pytest.approx(trace.total_joules, rel=1e-9)
    first_seconds = min(request.arrived_seconds for request in requests)
    assert idle >= config.idle_watts * first_seconds - 1e-9
    shares = sum(truth.idle_share_joules for truth in trace.truth.values())
    assert shares == pytest.approx(sum(step.idle_joules for step in trace.steps))


@given(workloads(), configs())
@examples(60)
def test_every_request_gets_its_tokens_in_order_and_all_blocks_come_back(
    requests: list[SimRequest], config: EngineConfig
) -> None:
    engine = EngineSimulator(config)
    for request in sorted(requests, key=lambda r: r.arrived_seconds):
        engine.submit(request)
    last_seconds = 0.0
    while (step := engine.step()) is not None:
        assert step.start_seconds >= last_seconds
        last_seconds = step.end_seconds
        computed = step.decodes + sum(step.prefill_tokens.values())
        assert 0 < computed <= config.max_num_batched_tokens
        assert step.running <= config.max_num_seqs
        assert 0 <= step.kv_used_fraction <= 1
    for request in requests:
        truth = engine.truth[request.request_id]
        assert truth.output_tokens == request.output_tokens
        assert truth.scheduled_seconds is not None
        assert truth.scheduled_seconds >= request.arrived_seconds
    assert engine.kv_used_fraction == 0
    assert engine.running == engine.waiting == 0


@given(workloads(), configs())
@examples(30)
def test_first_come_is_first_scheduled(
    requests: list[SimRequest], config: EngineConfig
) -> None:
    trace = simulate(requests, config)
    by_arrival = sorted(requests, key=lambda r: r.arrived_seconds)
    started = [name for step in trace.steps for name in step.started]
    assert started == [request.request_id for request in by_arrival]


def test_the_same_seed_gives_the_same_run() -> None:
    requests = [
        SimRequest(f"r{i}", i / 100, 50 + 37 * i % 900, 5 + i) for i in range(40)
    ]
    first, second = simulate(requests, H100), simulate(requests, H100)
    assert first.steps == second.steps
    assert first.truth == second.truth


def test_decode_of_one_sequence_takes_about_as_long_as_reading_the_weights() -> None:
    trace = run(SimRequest("r", 0, 16, 100))
    gaps = np.diff(trace.token_seconds["r"])
    weights_seconds = 2 * 8.03e9 / (3.35e12 * 0.8)
    overhead_seconds = H100.step_overhead_seconds
    assert gaps == pytest.approx(weights_seconds + overhead_seconds, rel=0.01)


def test_decode_reads_fewer_bytes_of_narrower_weights() -> None:
    config = replace(H100, weight_bits=4, step_overhead_seconds=0.0)
    trace = run(SimRequest("r", 0, 16, 100), config=config)
    weights_seconds = 8.03e9 / 2 / (3.35e12 * 0.8)
    assert np.diff(trace.token_seconds["r"]) == pytest.approx(weights_seconds, rel=0.03)
    assert config.capacity_blocks > H100.capacity_blocks


@pytest.mark.parametrize(
    ("field", "value"),
    [("weight_bits", 5), ("step_overhead_seconds", -1.0), ("n_gpus", 0)],
)
def test_a_figure_that_no_engine_has_is_refused(field: str, value: float) -> None:
    with pytest.raises(UsageError, match=field.removesuffix("_seconds")):
        replace(H100, **{field: value})  # type: ignore[arg-type]  # one of several


def test_prefill_is_bound_by_arithmetic() -> None:
    trace = run(SimRequest("r", 0, 2048, 1))
    arithmetic_seconds = 2 * 8.03e9 * 2048 / (989.4e12 * 0.55)
    seconds = trace.steps[0].end_seconds - H100.step_overhead_seconds
    assert arithmetic_seconds < seconds < 1.1 * arithmetic_seconds


@pytest.mark.parametrize("name", GPUS)
def test_full_load_draws_about_the_board_power(name: str) -> None:
    gpu = GPUS[name]
    config = EngineConfig(gpu=gpu, power_cap_watts=2 * gpu.tdp_watts)
    prefill = run(SimRequest("r", 0, 8000, 1), config=config).steps[0]
    decode = run(SimRequest("r", 0, 16, 4), config=config).steps[-1]
    assert prefill.watts == pytest.approx(gpu.tdp_watts, rel=0.12)
    assert gpu.idle_watts < decode.watts < 0.7 * gpu.tdp_watts


def test_a_power_cap_is_kept_and_makes_steps_longer() -> None:
    capped = replace(H100, power_cap_watts=400.0)
    request = SimRequest("r", 0, 2048, 10)
    free, slow = run(request).steps, run(request, config=capped).steps
    assert all(step.watts <= 400 * (1 + 1e-9) for step in slow)
    assert slow[0].end_seconds > 1.2 * free[0].end_seconds
    assert slow[0].joules - slow[0].idle_joules > free[0].joules - free[0].idle_joules


def test_a_group_of_gpus_is_faster_and_costs_more() -> None:
    request = SimRequest("r", 0, 512, 50)
    one, four = run(request), run(request, config=replace(H100, n_gpus=4))
    assert four.end_seconds < one.end_seconds / 2
    assert four.total_joules > one.total_joules


def test_a_long_prompt_is_prefilled_in_chunks_while_others_decode() -> None:
    config = replace(H100, max_num_batched_tokens=512)
    trace = run(
        SimRequest("chat", 0, 10, 60), SimRequest("code", 0.02, 3000, 2), config=config
    )
    chunks = [
        step.prefill_tokens["code"]
        for step in trace.steps
        if "code" in step.prefill_tokens
    ]
    assert chunks == [511, 511, 511, 511, 511, 445]
    mixed = [step for step in trace.steps if "code" in step.prefill_tokens]
    assert all("chat" in step.emitted for step in mixed)


def test_a_full_kv_cache_preempts_the_youngest_and_recomputes_it() -> None:
    config = replace(H100, kv_blocks=20, prefix_cache=False)
    old, young = SimRequest("old", 0, 144, 100), SimRequest("young", 0, 144, 100)
    trace = run(old, young, config=config)
    assert {name for step in trace.steps for name in step.preempted} == {"young"}
    assert trace.truth["old"].prefilled_tokens == 144
    assert trace.truth["young"].prefilled_tokens > 2 * 144
    assert trace.truth["young"].output_tokens == 100
    assert trace.truth["young"].prefill_joules > trace.truth["old"].prefill_joules


def test_a_cached_prefix_is_not_computed_again() -> None:
    hashes = tuple(range(100, 108))
    first = SimRequest("first", 0, 8 * BLOCK_TOKENS, 4, hashes)
    again = SimRequest("again", 9, 8 * BLOCK_TOKENS, 4, hashes)
    longer = SimRequest("longer", 18, 10 * BLOCK_TOKENS, 4, (*hashes, 1, 2))
    other = SimRequest("other", 27, 8 * BLOCK_TOKENS, 4, (7, *hashes[1:]))
    trace = run(first, again, longer, other)
    cached = {name: truth.cached_tokens for name, truth in trace.truth.items()}
    assert cached == {
        "first": 0,
        "again": 7 * BLOCK_TOKENS,  # the last token is always computed
        "longer": 8 * BLOCK_TOKENS,
        "other": 0,
    }
    assert trace.truth["again"].prefilled_tokens == BLOCK_TOKENS
    assert trace.truth["again"].prefill_joules < trace.truth["first"].prefill_joules
    without = run(first, again, config=replace(H100, prefix_cache=False))
    assert without.truth["again"].cached_tokens == 0


def test_a_full_pool_evicts_the_prefix_used_longest_ago() -> None:
    config = replace(H100, kv_blocks=12)

    def prompt(name: str, at_seconds: float, base: int) -> SimRequest:
        return SimRequest(name, at_seconds, 65, 1, tuple(range(base, base + 4)))

    trace = run(
        prompt("a", 0, 0),
        prompt("b", 1, 100),
        prompt("a again", 2, 0),
        prompt("c", 3, 200),
        prompt("a still", 4, 0),
        prompt("b lost", 5, 100),
        config=config,
    )
    cached = {name: truth.cached_tokens for name, truth in trace.truth.items()}
    assert cached["a again"] == cached["a still"] == 4 * BLOCK_TOKENS
    assert cached["b lost"] < 4 * BLOCK_TOKENS


def test_equal_requests_that_run_together_cost_the_same() -> None:
    trace = run(*(SimRequest(f"r{i}", 0, 100, 20) for i in range(4)))
    energies = [truth.energy_joules for truth in trace.truth.values()]
    assert energies == pytest.approx([energies[0]] * 4)


def test_a_request_is_charged_nothing_while_it_waits() -> None:
    config = replace(H100, max_num_seqs=1)
    alone = run(SimRequest("r", 0, 100, 20), config=config)
    queued = run(
        SimRequest("before", 0, 100, 200), SimRequest("r", 0, 100, 20), config=config
    )
    waited = queued.truth["r"]
    assert waited.energy_joules == pytest.approx(alone.truth["r"].energy_joules)


def test_prefill_and_decode_are_charged_apart() -> None:
    truth = run(SimRequest("r", 0, 100, 1)).truth["r"]
    assert truth.prefill_joules > 0
    assert truth.decode_joules == 0


def test_without_truth_the_same_steps_run_and_joules_are_unknown() -> None:
    requests = [SimRequest(f"r{i}", i / 50, 200, 20) for i in range(10)]
    with_truth = simulate(requests, H100)
    without = simulate(requests, replace(H100, track_truth=False))
    assert without.steps == with_truth.steps
    assert np.isnan(without.truth["r0"].energy_joules)


def test_an_aborted_request_frees_the_engine_and_keeps_its_cost() -> None:
    engine = EngineSimulator(H100)
    engine.submit(SimRequest("r", 0, 100, 1000))
    engine.submit(SimRequest("waits", 99, 100, 1000))
    engine.step()
    assert engine.abort("r")
    assert engine.abort("waits")
    assert not engine.abort("r")
    assert engine.step() is None
    assert engine.kv_used_fraction == 0
    assert engine.truth["r"].energy_joules > 0
    assert engine.truth["waits"].energy_joules == 0


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (SimRequest("r", 0, 0, 5), "needs a prompt"),
        (SimRequest("r", 0, 5, 0), "needs a prompt"),
        (SimRequest("r", 0, 131_000, 500), "exceed 131072"),
        (SimRequest("taken", 5, 5, 5), "submitted twice"),
        (SimRequest("r", 1, 5, 5), "arrives before"),
    ],
)
def test_a_request_that_cannot_run_is_refused(
    request_: SimRequest, message: str
) -> None:
    engine = EngineSimulator(H100)
    engine.submit(SimRequest("taken", 5, 5, 5))
    with pytest.raises(ValueError, match=message):
        engine.submit(request_)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_every_preset_fits_and_answers(preset: tuple[str, str, int]) -> None:
    gpu, model, n_gpus = preset
    config = EngineConfig(gpu=GPUS[gpu], model=MODELS[model], n_gpus=n_gpus)
    trace = run(SimRequest("r", 0, 4000, 10), config=config)
    assert trace.truth["r"].output_tokens == 10


def test_a_model_that_does_not_fit_is_refused_with_the_way_out() -> None:
    with pytest.raises(UsageError, match=r"141 GB of weights .* use more GPUs"):
        EngineConfig(model=MODELS["llama-3.1-70b"])


@pytest.mark.parametrize(
    ("field", "value"),
    [("n_gpus", 0), ("max_num_seqs", 0), ("permutations", 3), ("power_cap_watts", 90)],
)
def test_an_impossible_configuration_is_refused(field: str, value: float) -> None:
    with pytest.raises(UsageError):
        replace(H100, **{field: value})  # type: ignore[arg-type]  # by name on purpose
