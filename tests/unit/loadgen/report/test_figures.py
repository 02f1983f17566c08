"""The report's figures: their numbers, their lanes, and hostile names in them."""

from __future__ import annotations

import csv
import io
import json
import re
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loadgen.analysis.samples import Samples, Span, lanes
from loadgen.analysis.schema import ConstantsTrust, EnergyBlock, PerRequest, Summary
from loadgen.analysis.summary import RunInfo, summarise
from loadgen.analysis.tally import Extent, Tally
from loadgen.report import figures, text
from loadgen.report import format as fmt
from loadgen.report.html import bins_of, render_html
from loadgen.report.page import Figure
from loadgen.results.results import Metering, Result
from tests.support.canned_run import cost_of, failed, made_results
from tests.support.profiles import examples
from tests.support.shown import Page

RUN = [
    msgspec.structs.replace(result, energy=cost_of(result))
    for result in made_results(40)
]


def summary_of(results: list[Result], **info: Any) -> Summary:
    extent = Extent()
    for result in results:
        extent.add(result)
    tally = Tally(extent.window(0.0, 0.0), {}).add_all(results)
    return summarise(
        tally, info=RunInfo(**info), header=None, plan_sha256=None,
        metering=Metering(reason="made up"), run_seconds=extent.last_finished_seconds,
    )  # fmt: skip


def drawn_of(results: list[Result]) -> tuple[Summary, Samples]:
    summary = summary_of(results)
    extent = Extent()
    for result in results:
        extent.add(result)
    return summary, Samples(extent.window(0, 0), 10.0).add_all(results)


def rows_of(figure: Figure | None, name: str = "") -> list[dict[str, str]]:
    assert figure is not None
    return list(csv.DictReader(io.StringIO(figure.tables[name])))


# -- lanes ---------------------------------------------------------------------

TIMES = st.floats(0, 100)


@given(st.lists(st.tuples(TIMES, st.floats(0, 20)), max_size=60))
def test_no_two_requests_of_a_lane_overlap_and_none_is_wasted(
    times: list[tuple[float, float]],
) -> None:
    spans = [Span(a, None, a + length, "k", 1, "ok", None) for a, length in times]
    found = lanes(spans)
    by_lane: dict[int, list[Span]] = {}
    for lane, span in zip(found, spans, strict=True):
        by_lane.setdefault(lane, []).append(span)
    for members in by_lane.values():
        members.sort(key=lambda span: (span.sent_seconds, span.finished_seconds))
        for one, other in pairwise(members):
            assert one.finished_seconds <= other.sent_seconds
    for lane, span in zip(found, spans, strict=True):
        running = [
            other for number, other in zip(found, spans, strict=True)
            if number < lane
            and other.sent_seconds <= span.sent_seconds <= other.finished_seconds
        ]  # fmt: skip
        assert len(running) >= lane  # every lane above was taken when it began


def test_the_timeline_tells_answered_from_broken_requests() -> None:
    figure = figures.timeline(*drawn_of([*RUN, failed("bad", at=1.0)]))
    assert figure is not None
    assert "power over time is not known" in figure.note
    found = rows_of(figure, "requests")
    assert len(found) == 41
    assert [row["outcome"] for row in found].count("error") == 1
    assert figure.svg.count('class="lane ') == 3
    assert "failed, stopped or without a token" in figure.svg
    without = figures.timeline(*drawn_of(RUN))
    assert without is not None
    assert without.svg.count('class="lane ') == 2
    assert "failed" not in without.svg


def test_a_run_without_a_request_has_no_timeline() -> None:
    assert figures.timeline(*drawn_of([])) is None
    assert figures.timeline(*drawn_of([failed("x", at=0, outcome="dropped")])) is None


# -- numbers behind the drawings -------------------------------------------------


def test_what_is_saved_of_a_scatter_is_what_is_drawn() -> None:
    _, samples = drawn_of(RUN)
    found = figures.energy_scatters(samples)
    assert [figure.name for figure in found] == [
        "energy-by-output-length-and-kind", "energy-by-prompt-length-and-kind",
        "energy-by-output-length-and-turn", "energy-by-prompt-length-and-turn",
    ]  # fmt: skip
    for figure in found:
        assert len(rows_of(figure)) == len(RUN)
        assert figure.svg.count("h0") == len(RUN)
    assert {row["turn"] for row in rows_of(found[2])} == {"turn 1", "turn 2"}
    joules = sorted(float(row["energy_joules"]) for row in rows_of(found[0]))
    known = sorted(result.energy.energy_joules or 0 for result in RUN if result.energy)
    assert joules == pytest.approx(known, rel=1e-5)


def test_requests_of_one_turn_are_not_told_apart_by_turn() -> None:
    single = [msgspec.structs.replace(result, turn=0) for result in RUN]
    assert len(figures.energy_scatters(drawn_of(single)[1])) == 2


def test_a_latency_has_a_line_from_the_send_and_one_from_the_schedule() -> None:
    late = [
        msgspec.structs.replace(r, planned_seconds=r.planned_seconds - 5) for r in RUN
    ]
    ttft, e2el = figures.latency_lines(drawn_of(late)[1])
    for figure in (ttft, e2el):
        rows = rows_of(figure)
        lines: dict[str, list[float]] = {}
        for row in rows:
            lines.setdefault(row["counted"], []).append(float(row["seconds"]))
        assert list(lines) == ["from the send", "from the intended start"]
        for line in lines.values():
            assert line == sorted(line)
        assert min(lines["from the intended start"]) > 5
        assert 'class="line from-schedule"' in figure.svg
    assert "requests at or below" in ttft.svg
    assert figures.latency_lines(drawn_of([])[1]) == []


@pytest.mark.parametrize(
    ("prompt", "edge_set"), [(8192, "paper"), (8193, "percentile")]
)
def test_bins_hold_every_request(prompt: int, edge_set: str) -> None:
    long = msgspec.structs.replace(RUN[0], prompt_tokens=prompt)
    table = bins_of(drawn_of([*RUN, long])[1])
    assert table is not None
    assert (table.edge_set, table.beyond) == (edge_set, 0)
    assert sum(row.requests for row in table.bins) == len(RUN) + 1


PARTS = st.lists(st.floats(0, 1e7), min_size=1, max_size=7)


@given(PARTS)
def test_joules_that_are_shown_add_up_as_they_stand(parts: list[float]) -> None:
    whole, shown = fmt.adding_up(sum(parts), parts)
    unit = whole.split()[1]
    assert all(line.endswith(f" {unit}") for line in shown)

    def steps(line: str) -> int:
        return round(float(line.split()[0].replace(",", "")) * 1000)

    assert sum(map(steps, shown)) == steps(whole)
    size = {"MJ": 1e6, "kJ": 1e3, "J": 1.0, "mJ": 1e-3, "µJ": 1e-6}[unit]
    for part, line in zip(parts, shown, strict=True):
        assert abs(steps(line) - part / size * 1000) <= 1.001


def test_parts_that_do_not_add_up_are_shown_as_they_are() -> None:
    assert fmt.adding_up(10.0, [1.0, 2.0]) == ("10.000 J", ["1.000 J", "2.000 J"])
    assert fmt.adding_up(None, [1.0]) == ("–", ["1.000 J"])


# -- an unfitted policy ------------------------------------------------------------


def spread(mean: float) -> PerRequest:
    return PerRequest(n=9, mean=mean, p50=mean, p90=2 * mean, p99=3 * mean)


@pytest.mark.parametrize(
    ("calibrated", "trust", "note"),
    [
        (20.0, None, "not fitted in this run: it is phase under another name"),
        (20.0, False, "phase under another name (too few rows)"),
        (21.0, False, "not trusted at its end (too few rows)"),
        (21.0, True, ""),
        (21.0, None, ""),
    ],
)
def test_a_policy_that_was_not_fitted_says_so(
    calibrated: float, trust: bool | None, note: str
) -> None:
    constants = [] if trust is None else [
        ConstantsTrust(engine="e", is_trusted=trust, reason="too few rows")
    ]  # fmt: skip
    energy = EnergyBlock(
        policy_joules_per_request={
            "phase": spread(20),
            "calibrated": spread(calibrated),
        },
        constants=constants,
    )
    found = text.policy_note(energy, "calibrated")
    assert found.endswith(note)
    assert bool(found) == bool(note)
    assert text.policy_note(energy, "phase") == ""


# -- hostile text --------------------------------------------------------------

PIECES = st.sampled_from([
    "<script>alert(1)</script>", "</script>", "<!--", "-->", "]]>", "</style>", "<svg ",
    "\"", "'", ">", "<", "&", "&lt;", "{{ 7 * 7 }}", "{% raw %}", "\x1b[2J",
    "\x1b]0;t\x07",
    "\u202e", "\u2028", "\r", "\x00", "\x9b31m", "=cmd()", "-->", "`", "\\", "onload=x",
    "javascript:x", "[bold]", ":boom:", "%s", "é", "世界",
])  # fmt: skip
HOSTILE = st.lists(PIECES, min_size=1, max_size=6).map("".join)


def page_of(words: str, seed: list[Result]) -> str:
    results = [
        msgspec.structs.replace(
            result, kind=result.kind + words, session_id=words, request_id=words
        )
        for result in seed
    ]
    results.append(msgspec.structs.replace(failed("bad", at=1.0), error=words))
    summary = summary_of(
        results, model=words, backend=words, gpu=words, gpus=1, failure=words,
        metadata={words: words},
    )  # fmt: skip
    energy = msgspec.structs.replace(
        summary.energy, reason=words, source=words, boundary=words, policy=words,
        policy_joules={words: dict.fromkeys(summary.by_kind, 1.0), "b": {}},
        policy_joules_per_request={words: spread(1), "calibrated": spread(2)},
        constants=[ConstantsTrust(engine=words, is_trusted=False, reason=words)],
        grade={words: 1}, grade_reasons={words: 1}, quality={words: 1},
        idle_source=words, loaded_idle_watts=1.0,
    )  # fmt: skip
    summary = msgspec.structs.replace(
        summary, trace=words, arrival=words, plan_sha256=words, energy=energy,
        environment={words: words, "servewatt": words},
    )  # fmt: skip
    return render_html(summary, results)


@examples(100)
@given(HOSTILE)
@example("\r")
def test_text_from_outside_is_never_markup(words: str) -> None:
    shown = page_of(words, RUN[:12])
    page = Page(shown)
    assert page.structure == PLAIN.structure
    assert page.is_closed
    assert all(line.isprintable() for line in shown.split("\n"))
    for svg in re.findall(r"<svg .*?</svg>", shown, re.S):
        ElementTree.fromstring(svg)
    for data in page.data:
        rows = list(csv.reader(io.StringIO(json.loads(data))))
        assert len({len(row) for row in rows}) == 1
        assert not any(cell.startswith(("=", "@")) for row in rows for cell in row)


PLAIN = Page(page_of("plain", RUN[:12]))
