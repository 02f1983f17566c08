"""Made traces: percentile bins with means, conversations, the shape of arrivals."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.errors import UsageError
from loadgen.traces.statistics import trace_statistics
from loadgen.traces.statistics_file import load_statistics
from loadgen.traces.synth import (
    JointBins,
    Modulated,
    OnOff,
    Statistics,
    SynthOptions,
    apportioned,
    chained,
    draw,
    draw_lengths,
    drawn_seconds,
    joint_pct8,
    pct8,
    shape_of,
    statistics_of,
    synthesized,
)
from loadgen.traces.trace import Session, Turn
from tests.support.trace_files import REAL, SAMPLES, read_all, real_trace

SHIPPED = SAMPLES.parent.parent / "traces" / "statistics"
LENGTHS = st.lists(st.integers(1, 9_000), min_size=1, max_size=300)


def kept(name: str) -> Statistics:
    return load_statistics(SHIPPED / f"{name}.json")


@given(LENGTHS)
def test_bins_hold_every_value_and_their_means(values: list[int]) -> None:
    axis = pct8(values)
    assert axis.edges[0] == min(values)
    assert axis.edges[-1] == max(values) + 1
    assert sum(axis.counts) == len(values)
    total = float(np.dot(axis.counts, axis.means))
    assert total / len(values) == pytest.approx(np.mean(values), abs=0.001)


@given(LENGTHS, st.integers(0, 2**32))
def test_draws_stay_in_their_bins_and_fill_them_alike(
    values: list[int], seed: int
) -> None:
    axis = pct8(values)
    drawn = draw(axis, len(values), np.random.default_rng(seed))
    assert (np.histogram(drawn, axis.edges)[0] == axis.counts).all()


@given(st.lists(st.integers(0, 50), min_size=1).filter(any), st.integers(0, 2_000))
def test_the_largest_remainders_get_what_is_left(counts: list[int], size: int) -> None:
    whole = apportioned(counts, size)
    assert whole.sum() == size
    exact = np.array(counts) * size / sum(counts)
    assert (np.abs(whole - exact) < 1 + 1e-9).all()


def test_a_draw_keeps_the_mean_of_a_lopsided_bin() -> None:
    values = [10] * 900 + [1000] * 100  # one bin's worth of two atoms
    axis = msgspec.structs.replace(
        pct8(values), edges=[10.0, 1001.0], counts=[1000], means=[109.0]
    )
    drawn = draw(axis, 100_000, np.random.default_rng(0))
    assert drawn.mean() == pytest.approx(109, rel=0.02)
    assert 10 <= drawn.min() <= drawn.max() <= 1000


def test_bins_that_do_not_fit_each_other_are_refused() -> None:
    good = joint_pct8([1, 2, 3], [4, 5, 6])
    with pytest.raises(ValueError, match="counts have shape"):
        JointBins(good.in_edges, good.out_edges, [[1]], good.in_bin_mean, [])
    with pytest.raises(ValueError, match="bin means do not fit"):
        JointBins(good.in_edges, good.out_edges, good.counts, [1.0], [1.0])


# reference/traces.md section 6: relative error of mean and p95 at N = 1,000, as wide
# as three standard deviations over seeds where the page gives them
LIMITS = {
    "azure-conv": {"in": (1154.7, 0.025, 4083, 0.02), "out": (211.1, 0.025, 451, 0.02)},
    "azure-code": {"in": (2047.8, 0.025, 7303, 0.05), "out": (27.88, 0.11, 90, 0.15)},
}


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", LIMITS)
def test_a_thousand_requests_keep_means_and_p95(name: str, seed: int) -> None:
    found = draw_lengths(kept(name).lengths, 1000, np.random.default_rng(seed))
    for axis, drawn in zip(("in", "out"), found, strict=True):
        mean, mean_error, p95, p95_error = LIMITS[name][axis]
        assert drawn.mean() == pytest.approx(mean, rel=mean_error), axis
        assert np.percentile(drawn, 95) == pytest.approx(p95, rel=p95_error), axis


@pytest.mark.parametrize("name", LIMITS)
def test_over_many_draws_the_mean_is_kept_to_a_hundredth(name: str) -> None:
    bins = kept(name).lengths
    inputs, outputs = draw_lengths(bins, 400_000, np.random.default_rng(0))
    # the page: conv -0.2/-0.1 %, code +0.1/0.0 %
    assert inputs.mean() == pytest.approx(LIMITS[name]["in"][0], rel=0.005)
    assert outputs.mean() == pytest.approx(LIMITS[name]["out"][0], rel=0.005)


def test_a_drifting_poisson_keeps_rate_and_drift() -> None:
    shape = Modulated(4.0, [0.5, 1.5])
    at_seconds = drawn_seconds(shape, 20_000, np.random.default_rng(4))
    assert at_seconds[0] == 0
    assert (np.diff(at_seconds) >= 0).all()
    assert 19_999 / at_seconds[-1] == pytest.approx(4.0, rel=5 / np.sqrt(20_000))
    first = (at_seconds < 2_500).mean()  # half the span has a quarter of the requests
    assert first == pytest.approx(0.25, abs=0.02)


def test_bursts_keep_their_pauses() -> None:
    shape = kept("azure-code").arrivals
    assert isinstance(shape, OnOff)
    at_seconds = drawn_seconds(shape, 8_819, np.random.default_rng(0))
    gaps = np.diff(at_seconds)
    # the hour of the source: 95 pauses hold 2,573 s, cv 13.15, 2.566 requests/s
    assert (gaps > 2).sum() == pytest.approx(95, abs=10)
    assert gaps[gaps > 2].sum() == pytest.approx(2573, rel=0.15)
    assert gaps.std() / gaps.mean() == pytest.approx(13.15, rel=0.15)
    assert len(gaps) / at_seconds[-1] == pytest.approx(2.566, rel=0.15)


def test_shapes_are_told_apart_by_how_much_the_gaps_vary() -> None:
    even = np.cumsum(np.random.default_rng(0).exponential(1, 1000))
    assert isinstance(shape_of(even), Modulated)
    bursts = np.concatenate([np.arange(50) * 0.01 + 60 * k for k in range(20)])
    assert isinstance(shape_of(bursts), OnOff)


def row(input_tokens: int, output_tokens: int) -> Session:
    turn = Turn(input_tokens=input_tokens, output_tokens=output_tokens)
    return Session("row", (turn,))


def test_rows_with_their_history_are_chained_into_conversations() -> None:
    rows = [row(10, 5), row(20, 5), row(25, 5), row(24, 9), row(40, 1)]
    chains = list(chained(rows))
    found = [[t.input_tokens for t in session.turns] for session in chains]
    # 25 = 20 + 5 leaves no new text, but a turn has at least a token of it
    assert found == [[10, 5, 1], [24, 7]]
    assert {t.history for session in chains for t in session.turns} == {"append"}


def test_statistics_count_whole_prompts_and_new_text_apart() -> None:
    statistics = statistics_of(
        chained([row(10, 5), row(20, 5), row(7, 2)]), name="t", source={}
    )
    assert statistics.requests == 3
    assert statistics.lengths.in_edges[-1] == 21  # the whole prompt of turn two
    assert statistics.conversations is not None
    assert statistics.conversations.turns == {1: 1, 2: 1}
    assert statistics.conversations.later.in_edges == [5, 6]
    assert statistics.conversations.longest_tokens == 25


def test_text_without_counts_has_no_statistics() -> None:
    _, sessions = read_all(SAMPLES / "mt-bench-2.jsonl")
    with pytest.raises(UsageError, match="text without token counts"):
        statistics_of(sessions, name="t", source={})


@pytest.mark.parametrize("max_turns", [None, 1, 3])
@pytest.mark.parametrize("requests", [1, 7, 340])
def test_a_new_trace_has_the_requests_asked_for(
    requests: int, max_turns: int | None
) -> None:
    options = SynthOptions(requests=requests, seed=1, max_turns=max_turns)
    sessions = synthesized(kept("sharegpt"), options)
    assert sum(len(session.turns) for session in sessions) == requests
    if max_turns is not None:
        assert max(len(session.turns) for session in sessions) <= max_turns
    assert sessions == synthesized(kept("sharegpt"), options)


def test_conversations_keep_turns_lengths_and_the_longest_length() -> None:
    sessions = synthesized(kept("sharegpt"), SynthOptions(requests=30_000, seed=0))
    found = trace_statistics(sessions)
    assert found.input_tokens is not None
    assert found.output_tokens is not None
    # the source: 5.41 turns, prompts 2,340 (p50 1,730, p95 6,563), outputs 438.7;
    # conversations that would outgrow 8,192 tokens end early, hence the room below
    assert found.turns.mean == pytest.approx(5.41, rel=0.08)
    assert found.input_tokens.mean == pytest.approx(2340, rel=0.07)
    assert found.input_tokens.percentiles["p50"] == pytest.approx(1730, rel=0.05)
    assert found.input_tokens.percentiles["p95"] == pytest.approx(6563, rel=0.07)
    assert found.output_tokens.mean == pytest.approx(438.7, rel=0.01)
    assert found.input_tokens.max < 8192
    assert found.think_seconds is not None
    assert found.think_seconds.mean == pytest.approx(4, rel=0.03)


def test_cutting_conversations_keeps_the_prompts_they_send() -> None:
    whole = trace_statistics(
        synthesized(kept("sharegpt"), SynthOptions(requests=10_000))
    )
    cut = trace_statistics(
        synthesized(kept("sharegpt"), SynthOptions(requests=10_000, max_turns=3))
    )
    assert whole.input_tokens is not None
    assert cut.input_tokens is not None
    assert cut.input_tokens.mean == pytest.approx(whole.input_tokens.mean, rel=0.02)
    assert cut.turns.max == 3


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "trace", "dataset"),
    [
        ("azure-conv", "azure_llm_2023_conv.csv.gz", "azure_2023_conv"),
        ("azure-code", "azure_llm_2023_code.csv.gz", "azure_2023_code"),
        ("sharegpt", "sharegpt_8k_lengths_llama2.csv.gz", "sharegpt_8k_llama2"),
    ],
)
def test_shipped_statistics_are_those_of_the_real_traces(
    name: str, trace: str, dataset: str
) -> None:
    rebuilt = load_statistics(real_trace(trace), rebuild=name == "sharegpt")
    assert msgspec.structs.replace(rebuilt, name="") == msgspec.structs.replace(
        kept(name), name=""
    )
    published = json.loads((REAL / "length_bins.json").read_text())["datasets"]
    bins = msgspec.to_builtins(rebuilt.lengths)
    expected = published[dataset]["schemes"]["pct8"]
    assert bins["counts"] == expected["counts"]
    assert bins["in_edges"] == expected["in_edges"]
    assert bins["out_bin_mean"] == pytest.approx(expected["out_bin_mean"], abs=0.001)
    same = load_statistics(REAL / "length_bins.json", dataset=dataset)
    assert same.lengths.counts == rebuilt.lengths.counts


@pytest.mark.data
def test_a_length_bins_file_needs_the_name_of_a_data_set() -> None:
    path = real_trace("length_bins.json")
    with pytest.raises(UsageError, match="--dataset is needed; it has: azure_2023_co"):
        load_statistics(path)
    with pytest.raises(UsageError, match="--dataset 'x' is not in it"):
        load_statistics(path, dataset="x")
