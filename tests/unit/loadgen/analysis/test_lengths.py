"""Asked against served: the sums, the ratios of single requests, and the words."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.analysis.lengths import Fidelity, Lengths
from loadgen.client.conversation import prompt_tokens_of
from loadgen.plan.plan import PlannedTurn
from loadgen.report.text import lengths_text, prompts_note, replies_note
from loadgen.results.results import Result
from tests.support.canned_run import made_results

PAIRS = st.lists(
    st.tuples(st.integers(1, 10**6), st.integers(0, 10**6)), min_size=1, max_size=200
)


def lengths_of(*pairs: tuple[int | None, int | None]) -> Lengths:
    lengths = Lengths()
    for asked, served in pairs:
        lengths.add(asked, served)
    return lengths


@given(PAIRS)
def test_sums_shares_and_percentiles_are_those_of_the_pairs(
    pairs: list[tuple[int, int]],
) -> None:
    block = lengths_of(*pairs).block()
    asked, served = np.array(pairs).T
    ratios = served / asked
    assert (block.requests, block.asked_tokens) == (len(pairs), asked.sum())
    assert block.served_tokens == served.sum()
    assert block.served_over_asked == pytest.approx(served.sum() / asked.sum())
    assert block.exact_fraction == pytest.approx((asked == served).mean())
    assert block.shorter_requests == (served < asked).sum()
    found = [block.ratio_p10, block.ratio_p50, block.ratio_p90]
    assert found == pytest.approx(list(np.percentile(ratios, [10, 50, 90])))


@given(PAIRS)
def test_the_order_of_requests_changes_nothing(pairs: list[tuple[int, int]]) -> None:
    assert lengths_of(*pairs).block() == lengths_of(*reversed(pairs)).block()


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=50))
def test_what_is_served_as_asked_is_exact_and_needs_no_note(
    lengths: list[int],
) -> None:
    served = lengths_of(*zip(lengths, lengths, strict=True))
    served.add(7, 7, is_live=True)
    block = served.block()
    assert "exact in every request" in lengths_text(block)
    assert replies_note(block) == prompts_note(block) == ""


def test_what_one_side_does_not_know_is_not_compared() -> None:
    block = lengths_of((None, 5), (5, None), (0, 5)).block()
    assert block.requests == block.asked_tokens == block.served_tokens == 0
    assert block.served_over_asked is block.ratio_p50 is block.exact_fraction is None
    assert lengths_text(block) == "no length was asked for"


def test_replies_that_ended_early_are_said_to_compare_per_token_served() -> None:
    note = replies_note(lengths_of((10, 10), (10, 4), (10, 3)).block())
    assert note.startswith("2 of 3 replies ended early, the engine stopped by itself")
    assert "per output token (of those served)" in note


def test_prompts_that_another_tokenizer_counted_are_told() -> None:
    assert "tokenizer" in prompts_note(lengths_of((100, 130)).block())
    assert prompts_note(lengths_of((100, 104)).block()) == ""


def test_short_replies_in_later_prompts_are_not_blamed_on_the_tokenizer() -> None:
    lengths = lengths_of((100, 100))
    for _ in range(3):
        lengths.add(500, 150, is_live=True)
    note = prompts_note(lengths.block())
    assert "3 carry the replies really given" in note
    assert "tokenizer" not in note


# -- conversations ---------------------------------------------------------------


def answered(turn: int, **lengths: int | None) -> Result:
    return msgspec.structs.replace(made_results(1)[0], turn=turn, **lengths)


def test_a_later_turn_is_compared_with_the_conversation_so_far() -> None:
    fidelity = Fidelity()
    fidelity.add(
        answered(
            0,
            requested_input_tokens=10,
            requested_prompt_tokens=10,
            requested_output_tokens=5,
            prompt_tokens=10,
            output_tokens=3,
        )
    )
    fidelity.add(
        answered(
            1,
            requested_input_tokens=7,
            requested_prompt_tokens=22,
            requested_output_tokens=5,
            prompt_tokens=20,  # the reply before was 2 tokens short
            output_tokens=5,
        )
    )
    prompts, replies = fidelity.prompts.block(), fidelity.replies.block()
    assert (prompts.asked_tokens, prompts.served_tokens) == (32, 30)
    assert (prompts.live_requests, replies.live_requests) == (1, 0)
    assert "1 carry the replies really given" in prompts_note(prompts)
    assert (replies.asked_tokens, replies.served_tokens) == (10, 8)


def test_records_of_before_are_compared_by_their_first_turns_alone() -> None:
    fidelity = Fidelity()
    for turn in (0, 1):
        fidelity.add(answered(turn, requested_input_tokens=10, prompt_tokens=10))
    assert fidelity.prompts.requests == 1


TURNS = st.lists(
    st.builds(
        PlannedTurn,
        request_id=st.just("r"),
        input_tokens=st.none() | st.integers(1, 100),
        history=st.sampled_from(["append", "total"]),
    ),
    min_size=1,
    max_size=6,
)


@given(TURNS, st.integers(0, 50))
def test_a_planned_prompt_is_its_words_and_those_before(
    turns: list[PlannedTurn], reply: int
) -> None:
    before: int | None = 0
    for place, turn in enumerate(turns):
        found = prompt_tokens_of(turn, before)
        start = max(
            (k for k in range(place + 1) if turns[k].history == "total"), default=0
        )
        own = [t.input_tokens for t in turns[start : place + 1]]
        known = [tokens for tokens in own if tokens is not None]
        if len(known) < len(own):
            assert found is None or (turn.history == "total")
        else:
            assert found == sum(known) + reply * (place - start)
        before = None if found is None else found + reply
