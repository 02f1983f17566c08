"""A request on two simulated engines: what is computed where, and what they tell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.errors import UsageError
from loadgen.simulator.config import ServerConfig
from loadgen.simulator.core.config import BLOCK_TOKENS, EngineConfig
from loadgen.simulator.core.engine import Trace, simulate
from loadgen.simulator.core.scheduler import SimRequest
from loadgen.simulator.core.truth import RequestTruth
from loadgen.simulator.router import decode_fields, prefill_fields
from loadgen.simulator.vllm.dialect import VllmGeneration, read_request
from loadgen.simulator.vllm.metrics import VllmMetrics
from loadgen.simulator.vllm.transfer import KvSource, remote_tokens_of
from loadgen.simulator.wire import EngineRefusal, Gauges, Limits
from tests.support.profiles import examples

CONFIG = EngineConfig(kv_blocks=64)


def run(*requests: SimRequest, config: EngineConfig = CONFIG) -> Trace:
    return simulate(requests, config)


def request(name: str = "r", *, remote: int = 0, transfer: float = 0.0, at: float = 0.0,
            prompt: int = 400, output: int = 4) -> SimRequest:  # fmt: skip
    return SimRequest(name, at, prompt, output, (), remote, transfer)


@given(
    st.lists(
        st.tuples(
            st.floats(0, 0.2), st.integers(1, 300), st.integers(1, 20),
            st.integers(0, 400), st.floats(0, 0.1),
        ),
        min_size=1, max_size=10,
    ),
    st.integers(22, 60),
)  # fmt: skip
@examples(60)
def test_what_was_sent_is_not_computed_and_every_joule_is_somebodys(
    shapes: list[tuple[float, int, int, int, float]], kv_blocks: int
) -> None:
    config = EngineConfig(kv_blocks=kv_blocks, max_num_batched_tokens=64)
    requests = [
        SimRequest(f"r{n}", at, prompt, output, (), remote, transfer)
        for n, (at, prompt, output, remote, transfer) in enumerate(shapes)
    ]
    trace = simulate(requests, config)
    charged = sum(truth.energy_joules for truth in trace.truth.values())
    assert charged + trace.idle_joules == pytest.approx(trace.total_joules, rel=1e-9)
    for each in requests:
        truth = trace.truth[each.request_id]
        assert truth.scheduled_seconds is not None
        assert truth.scheduled_seconds >= each.ready_seconds
        assert truth.output_tokens == each.output_tokens
        assert truth.external_tokens == min(each.remote_tokens, each.prompt_tokens - 1)
        if not truth.preemptions:
            computed = each.prompt_tokens - truth.external_tokens
            assert truth.prefilled_tokens == computed


def test_a_decode_leg_computes_one_prompt_token_and_costs_that_much_less() -> None:
    whole = run(request()).truth["r"]
    leg = run(request(remote=400, transfer=0.01)).truth["r"]
    assert leg.prefilled_tokens == 1
    assert leg.cached_tokens == leg.external_tokens == 399
    assert leg.prefill_joules < whole.prefill_joules / 2
    assert leg.decode_joules == pytest.approx(whole.decode_joules)


def test_others_are_served_while_blocks_are_under_way() -> None:
    trace = run(request("waits", remote=400, transfer=5.0), request("passes", at=0.1))
    assert trace.truth["passes"].scheduled_seconds == pytest.approx(0.1)
    assert trace.truth["waits"].scheduled_seconds == pytest.approx(5.0)


def test_a_preempted_decode_leg_computes_its_prompt_anew() -> None:
    config = EngineConfig(kv_blocks=34, prefix_cache=False)
    legs = [request(name, remote=256, prompt=256, output=40) for name in ("a", "b")]
    trace = run(*legs, config=config)
    again = next(truth for truth in trace.truth.values() if truth.preemptions)
    assert again.prefilled_tokens > 256
    assert again.external_tokens == 255


def test_less_than_nothing_cannot_be_sent() -> None:
    with pytest.raises(ValueError, match="less than nothing"):
        run(request(remote=-1))


def test_the_transfer_takes_the_time_of_a_link() -> None:
    tokens_bytes = 131_072 * 1000  # 32 layers x 8 heads x 128 x 2 x 2 bytes a token
    assert EngineConfig().transfer_seconds(1000) == pytest.approx(tokens_bytes / 25e9)


# -- the dialect ---------------------------------------------------------------------

SOURCE = KvSource("engine-a", 1)
PARAMS = SOURCE.params("cmpl-r", 100)


def read(role: str | None, params: object, **fields: object) -> VllmGeneration:
    body = {"prompt": "a b c", "max_tokens": 1, "kv_transfer_params": params, **fields}
    return read_request(
        json.dumps(body).encode(),
        is_chat=False,
        request_id="r",
        created=0,
        limits=Limits("m", 4096, 0, role),
    )


def test_blocks_of_a_prompt_are_told_in_the_form_of_nixl() -> None:
    assert PARAMS["do_remote_prefill"] is True
    assert PARAMS["remote_engine_id"] == "engine-a"
    assert remote_tokens_of(PARAMS) == 7 * BLOCK_TOKENS
    assert read("decode", PARAMS).remote_tokens == 7 * BLOCK_TOKENS


@pytest.mark.parametrize("role", [None, "prefill", "decode"])
def test_an_engine_does_its_own_half_alone(role: str | None) -> None:
    asked = read(role, {"do_remote_decode": True})
    sent = read(role, PARAMS)
    assert asked.hands_over is (role == "prefill")
    assert (sent.remote_tokens > 0) is (role == "decode")


@pytest.mark.parametrize(
    "params",
    [
        None,
        {},
        {"do_remote_prefill": True},
        {**PARAMS, "do_remote_prefill": False},
        {**PARAMS, "remote_block_ids": "1234"},
        {**PARAMS, "remote_block_ids": 7},
        {**PARAMS, "remote_engine_id": None},
    ],
    ids=["none", "empty", "no-blocks", "not-asked", "text", "number", "no-engine"],
)
def test_a_decode_engine_told_of_no_blocks_serves_the_request_whole(
    params: Mapping[str, object] | None,
) -> None:
    assert read("decode", params).remote_tokens == 0


def test_parameters_that_are_no_object_are_refused() -> None:
    with pytest.raises(EngineRefusal) as refusal:
        read("decode", [1])
    assert refusal.value.status == 400


def test_the_counters_tell_sent_tokens_from_cached_ones() -> None:
    metrics = VllmMetrics("m")
    for truth in (
        RequestTruth("a", 100, 0.0, cached_tokens=99, external_tokens=67),
        RequestTruth("b", 50, 0.0, cached_tokens=32),
    ):
        metrics.scheduled(truth)
        metrics.prefilled(truth)
    page = metrics.page(Gauges(0, 0, 0.0))
    found = {
        line.partition("source=")[2].split('"')[1]: float(line.split()[-1])
        for line in page.splitlines()
        if line.startswith("vllm:prompt_tokens_by_source_total{")
    }
    # the last token of the prompt was sent, and computed again
    assert found == {
        "local_compute": 19, "local_cache_hit": 64, "external_kv_transfer": 68,
    }  # fmt: skip


# -- the router ----------------------------------------------------------------------


def test_the_first_leg_asks_for_one_token_in_one_piece() -> None:
    fields = {
        "prompt": "a", "max_tokens": 9, "stream": True, "min_tokens": 3,
        "stream_options": {"include_usage": True}, "temperature": 0.5,
    }  # fmt: skip
    first = prefill_fields(fields)
    assert first["max_tokens"] == 1
    assert first["stream"] is False
    assert first["kv_transfer_params"]["do_remote_decode"] is True
    assert first["temperature"] == 0.5
    assert not {"min_tokens", "stream_options"} & first.keys()
    assert fields["max_tokens"] == 9


def test_the_first_leg_keeps_to_the_length_that_the_client_named() -> None:
    first = prefill_fields({"messages": [], "max_completion_tokens": 9})
    assert first["max_completion_tokens"] == 1
    assert "max_tokens" not in first


@pytest.mark.parametrize("reply", [{}, {"kv_transfer_params": None}, [], None], ids=str)
def test_without_blocks_the_second_leg_is_the_client_s_request(reply: Any) -> None:
    fields = {"prompt": "a", "max_tokens": 9}
    assert decode_fields(fields, reply) == fields
    told = {"prompt": "a", "kv_transfer_params": {"do_remote_prefill": True}}
    assert decode_fields(told, reply) == {"prompt": "a"}


def test_the_second_leg_has_the_blocks_of_the_first() -> None:
    second = decode_fields({"prompt": "a"}, {"kv_transfer_params": PARAMS})
    assert second == {"prompt": "a", "kv_transfer_params": PARAMS}


@pytest.mark.parametrize(
    "wrong",
    [
        {"role": "router"},
        {"role": "router", "prefill": ("http://a",)},
        {"role": "decode", "decode": ("http://a",)},
        {"role": "prefill", "dialect": "tgi"},
    ],
    ids=["no-engine", "no-decode", "engine-with-urls", "tgi"],
)
def test_a_role_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ServerConfig(**wrong)
