"""`metering-proxy records legs`: what a person is shown, and what is a mistake."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from proxy.commands.asked import Missing
from proxy.commands.legs import LegsReport, ProxyCheck, legs, table
from proxy.wire.legs import Leg, joined, leg_totals


def leg(role: str, name: str = "r", **given: Any) -> Leg:
    facts: dict[str, Any] = {
        "leg": role, "request_id": name, "proxy": role, "engine": "vllm",
        "boundary": "gpu", "model": "m", "tenant": "t", "outcome": "ok",
        "arrived_unix_seconds": 100.0 if role == "prefill" else 103.0,
        "finished_unix_seconds": 102.0, "prompt_tokens": 1000, "cached_tokens": 0,
        "output_tokens": 1, "prefill_joules": 1.0, "decode_joules": 2.0,
        "idle_share_joules": 3.0, "energy_joules": 6.0, "low_joules": 5.0,
        "high_joules": 7.0, "grade": "good",
    }  # fmt: skip
    return Leg(**(facts | given))


def check(**given: Any) -> ProxyCheck:
    facts: dict[str, Any] = {
        "url": "http://a:9464", "instance": "a", "simulated": False,
        "is_settled": True, "legs": 1, "leg_joules": 6.0, "whole_requests": 0,
        "whole_joules": 0.0, "records_without_energy": 0, "attributed_joules": 6.5,
        "difference_joules": 0.5, "idle_joules": 1.0, "unattributed_joules": 0.0,
    }  # fmt: skip
    return ProxyCheck(**(facts | given))


def shown(
    *found: Leg, checks: list[ProxyCheck] | None = None, missing: list[Missing] | None
    = None
) -> str:  # fmt: skip
    totals = leg_totals(joined(found))
    return table(LegsReport(totals, checks or [], missing or [], []))


def test_both_legs_and_their_sum_are_shown() -> None:
    text = shown(leg("prefill"), leg("decode"), checks=[check()])
    assert "1 requests, 1 of them with both legs" in text
    assert "J/request of both legs: 12 = prefill leg 6 + decode leg 6" in text
    assert "tokens, counted once: 1k prompt, 1 output" in text
    assert "check: http://a:9464: legs 6 J, books 6.5 J, difference +0.500 J" in text
    assert "alone" not in text.split("\n", 1)[1]
    assert max(map(len, text.splitlines())) <= 80


def test_what_is_not_known_is_marked_and_told() -> None:
    text = shown(
        leg("prefill", "a"), leg("decode", "a", energy_joules=None, output_tokens=None),
        leg("prefill", "b"),
        checks=[check(attributed_joules=None, difference_joules=None, simulated=True,
                      is_settled=False, whole_requests=2, whole_joules=4.0)],
        missing=[Missing("http://b:1", "nobody answers\x1b[2J there")],
    )  # fmt: skip
    decode_row = text.splitlines()[2]
    assert decode_row.startswith("decode")
    assert "?" in decode_row
    assert "1 with both legs have no energy" in text
    assert ">=" in text
    assert "alone: 1 prefill legs without a decode leg, 6 J" in text
    assert "SIMULATED" in text
    assert "legs 6 J, 2 whole requests 4 J, books ? J" in text
    assert "not settled: http://a:9464" in text
    assert "missing: http://b:1: nobody answers\\x1b[2J there" in text


def test_without_legs_it_says_so() -> None:
    assert shown() == "no leg is recorded: every request was served whole"


@pytest.mark.parametrize(
    "words",
    [[], ["http://a", "--store", "sqlite:///x"], ["ftp://a"], ["http://a", "--since",
     "soon"], ["a:9464"]],
    ids=["none", "both", "scheme", "time", "no-scheme"],
)  # fmt: skip
def test_what_makes_no_sense_is_a_usage_error(words: list[str]) -> None:
    assert CliRunner().invoke(legs, words).exit_code == 2
