"""What a person is shown of a metered run: its energy comes from a proxy."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
from click.testing import CliRunner

from loadgen.analysis.schema import BoundaryBlock, ErrorRow, Summary
from loadgen.analysis.summary import RunInfo
from loadgen.cli.report import report
from loadgen.energy.join import Patience
from loadgen.report import compare, text
from loadgen.report import format as fmt
from loadgen.report import terminal as table
from loadgen.report.html import render_html
from loadgen.results.recorder import read_results
from loadgen.run.finish import finish_run
from tests.support.canned_run import (
    ZERO_UNIX,
    CannedProxy,
    failed,
    made_results,
    serving,
    write_run,
)
from tests.support.shown import Page, printed


def metered_run(folder: Path, count: int = 80) -> Summary:
    results = [*made_results(count), failed("bad", at=2.0)]
    write_run(folder, results)
    info = RunInfo(
        zero_unix_seconds=ZERO_UNIX, metered=True, goodput={"ttft": 0.2},
        metadata={"note": "<b>bold</b> & more"},
    )  # fmt: skip
    with serving(CannedProxy(results)) as url:
        return finish_run(folder, info, admin_url=url, patience=Patience(10, 0))


def test_the_table_tells_the_whole_story_in_a_hundred_columns(tmp_path: Path) -> None:
    text = printed(table.render(metered_run(tmp_path), tmp_path / "report.html"))
    for word in (
        "SIMULATED", "verdict: degraded", "1 of 81 requests failed", "a request cost",
        "asked", "achieved", "schedule lag", "TTFT", "TPOT", "ITL", "E2E", "measured",
        "prefill",
        "decode", "idle share", "idle: nobody", "unattributed: bypass", "100.0 %",
        "per output token", "'equal'", "By kind", "conversation", "how to read this",
        "goodput", "HTTP 503: overloaded",
    ):  # fmt: skip
        assert word in text, word
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 100


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_loses_nothing_at_any_width(tmp_path: Path, width: int) -> None:
    summary = metered_run(tmp_path, 1200)
    energy = msgspec.structs.replace(
        summary.energy,
        boundaries={name: BoundaryBlock(source="nvml", mean_watts=1.0)
                    for name in ("gpu", "node")},
    )  # fmt: skip
    long = "HTTP 503: " + "overloaded " * 50
    summary = msgspec.structs.replace(
        summary, energy=energy, errors=[ErrorRow(error=long, count=1)]
    )
    shown = printed(table.render(summary, tmp_path / "report.html"), width)
    lines = [line.rstrip() for line in shown.splitlines()]
    assert max(map(len, lines)) <= min(width, table.WIDTH)
    for heads in (
        "mean p50 p90 p99", "joules share mean power", "joules measured/naive",
        "requests tokens in out TTFT p50 J mean J p90 J/token",
        "measured of the node power J/request active J/token",
    ):  # fmt: skip
        assert any(" ".join(line.split()).endswith(heads) for line in lines), heads
    measures = ["ttft", "tpot", "itl", "e2el", "energy", "active_energy"]
    for name in measures:
        stats = summary.measures[name]
        assert stats is not None
        assert any(line.endswith(fmt.quantity(stats.p99, stats.unit)) for line in lines)
    words = " ".join(shown.split())
    assert words.count("…") == 1  # of the failure
    assert str(tmp_path / "report.html") in shown.replace("\n", "")


@pytest.mark.parametrize("colour", [{"NO_COLOR": "1"}, {}])
def test_without_colour_or_terminal_no_escape_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, colour: dict[str, str]
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in colour.items():
        monkeypatch.setenv(name, value)
    metered_run(tmp_path)
    result = asked(tmp_path)
    assert "\x1b" not in result.output
    assert "verdict: degraded" in result.output


def test_what_is_simulated_is_told_apart(tmp_path: Path) -> None:
    sensor = metered_run(tmp_path)
    assert "the sensor says" in printed(table.render(sensor))
    both = msgspec.structs.replace(sensor, simulated_engine=True)
    assert "engine, GPU and joules come from a model" in printed(table.render(both))


def test_the_shares_of_the_books_add_up_to_what_was_measured(tmp_path: Path) -> None:
    energy = metered_run(tmp_path).energy
    parts = list(text.accounts(energy))
    assert [part.name for part in parts][:4] == [
        "prefill", "decode", "idle share", "idle",
    ]  # fmt: skip
    total = sum(part.joules for part in parts)
    assert total == pytest.approx(energy.measured_joules)


def test_runs_stand_side_by_side(tmp_path: Path) -> None:
    first, second = metered_run(tmp_path / "a"), metered_run(tmp_path / "b", 40)
    text = printed(compare.render([("a", first), ("b", second)]))
    answered = next(line for line in text.splitlines() if "answered" in line)
    assert answered.split() == ["answered", "80", "40"]
    assert "SIMULATED" in text


def test_runs_whose_lengths_were_caps_are_compared_per_token_served(
    tmp_path: Path,
) -> None:
    forced = msgspec.structs.replace(
        metered_run(tmp_path / "a"), output_length_rule="forced", backend="vllm"
    )
    capped = msgspec.structs.replace(
        forced, output_length_rule="cap", backend="tgi",
        total_output_tokens=forced.total_output_tokens // 2,
    )  # fmt: skip
    advice = "compare joules per output token"
    # same lengths on both sides: any figure may be compared
    assert text.comparison_note([forced, forced]) == ""
    # other lengths, though forced: two traces
    longer = msgspec.structs.replace(
        forced, total_output_tokens=forced.total_output_tokens * 2
    )
    assert advice in text.comparison_note([forced, longer])
    shown = printed(compare.render([("vllm", forced), ("tgi", capped)]))
    assert advice in shown
    (row,) = [line for line in shown.splitlines() if "output lengths" in line]
    rules = "output lengths forced, 100.0 % served caps, 100.0 % served"
    assert " ".join(row.split()) == rules
    alone = printed(table.render(capped))
    assert "output lengths are caps: tgi cannot force them" in alone
    assert "output lengths are caps" not in printed(table.render(forced))
    page = render_html(capped, read_results(tmp_path / "a" / "requests.jsonl"))
    assert "output lengths are caps: tgi cannot force them" in page


def test_the_page_is_one_small_file_that_needs_nothing_else(tmp_path: Path) -> None:
    metered_run(tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert Page(text).is_closed
    assert "http://" not in text
    assert "@import" not in text
    assert len(text) < 1_000_000


def test_the_page_says_simulated_verdict_books_and_policies(tmp_path: Path) -> None:
    summary = metered_run(tmp_path)
    text = (tmp_path / "report.html").read_text()
    for word in (
        "SIMULATED", "degraded", "1 of 81 requests failed", "Where the joules went",
        "prefill", "idle share", "bypass", "residual", "conversation",
        "Requests per second", "Power and requests", "prefers-color-scheme: dark",
        "By length", "by turn", "from the intended start",
        summary.plan_sha256 or "", fmt.joules(summary.energy.measured_joules),
    ):  # fmt: skip
        assert word in text, word


def test_what_users_wrote_cannot_break_the_page(tmp_path: Path) -> None:
    metered_run(tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "<b>bold</b>" not in text
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; more" in text


def test_every_chart_is_well_formed(tmp_path: Path) -> None:
    metered_run(tmp_path)
    drawn = re.findall(r"<svg.*?</svg>", (tmp_path / "report.html").read_text(), re.S)
    assert len(drawn) == 11
    for svg in drawn:
        ElementTree.fromstring(svg)
        assert "nan" not in svg


def asked(*arguments: Any) -> Any:
    return CliRunner().invoke(report, [str(word) for word in arguments])


def test_report_shows_a_run_again_and_redraws_its_page(tmp_path: Path) -> None:
    metered_run(tmp_path)
    (tmp_path / "report.html").unlink()
    result = asked(tmp_path)
    assert result.exit_code == 0
    assert "a request cost" in result.output
    assert (tmp_path / "report.html").is_file()


def test_report_of_a_killed_run_shows_what_there_is(tmp_path: Path) -> None:
    metered_run(tmp_path)
    (tmp_path / "summary.json").unlink()
    result = asked(tmp_path)
    assert result.exit_code == 0
    assert "interrupted" in result.output
    assert "80 answered" in result.output
    assert not (tmp_path / "summary.json").exists()


def test_report_of_several_runs_compares_them(tmp_path: Path) -> None:
    metered_run(tmp_path / "slow")
    metered_run(tmp_path / "fast", 40)
    result = asked(tmp_path / "slow", tmp_path / "fast")
    assert "slow" in result.output
    assert "fast" in result.output


def test_report_as_json_is_the_summary_itself(tmp_path: Path) -> None:
    metered_run(tmp_path)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert json.loads(asked(tmp_path, "--json").output) == written
    both = json.loads(asked(tmp_path, tmp_path, "--json").output)
    assert [entry["summary"] for entry in both] == [written, written]


def test_records_survive_a_report(tmp_path: Path) -> None:
    metered_run(tmp_path)
    before = list(read_results(tmp_path / "requests.jsonl"))
    asked(tmp_path)
    assert list(read_results(tmp_path / "requests.jsonl")) == before
