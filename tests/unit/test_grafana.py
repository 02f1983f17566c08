"""Dashboards and rules as data: they are current, complete, and name what exists."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest

from grafana.boards import BOARDS, rendered
from grafana.boards.panel import Panel
from loadgen.results.progress import Progress
from loadgen.run.exporter import LATENCIES, PREFIX, Exporter
from loadgen.run.exporter import METRICS as LOADGEN_METRICS
from loadgen.run.metrics_page import markdown as loadgen_markdown
from proxy.metrics.__main__ import markdown
from proxy.metrics.table import METRICS
from tests.support.paths import ROOT

DASHBOARDS = sorted((ROOT / "grafana" / "dashboards").glob("*.json"))
RULES = sorted((ROOT / "grafana" / "rules").glob("*.yaml"))
RULES_TESTED = sorted((ROOT / "tests" / "data" / "rules").glob("*.yaml"))
NAME = re.compile(r"\b(?<!:)servewatt_[a-z0-9_]+\b")


def parts_of(histogram: str) -> set[str]:
    return {f"{histogram}_{part}" for part in ("bucket", "sum", "count")}


def exported() -> set[str]:
    names = set(METRICS) | {PREFIX + name for name in LOADGEN_METRICS}
    histograms = [name for name, spec in METRICS.items() if spec.kind == "histogram"]
    for histogram in (*histograms, *(PREFIX + name for name in LATENCIES)):
        names |= parts_of(histogram)
    # counters that no table names: as the load generator shows them before a run
    text = generate_latest(Exporter(Progress()).registry).decode()
    return names | set(re.findall(rf"^# HELP ({PREFIX}\w+)", text, re.MULTILINE))


def panels(path: Path) -> list[dict[str, Any]]:
    board = json.loads(path.read_text())
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def test_the_dashboards_are_what_their_source_says() -> None:
    written = {path.name: path.read_text() for path in DASHBOARDS}
    assert rendered() == written


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_panel_says_what_it_shows_in_a_unit(path: Path) -> None:
    for panel in panels(path):
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["fieldConfig"]["defaults"]["noValue"]
        assert panel["targets"]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_are_found_by_title_and_stand_side_by_side(path: Path) -> None:
    titles = [panel["title"] for panel in panels(path)]
    assert len(set(titles)) == len(titles)
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(path.read_text())["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (place["x"] + x, place["y"] + y)
            for x in range(place["w"])
            for y in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_variable_used_can_be_chosen(path: Path) -> None:
    board = json.loads(path.read_text())
    offered = {variable["name"] for variable in board["templating"]["list"]}
    expressions = [target["expr"] for p in panels(path) for target in p["targets"]]
    used = set(re.findall(r"\$(\w+)", " ".join(expressions)))
    assert used - {"__range", "__rate_interval"} == offered - {"datasource"}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_leads_to_all_the_others_with_its_choices(path: Path) -> None:
    board = json.loads(path.read_text())
    assert {link["url"] for link in board["links"]} == {
        f"/d/{other.stem}" for other in DASHBOARDS if other != path
    }
    assert all(link["includeVars"] and link["keepTime"] for link in board["links"])


def queries() -> list[Any]:
    return [
        pytest.param(panel, legend, query, id=f"{board.uid}: {panel.title}: {legend}")
        for board in BOARDS
        for panel in board.panels
        for legend, query in panel.queries.items()
    ]


@pytest.mark.parametrize(("panel", "legend", "query"), queries())
def test_a_figure_of_requests_is_of_one_outcome(
    panel: Panel, legend: str, query: str
) -> None:
    for selector in re.findall(r"servewatt_(?:request|output)_\w+{[^}]*}", query):
        if "half_width" not in selector:
            assert re.search(r'outcome!?="', selector), panel.title


@pytest.mark.parametrize(("panel", "legend", "query"), queries())
def test_a_legend_and_a_table_name_labels_that_are_there(
    panel: Panel, legend: str, query: str
) -> None:
    wanted = {*re.findall(r"{{(\w+)}}", legend), *panel.labels} - {"le"}
    for groups in re.findall(r"\bby \(([^)]*)\)", query):
        assert wanted <= {label.strip() for label in groups.split(",")}, panel.title


@pytest.mark.parametrize(
    "path",
    [*DASHBOARDS, *(path for path in RULES if path.stem != "servewatt-constants")],
    ids=lambda path: path.stem,
)
def test_every_metric_used_is_exported(path: Path) -> None:
    text = path.read_text()
    if path.suffix == ".json":
        text = "\n".join(t["expr"] for p in panels(path) for t in p["targets"])
    used = set(NAME.findall(text))
    assert used
    assert used <= exported()


def test_the_metrics_page_is_what_the_table_says() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert page == markdown() + loadgen_markdown()


def test_names_follow_the_conventions() -> None:
    for name, spec in METRICS.items():
        assert (spec.kind == "counter") == name.endswith("_total"), name
        assert not set(spec.labels) & {"request_id", "url", "error"}, name


def rules() -> list[dict[str, Any]]:
    groups = [
        group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]
    ]
    return [rule for group in groups for rule in group["rules"]]


def test_every_rule_is_told_of_in_a_test_of_rules() -> None:
    tested = "".join(path.read_text() for path in RULES_TESTED)
    used = "".join(rule["expr"] for rule in rules())
    for rule in rules():
        name = rule.get("alert") or rule["record"]
        # what other rules are made of is tested by their values
        assert name in tested or (name in used and "record" in rule), name


def test_the_page_of_rules_has_every_alert_and_every_figure() -> None:
    page = (ROOT / "docs" / "rules.md").read_text()
    for name in (rule.get("alert") or rule["record"] for rule in rules()):
        assert f"`{name}`" in page or name.startswith("instance"), name


def test_recorded_names_tell_level_metric_and_operation() -> None:
    for name in (rule["record"] for rule in rules() if "record" in rule):
        level, metric, operation = name.split(":")
        assert level
        assert metric
        assert operation
        assert "servewatt" in level + metric


def test_every_alert_has_a_severity_and_says_what_it_means() -> None:
    for rule in (rule for rule in rules() if "alert" in rule):
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert re.search(r"\{\{ \$labels\.\w+ \}\}", rule["annotations"]["summary"])
