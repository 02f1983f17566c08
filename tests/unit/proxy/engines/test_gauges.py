"""What is read from an engine's own metrics page."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.engines.gauges import MAX_SEQUENCES, read_gauges
from proxy.wire.facts import EngineGauges

VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a{b} 7"} 3.0
vllm:num_requests_running{engine="1",model_name="a{b} 7"} 2.0
vllm:num_requests_waiting{engine="0",model_name="a{b} 7"} 1.0
vllm:num_requests_waiting{engine="1",model_name="a{b} 7"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 9.0
vllm:num_preemptions_total{engine="0",model_name="a{b} 7"} 4.0
vllm:num_preemptions_created{engine="0",model_name="a{b} 7"} 1.7e+09
vllm:prompt_tokens_total{engine="0",model_name="a{b} 7"} 1.2e+06
vllm:generation_tokens_total{engine="0",model_name="a{b} 7"} 345.0
vllm:generation_tokens_created{engine="0",model_name="a{b} 7"} 1.7e+09
"""
TGI = """\
# TYPE tgi_batch_current_size gauge
tgi_batch_current_size 5
# TYPE tgi_queue_size gauge
tgi_queue_size 2
# TYPE tgi_batch_inference_count counter
tgi_batch_inference_count{method="prefill"} 10
tgi_batch_inference_count{method="decode"} 90
"""


def test_vllm_ranks_are_added_up() -> None:
    assert read_gauges(VLLM) == EngineGauges(
        5, 1, 4, 1_200_345.0, prompt_tokens=1.2e6, output_tokens=345.0
    )


def test_tgi_counts_no_preemptions() -> None:
    assert read_gauges(TGI) == EngineGauges(5, 2, None, 100.0, steps=100.0)


CACHES = """\
vllm:prompt_tokens_by_source_total{engine="0",source="local_compute"} 700.0
vllm:prompt_tokens_by_source_total{engine="0",source="local_cache_hit"} 200.0
vllm:prompt_tokens_by_source_total{engine="1",source="external_kv_transfer"} 100.0
vllm:prompt_tokens_cached_total{engine="0"} 301.0
vllm:prefix_cache_hits_total{engine="0"} 320.0
vllm:external_prefix_cache_hits_total{engine="0"} 32.0
"""


def page_without(page: str, *starts: str) -> str:
    """The page less the lines that begin so."""
    lines = page.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(starts))


@pytest.mark.parametrize(
    ("left_out", "cached"),
    [
        ((), 300.0),
        (("vllm:prompt_tokens_by",), 301.0),
        (("vllm:prompt",), 352.0),
        (("vllm:prompt", "vllm:prefix", "vllm:external"), None),
    ],
    ids=["by source", "cached", "hits", "nothing"],
)
def test_cached_tokens_come_from_the_best_counter_there_is(
    left_out: tuple[str, ...], cached: float | None
) -> None:
    gauges = read_gauges(VLLM + page_without(CACHES, *left_out))
    assert gauges is not None
    assert gauges.cached_tokens == cached


def test_steps_and_speculation_are_added_over_the_ranks() -> None:
    page = VLLM + "".join(
        f"""\
vllm:iteration_tokens_total_bucket{{engine="{rank}",le="8.0"}} 7.0
vllm:iteration_tokens_total_sum{{engine="{rank}"}} 4000.0
vllm:iteration_tokens_total_count{{engine="{rank}"}} 30.0
vllm:spec_decode_num_drafts_total{{engine="{rank}"}} 20.0
vllm:spec_decode_num_draft_tokens_total{{engine="{rank}"}} 60.0
vllm:spec_decode_num_accepted_tokens_total{{engine="{rank}"}} 41.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{{position="0"}} 19.0
"""
        for rank in range(2)
    )
    gauges = read_gauges(page)
    assert gauges is not None
    assert (gauges.steps, gauges.step_tokens) == (60.0, 8000.0)
    assert (gauges.drafts, gauges.draft_tokens) == (40.0, 120.0)
    assert gauges.accepted_tokens == 82.0


def test_tokens_that_tgi_counts_before_or_after_their_work_are_not_told() -> None:
    sums = "tgi_request_input_length_sum 900\ntgi_request_generated_tokens_sum 80\n"
    assert read_gauges(TGI + sums) == read_gauges(TGI)


@pytest.mark.parametrize(
    "page",
    [
        "",
        "<html>",
        "process_cpu_seconds_total 4\n",
        "vllm:num_requests_running 3\n",  # half of it is no picture
        "vllm:num_requests_running NaN\nvllm:num_requests_waiting NaN\n",
        "vllm:num_requests_running 1e+\nvllm:num_requests_waiting 0\n",
    ],
)
def test_other_pages_have_none(page: str) -> None:
    assert read_gauges(page) is None


@given(st.text(alphabet=st.sampled_from('vllm:num_requests_{}" 0123456789e+.\n#')))
def test_any_text_is_read_without_an_error(page: str) -> None:
    assert read_gauges(page) is None or page
    read_gauges(VLLM + page)


@pytest.mark.parametrize(
    "value", ["1e30", "NaN", "+Inf", "-Inf", "1e400", "-1", "1000001", "9" * 400]
)
@pytest.mark.parametrize("gauge", ["running", "waiting"])
def test_what_is_no_plausible_count_is_unknown(gauge: str, value: str) -> None:
    odd = f'vllm:num_requests_{gauge}{{engine="2"}} {value}\n'
    assert read_gauges(VLLM + odd) is None


@pytest.mark.parametrize("value", ["1e30", "NaN", "-1", "1e400"])
def test_an_implausible_counter_is_unknown_beside_good_gauges(value: str) -> None:
    odd = f"vllm:num_preemptions_total {value}\nvllm:prompt_tokens_total {value}\n"
    assert read_gauges(VLLM + odd) == EngineGauges(
        5, 1, None, None, output_tokens=345.0
    )


@given(
    values=st.lists(
        st.tuples(
            st.sampled_from(["running", "waiting"]),
            st.floats() | st.integers(-(10**40), 10**40),
        ),
        max_size=6,
    )
)
def test_whatever_a_page_counts_a_picture_is_of_plausible_counts(
    values: list[tuple[str, float]],
) -> None:
    lines = [f"vllm:num_requests_{gauge} {value}\n" for gauge, value in values]
    gauges = read_gauges("".join(lines))
    if gauges is not None:
        assert 0 <= gauges.running <= MAX_SEQUENCES
        assert 0 <= gauges.waiting <= MAX_SEQUENCES
