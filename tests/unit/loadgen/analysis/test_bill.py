"""The bill: one stack, nothing taken as 0 in silence, each constant with its source."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from loadgen.analysis.bill import (
    Bill,
    BillTerms,
    Outcomes,
    bill_of,
    boundaries_note,
    carbon_series,
    outcomes_of,
)
from loadgen.analysis.schema import BoundaryBlock, PowerSeries, Summary
from loadgen.analysis.summary import RunInfo
from loadgen.analysis.tally import RunWindow
from loadgen.cli.bill import bill as command
from loadgen.cli.bill import read_terms
from loadgen.cli.report import report
from loadgen.errors import LoadgenError, RunError, UsageError
from loadgen.report.bill import grams, money, sheets
from loadgen.report.sheet import render
from loadgen.results.results import Result
from loadgen.run.finish import finish_run
from proxy.wire.api import Phases
from tests.support.canned_run import ZERO_UNIX, failed, made_results, write_run
from tests.support.shown import printed

WINDOW = RunWindow()


def metered(folder: Path, results: list[Result] | None = None, **more: Any) -> Path:
    """A run of 100 J for each of 40 requests, in its books: 60 work, 25, 10, 5."""
    write_run(folder, made_results(40) if results is None else results)
    info = RunInfo(zero_unix_seconds=ZERO_UNIX, gpu="NVIDIA A100-SXM4-80GB", gpus=2)
    summary = finish_run(folder, info)
    energy = msgspec.structs.replace(
        summary.energy, boundary="gpu", measured_joules=4000.0,
        attributed_joules=Phases(prefill=400.0, decode=2000.0),
        idle_share_joules=1000.0, idle_joules=400.0,
        unattributed_joules={"external": 200.0}, residual_joules=0.0,
        window_seconds=20.0, **more,
    )  # fmt: skip
    write(folder, msgspec.structs.replace(summary, energy=energy))
    return folder


def write(folder: Path, summary: Summary) -> None:
    (folder / "summary.json").write_bytes(msgspec.json.encode(summary))


def summary_of(folder: Path) -> Summary:
    return msgspec.json.decode((folder / "summary.json").read_bytes(), type=Summary)


def billed(folder: Path, **terms: Any) -> Bill:
    outcomes = outcomes_of(made_results(40), WINDOW)
    return bill_of("run", summary_of(folder), outcomes, BillTerms(**terms))


def test_the_stack_is_the_measurement_with_host_and_building(tmp_path: Path) -> None:
    found = billed(metered(tmp_path / "run"), pue=1.5, host_watts=50.0)
    parts = {part.part: part.joules for part in found.parts}
    assert parts == {
        "work": 2400.0, "idle_share": 1000.0, "idle": 400.0, "unattributed": 200.0,
        "host": 1000.0, "overhead": 2500.0,
    }  # fmt: skip
    assert found.joules == 7500.0
    assert found.joules_per_request == 7500.0 / 40
    assert sum(part.fraction or 0.0 for part in found.parts) == pytest.approx(1.0)


def test_carbon_and_price_are_those_of_kilowatt_hours(tmp_path: Path) -> None:
    found = billed(
        metered(tmp_path / "run"), pue=1.0, carbon=360.0, price=0.36, currency="USD"
    )
    assert found.operational_grams == pytest.approx(4000 / 3.6e6 * 360)
    assert found.price == pytest.approx(4000 / 3.6e6 * 0.36)
    assert found.price is not None
    assert found.price_per_million_output_tokens == pytest.approx(
        found.price * 1e6 / found.output_tokens
    )


def test_sci_is_operational_and_embodied_over_the_unit(tmp_path: Path) -> None:
    found = billed(
        metered(tmp_path / "run"), carbon=400.0, embodied=100.0, lifespan_years=2.0,
        reserved=0.5, gpus=4,
    )  # fmt: skip
    share = 20.0 / (2 * 365.25 * 86_400)
    assert found.embodied_grams == pytest.approx(100e3 * 4 * share * 0.5)
    assert found.embodied_grams is not None
    whole = found.operational_grams + found.embodied_grams
    assert found.sci_grams_per_request == pytest.approx(whole / 40)
    assert found.sci_grams_per_output_token == pytest.approx(
        whole / found.output_tokens
    )


def test_what_is_not_known_is_named_and_not_zero(tmp_path: Path) -> None:
    folder = metered(tmp_path / "run")
    summary = summary_of(folder)
    other = {**summary.environment, "gpu": "NVIDIA H200"}
    write(folder, msgspec.structs.replace(summary, environment=other))
    found = billed(folder)
    host = next(part for part in found.parts if part.part == "host")
    assert host.joules is None
    assert "--host-watts" in host.basis
    assert found.embodied_grams is None
    assert found.sci_grams_per_request is None
    assert found.price is None
    text = " ".join(found.notes)
    for option in ("--host-watts", "--embodied", "--price"):
        assert option in text


def test_every_constant_has_a_source(tmp_path: Path) -> None:
    found = billed(metered(tmp_path / "run"), price=0.3)
    named = {each.name: each.source for each in found.constants}
    assert "Uptime" in named["PUE"]
    assert "Ember" in named["carbon intensity"]
    assert "HotCarbon" in named["embodied emissions (TE)"]
    assert named["price"] == "as given"
    assert all(named.values())


def test_a_measured_node_is_the_host_and_its_gpus(tmp_path: Path) -> None:
    node = BoundaryBlock(source="redfish", measured_joules=5200.0)
    found = billed(metered(tmp_path / "run", boundaries={"node": node}), host_watts=1.0)
    host = next(part for part in found.parts if part.part == "host")
    assert host.joules == pytest.approx(1200.0)
    assert "both measured" in host.basis


def test_a_node_with_gaps_is_not_taken_for_the_host(tmp_path: Path) -> None:
    node = BoundaryBlock(source="redfish", measured_joules=5200.0, reason="gaps")
    found = billed(metered(tmp_path / "run", boundaries={"node": node}))
    assert next(p for p in found.parts if p.part == "host").joules is None


def test_joules_of_failures_and_retries_are_in_those_of_a_goal(tmp_path: Path) -> None:
    results = made_results(4)  # two sessions of two turns
    lost = msgspec.structs.replace(
        failed("x", at=0.5), session_id="s0", turn=0
    )  # and answered when tried again
    gone = msgspec.structs.replace(failed("y", at=0.6), session_id="s9", turn=0)
    found = outcomes_of([lost, gone, *results], WINDOW)
    assert found == Outcomes(sessions=3, goals=2, failed=2, retried=1)
    summary = summary_of(metered(tmp_path / "run"))
    bill = bill_of("run", summary, found, BillTerms(pue=1.0))
    assert bill.joules_per_session == pytest.approx(4000 / 3)
    assert bill.joules_per_goal == pytest.approx(4000 / 2)


def test_no_goal_reached_has_no_joules_per_goal(tmp_path: Path) -> None:
    outcomes = outcomes_of([failed("a", at=1.0)], WINDOW)
    summary = summary_of(metered(tmp_path / "run"))
    assert bill_of("r", summary, outcomes, BillTerms()).joules_per_goal is None


def test_a_series_is_weighted_with_the_power_of_the_run(tmp_path: Path) -> None:
    power = PowerSeries(
        edges_seconds=[0.0, 5.0, 10.0], prefill_watts=[0.0, 300.0],
        decode_watts=[0.0, 0.0], idle_share_watts=[0.0, 0.0],
        idle_watts=[100.0, 0.0], unattributed_watts=[0.0, 0.0],
    )  # fmt: skip
    folder = metered(tmp_path / "run", power=power)
    summary = summary_of(folder)
    window = msgspec.structs.replace(
        summary.window, start_seconds=0.0, end_seconds=10.0,
        started_unix_seconds=ZERO_UNIX,
    )  # fmt: skip
    summary = msgspec.structs.replace(summary, window=window)
    series = carbon_series("s", [f"{ZERO_UNIX - 9},100", f"{ZERO_UNIX + 5},500"])
    found = bill_of("r", summary, Outcomes(1, 1, 0, 0), BillTerms(), series)
    assert found.grams_per_kwh == pytest.approx((100 * 100 + 300 * 500) / 400)


@given(
    grams=st.lists(st.floats(0, 1000), min_size=1, max_size=8),
    begin=st.floats(0, 50),
    seconds=st.floats(0, 50),
)
def test_a_mean_of_a_series_is_within_its_values(
    grams: list[float], begin: float, seconds: float
) -> None:
    series = carbon_series("s", [f"{5 * n},{g}" for n, g in enumerate(grams)])
    found = series.mean(begin, begin + seconds)
    assert min(grams) - 1e-9 <= found <= max(grams) + 1e-9


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ([], "no line"), (["time,g"], "no line"), (["1,2,3", "0,5"], "line 2"),
        (["time,g", "2026-01-01T00:00Z,many"], "line 2"),
        (["2026-01-01,380", "2026-01-02,-1"], "line 2"), (["5,nan"], "line 1"),
    ],
    ids=["empty", "head", "order", "word", "negative", "nan"],
)  # fmt: skip
def test_a_broken_series_names_its_line(lines: list[str], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        carbon_series("grid.csv", lines)


def test_a_series_that_begins_too_late_is_refused() -> None:
    with pytest.raises(UsageError, match="begins at"):
        carbon_series("s", ["2026-01-02T00:00Z,100"]).mean(0.0, 1.0)


@pytest.mark.parametrize(
    ("terms", "text"),
    [
        ({"pue": 0.9}, "--pue 0.9"), ({"pue": float("nan")}, "--pue nan"),
        ({"carbon": -1.0}, "--carbon -1"), ({"gpus": 0}, "--gpus 0"),
        ({"reserved": 2.0}, "--reserved 2"), ({"gpu": "abacus"}, "--gpu abacus"),
        ({"carbon": 1.0, "carbon_series": "x"}, "both given"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_terms_that_cannot_be_are_refused(
    tmp_path: Path, terms: dict[str, Any], text: str
) -> None:
    with pytest.raises(UsageError, match=text):
        billed(metered(tmp_path / "run"), **terms)


def test_a_run_without_energy_is_one_line(tmp_path: Path) -> None:
    write_run(tmp_path / "dark", made_results(5))
    finish_run(tmp_path / "dark", RunInfo())
    found = CliRunner().invoke(command, [str(tmp_path / "dark")]).exception
    assert isinstance(found, RunError)
    assert "dark has no energy" in str(found)
    assert "\n" not in str(found)


def test_bills_of_two_boundaries_are_not_compared(tmp_path: Path) -> None:
    gpu = billed(metered(tmp_path / "run"))
    node = msgspec.structs.replace(gpu, boundary="node")
    assert "gpu and node" in boundaries_note([gpu, node])
    assert boundaries_note([gpu, gpu]) == ""


def test_a_file_of_terms_and_the_options_over_it(tmp_path: Path) -> None:
    folder, terms = metered(tmp_path / "run"), tmp_path / "bill.toml"
    terms.write_text('pue = 1.1\ncarbon = 100\nprice = 1\ncurrency = "CHF"\n')
    asked = [str(folder), "--terms", str(terms), "--carbon", "200"]
    told = json.loads(CliRunner().invoke(command, [*asked, "--format", "json"]).output)
    assert told[0]["grams_per_kwh"] == 200
    assert told[0]["currency"] == "CHF"
    assert told[0]["joules"] == pytest.approx(4400.0)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("pues = 1", "unknown key 'pues'"), ("pue = 'a'", "pue"), ("pue =", "not TOML"),
        ("[pue]\nx = 1", "pue"),
    ],
    ids=["unknown", "text", "syntax", "table"],
)  # fmt: skip
def test_a_broken_file_of_terms_is_one_line(
    tmp_path: Path, content: str, text: str
) -> None:
    path = tmp_path / "bill.toml"
    path.write_text(content)
    with pytest.raises(UsageError, match=text) as caught:
        read_terms(path)
    assert "bill.toml" in str(caught.value)
    with pytest.raises(LoadgenError, match="no such file"):
        read_terms(tmp_path / "none.toml")


def test_every_form_and_the_report_hold_the_bill(tmp_path: Path) -> None:
    folder, terms = metered(tmp_path / "run"), tmp_path / "bill.toml"
    terms.write_text("pue = 1.25\n")
    rows = CliRunner().invoke(command, [str(folder)] * 2 + ["--format", "csv"]).output
    parts = [row["part"] for row in csv.DictReader(io.StringIO(rows))]
    assert parts.count("overhead") == 2
    shown = CliRunner().invoke(report, [str(folder), "--bill", str(terms)])
    assert shown.exit_code == 0, shown.output
    assert "bill of 40 answered requests" in shown.output
    assert "PUE 1.25" in (folder / "report.html").read_text()
    refused = CliRunner().invoke(report, [str(folder)] * 2 + ["--bill", str(terms)])
    assert isinstance(refused.exception, UsageError)


def test_the_tables_fit_a_terminal(tmp_path: Path) -> None:
    found = billed(metered(tmp_path / "run"), price=0.3)
    text = printed(render(sheets(found)), width=80)
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (grams(1500.0), "1.50 kg"), (grams(0.0234), "23.4 mg"),
        (grams(1e-7), "0.100 µg"), (grams(None), "–"), (money(None), "–"),
        (money(1.6e-5), "16.0 a million"), (money(12.0), "12.0"), (money(0.0), "0"),
    ],
)  # fmt: skip
def test_small_amounts_are_readable(text: str, expected: str) -> None:
    assert text == expected
