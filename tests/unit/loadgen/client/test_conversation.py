from __future__ import annotations

import pytest

from loadgen.client.backends import RequestOptions
from loadgen.client.conversation import messages_of, with_reply
from loadgen.errors import PlanError
from loadgen.plan.plan import PlannedTurn

HISTORY = [
    {"role": "user", "content": "first"},
    {"role": "assistant", "content": "answer"},
]
OPTIONS = RequestOptions()


def test_appended_turns_carry_what_was_said_and_answered() -> None:
    turn = PlannedTurn(request_id="r", prompt="next", history="append")
    sent = messages_of(turn, HISTORY, seed=0, options=OPTIONS)
    assert sent == [*HISTORY, {"role": "user", "content": "next"}]
    assert with_reply(sent, "ok")[-1] == {"role": "assistant", "content": "ok"}


def test_a_turn_with_its_whole_prompt_carries_no_history() -> None:
    turn = PlannedTurn(request_id="r", prompt="all of it")
    sent = messages_of(turn, HISTORY, seed=0, options=OPTIONS)
    assert sent == [{"role": "user", "content": "all of it"}]


def test_a_chat_is_sent_as_it_is() -> None:
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "x"}]
    turn = PlannedTurn(request_id="r", messages=chat)
    assert messages_of(turn, [], seed=0, options=OPTIONS) == chat
    longer = PlannedTurn(request_id="r", messages=chat, history="append")
    assert messages_of(longer, HISTORY, seed=0, options=OPTIONS) == HISTORY + chat


def test_a_length_becomes_that_many_words_the_same_every_time() -> None:
    turn = PlannedTurn(request_id="r", input_tokens=50)
    [first] = messages_of(turn, [], seed=1, options=OPTIONS)
    assert len(first["content"].split()) == 50
    assert messages_of(turn, [], seed=1, options=OPTIONS) == [first]
    assert messages_of(turn, [], seed=2, options=OPTIONS) != [first]


def test_equal_prefix_blocks_are_equal_text_of_the_plans_block_size() -> None:
    options = RequestOptions(hash_block_size=16)
    one = PlannedTurn(request_id="a", input_tokens=40, hash_ids=[7, 8])
    two = PlannedTurn(request_id="b", input_tokens=40, hash_ids=[7, 9])
    words = [
        messages_of(turn, [], seed=0, options=options)[0]["content"].split()
        for turn in (one, two)
    ]
    assert words[0][:16] == words[1][:16]
    assert words[0][16:32] != words[1][16:32]


@pytest.mark.parametrize("input_tokens", [None, 0, -1])
def test_a_turn_with_nothing_to_say_is_named(input_tokens: int | None) -> None:
    turn = PlannedTurn(request_id="r17", input_tokens=input_tokens)
    with pytest.raises(PlanError, match="r17"):
        messages_of(turn, [], seed=0, options=OPTIONS)
