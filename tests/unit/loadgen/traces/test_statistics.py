"""Statistics of traces: small ones by hand, real ones as the literature has them."""

from __future__ import annotations

import pytest

from loadgen.traces.readers.open import open_trace
from loadgen.traces.statistics import Spread, trace_statistics
from loadgen.traces.trace import Session, Turn
from tests.support.trace_files import SAMPLES, read_all, real_trace

# mean, p5, p25, p50, p75, p90, p95, p99, max, sd, of prompts and of outputs
LENGTHS = {
    "azure_llm_2023_conv.csv.gz": (
        19_366,
        (1154.7, 181, 396, 1020, 1189, 2734, 4083, 4142, 14050, 1108.8),
        (211.1, 41, 85, 129, 395, 424, 451, 601, 1000, 162.9),
    ),
    "azure_llm_2023_code.csv.gz": (
        8_819,
        (2047.8, 75, 578, 1469, 2744, 5188, 7303, 7436, 7437, 1973.8),
        (27.9, 6, 9, 13, 24, 55, 90, 251, 1899, 59.9),
    ),
    "mooncake_fast25_conversation.jsonl.gz": (
        12_031,
        (12035.1, 901, 2306, 6909, 15367, 27367, 39550, 85400, 126195, 15800.3),
        (342.6, 10, 156, 350, 472, 597, 698, 1119, 2000, 249.9),
    ),
    "mooncake_fast25_synthetic.jsonl.gz": (
        3_993,
        (15325.5, 22, 277, 11587, 23175, 38611, 48905, 66456, 191378, 18380.2),
        (149.1, 2, 11, 69, 250, 389, 519, 768, 893, 178.1),
    ),
    "sharegpt_8k_lengths_llama2.csv.gz": (
        30_731,
        (2340.0, 29, 580, 1730, 3734, 5696, 6563, 7434, 8141, 2088.8),
        (438.7, 44, 228, 415, 628, 834, 920, 998, 1024, 265.6),
    ),
}

# rate, cv, peak/mean and variance/mean of counts in 1, 10, 60 s, empty seconds in %
ARRIVALS = {
    "azure_llm_2023_conv.csv.gz": (
        5.530, 1.094, (2.89, 1.77, 1.52), (1.39, 3.86, 16.1), 1.1,
    ),
    "azure_llm_2023_code.csv.gz": (
        # as printed; the page rounds 2.5667 requests/s down to the gaps' 2.566
        2.567, 13.15, (26.1, 12.8, 4.18), (13.2, 71.6, 164), 73.4,
    ),
    "mooncake_fast25_conversation.jsonl.gz": (
        3.401, 3.03, (8.2, 1.97, 1.21), (7.9, 2.10, 2.89), 66.7,
    ),
    "mooncake_fast25_synthetic.jsonl.gz": (
        3.907, 1.011, (3.33, 1.41, 1.17), (1.09, 1.18, 1.19), 2.9,
    ),
}  # fmt: skip


def digits(value: float) -> int:
    """Decimals of a figure as it is printed."""
    return len(f"{value:g}".partition(".")[2])


def assert_spread(spread: Spread | None, expected: tuple[float, ...]) -> None:
    assert spread is not None
    found = (spread.mean, *spread.percentiles.values(), spread.max, spread.sd)
    for figure, printed in zip(found, expected, strict=True):
        assert round(figure, digits(printed)) == printed


@pytest.mark.data
@pytest.mark.parametrize("name", LENGTHS)
def test_real_lengths_are_those_of_the_literature(name: str) -> None:
    requests, inputs, outputs = LENGTHS[name]
    info, sessions = open_trace(real_trace(name))
    found = trace_statistics(sessions)
    assert (found.requests, info.dropped) == (requests, {})
    assert_spread(found.input_tokens, inputs)
    assert_spread(found.output_tokens, outputs)


@pytest.mark.data
@pytest.mark.parametrize("name", ARRIVALS)
def test_real_arrivals_are_those_of_the_literature(name: str) -> None:
    rate, cv, peaks, dispersions, empty_percent = ARRIVALS[name]
    found = trace_statistics(open_trace(real_trace(name))[1]).arrivals
    assert found is not None
    assert round(found.rate_per_second, 3) == rate
    assert round(found.cv, digits(cv)) == cv
    by_window = zip(
        [*found.peak_to_mean.values(), *found.dispersion.values()],
        [*peaks, *dispersions],
        strict=True,
    )
    for figure, printed in by_window:
        assert figure is not None
        assert round(figure, digits(printed)) == printed
    assert round(100 * found.empty_seconds_fraction, 1) == empty_percent


def session(at_seconds: float | None, *turns: tuple[int, int]) -> Session:
    return Session(
        "s",
        tuple(
            Turn("code", at_seconds if k == 0 else None, 2.0, i, o, history="append")
            for k, (i, o) in enumerate(turns)
        ),
    )


def test_a_turns_history_counts_with_its_prompt() -> None:
    found = trace_statistics([session(None, (10, 5), (3, 4)), session(None, (8, 1))])
    assert found.input_tokens is not None
    assert found.input_tokens.max == 18  # 10 + 5 + 3
    assert (found.sessions, found.requests, found.turns.mean) == (2, 3, 1.5)
    assert found.kinds == {"code": 3}
    assert found.think_seconds is not None
    assert found.think_seconds.n == 1
    assert found.arrivals is None


def test_arrivals_are_counted_in_whole_windows_only() -> None:
    at = [5.0, 5.0, 6.0, 7.5]
    found = trace_statistics([session(t, (1, 1)) for t in at]).arrivals
    assert found is not None
    assert (found.ties, found.longest_gap_seconds, found.span_seconds) == (1, 1.5, 2.5)
    assert found.peak_to_mean["1s"] == pytest.approx(2 / 1.5)  # 2 and 1 requests
    assert found.dispersion["10s"] is None  # not one whole window


def test_one_instant_has_no_rate_and_text_has_no_lengths() -> None:
    assert trace_statistics([session(1.0, (1, 1))]).arrivals is None
    found = trace_statistics(read_all(SAMPLES / "mt-bench-2.jsonl")[1])
    assert found.input_tokens is None
    assert found.output_tokens is None
