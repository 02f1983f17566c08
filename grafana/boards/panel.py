"""Panels, rows and dashboards, and the JSON that Grafana reads.

The classic model, which file provisioning takes in every release since 10: it has
an `id` of null, a `uid` that stays, and nothing to fill in by hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grafana.boards.query import SHOWN, VARIABLES

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
TAG = "servewatt"
SCHEMA_VERSION = 39
WIDTH = 24
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel. `queries` are PromQL by legend; those over the whole time shown are
    asked once, at its end."""

    title: str
    unit: str
    description: str
    queries: Mapping[str, str]
    kind: str = "timeseries"
    """`timeseries`, `stat`, `bargauge`, `table` or `heatmap`."""
    width: int = 12
    height: int = 8
    empty: str = "nothing yet"
    """What stands there while there is no figure: why, in a few words."""
    stacked: bool = False
    """Parts of a whole, which may be added up."""
    states: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    """Text and colour by value, for what is no quantity."""
    decimals: int | None = None
    maximum: float | None = None
    colours: Mapping[str, str] = field(default_factory=dict)
    """Colour by legend where a colour carries meaning."""
    limits: Sequence[tuple[float, str]] = ()
    """Colour from a value on; green below."""
    units: Mapping[str, str] = field(default_factory=dict)
    """Unit by legend, where a column of a table has one of its own."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Title by label: the columns of a table that are not figures."""
    sort_by: str = ""
    """Title of the column that a table is sorted by, the largest first."""


@dataclass(frozen=True, kw_only=True)
class Stat(Panel):
    """One figure, in a tile of a page's first row."""

    kind: str = "stat"
    width: int = 3
    height: int = 4


@dataclass(frozen=True)
class Row:
    """A titled row of panels."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Board:
    """One dashboard."""

    uid: str
    title: str
    description: str
    rows: Sequence[Row]
    span: str = "now-15m"

    @property
    def panels(self) -> Iterator[Panel]:
        """All of them, in reading order."""
        return (panel for row in self.rows for panel in row.panels)


VARIABLE_TITLES = {
    "instance": "Proxy",
    "engine": "Engine",
    "model": "Model",
    "tenant": "Tenant",
    "boundary": "Boundary",
}
ANCHORS = {
    "instance": "servewatt_build_info",
    "engine": "servewatt_upstream_up",
    "model": "servewatt_tokens_total",
    "tenant": "servewatt_tokens_total",
    "boundary": "servewatt_energy_joules_total",
}
"""The metric whose series list the values of a variable: each proxy has it, with
and without a sensor, as soon as there is anything to choose."""


def board_json(board: Board, boards: Sequence[Board]) -> Json:
    """The dashboard, with links to the others."""
    return {
        "id": None,
        "uid": board.uid,
        "title": board.title,
        "description": board.description,
        "tags": [TAG],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "5s",
        "time": {"from": board.span, "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables(board)},
        "annotations": {"list": _annotations()},
        "links": [_link(other) for other in boards if other is not board],
        "panels": _placed(board),
    }


def _placed(board: Board) -> list[Json]:
    placed: list[Json] = []
    y = 0
    for row in board.rows:
        placed.append(
            {
                "id": len(placed) + 1,
                "type": "row",
                "title": row.title,
                "collapsed": False,
                "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": y},
                "panels": [],
            }
        )
        y += 1
        x = line = 0
        for panel in row.panels:
            if x + panel.width > WIDTH:
                x, y, line = 0, y + line, 0
            place = {"h": panel.height, "w": panel.width, "x": x, "y": y}
            placed.append(panel_json(len(placed) + 1, panel, place))
            x, line = x + panel.width, max(line, panel.height)
        y += line
    return placed


def panel_json(number: int, panel: Panel, place: dict[str, int]) -> Json:
    """One panel at its place."""
    defaults: Json = {
        "unit": panel.unit,
        "noValue": panel.empty,
        "mappings": _mappings(panel.states),
        "color": {"mode": "thresholds" if panel.limits else "palette-classic"},
    }
    if panel.limits:
        steps = [(None, "green"), *panel.limits]
        defaults["thresholds"] = {
            "mode": "absolute",
            "steps": [{"value": value, "color": colour} for value, colour in steps],
        }
    if panel.decimals is not None:
        defaults["decimals"] = panel.decimals
    if panel.maximum is not None:
        defaults["max"] = panel.maximum
    options, custom, transformations = _LOOKS[panel.kind](panel)
    if custom:
        defaults["custom"] = custom
    if panel.kind in {"timeseries", "bargauge"}:
        defaults["min"] = 0
    shown: Json = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": described(panel),
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {
            "defaults": defaults,
            "overrides": [
                *(_colour(*pair) for pair in panel.colours.items()),
                *(_unit(*pair) for pair in panel.units.items()),
            ],
        },
        "options": options,
        "targets": [
            _target(chr(ord("A") + index), panel, legend, query)
            for index, (legend, query) in enumerate(panel.queries.items())
        ],
    }
    if transformations:
        shown["transformations"] = transformations
    return shown


def described(panel: Panel) -> str:
    """Its description, and which of the choices above do not reach it."""
    text = "\n".join(panel.queries.values())
    if "servewatt_loadgen_" in text and '=~"$' not in text:
        return f"{panel.description} By the load generator, for all engines together."
    lacking = [
        name for name in ("engine", "model", "tenant") if f'"${name}"' not in text
    ]
    if not lacking or lacking == ["engine", "model", "tenant"]:
        return panel.description
    names = " or ".join(lacking)
    return f"{panel.description} Not told apart by {names}."


def is_over_range(query: str) -> bool:
    """Whether it is one figure for the whole time shown."""
    return SHOWN in query


def _target(ref: str, panel: Panel, legend: str, query: str) -> Json:
    is_once = is_over_range(query) or panel.kind in {"stat", "table", "bargauge"}
    form = {"table": "table", "heatmap": "heatmap"}.get(panel.kind, "time_series")
    if panel.kind == "bargauge" and legend == "{{le}}":
        form = "heatmap"  # buckets are cumulative; this shows what each one has
    return {
        "refId": ref,
        "datasource": SOURCE,
        "editorMode": "code",
        "expr": query,
        "legendFormat": legend or "__auto",
        "format": form,
        "instant": is_once,
        "range": not is_once,
        "exemplar": not is_once and "_bucket" in query,
    }


def _mappings(states: Mapping[int, tuple[str, str]]) -> list[Json]:
    if not states:
        return []
    options = {
        str(value): {"text": text, "color": colour, "index": index}
        for index, (value, (text, colour)) in enumerate(states.items())
    }
    return [{"type": "value", "options": options}]


Looks = tuple[Json, Json, list[Json]]
"""Options, the field's own settings, transformations."""
REDUCED: Json = {"calcs": ["lastNotNull"], "fields": "", "values": False}


def _stat(panel: Panel) -> Looks:
    has_colour = bool(panel.states or panel.limits)
    options = {
        "reduceOptions": REDUCED,
        "orientation": "auto",
        "colorMode": "value" if has_colour else "none",
        "graphMode": "none",
        "justifyMode": "auto",
        "textMode": "auto" if len(panel.queries) > 1 else "value",
        "wideLayout": True,
        "showPercentChange": False,
        "percentChangeColorMode": "standard",
    }
    return options, {}, []


def _timeseries(panel: Panel) -> Looks:
    custom = {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 60 if panel.stacked else 8,
        "showPoints": "auto",
        "spanNulls": False,
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
    }
    options = {
        "legend": {
            "displayMode": "table",
            "placement": "bottom",
            "calcs": ["mean", "lastNotNull"],
            "showLegend": True,
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return options, custom, []


def _bargauge(panel: Panel) -> Looks:
    options = {
        "reduceOptions": REDUCED,
        "orientation": "horizontal",
        "displayMode": "basic",
        "valueMode": "color",
        "namePlacement": "auto",
        "showUnfilled": True,
        "sizing": "auto",
        "minVizWidth": 8,
        "minVizHeight": 16,
        "maxVizHeight": 300,
        "legend": {
            "displayMode": "list", "placement": "bottom", "calcs": [],
            "showLegend": False,
        },
    }  # fmt: skip
    return options, {}, []


def _table(panel: Panel) -> Looks:
    options: Json = {"frameIndex": 0, "showHeader": True, "cellHeight": "sm"}
    if panel.sort_by:
        options["sortBy"] = [{"displayName": panel.sort_by, "desc": True}]
    custom = {"align": "auto", "cellOptions": {"type": "auto"}, "inspect": False}
    names = dict(panel.labels)
    order = {label: index for index, label in enumerate(panel.labels)}
    for index, legend in enumerate(panel.queries):
        # one query alone keeps the plain name
        value = f"Value #{chr(ord('A') + index)}" if len(panel.queries) > 1 else "Value"
        names[value] = legend
        order[value] = len(order)
    organised: Json = {
        "excludeByName": {"Time": True},
        "indexByName": order,
        "renameByName": names,
    }
    transformations: list[Json] = []
    if len(panel.queries) > 1:
        transformations.append({"id": "merge", "options": {}})
    transformations.append({"id": "organize", "options": organised})
    return options, custom, transformations


def _heatmap(panel: Panel) -> Looks:
    options = {
        "calculate": False,
        "cellGap": 1,
        "color": {
            "mode": "scheme", "scheme": "Oranges", "fill": "dark-orange",
            "exponent": 0.5, "reverse": False, "steps": 64,
        },
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "showValue": "never",
        "tooltip": {"mode": "single", "yHistogram": True, "showColorScale": True},
        "yAxis": {"unit": panel.unit, "axisPlacement": "left"},
    }  # fmt: skip
    return options, {}, []


_LOOKS = {
    "stat": _stat,
    "timeseries": _timeseries,
    "bargauge": _bargauge,
    "table": _table,
    "heatmap": _heatmap,
}


def _colour(name: str, colour: str) -> Json:
    value = {"mode": "fixed", "fixedColor": colour}
    return _override(name, [{"id": "color", "value": value}])


def _unit(name: str, unit: str) -> Json:
    return _override(name, [{"id": "unit", "value": unit}])


def _override(name: str, properties: list[Json]) -> Json:
    return {"matcher": {"id": "byName", "options": name}, "properties": properties}


def _link(other: Board) -> Json:
    return {
        "type": "link",
        "title": other.title.removeprefix("servewatt: "),
        "tooltip": other.description,
        "url": f"/d/{other.uid}",
        "icon": "dashboard",
        "tags": [],
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
    }


def _annotations() -> list[Json]:
    def of(name: str, colour: str, query: str, title: str, text: str) -> Json:
        return {
            "name": name,
            "datasource": SOURCE,
            "enable": True,
            "iconColor": colour,
            "target": {"refId": "Anno", "expr": query, "interval": ""},
            "titleFormat": title,
            "textFormat": text,
        }

    return [
        of("Runs", "blue", RUNS, "run {{run}}", ""),
        of("Alerts", "red", ALERTS, "{{alertname}}", "{{engine}} {{boundary}}"),
    ]


RUNS = "sum by (run) (servewatt_loadgen_run_info)"
"""Not 0 as long as a load generator is there: Grafana draws it as one stretch."""
ALERTS = (
    "sum by (alertname, engine, boundary) "
    '(ALERTS{alertname=~"Servewatt.+",alertstate="firing"})'
)


def _variables(board: Board) -> list[Json]:
    queries = "\n".join(
        query for panel in board.panels for query in panel.queries.values()
    )
    shown: list[Json] = [
        {
            "name": "datasource",
            "label": "Data Source",
            "type": "datasource",
            "query": "prometheus",
            "refresh": 1,
        }
    ]
    for name, title in VARIABLE_TITLES.items():
        if f"${name}" in queries:
            shown.append(_label_variable(name, title))
    return shown


def _label_variable(name: str, title: str) -> Json:
    label = next(label for label, variable in VARIABLES.items() if variable == name)
    within = {
        "instance": "",
        "engine": '{instance=~"$instance"}',
    }.get(name, '{instance=~"$instance",engine=~"$engine"}')
    query = f"label_values({ANCHORS[name]}{within}, {label})"
    variable: Json = {
        "name": name,
        "label": title,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
    }
    if name == "boundary":
        # they overlap: one at a time, or joules are counted twice
        return variable | {"multi": False, "includeAll": False}
    every = {"text": ["All"], "value": ["$__all"], "selected": True}
    return variable | {
        "multi": True,
        "includeAll": True,
        "allValue": ".*",  # a request without a model has an empty label
        "current": every,
    }
