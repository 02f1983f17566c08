"""What a person is shown: the table, the comparison, the page."""

from __future__ import annotations

import json
import re
import tempfile
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from loadgen.analysis.samples import MAX_POINTS, LogHistogram, Samples
from loadgen.analysis.schema import EnergyBlock, HardwareBlock, Lag, ProcessRow
from loadgen.analysis.summary import RunInfo
from loadgen.analysis.tally import RunWindow
from loadgen.cli.report import report
from loadgen.errors import LoadgenError, RunError
from loadgen.report import charts
from loadgen.report import format as fmt
from loadgen.report import terminal as table
from loadgen.report.console import console
from loadgen.report.html import render_html
from loadgen.report.text import (
    hardware_name,
    late_processes,
    process_text,
    records_text,
)
from loadgen.run.finish import finish_run
from proxy.wire.api import BoardSummary, Phases
from tests.support.canned_run import (
    cost_of,
    failed,
    made_results,
    write_run,
)
from tests.support.mutations import spoilt
from tests.support.profiles import examples
from tests.support.shown import Page, printed


@pytest.mark.parametrize(
    ("model", "simulated", "expected"),
    [
        ("NVIDIA H100", False, "2 × NVIDIA H100"),
        ("NVIDIA H100", True, "2 × SIMULATED NVIDIA H100"),
        ("SIMULATED NVIDIA H100", True, "2 × SIMULATED NVIDIA H100"),
        (None, True, ""),
    ],
)
def test_simulated_hardware_is_called_so_once(
    tmp_path: Path, model: str | None, simulated: bool, expected: str
) -> None:
    write_run(tmp_path / "run", made_results(20))
    boards = [
        BoardSummary(boundary="gpu", device=f"gpu{n}", seconds=1.0, model=model)
        for n in range(2)
    ]
    summary = msgspec.structs.replace(
        finish_run(tmp_path / "run", RunInfo()),
        hardware=HardwareBlock(boards=boards),
        simulated=simulated,
    )
    assert hardware_name(summary) == expected


# -- figures -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (fmt.joules(0.0), "0 J"),
        (fmt.joules(0.0456), "45.6 mJ"),
        (fmt.joules(1.234), "1.23 J"),
        (fmt.joules(999.96), "1.00 kJ"),
        (fmt.joules(12_345.0), "12.3 kJ"),
        (fmt.seconds(0.000451), "451 µs"),
        (fmt.seconds(0.0456), "45.6 ms"),
        (fmt.seconds(119.3), "119 s"),
        (fmt.watts(312.4), "312 W"),
        (fmt.joules(None), "–"),
        (fmt.percent(0.123), "12.3 %"),
        (fmt.rate(4.019, "requests/s"), "4.02 requests/s"),
    ],
)
def test_figures_have_three_digits_and_a_unit(text: str, expected: str) -> None:
    assert text == expected


@pytest.mark.parametrize(
    ("n", "expected"), [(99, "–"), (100, "~1.50 s"), (999, "~1.50 s"), (1000, "1.50 s")]
)
def test_a_percentile_says_when_few_values_stand_behind_it(
    n: int, expected: str
) -> None:
    assert fmt.percentile(1.5, "s", 99, n) == expected


@given(st.floats(1e-5, 1e8))
def test_a_written_figure_is_within_half_a_percent(value: float) -> None:
    number, unit = fmt.joules(value).split()
    scale = {"µJ": 1e-6, "mJ": 1e-3, "J": 1.0, "kJ": 1e3, "MJ": 1e6}[unit]
    assert float(number.replace(",", "")) * scale == pytest.approx(value, rel=0.0051)


# -- the table -----------------------------------------------------------------


def test_the_table_of_an_unmetered_run_says_why_there_are_no_joules(
    tmp_path: Path,
) -> None:
    write_run(tmp_path, made_results(20))
    text = printed(table.render(finish_run(tmp_path, RunInfo())))
    assert "no metering proxy in front of the engine" in text
    assert "SIMULATED" not in text
    assert not re.search(r"(?<![\d,])0 J", text)


def test_conversations_that_offer_less_than_asked_say_why(tmp_path: Path) -> None:
    write_run(tmp_path, made_results(40, rate=2.0), rate=4.0)
    text = printed(table.render(finish_run(tmp_path, RunInfo())))
    assert "4.00 requests/s were asked for: later turns wait" in text
    write_run(tmp_path, made_results(400, rate=4.0), rate=4.0)
    text = printed(table.render(finish_run(tmp_path, RunInfo())))
    assert "were asked for" not in text


def test_an_interrupted_run_tells_stopped_from_failed(tmp_path: Path) -> None:
    stopped = [failed(f"s{n}", at=2.0, outcome="aborted") for n in range(4)]
    write_run(tmp_path, [*made_results(20), failed("bad", at=1.0), *stopped])
    summary = finish_run(tmp_path, RunInfo(interrupted=True))
    text = printed(table.render(summary))
    assert "20 answered, 1 failed, 4 stopped with the run" in text
    assert "1 of 25 requests failed (1 error)" in text
    assert summary.failed == 5
    assert [row.count for row in summary.errors] == [1]


# -- the page ------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_page_of_next_to_nothing_is_still_a_page(tmp_path: Path, count: int) -> None:
    write_run(tmp_path, made_results(count))
    summary = finish_run(tmp_path, RunInfo())
    assert Page(render_html(summary, made_results(count))).open == []
    assert printed(table.render(summary))


@given(st.lists(st.floats(1e-6, 1e5), min_size=1, max_size=200))
def test_a_histogram_holds_every_value_in_at_most_forty_bars(
    values: list[float],
) -> None:
    histogram = LogHistogram()
    for value in values:
        histogram.add(value)
    edges, counts = histogram.bars()
    assert sum(counts) == len(values)
    assert len(counts) == len(edges) - 1 <= 40
    assert edges[0] <= min(values) * (1 + 1e-9)
    assert max(values) <= edges[-1] * (1 + 1e-9)
    ElementTree.fromstring(
        charts.histogram(edges, counts, title="t", x="x", format=fmt.joules)
    )


@given(st.floats(1e-9, 1e12))
def test_a_linear_axis_has_a_few_round_ticks(high: float) -> None:
    axis = charts.linear(high, 0.0, 100.0)
    assert 2 <= len(axis.ticks) <= 7
    assert axis.ticks[0] == 0
    assert axis.ticks[-1] <= high * (1 + 1e-6)


@given(st.floats(1e-9, 1e9), st.floats(1, 1e9))
def test_a_logarithmic_axis_keeps_its_points_inside(low: float, span: float) -> None:
    axis = charts.logarithmic(low, low * span, 10.0, 20.0)
    assert axis.at(low) == 10.0
    assert 10.0 <= axis.at(low * span) <= 20.0


def test_a_large_run_is_drawn_from_a_sample() -> None:
    one = made_results(1)[0]
    samples = Samples(RunWindow(), run_seconds=100.0)
    for index in range(5000):
        grown = msgspec.structs.replace(one, output_tokens=index + 1)
        samples.add(msgspec.structs.replace(grown, energy=cost_of(grown)))
    points = samples.points.kept
    assert len(points) == MAX_POINTS
    assert samples.points.seen == 5000
    # early and late requests alike: the sample is not the first 2,000
    assert sum(point.output_tokens > 2500 for point in points) == pytest.approx(
        1000, rel=0.15
    )


# -- the command ---------------------------------------------------------------


def asked(*arguments: Any) -> Any:
    return CliRunner().invoke(report, [str(word) for word in arguments])


def test_report_of_something_else_is_one_line(tmp_path: Path) -> None:
    result = asked(tmp_path / "nothing")
    assert isinstance(result.exception, LoadgenError)
    assert "is not a run folder" in str(result.exception)


def test_folders_without_a_run_are_left_out_of_a_comparison(tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("a", "empty", "b", "broken")]
    for run in runs:
        run.mkdir()
    for run in (runs[0], runs[2]):
        write_run(run, made_results(20))
        finish_run(run, RunInfo())
    (runs[3] / "summary.json").write_text("[" * 5000)
    result = asked(*runs)
    assert result.exit_code == 0
    assert "left out: " + str(runs[1]) in result.stderr
    assert result.stderr.count("left out: ") == 2
    assert "Traceback" not in result.stderr
    none = asked(runs[1], runs[3])
    assert isinstance(none.exception, RunError)


@examples(60)
@given(st.data())
def test_a_spoilt_run_folder_is_shown_or_refused_in_one_line(
    data: st.DataObject,
) -> None:
    with tempfile.TemporaryDirectory() as name:
        run = Path(name)
        write_run(run, made_results(5))
        finish_run(run, RunInfo())
        if data.draw(st.booleans()):
            (run / "summary.json").unlink()
        file = run / data.draw(st.sampled_from(sorted(p.name for p in run.iterdir())))
        file.write_bytes(data.draw(spoilt([file.read_bytes()])))
        result = asked(run, *data.draw(st.sampled_from([[], ["--json"]])))
    if result.exception is not None:
        assert isinstance(result.exception, RunError)
        assert result.exception.exit_code == 2
        assert "\n" not in str(result.exception)


def test_a_record_of_more_tokens_than_there_are_is_refused(tmp_path: Path) -> None:
    record = made_results(1)[0]
    write_run(tmp_path, [msgspec.structs.replace(record, chunk_tokens=[10**12])])
    result = asked(tmp_path)
    assert isinstance(result.exception, RunError)
    assert "line 1: not a request record: chunk_tokens sum to" in str(result.exception)


HOSTILE = "\x1b]0;title\x07\x1b[2J\u202e[/b][bold]:boom:\ud800<b>"


def test_words_of_a_server_move_no_cursor_in_report_and_page(tmp_path: Path) -> None:
    words = HOSTILE.replace("\ud800", "")  # no JSON file holds it
    bad = msgspec.structs.replace(failed("r9", at=1.0), error=words)
    write_run(tmp_path, [*made_results(20), bad])
    finish_run(tmp_path, RunInfo(model=words, metadata={words: words}))
    page = (tmp_path / "report.html").read_text()
    shown = [asked(tmp_path).output, asked(tmp_path, tmp_path).output, page]
    as_json = asked(tmp_path, "--json").output
    for text in [*shown, as_json]:
        assert all(line.isprintable() for line in text.split("\n"))
    assert "\\x1b[2J" in shown[0]
    assert json.loads(as_json)["model"] == words


def test_a_console_shows_text_as_text() -> None:
    with StringIO() as file:
        out = console()
        out.file = file
        out.print(HOSTILE)
        grid = Table()
        grid.add_column(HOSTILE)
        grid.add_row(HOSTILE)
        out.print(grid)
        text = file.getvalue()
    assert all(line.isprintable() for line in text.split("\n"))
    assert "[/b][bold]:boom:" in text


def test_records_stand_beside_the_books_they_differ_from() -> None:
    energy = EnergyBlock(
        measured_joules=1200.0,
        attributed_joules=Phases(prefill=300.0, decode=500.0),
        idle_share_joules=200.0,
        idle_joules=200.0,
        unattributed_joules={},
        joined_joules=1012.0,
        requests_with_energy=40,
    )
    shown = records_text(energy)
    assert "1.01 kJ in the records of its 40 requests" in shown
    assert "1.00 kJ in its books (+1.2 %)" in shown
    assert records_text(msgspec.structs.replace(energy, joined_joules=None)) == ""
    assert records_text(EnergyBlock()) == ""


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (None, "–"), (0.0456, "45.6 ms"), (45.0, "45.0 s"), (99.9, "99.9 s"),
        (99.96, "1 min 40 s"), (125, "2 min 5 s"), (120, "2 min"), (4200, "1 h 10 min"),
        (187_200, "2 d 4 h"),
    ],
)  # fmt: skip
def test_long_times_are_said_as_people_say_them(
    seconds: float | None, expected: str
) -> None:
    assert fmt.duration(seconds) == expected


def process(number: int, lag_ms: float, **more: Any) -> ProcessRow:
    lag = Lag(mean=lag_ms, p50=lag_ms, p90=lag_ms, p99=lag_ms, max=lag_ms)
    return ProcessRow(
        process=number, requests=7, lag_ms=lag, loop_lag_p99_ms=1.0, cpu_seconds=2.0,
        **more,
    )  # fmt: skip


def test_of_many_processes_the_dead_and_the_latest_are_shown() -> None:
    few = [process(n, 1.0) for n in range(1, 9)]
    assert late_processes(few) == few
    dead = process(1, 0.0, death="was ended by SIGKILL", lost_requests=3)
    many = [dead, *(process(n, float(n)) for n in range(2, 40))]
    shown = late_processes(many)
    assert [row.process for row in shown] == [1, *range(33, 40)]
    assert process_text(dead) == (
        "7 requests, schedule lag p99 0 s, 2.00 s of CPU, was ended by SIGKILL, 3 lost"
    )
