"""Every measure says what its name promises, and nothing of a failed request."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.errors import UsageError
from loadgen.results.measures import (
    MEASURES,
    OBJECTIVES,
    POOLED_MEASURES,
    SCHEDULE_LAG,
    meets,
    parse_goodput,
)
from loadgen.results.results import EnergyPart, Result

JOULES = EnergyPart(
    prefill_joules=1.0,
    decode_joules=6.0,
    idle_share_joules=3.0,
    energy_joules=10.0,
    policy="phase",
    quality="exact",
)


def result(**changes: Any) -> Result:
    """Planned at 1.0, sent at 1.1, tokens at 1.5 to 2.5, closed at 2.7."""
    fields: dict[str, Any] = {
        "request_id": "r1",
        "session_id": "s1",
        "turn": 1,
        "kind": "conversation",
        "planned_seconds": 1.0,
        "sent_seconds": 1.1,
        "first_token_seconds": 1.5,
        "first_visible_seconds": 1.7,
        "last_token_seconds": 2.5,
        "finished_seconds": 2.7,
        "prompt_tokens": 100,
        "output_tokens": 5,
        "connect_seconds": 0.0,
        "send_seconds": 0.01,
        "wait_seconds": 0.3,
        "chunk_seconds": [1.5, 1.7, 2.5],
        "chunk_tokens": [1, 2, 2],
        "outcome": "ok",
        "energy": JOULES,
    }
    return Result(**(fields | changes))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ttft", 0.4),
        ("connect", 0.0),
        ("send", 0.01),
        ("wait", 0.3),
        ("ttft_sched", 0.5),
        ("ttfo", 0.6),
        ("tpot", 1.0 / 4),
        ("e2el", 1.4),
        ("e2el_sched", 1.5),
        ("ntpot", 1.4 / 5),
        ("decode", 1.0),
        ("energy", 10.0),
        ("active_energy", 7.0),
        ("energy_per_output_token", 2.0),
        ("tokens_per_joule", 0.5),
        ("energy_delay", 14.0),
    ],
)
def test_each_measure_of_a_known_reply(name: str, expected: float) -> None:
    assert MEASURES[name].of(result()) == pytest.approx(expected)


def test_the_table_above_leaves_no_measure_out() -> None:
    assert len(MEASURES) == 16


@pytest.mark.parametrize("outcome", ["error", "timeout", "aborted", "dropped"])
@pytest.mark.parametrize("name", MEASURES)
def test_a_failed_request_has_no_measure(name: str, outcome: str) -> None:
    assert MEASURES[name].of(result(outcome=outcome)) is None


@pytest.mark.parametrize("name", POOLED_MEASURES)
def test_a_failed_request_adds_no_gap(name: str) -> None:
    assert list(POOLED_MEASURES[name].of(result(outcome="error"))) == []


@pytest.mark.parametrize("name", [*MEASURES, *POOLED_MEASURES])
def test_every_measure_has_a_unit_and_says_what_it_is(name: str) -> None:
    measure = (MEASURES | POOLED_MEASURES)[name]
    assert measure.unit in {"s", "J", "J s", "tokens/J"}
    assert len(measure.help) > 10


def test_gaps_begin_after_the_first_token() -> None:
    assert list(POOLED_MEASURES["itl"].of(result())) == pytest.approx([0.2, 0.8])


def test_several_tokens_in_one_read_share_its_gap() -> None:
    gaps = list(POOLED_MEASURES["itl_token"].of(result()))
    assert gaps == pytest.approx([0.1, 0.1, 0.4, 0.4])


@pytest.mark.parametrize("tokens", [None, 0, 1])
def test_time_per_output_token_needs_two_tokens(tokens: int | None) -> None:
    assert MEASURES["tpot"].of(result(output_tokens=tokens)) is None


def test_what_comes_after_the_last_token_does_not_lengthen_the_latency() -> None:
    late = result(finished_seconds=60.0)
    assert MEASURES["e2el"].of(late) == pytest.approx(1.4)


def test_a_reply_that_does_not_stream_ends_when_it_is_read() -> None:
    whole = result(
        first_token_seconds=None,
        last_token_seconds=None,
        chunk_seconds=[],
        chunk_tokens=[],
    )
    assert MEASURES["e2el"].of(whole) == pytest.approx(1.6)
    assert MEASURES["ttft"].of(whole) is None


def test_schedule_lag_is_known_of_failures_too() -> None:
    assert SCHEDULE_LAG.of(result(outcome="error")) == pytest.approx(0.1)
    assert SCHEDULE_LAG.of(result(outcome="dropped", sent_seconds=None)) is None


def test_unknown_joules_are_none_and_not_zero() -> None:
    unknown = EnergyPart(
        prefill_joules=None,
        decode_joules=None,
        idle_share_joules=None,
        energy_joules=None,
        policy="phase",
        quality="unknown",
    )
    for name in ("energy", "active_energy", "energy_per_output_token"):
        assert MEASURES[name].of(result(energy=unknown)) is None
        assert MEASURES[name].of(result(energy=None)) is None


# -- goodput -------------------------------------------------------------------


def test_goodput_limits_are_given_in_milliseconds_and_joules() -> None:
    words = ["ttft:200", "tpot:50,e2el:5000 energy:12.5"]
    expected = {"ttft": 0.2, "tpot": 0.05, "e2el": 5.0, "energy": 12.5}
    assert parse_goodput(words) == pytest.approx(expected)


@pytest.mark.parametrize(
    "word",
    [
        "ttft", "ttft:", "ttft:fast", "ttft:-1", "ttft:0", "ttft:inf", "ttft:nan",
        "tttf:200", ":200", "ttft:1 ttft:2",
    ],
)  # fmt: skip
def test_a_bad_goodput_limit_is_refused_in_one_line(word: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_goodput([word])
    assert "--goodput" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("word", "form"), [("ttft=200", "ttft:200"), ("energy=", "energy:200")]
)
def test_a_goodput_limit_after_equals_names_the_right_form(
    word: str, form: str
) -> None:
    with pytest.raises(UsageError, match=f"expected a colon, {form}$"):
        parse_goodput([word])


@given(st.text(max_size=20))
def test_any_words_are_understood_or_refused(text: str) -> None:
    try:
        limits = parse_goodput([text])
    except UsageError:
        return
    assert all(limit > 0 for limit in limits.values())
    assert set(limits) <= set(OBJECTIVES)


@pytest.mark.parametrize(
    ("limits", "is_good"),
    [
        ({}, True),
        ({"ttft": 0.4001, "tpot": 0.2501, "e2el": 1.4001}, True),
        ({"ttft": 0.3999}, False),
        ({"itl": 0.79}, False),
        ({"itl": 0.81, "energy": 10.0}, True),
        ({"energy": 9.9}, False),
    ],
)
def test_a_request_is_good_when_every_limit_is_met(
    limits: dict[str, float], is_good: bool
) -> None:
    assert meets(result(), limits) is is_good


def test_failures_and_unknowns_are_misses() -> None:
    assert not meets(result(outcome="timeout"), {})
    assert not meets(result(energy=None), {"energy": 1000.0})


def test_a_one_token_reply_has_no_token_time_to_miss() -> None:
    assert meets(result(output_tokens=1, chunk_seconds=[1.5]), {"tpot": 0.001})
