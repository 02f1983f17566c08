"""Legs of requests that two engines served: partners, sums, and what has none."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from proxy.meter.ledger import RequestEnergy
from proxy.store.stored_record import StoredRecord, reply_of
from proxy.wire.legs import (
    HANDOVER_SECONDS,
    SKEW_SECONDS,
    JoinedRequest,
    Leg,
    joined,
    leg_of,
    leg_totals,
)
from tests.support.profiles import examples
from tests.support.stored_records import record


def leg(role: str | None, at: float = 100.0, **given: Any) -> Leg:
    """A leg of 2 s, whose joules tell its role."""
    is_prefill = role == "prefill"
    prefill, decode = (5.0, 0.0) if is_prefill else (0.5, 8.0)
    facts: dict[str, Any] = {
        "leg": role, "request_id": "r", "proxy": "a" if is_prefill else "b",
        "engine": "vllm", "boundary": "gpu", "model": "m", "tenant": "none",
        "outcome": "ok", "arrived_unix_seconds": at, "finished_unix_seconds": at + 2,
        "prompt_tokens": 1000, "cached_tokens": 0 if is_prefill else 999,
        "output_tokens": 1 if is_prefill else 50, "prefill_joules": prefill,
        "decode_joules": decode, "idle_share_joules": 1.0,
        "energy_joules": prefill + decode + 1.0,
        "low_joules": prefill + decode, "high_joules": prefill + decode + 3.0,
        "grade": "good" if is_prefill else "fair",
    }  # fmt: skip
    return Leg(**(facts | given))


def one(*legs: Leg) -> JoinedRequest:
    (found,) = joined(legs)
    return found


def shape(requests: list[JoinedRequest]) -> list[tuple[float | None, float | None]]:
    """When the legs of each request arrived; None where it has no such leg."""
    return [
        (
            None if each.prefill is None else each.prefill.arrived_unix_seconds,
            None if each.decode is None else each.decode.arrived_unix_seconds,
        )
        for each in requests
    ]


def test_a_request_is_the_sum_of_its_legs_once() -> None:
    found = one(leg("decode", 103), leg("prefill", 100))
    assert found.energy_joules == pytest.approx(6.0 + 9.5)
    assert (found.low_joules, found.high_joules) == (5.0 + 8.5, 8.0 + 11.5)
    assert (found.prompt_tokens, found.output_tokens) == (1000, 50)
    assert found.prefill is not None
    assert found.prefill.proxy == "a"
    assert found.decode is not None
    assert found.decode.proxy == "b"
    assert (found.grade, found.reason, found.outcome) == ("fair", None, "ok")
    assert (found.arrived_unix_seconds, found.finished_unix_seconds) == (100, 105)


def test_whole_requests_are_no_legs() -> None:
    assert joined([leg(None), leg(None)]) == []


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"energy_joules": None}, "the energy of its decode leg is unknown"),
        ({"boundary": "node"}, "different boundaries: gpu and node"),
        ({"boundary": None}, "different boundaries: gpu and ?"),
    ],
    ids=["unknown", "node", "not-recorded"],
)
def test_without_both_joules_inside_one_boundary_there_is_no_sum(
    changed: dict[str, Any], reason: str
) -> None:
    found = one(leg("prefill"), leg("decode", 103, **changed))
    assert found.is_pair
    assert (found.energy_joules, found.low_joules, found.high_joules) == (None,) * 3
    assert found.reason is not None
    assert reason in found.reason


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_leg_without_a_partner_keeps_its_joules_and_says_so(role: str) -> None:
    found = one(leg(role))
    assert found.energy_joules is None
    other = "decode" if role == "prefill" else "prefill"
    assert found.reason == f"no {other} leg is recorded"
    (total,) = leg_totals([found]).by_leg
    assert (total.leg, total.legs_alone) == (role, 1)
    assert total.alone_joules == total.energy_joules > 0


def test_a_retried_prefill_is_partnered_with_the_one_that_was_answered() -> None:
    failed = leg("prefill", 100, outcome="upstream_error")
    found = joined([failed, leg("prefill", 103), leg("decode", 106)])
    assert shape(found) == [(100, None), (103, 106)]
    late = joined([leg("prefill", 100), replace(failed, arrived_unix_seconds=103),
                   leg("decode", 106)])  # fmt: skip
    assert shape(late) == [(100, 106), (103, None)]


def test_a_failed_prefill_is_the_partner_where_there_is_no_other() -> None:
    found = one(leg("prefill", 100, outcome="error"), leg("decode", 103))
    assert found.is_pair


def test_a_retried_decode_has_one_partner_and_the_other_is_alone() -> None:
    found = joined([leg("prefill", 100), leg("decode", 103), leg("decode", 110)])
    assert shape(found) == [(100, 103), (None, 110)]


def test_an_id_that_a_client_uses_again_is_two_requests() -> None:
    legs = [leg("prefill", 100), leg("decode", 103),
            leg("prefill", 200), leg("decode", 203)]  # fmt: skip
    assert shape(joined(reversed(legs))) == [(100, 103), (200, 203)]


def test_a_prefill_that_was_given_up_long_ago_is_no_partner() -> None:
    late = 102 + HANDOVER_SECONDS
    assert one(leg("prefill", 100), leg("decode", late)).is_pair
    assert len(joined([leg("prefill", 100), leg("decode", late + 1)])) == 2


def test_clocks_of_two_hosts_may_differ() -> None:
    assert one(leg("prefill", 100), leg("decode", 100 - SKEW_SECONDS)).is_pair
    assert len(joined([leg("prefill", 100), leg("decode", 99 - SKEW_SECONDS)])) == 2


def test_a_hundred_thousand_legs_of_one_id_are_joined_in_one_pass() -> None:
    legs = [leg("prefill", 100 + n) for n in range(50_000)]
    legs += [leg("decode", 100 + n) for n in range(50_000)]
    assert sum(each.is_pair for each in joined(legs)) == 50_000


@st.composite
def any_legs(draw: st.DrawFn) -> list[Leg]:
    return draw(
        st.lists(
            st.builds(
                lambda role, at, length, name, outcome, joules, inside: leg(
                    role, at, request_id=name, outcome=outcome, boundary=inside,
                    finished_unix_seconds=at + length, energy_joules=joules,
                ),
                st.sampled_from(["prefill", "decode", None]),
                st.floats(0, 2000), st.floats(0, 700), st.sampled_from("ab"),
                st.sampled_from(["ok", "aborted"]),
                st.none() | st.floats(0, 100), st.sampled_from(["gpu", "node"]),
            ),
            max_size=20,
        )
    )  # fmt: skip


@given(any_legs(), st.randoms(use_true_random=False))
@examples(200)
def test_every_leg_is_in_one_request_and_every_joule_in_one_leg(
    legs: list[Leg], random: Any
) -> None:
    shuffled = legs[:]
    random.shuffle(shuffled)
    found = joined(shuffled)
    used = [part for each in found for part in (each.prefill, each.decode) if part]
    halves = [each for each in legs if each.leg is not None]
    assert Counter(map(repr, used)) == Counter(map(repr, halves))
    totals = leg_totals(found)
    assert sum(each.legs for each in totals.by_leg) == len(halves)
    joules = sum(each.energy_joules or 0.0 for each in halves)
    assert sum(each.energy_joules for each in totals.by_leg) == pytest.approx(joules)
    assert totals.requests == len(halves) - totals.pairs
    alone = sum(each.alone_joules for each in totals.by_leg)
    unsummed = sum(
        (part.energy_joules or 0.0)
        for each in found
        if each.is_pair and each.energy_joules is None
        for part in (each.prefill, each.decode)
        if part is not None
    )
    paired = totals.pair_joules or 0.0
    assert paired + alone + unsummed == pytest.approx(joules)
    for each in found:
        assert (each.energy_joules is None) is (each.reason is not None)
        if each.prefill and each.decode:
            assert each.prefill.request_id == each.decode.request_id
            gap = each.decode.arrived_unix_seconds - each.prefill.finished_unix_seconds
            assert gap <= HANDOVER_SECONDS


def test_a_record_becomes_a_leg() -> None:
    energy = RequestEnergy(1.0, 2.0, 3.0, 6.0, "phase", "timed", {}, low_joules=5.0,
                           high_joules=8.0, grade="good")  # fmt: skip
    one_leg = dataclasses.replace(record(7, "r"), leg="decode", energy=energy)
    found = leg_of(reply_of(StoredRecord(1, 1.7e9, one_leg)), "proxy-b", "gpu")
    assert (found.leg, found.request_id, found.proxy) == ("decode", "r", "proxy-b")
    assert (found.energy_joules, found.low_joules) == (6.0, 5.0)
    assert found.finished_unix_seconds == 1.7e9 + 3.125


def test_tokens_of_a_reply_that_broke_off_are_a_lower_bound() -> None:
    whole = [leg("prefill"), leg("decode", 103)]
    assert leg_totals(joined(whole)).requests_without_tokens == 0
    cut = leg("decode", 103, outcome="aborted", is_output_lower_bound=True)
    assert leg_totals(joined([leg("prefill"), cut])).requests_without_tokens == 1
