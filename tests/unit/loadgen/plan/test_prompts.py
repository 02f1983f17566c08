"""Generated prompts: exact length, distinct, the same on every machine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.plan.prompts import WORDS, prompt_text


@given(
    seed=st.integers(0, 2**63),
    request_id=st.text(max_size=20),
    tokens=st.integers(1, 3000),
    hash_ids=st.lists(st.integers(0, 50), max_size=8),
    block_size=st.integers(1, 600),
)
def test_a_prompt_has_exactly_the_words_asked_for(
    seed: int, request_id: str, tokens: int, hash_ids: list[int], block_size: int
) -> None:
    text = prompt_text(seed, request_id, tokens, hash_ids, block_size)
    assert len(text.split()) == tokens
    assert text == " ".join(text.split())


def test_no_two_requests_begin_alike() -> None:
    starts = {prompt_text(0, f"sharegpt-{n}", 8) for n in range(20_000)}
    assert len(starts) == 20_000


def test_another_seed_is_another_text() -> None:
    assert prompt_text(1, "a", 8) != prompt_text(2, "a", 8)


def test_equal_hash_ids_are_equal_text_and_others_are_not() -> None:
    one = prompt_text(0, "a", 40, (7, 8, 9), 16).split()
    two = prompt_text(0, "b", 40, (7, 8, 5), 16).split()
    assert one[:32] == two[:32]
    assert one[32:] != two[32:]


def test_a_partial_block_is_the_start_of_the_whole_one() -> None:
    whole = prompt_text(0, "a", 32, (1, 2), 16)
    assert whole.startswith(prompt_text(0, "b", 20, (1, 2), 16))


def test_what_hash_ids_do_not_cover_belongs_to_the_request() -> None:
    one = prompt_text(0, "a", 40, (7,), 16).split()
    two = prompt_text(0, "b", 40, (7,), 16).split()
    assert one[:16] == two[:16]
    assert one[16:24] != two[16:24]


def test_words_are_short_common_and_each_there_once() -> None:
    assert len(WORDS) == len(set(WORDS)) > 256
    assert all(word.isascii() and word.islower() for word in WORDS)


@pytest.mark.parametrize(("tokens", "block_size"), [(0, 16), (-1, 16), (5, 0)])
def test_a_prompt_of_nothing_is_refused(tokens: int, block_size: int) -> None:
    with pytest.raises(ValueError, match="expected >= 1"):
        prompt_text(0, "a", tokens, (), block_size)
