"""A sweep as table, page and csv: it fits, it names, it escapes."""

from __future__ import annotations

import csv
import io
from typing import Any

from rich.console import Console

from loadgen.analysis.sweep import (
    FIGURES,
    Interval,
    Optimum,
    Point,
    Saturation,
    SweepResult,
    pareto_front,
)
from loadgen.report.sweep import page, render, to_csv
from tests.support.shown import Page


def made(rate: Any, joules: float, seconds: float, **changes: Any) -> Point:
    figures = {name: Interval(value=seconds, low=seconds / 1.2, high=seconds * 1.2)
               for name in FIGURES}  # fmt: skip
    figures["joules_per_request"] = Interval(
        value=joules, low=joules / 1.1, high=joules * 1.1
    )
    fields: dict[str, Any] = {
        "name": f"rate={rate}", "axes": {"rate": rate}, "repeats": 2,
        "simulated": True, "boundary": "gpu", "requests": 1234, "answered": 1230,
        "good": 1200, "asked_per_second": 1.0, "achieved_per_second": float(rate),
        "answered_per_second": 1.0, "good_per_second": 1.0,
        "output_tokens_per_second": 1.0, "kept_up": 1.0, "is_saturated": False,
        "mean_watts": 312.0, "joules_per_good": figures["joules_per_request"],
        "figures": figures, "window_seconds": 60.0, "window_starts": [1.0, 2.0],
        "window_rules": ["a rule"], "verdicts": ["valid", "degraded"],
        "reasons": ["because <b>of</b> this"],
    }  # fmt: skip
    return Point(**(fields | changes))


def result(*points: Point, **changes: Any) -> SweepResult:
    fields: dict[str, Any] = {
        "trace": "<script>alert(1)</script>\u202e.jsonl",
        "axes": {"rate": [p.axes.get("rate") for p in points]}, "fixed": {"n": "<1>"},
        "repeats": 2, "simulated": True, "goodput": {"ttft": 0.2},
        "points": list(points),
        "skipped": ["rate=64"], "failed": ["rate=3"],
        "saturation": Saturation(
            kept_up_per_second=8, saturated_per_second=16, capacity_per_second=9.9
        ),
        "front": pareto_front(points),
        "best": Optimum(
            rate_per_second=8, joules_per_good=Interval(value=55.0, low=50, high=60),
            low_per_second=4, high_per_second=8, is_bracketed=True, reason="enough",
        ),
        "note": "",
    }  # fmt: skip
    return SweepResult(**(fields | changes))


FOUND = result(
    made(1, 140.0, 0.2), made(8, 60.0, 0.5),
    made(16, 1234.0, 30.0, is_saturated=True, verdicts=["invalid"]),
    made("inf", 50.0, 60.0),
)  # fmt: skip


def test_the_table_fits_80_columns_and_gives_the_answers() -> None:
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(render(FOUND))
    assert isinstance(console.file, io.StringIO)
    text = " ".join(console.file.getvalue().split())
    assert max(map(len, console.file.getvalue().splitlines())) <= 80
    for part in (
        "least energy per request within the limits: 55.0 J at 8 requests/s (95 %: "
        "50.0 J to 60.0 J); from 4 to 8 requests/s it cannot be told apart",
        "saturation between 8 and 16 requests/s", "at once", "! invalid", "* least",
        "not run, a lower rate saturated: rate=64", "failed: rate=3", "SIMULATED",
        "Pareto front", "1.23 kJ",
    ):  # fmt: skip
        assert part in text, part


def test_the_page_shows_text_from_outside_as_text() -> None:
    text = page(FOUND, "<i>name</i>")
    assert Page(text).is_closed
    assert "alert(1)</script>" not in text
    assert "\u202e" not in text
    assert "because &lt;b&gt;of&lt;/b&gt; this" in text
    assert "&lt;i&gt;name" in text
    assert text.count("<svg") == 7
    assert "all at once" in text
    assert "http" not in text.replace("http-equiv", "")


def test_the_csv_has_a_row_per_point_and_units_in_its_names() -> None:
    first, *_, last = csv.DictReader(io.StringIO(to_csv(FOUND)))
    assert float(first["joules_per_request"]) == 140
    assert float(first["joules_per_request_low"]) < 140
    assert first["verdicts"] == "valid,degraded"
    assert last["rate"] == "inf"
    assert last["is_best"] == "false"


def test_naive_estimates_stand_beside_each_point_that_has_them() -> None:
    assert "calculators" not in page(FOUND, "x")
    known = made(
        1, 140.0, 0.2, measured_over_naive={"tdp_runtime": 0.42, "tokens_given": None}
    )
    found = result(known, made(8, 60.0, 0.5))
    text = " ".join(page(found, "x").split())
    assert '<th scope="col">TDP x runtime</th>' in text
    assert "tokens x given" not in text
    assert '<tr><th scope="row">1</th><td class="num">0.420 x</td></tr>' in text
    assert '<tr><th scope="row">8</th><td class="num">–</td></tr>' in text
    first, last = csv.DictReader(io.StringIO(to_csv(found)))
    assert first["measured_over_naive_tdp_runtime"] == "0.42"
    assert last["measured_over_naive_tdp_runtime"] == ""


def test_a_sweep_of_another_option_has_no_saturation() -> None:
    point = made(1, 140.0, 0.2, axes={"n": "2"}, name="n=2")
    found = result(point, axes={"n": ["2"]}, saturation=None, best=None, front=[])
    console = Console(width=80, file=io.StringIO())
    console.print(render(found))
    assert isinstance(console.file, io.StringIO)
    assert "saturation" not in console.file.getvalue()
    assert page(found, "x")
