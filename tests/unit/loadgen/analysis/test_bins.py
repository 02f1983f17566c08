"""Requests fall into the published bins, each into one, and their joules with them."""

import csv
import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.analysis.bins import (
    EDGE_SETS,
    PUBLISHED,
    Edges,
    Lengths,
    bin_table,
    edges_of,
    lengths_of_run,
    lengths_of_trace,
    parse_edges,
    place,
)
from loadgen.errors import UsageError
from loadgen.report import bins as shown
from loadgen.results.results import EnergyPart, Result
from loadgen.traces.trace import Session, Turn
from tests.support.shown import Page, printed

pairs = st.lists(
    st.tuples(st.integers(0, 20_000), st.integers(0, 2_000)), min_size=1, max_size=60
)


def lengths(*given_produced: tuple[int, int]) -> Lengths:
    found = Lengths()
    for given_tokens, produced in given_produced:
        found.input_tokens.append(given_tokens)
        found.output_tokens.append(produced)
    return found


def answered(number: int, prompt: int, output: int, joules: float | None) -> Result:
    energy = None
    if joules is not None:
        energy = EnergyPart(
            energy_joules=joules, prefill_joules=joules / 4, decode_joules=joules / 2,
            idle_share_joules=joules / 4, quality="exact", policy="phase",
        )  # fmt: skip
    return Result(
        request_id=f"r{number}", session_id="s", turn=0, kind="other",
        planned_seconds=0.0, sent_seconds=0.0, first_token_seconds=0.5,
        last_token_seconds=2.0, finished_seconds=2.0, prompt_tokens=prompt,
        output_tokens=output, outcome="ok", status=200, energy=energy,
    )  # fmt: skip


def test_the_published_edges_are_those_printed_and_those_of_the_set_builder() -> None:
    printed_inputs, outputs = PUBLISHED["paper"]
    assert printed_inputs == (32, 128, 256, 512, 1024, 2048, 4096, 8192)
    assert outputs == (8, 16, 32, 64, 128, 256, 512)
    assert PUBLISHED["powers"][0] == tuple(2**m for m in range(4, 14))


@pytest.mark.parametrize(
    ("tokens", "expected"), [(0, 0), (1, 0), (32, 0), (33, 1), (128, 1), (8193, 8)]
)
def test_a_length_is_rounded_up_to_the_next_edge(tokens: int, expected: int) -> None:
    assert place(PUBLISHED["paper"][0], np.array([tokens])).tolist() == [expected]


@given(pairs, st.sampled_from(EDGE_SETS))
def test_each_request_is_in_one_bin_or_beyond(
    requests: list[tuple[int, int]], edge_set: str
) -> None:
    found = lengths(*requests)
    table = bin_table(edge_set, edges_of(edge_set, found), found)
    assert sum(row.requests for row in table.bins) + table.beyond == len(requests)
    for row in table.bins:
        members = [
            (a, b)
            for a, b in requests
            if max(a, 0) <= row.input_tokens
            and (a > row.above_input_tokens or row.above_input_tokens == 0)
            and b <= row.output_tokens
            and (b > row.above_output_tokens or row.above_output_tokens == 0)
        ]
        assert len(members) == row.requests
        assert math.isclose(
            row.mean_input_tokens, sum(a for a, _ in members) / len(members)
        )


@given(pairs)
def test_percentile_edges_leave_nobody_beyond(requests: list[tuple[int, int]]) -> None:
    found = lengths(*requests)
    assert bin_table("percentile", edges_of("percentile", found), found).beyond == 0


def test_a_turn_that_carries_its_history_is_binned_with_it() -> None:
    turns = (
        Turn(input_tokens=10, output_tokens=5, history="append"),
        Turn(input_tokens=20, output_tokens=7, history="append"),
    )
    assert lengths_of_trace([Session("s", turns)]).input_tokens.tolist() == [10, 35]


def test_text_whose_tokens_nobody_counted_has_no_known_length() -> None:
    found = lengths_of_trace([Session("s", (Turn(prompt="hi", output_tokens=5),))])
    assert (len(found), found.unknown) == (0, 1)


def test_joules_of_a_bin_are_of_its_metered_requests_alone() -> None:
    results = [
        answered(0, 100, 10, 30.0),
        answered(1, 100, 15, 20.0),
        answered(2, 120, 12, None),
        answered(3, 3000, 400, 700.0),
    ]
    table = bin_table("paper", Edges(*PUBLISHED["paper"]), lengths_of_run(results))
    small, large = table.bins
    assert (small.input_tokens, small.output_tokens, small.requests) == (128, 16, 3)
    assert (small.metered, small.mean_joules) == (2, 25.0)
    assert small.joules_per_output_token == 50.0 / 25
    assert (small.p50_ttft_seconds, small.p50_e2el_seconds) == (0.5, 2.0)
    assert (large.input_tokens, large.mean_joules) == (4096, 700.0)


def test_a_failed_request_is_in_no_bin() -> None:
    failed = Result(
        request_id="r", session_id="s", turn=0, kind="other",
        planned_seconds=0.0, sent_seconds=0.0, finished_seconds=1.0, outcome="error",
        prompt_tokens=10, output_tokens=3,
    )  # fmt: skip
    assert lengths_of_run([failed]).unknown == 1


@pytest.mark.parametrize(
    "text", ["", "a", "1,1", "3,2", "0,1", "-1", "1;2", "9e9", "1,"]
)
def test_edges_that_do_not_rise_are_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError, match=r"--input-edges .*rising numbers of tokens"):
        parse_edges("--input-edges", text)


def test_the_table_fits_eighty_columns_and_tells_what_is_beyond() -> None:
    results = [answered(n, 90 * (n + 1), 7 * (n + 1), 10.0 * n) for n in range(100)]
    table = bin_table("paper", Edges(*PUBLISHED["paper"]), lengths_of_run(results))
    text = printed(shown.render("run", table), width=80)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "longer than the last edge" in text
    assert "per output" in text
    assert "…" not in text


def test_the_page_is_whole_and_names_from_outside_are_text() -> None:
    results = [answered(n, 90 * (n + 1), 7 * (n + 1), 10.0) for n in range(9)]
    table = bin_table("paper", Edges(*PUBLISHED["paper"]), lengths_of_run(results))
    written = shown.page("<script>x</script>", table, is_simulated=True)
    page = Page(written)
    assert page.is_closed
    assert page.tags.count("svg") == 4
    assert "SIMULATED" in written
    assert "\u202e" not in shown.page("run\u202e", table)


def test_the_csv_has_a_row_per_bin() -> None:
    table = bin_table("powers", Edges(*PUBLISHED["powers"]), lengths((5, 5), (900, 9)))
    rows = list(csv.DictReader(io.StringIO(shown.to_csv(table))))
    assert [row["input_tokens"] for row in rows] == ["16", "1024"]
    assert rows[0]["mean_joules"] == ""
