"""Writes grafana/dashboards/*.json from the rows below: `python grafana/build.py`.

Kept as code because a panel is four facts (title, unit, description, queries)
and 60 lines of JSON. A test writes them again and compares.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "dashboards"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
JOB = 'job=~"$job",instance=~"$instance"'
CHOSEN = 'boundary=~"$boundary"'
"""Boundaries overlap: what a node drew contains what its GPUs drew, so joules are
never summed over them. One at a time is shown."""
ENGINE = 'engine=~"$engine"'
SHARED = ("servewatt_event_loop_lag_seconds",)
"""What a proxy has once, whatever the number of its engines."""
GRADED = "servewatt_graded_requests_total"
WIDTH = 24
HEIGHT = 8
STAT_HEIGHT = 4


@dataclass(frozen=True)
class Panel:
    """One panel: `queries` are PromQL by legend; `stacked` for parts of a whole."""

    title: str
    unit: str
    description: str
    queries: dict[str, str]
    kind: str = "timeseries"
    width: int = 12
    stacked: bool = False
    mappings: list[dict[str, Any]] = field(default_factory=list)
    decimals: int | None = None
    palette: dict[str, str] = field(default_factory=dict)
    """Colour by legend where a colour carries meaning."""


@dataclass(frozen=True)
class Row:
    """A titled row of panels."""

    title: str
    panels: list[Panel]


def of_engines(query: str) -> str:
    """The query for the chosen engines: all that is theirs has their label."""

    def chosen(match: re.Match[str]) -> str:
        name = match.group(1)
        is_shared = name in SHARED or name.startswith("servewatt_loadgen_")
        return match.group(0) + ("" if is_shared else f"{ENGINE},")

    return re.sub(r"(servewatt_\w+)\{", chosen, query)


def ratio(over: str, under: str) -> str:
    """Sum over sum, the only honest average of ratios."""
    return f"sum(rate({over}[$__rate_interval])) / sum(rate({under}[$__rate_interval]))"


def rate_by(metric: str, by: str = "", within: str = "") -> str:
    """A counter's rate, summed over everything but these labels."""
    group = f" by ({by})" if by else ""
    labels = f"{JOB},{within}" if within else JOB
    return f"sum{group} (rate({metric}{{{labels}}}[$__rate_interval]))"


def quantiles(histogram: str) -> dict[str, str]:
    """The three percentiles shown everywhere, by legend."""
    return {f"p{int(q * 100)}": quantile(q, histogram) for q in (0.5, 0.9, 0.99)}


def quantile(q: float, histogram: str, by: str = "") -> str:
    """A quantile of a classic histogram, optionally by one label."""
    group = f"le, {by}" if by else "le"
    return (
        f"histogram_quantile({q}, sum by ({group}) "
        f"(rate({histogram}_bucket{{{JOB}}}[$__rate_interval])))"
    )


SIMULATED = [
    {
        "type": "value",
        "options": {
            "0": {"text": "measured", "color": "green"},
            "1": {"text": "SIMULATED", "color": "orange"},
        },
    }
]
UP = [
    {
        "type": "value",
        "options": {
            "0": {"text": "DOWN", "color": "red"},
            "1": {"text": "up", "color": "green"},
        },
    }
]
ACCOUNT_COLOURS = {
    "prefill": "blue",
    "decode": "purple",
    "idle_share": "light-orange",
    "idle": "text",
    "unattributed": "red",
}
ENERGY_SUM = f"servewatt_request_energy_joules_sum{{{JOB}}}"
ENERGY_COUNT = f"servewatt_request_energy_joules_count{{{JOB}}}"
OUTPUT_TOKENS = f'servewatt_tokens_total{{{JOB},type="output"}}'

ENERGY_ROWS = [
    Row(
        "Now",
        [
            Panel(
                "Joules are",
                "none",
                "Whether a device or a simulator gave the joules on this page.",
                {"": f"max(servewatt_sensor_simulated{{{JOB}}})"},
                kind="stat",
                width=3,
                mappings=SIMULATED,
            ),
            Panel(
                "Sensor",
                "none",
                "1 while the power source answers; requests flow either way.",
                {"": f"min(servewatt_sensor_up{{{JOB}}})"},
                kind="stat",
                width=3,
                mappings=UP,
            ),
            Panel(
                "Power",
                "watt",
                "Power of all metered devices, over the last counter interval.",
                {"": f"sum(servewatt_device_power_watts{{{JOB},{CHOSEN}}})"},
                kind="stat",
                width=4,
            ),
            Panel(
                "Energy per request",
                "joule",
                "Mean over the interval, each request's share of idle included.",
                {"": ratio(ENERGY_SUM, ENERGY_COUNT)},
                kind="stat",
                width=5,
                decimals=1,
            ),
            Panel(
                "Energy per output token",
                "joule",
                "Attributed energy over output tokens, sum over sum.",
                {"": ratio(ENERGY_SUM, OUTPUT_TOKENS)},
                kind="stat",
                width=5,
                decimals=3,
            ),
            Panel(
                "In flight",
                "short",
                "Metered requests that have not ended.",
                {"": f"sum(servewatt_requests_in_flight{{{JOB}}})"},
                kind="stat",
                width=4,
            ),
        ],
    ),
    Row(
        "Where the watts go",
        [
            Panel(
                "Power by account",
                "watt",
                "Settled energy by account. The stack is the measured power: "
                "prefill and decode belong to requests, the idle share is the idle "
                "power while they ran, idle is when nobody ran.",
                {
                    "{{account}}": rate_by(
                        "servewatt_energy_joules_total", "account", CHOSEN
                    )
                },
                stacked=True,
                palette=ACCOUNT_COLOURS,
            ),
            Panel(
                "Power by device",
                "watt",
                "Mean power of each device between fresh readings, and loaded idle.",
                {
                    "{{engine}} {{device}}": (
                        f"servewatt_device_power_watts{{{JOB},{CHOSEN}}}"
                    ),
                    "loaded idle": f"sum(servewatt_idle_power_watts{{{JOB},{CHOSEN}}})",
                },
            ),
            Panel(
                "Power by kind of request",
                "watt",
                "Active power of requests, by kind and phase.",
                {
                    "{{kind}} {{phase}}": rate_by(
                        "servewatt_attributed_energy_joules_total", "kind, phase"
                    )
                },
                stacked=True,
            ),
            Panel(
                "Unattributed power",
                "watt",
                "Measured energy that belongs to no request, by reason.",
                {
                    "{{reason}}": rate_by(
                        "servewatt_unattributed_energy_joules_total", "reason", CHOSEN
                    )
                },
                stacked=True,
            ),
        ],
    ),
    Row(
        "What a request costs",
        [
            Panel(
                "Energy per request",
                "joule",
                "Percentiles over settled requests. Click an exemplar for its id.",
                quantiles("servewatt_request_energy_joules"),
            ),
            Panel(
                "Median energy per request, by kind",
                "joule",
                "Code is mostly prefill, conversation mostly decode: never one mean.",
                {"{{kind}}": quantile(0.5, "servewatt_request_energy_joules", "kind")},
            ),
            Panel(
                "Energy per output token",
                "joule",
                "Percentiles over settled requests.",
                quantiles("servewatt_output_token_energy_joules"),
            ),
            Panel(
                "Tokens",
                "short",
                "Tokens per second of settled requests; cached ones are prompt tokens.",
                {"{{type}}": rate_by("servewatt_tokens_total", "type")},
            ),
        ],
    ),
    Row(
        "Service",
        [
            Panel(
                "Time to first token",
                "s",
                "From arrival at the proxy to the first token.",
                quantiles("servewatt_request_ttft_seconds"),
            ),
            Panel(
                "Request duration",
                "s",
                "From arrival at the proxy to the last byte.",
                quantiles("servewatt_request_duration_seconds"),
            ),
            Panel(
                "Requests by outcome",
                "reqps",
                "Metered requests that ended, per second.",
                {"{{outcome}}": rate_by("servewatt_requests_total", "outcome")},
                stacked=True,
            ),
            Panel(
                "In flight",
                "short",
                "Metered requests that have not ended.",
                {"in flight": f"sum(servewatt_requests_in_flight{{{JOB}}})"},
            ),
        ],
    ),
    Row(
        "Engines",
        [
            Panel(
                "Upstreams",
                "none",
                "1 while an engine can be reached; its replicas take over while not.",
                {"{{engine}}": f"servewatt_upstream_up{{{JOB}}}"},
                mappings=UP,
                width=6,
            ),
            Panel(
                "In flight by engine",
                "short",
                "Requests at each engine that have not ended.",
                {"{{engine}}": f"servewatt_requests_in_flight{{{JOB}}}"},
                width=6,
            ),
            Panel(
                "Power by engine",
                "watt",
                "Settled energy of each engine's own devices.",
                {
                    "{{engine}}": rate_by(
                        "servewatt_energy_joules_total", "engine", CHOSEN
                    )
                },
                stacked=True,
                width=6,
            ),
            Panel(
                "Energy per request, by engine",
                "joule",
                "Mean over the interval, the share of idle included.",
                {
                    "{{engine}}": f"sum by (engine) (rate({ENERGY_SUM}"
                    "[$__rate_interval])) / sum by (engine) "
                    f"(rate({ENERGY_COUNT}[$__rate_interval]))"
                },
                width=6,
            ),
        ],
    ),
    Row(
        "Boundaries",
        [
            Panel(
                "Power by boundary",
                "watt",
                "Settled energy of each boundary. They overlap: the node's contains "
                "the others', so these lines are compared and never added.",
                {"{{boundary}}": rate_by("servewatt_energy_joules_total", "boundary")},
                width=8,
            ),
            Panel(
                "Share of the node's energy",
                "percentunit",
                "Joules inside the boundary over those of the node, over the same "
                "time since start. Idle accelerators are GPUs the engine does not use.",
                {"{{inner}}": f"servewatt_boundary_ratio{{{JOB}}}"},
                width=8,
            ),
            Panel(
                "Idle and idle accelerators",
                "watt",
                "Loaded idle, of which bare idle would be there without the model; and "
                "what the host's other GPUs draw.",
                {
                    "loaded idle, {{boundary}}": f"servewatt_idle_power_watts{{{JOB}}}",
                    "bare idle, {{boundary}}": "servewatt_bare_idle_power_watts"
                    f"{{{JOB}}}",
                    "not the engine's, {{device}}": (
                        f"servewatt_idle_accelerators_power_watts{{{JOB}}}"
                    ),
                },
                width=8,
            ),
            Panel(
                "Not measured",
                "percentunit",
                "Part of the time in which a boundary had no reading to settle with.",
                {
                    "{{boundary}}": rate_by(
                        "servewatt_boundary_gap_seconds_total", "boundary"
                    )
                },
            ),
            Panel(
                "Records without a boundary's joules",
                "reqps",
                "Requests whose record did not get the joules of a slower boundary.",
                {
                    "{{boundary}}": rate_by(
                        "servewatt_boundary_requests_without_energy_total", "boundary"
                    )
                },
            ),
        ],
    ),
    Row(
        "Boards",
        [
            Panel(
                "SM clock",
                "hertz",
                "Clock of each board's processors, asked once a second.",
                {"{{device}}": f"servewatt_device_sm_clock_hertz{{{JOB}}}"},
                width=6,
            ),
            Panel(
                "Temperature",
                "celsius",
                "Temperature of each board's chip.",
                {"{{device}}": f"servewatt_device_temperature_celsius{{{JOB}}}"},
                width=6,
            ),
            Panel(
                "Throttled",
                "percentunit",
                "Part of the time in which a board was slower than its settings "
                "allow, by reason; reasons come together.",
                {
                    "{{device}} {{reason}}": rate_by(
                        "servewatt_device_throttled_seconds_total", "device, reason"
                    )
                },
                width=6,
            ),
            Panel(
                "Processes beside the engine",
                "none",
                "Other processes on a board: their joules are among the requests'.",
                {"{{device}}": f"servewatt_device_other_processes{{{JOB}}}"},
                width=6,
            ),
        ],
    ),
    Row(
        "Can these joules be believed?",
        [
            Panel(
                "Residual of the books",
                "joule",
                "Measured energy minus all accounts: anything but 0 is a defect.",
                {
                    "{{boundary}}": "max by (boundary) "
                    f"(abs(servewatt_books_residual_joules{{{JOB}}}))"
                },
                width=8,
            ),
            Panel(
                "Counter over integrated power",
                "none",
                "About 1 when the energy counter and the power readings agree.",
                {"{{boundary}}": f"servewatt_energy_power_ratio{{{JOB}}}"},
                width=8,
            ),
            Panel(
                "Settlement lag",
                "s",
                "How far settled energy is behind the newest reading.",
                {
                    "{{boundary}}": "max by (boundary) "
                    f"(servewatt_settlement_lag_seconds{{{JOB}}})"
                },
                width=8,
            ),
            Panel(
                "Sensor trouble",
                "ops",
                "Failed and missed reads and gaps, per second.",
                {
                    name: f"sum(rate(servewatt_sensor_{name}_total"
                    f"{{{JOB}}}[$__rate_interval]))"
                    for name in ("errors", "missed", "gaps")
                },
                width=8,
            ),
            Panel(
                "Requests of unknown energy",
                "reqps",
                "Finished requests whose energy could not be known.",
                {
                    "unknown": "sum(rate(servewatt_requests_without_energy_total"
                    f"{{{JOB}}}[$__rate_interval]))"
                },
                width=8,
            ),
            Panel(
                "Event loop lag of the proxy",
                "s",
                "How late the proxy's own beat was; streams feel it too.",
                {"lag": f"max(servewatt_event_loop_lag_seconds{{{JOB}}})"},
                width=8,
            ),
            Panel(
                "Records by grade",
                "percentunit",
                "Share of settled requests by how far their joules can be trusted.",
                {
                    "{{grade}}": f"{rate_by(GRADED, 'grade')} / ignoring (grade) "
                    f"group_left () sum(rate({GRADED}{{{JOB}}}[$__rate_interval]))"
                },
                width=6,
                stacked=True,
            ),
            Panel(
                "Why records are not good",
                "reqps",
                "Settled requests with each reason; one request may have several.",
                {"{{reason}}": rate_by("servewatt_doubted_requests_total", "reason")},
                width=6,
            ),
            Panel(
                "Mean half width",
                "percentunit",
                "Of the 90 % intervals of the newest records, by their joules.",
                {
                    "{{engine}}": "max by (engine) "
                    f"(servewatt_request_half_width_ratio{{{JOB}}})"
                },
                width=6,
            ),
            Panel(
                "Constants not trusted",
                "none",
                "1 for the reason why the fitted constants are not trusted.",
                {
                    "{{engine}} {{reason}}": "max by (engine, reason) "
                    f"(servewatt_calibration_doubt{{{JOB}}}) > 0"
                },
                width=6,
            ),
        ],
    ),
]

LOAD = "servewatt_loadgen_"
LOAD_ROWS = [
    Row(
        "Is the load honest?",
        [
            Panel(
                "Offered and sent",
                "reqps",
                "The plan's mean rate, and what was really sent.",
                {
                    "offered": f"sum({LOAD}offered_requests_per_second{{{JOB}}})",
                    "sent": rate_by(f"{LOAD}requests_sent_total"),
                },
            ),
            Panel(
                "Schedule lag",
                "s",
                "Send minus intended start: how far the load is from its plan.",
                quantiles(f"{LOAD}schedule_lag_seconds"),
            ),
            Panel(
                "Requests in flight",
                "short",
                "Requests sent and not finished.",
                {"in flight": f"sum({LOAD}requests_in_flight{{{JOB}}})"},
            ),
            Panel(
                "Finished by outcome",
                "reqps",
                "Requests that ended, per second.",
                {"{{outcome}}": rate_by(f"{LOAD}requests_finished_total", "outcome")},
                stacked=True,
            ),
        ],
    ),
    Row(
        "What the client saw",
        [
            Panel(
                "TTFT",
                "s",
                "First token since the send.",
                quantiles(f"{LOAD}time_to_first_token_seconds"),
            ),
            Panel(
                "TTFT from the intended start",
                "s",
                "As a user waits who came at the planned time.",
                quantiles(f"{LOAD}time_to_first_token_from_schedule_seconds"),
            ),
            Panel(
                "TPOT",
                "s",
                "Mean time per token after the first, one value per request.",
                quantiles(f"{LOAD}time_per_output_token_seconds"),
            ),
            Panel(
                "End-to-end latency",
                "s",
                "Last token since the send.",
                quantiles(f"{LOAD}end_to_end_latency_seconds"),
            ),
            Panel(
                "Output tokens",
                "short",
                "Output tokens received per second.",
                {"tokens/s": rate_by(f"{LOAD}received_tokens_total")},
            ),
            Panel(
                "Energy per request, beside it",
                "joule",
                "From the proxy: the same requests on the other side.",
                {
                    "mean": "sum(rate(servewatt_request_energy_joules_sum"
                    "[$__rate_interval])) / sum(rate("
                    "servewatt_request_energy_joules_count[$__rate_interval]))"
                },
            ),
        ],
    ),
]

DASHBOARDS: dict[str, tuple[str, str, list[Row]]] = {
    "servewatt-energy": (
        "servewatt: energy per request",
        "servewatt_energy_joules_total",
        ENERGY_ROWS,
    ),
    "servewatt-load": (
        "servewatt: load",
        f"{LOAD}build_info",
        LOAD_ROWS,
    ),
}
"""File name: title, a metric that every instance has (for the variables), rows."""


def dashboard(uid: str, title: str, anchor: str, rows: list[Row]) -> dict[str, Any]:
    """One dashboard in the classic schema, which file provisioning reads."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row in rows:
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": row.title,
                "collapsed": False,
                "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": y},
                "panels": [],
            }
        )
        y += 1
        x = 0
        height = HEIGHT
        for panel in row.panels:
            height = STAT_HEIGHT if panel.kind == "stat" else HEIGHT
            if x + panel.width > WIDTH:
                x, y = 0, y + height
            place = {"h": height, "w": panel.width, "x": x, "y": y}
            panels.append(_panel(len(panels) + 1, panel, place))
            x += panel.width
        y += height
    return {
        "id": None,
        "uid": uid,
        "title": title,
        "tags": ["servewatt", "energy", "llm"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables(anchor, rows)},
        "annotations": {"list": []},
        "links": [],
        "panels": panels,
    }


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "mappings": panel.mappings,
        "color": {"mode": "palette-classic"},
    }
    if panel.decimals is not None:
        defaults["decimals"] = panel.decimals
    options: dict[str, Any]
    if panel.kind == "stat":
        options = {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "value",
            "graphMode": "none" if panel.mappings else "area",
            "textMode": "value",
        }
    else:
        defaults["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 60 if panel.stacked else 8,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        }
        defaults["min"] = 0
        options = {
            "legend": {
                "displayMode": "table",
                "placement": "bottom",
                "calcs": ["mean", "lastNotNull"],
                "showLegend": True,
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {
            "defaults": defaults,
            "overrides": [_colour(*pair) for pair in panel.palette.items()],
        },
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": SOURCE,
                "expr": of_engines(query),
                "legendFormat": legend or "__auto",
                "exemplar": "histogram_quantile" in query,
            }
            for index, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def _colour(name: str, colour: str) -> dict[str, Any]:
    return {
        "matcher": {"id": "byName", "options": name},
        "properties": [
            {"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}
        ],
    }


def _variables(anchor: str, rows: list[Row]) -> list[dict[str, Any]]:
    def of_label(label: str, within: str) -> dict[str, Any]:
        query = f"label_values({anchor}{within}, {label})"
        return {
            "name": label,
            "label": label.capitalize(),
            "type": "query",
            "datasource": SOURCE,
            "query": {"query": query, "refId": label},
            "definition": query,
            "refresh": 2,
            "multi": True,
            "includeAll": True,
            "allValue": ".+",
            "current": {"text": "All", "value": "$__all"},
        }

    shown = [
        {
            "name": "datasource",
            "label": "Data Source",
            "type": "datasource",
            "query": "prometheus",
            "current": {},
        },
        of_label("job", ""),
        of_label("instance", '{job=~"$job"}'),
    ]
    queries = [
        q for row in rows for panel in row.panels for q in panel.queries.values()
    ]
    if any(of_engines(query) != query for query in queries):
        shown.append(of_label("engine", f"{{{JOB}}}"))
    if any(CHOSEN in query for query in queries):
        boundary = of_label("boundary", f"{{{JOB}}}")
        one = {"multi": False, "includeAll": False, "current": {}}
        shown.append({**boundary, **one})
    return shown


def rendered() -> dict[str, str]:
    """File name to content, for every dashboard."""
    return {
        f"{uid}.json": json.dumps(dashboard(uid, *parts), indent=1) + "\n"
        for uid, parts in DASHBOARDS.items()
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in rendered().items():
        (FOLDER / name).write_text(text)
        print(f"wrote {FOLDER / name}")
