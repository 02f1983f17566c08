"""The joules of requests whose legs are on two ledgers."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from loadgen.energy.addresses import urls_of
from loadgen.energy.ledgers import summed_energy, whole_of
from loadgen.run.config import parse_ledger
from proxy.wire.api import EnergyReply, RequestReply
from proxy.wire.legs import Leg, leg_of


def energy(scale: float = 1.0, **given: Any) -> EnergyReply:
    facts: dict[str, Any] = {
        "prefill_joules": scale, "decode_joules": 2 * scale,
        "idle_share_joules": 3 * scale, "energy_joules": 6 * scale,
        "low_joules": 5 * scale, "high_joules": 8 * scale, "quality": "exact",
        "timing": "timed", "grade": "good", "policy": "phase",
        "policy_joules": {"phase": 3 * scale},
    }  # fmt: skip
    return EnergyReply(**(facts | given))


def record(
    leg: str, at: float = 100.0, boundary: str = "gpu", **given: Any
) -> tuple[Leg, RequestReply]:
    is_prefill = leg == "prefill"
    facts: dict[str, Any] = {
        "cursor": 1, "request_id": "r", "leg": leg, "outcome": "ok",
        "arrived_unix_seconds": at, "finished_unix_seconds": at + 1,
        "prompt_tokens": 100, "cached_tokens": 16 if is_prefill else 99,
        "output_tokens": 1 if is_prefill else 20,
        "energy": energy(1.0 if is_prefill else 10.0),
    }  # fmt: skip
    found = RequestReply(**(facts | given))
    return leg_of(found, leg, boundary), found


def test_a_request_has_the_joules_of_both_legs_and_the_reply_of_the_second() -> None:
    whole = whole_of([record("decode", 102), record("prefill", 100)])
    assert whole is not None
    assert whole.energy.energy_joules == pytest.approx(66)
    assert whole.energy.prefill_joules == pytest.approx(11)
    assert (whole.energy.low_joules, whole.energy.high_joules) == (55, 88)
    assert whole.energy.policy_joules == {"phase": 33}
    assert (whole.prompt_tokens, whole.cached_tokens, whole.output_tokens) == (
        100, 16, 20,
    )  # fmt: skip
    assert whole.arrived_unix_seconds == 100


def test_a_leg_alone_is_no_request() -> None:
    assert whole_of([record("prefill")]) is None
    assert whole_of([record("decode")]) is None


def test_of_an_id_that_comes_again_the_newest_request_counts() -> None:
    legs = [record("prefill", 100), record("decode", 102)]
    legs += [record("prefill", 130, energy=energy(2.0)), record("decode", 132)]
    whole = whole_of(legs)
    assert whole is not None
    assert whole.energy.energy_joules == pytest.approx(72)


@pytest.mark.parametrize(
    "second",
    [
        record("decode", 102, energy=energy(energy_joules=None)),
        record("decode", 102, boundary="node"),
    ],
    ids=["unknown", "other-boundary"],
)
def test_without_a_sum_a_request_has_no_joules_at_all(
    second: tuple[Leg, RequestReply],
) -> None:
    whole = whole_of([record("prefill"), second])
    assert whole is not None
    found = msgspec.structs.asdict(whole.energy)
    assert {v for n, v in found.items() if n.endswith("_joules") and v} == set()
    assert (whole.energy.grade, whole.energy.timing) == ("unknown", "unknown")


def test_the_worse_of_two_grades_is_that_of_the_sum() -> None:
    poor = energy(grade="poor", grade_reasons=("wide",), timing="estimated",
                  quality="estimated", policy="tokens")  # fmt: skip
    found = summed_energy(energy(grade_reasons=("constants",)), poor)
    assert (found.grade, found.timing, found.quality) == (
        "poor", "estimated", "estimated",
    )  # fmt: skip
    assert found.grade_reasons == ("constants", "wide")
    assert found.policy == "mixed"
    assert summed_energy(energy(grade=None), energy()).grade == "unknown"


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("http://a:1", ("http://a:1",)),
        ("http://a:1+https://b:2", ("http://a:1", "https://b:2")),
        ("http://a:1/x+y", ("http://a:1/x+y",)),
    ],
    ids=["one", "two", "plus-in-a-path"],
)
def test_admin_urls_are_joined_by_a_plus(text: str, urls: tuple[str, ...]) -> None:
    assert urls_of(text) == urls
    assert parse_ledger(f"{text}/") == text


@pytest.mark.parametrize("text", ["a:1", "http://a+http://a", "http://a+http://u@b"])
def test_urls_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"base URL|twice|password"):
        parse_ledger(text)
