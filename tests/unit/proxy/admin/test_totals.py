"""Totals of a fleet: every joule once, nothing unknown as zero, boundaries apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.admin.totals import ACCOUNTS, GROUPS, Part, parts_of, totals_by
from proxy.commands.asked import Missing
from proxy.commands.fleet import FleetReport, table
from proxy.wire.api import ClassTotals, EngineTotals, TotalsReply

JOULES = st.floats(0, 1e9)


def classed(model: str, tenant: str, joules: float | None, **more: int) -> ClassTotals:
    counts = {"requests": 2, "output_tokens": 10, "prompt_tokens": 20} | more
    counts = {"requests_without_energy": 0, "requests_without_tokens": 0} | counts
    return ClassTotals(
        model=model, tenant=tenant, prefill_joules=joules, decode_joules=joules,
        idle_share_joules=joules, **counts,
    )  # fmt: skip


def proxy(
    name: str, *classes: ClassTotals, boundary: str = "gpu", measured: bool = True
) -> TotalsReply:
    accounts = {account: 100.0 for account in ACCOUNTS} if measured else None
    engine = EngineTotals(
        boundary=boundary, simulated=False, account_joules=accounts,
        gap_seconds=0.0 if measured else None, classes=list(classes),
    )  # fmt: skip
    return TotalsReply(
        version="1", run=name, run_unix_seconds=1.7e9, instance=name, host="h",
        engines={"vllm": engine},
    )  # fmt: skip


@pytest.mark.parametrize("by", GROUPS)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), JOULES)))
def test_rows_add_up_to_the_total_whatever_they_are_of(
    by: str, made: list[tuple[str, str, float]]
) -> None:
    parts = [
        Part(
            engine="e", model=model, tenant=tenant, host=model, instance=tenant,
            boundary="gpu", requests=1, joules={"prefill": joules, "idle": 1.0},
        )
        for model, tenant, joules in made
    ]  # fmt: skip
    found = totals_by(by, parts)
    rows = [row.measured_joules or 0.0 for row in found.rows]
    total = sum(each.measured_joules or 0.0 for each in found.totals)
    assert sum(rows) == pytest.approx(total)
    assert total == pytest.approx(sum(joules + 1.0 for *_, joules in made))
    assert sum(row.requests for row in found.rows) == len(made)


def test_what_a_proxy_measured_is_what_its_parts_have() -> None:
    parts = parts_of(proxy("a", classed("m", "t", 30.0), classed("n", "t", 10.0)))
    (total,) = totals_by("model", parts).totals
    assert total.measured_joules == pytest.approx(500.0)
    assert total.account_joules == pytest.approx(dict.fromkeys(ACCOUNTS, 100.0))
    rows = {row.name: row for row in totals_by("model", parts).rows}
    assert rows["m"].attributed_joules == 90.0
    assert rows["m"].joules_per_request == 45.0
    assert rows["m"].joules_per_output_token == 9.0
    # of requests that have not ended, and of nobody
    assert rows[None].account_joules["prefill"] == 60.0


def test_a_proxy_without_joules_makes_a_lower_bound_and_no_zero() -> None:
    known = parts_of(proxy("a", classed("m", "t", 30.0)))
    blind = parts_of(proxy("b", classed("m", "t", None), measured=False))
    rows = {r.name: r for r in totals_by("instance", [*known, *blind]).rows}
    assert rows["b"].measured_joules is None
    assert rows["b"].joules_per_request is None
    assert not rows["a"].is_measured_lower_bound
    of_models = {r.name: r for r in totals_by("model", blind).rows}
    assert of_models["m"].account_joules == dict.fromkeys(ACCOUNTS)
    (total,) = totals_by("engine", [*known, *blind]).totals
    assert total.measured_joules == pytest.approx(500.0)
    assert total.is_measured_lower_bound
    assert total.is_attributed_lower_bound
    shown = table(FleetReport(totals_by("engine", [*known, *blind]), [], [], []))
    assert ">=300" in shown


def test_a_request_of_unknown_energy_or_tokens_marks_its_row() -> None:
    lacking = classed("m", "t", 3.0, requests_without_energy=1)
    (row, _) = totals_by("model", parts_of(proxy("a", lacking))).rows
    assert row.is_attributed_lower_bound
    uncounted = classed("m", "t", 3.0, requests_without_tokens=1)
    (row, _) = totals_by("model", parts_of(proxy("a", uncounted))).rows
    assert row.joules_per_output_token is None


def test_joules_of_different_boundaries_are_never_added() -> None:
    both = [*parts_of(proxy("a")), *parts_of(proxy("b", boundary="node"))]
    found = totals_by("engine", both)
    assert {row.boundary: row.measured_joules for row in found.rows} == {
        "gpu": 500.0, "node": 500.0,
    }  # fmt: skip
    assert len(found.totals) == 2


def test_the_table_is_narrow_and_names_from_outside_are_harmless() -> None:
    name = "evil\x1b[2J\u202e" + "x" * 200
    report = FleetReport(
        totals_by("model", parts_of(proxy("a", classed(name, "t", 1e11)))),
        [], [Missing("http://b:1", "answered \x1b]0;owned\x07")], [],
    )  # fmt: skip
    text = table(report)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert "missing: http://b:1: answered" in text


def test_legs_are_told_apart_from_the_requests_that_they_are_among() -> None:
    first = proxy("a", classed("m", "t", 3.0, prefill_legs=2))
    second = proxy("b", classed("m", "t", 3.0, decode_legs=2))
    found = totals_by("model", [*parts_of(first), *parts_of(second)])
    (total,) = found.totals
    assert (total.prefill_legs, total.decode_legs) == (2, 2)
    lines = table(FleetReport(found, [], [], [])).splitlines()
    assert "2 prefill and 2 decode legs are among the requests" in " ".join(lines)
    assert max(map(len, lines)) <= 80
    whole = totals_by("model", parts_of(proxy("a", classed("m", "t", 3.0))))
    assert "legs" not in table(FleetReport(whole, [], [], []))
