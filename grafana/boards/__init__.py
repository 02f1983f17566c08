"""Grafana's dashboards, written by `python -m grafana.boards`.

`query` has the PromQL, `panel` the JSON, `figures` what several dashboards show, and
every dashboard is a module of its own that says nothing but what stands where.
"""

from __future__ import annotations

import json

from grafana.boards.fleet import FLEET
from grafana.boards.meter_health import METER_HEALTH
from grafana.boards.panel import board_json
from grafana.boards.requests import REQUESTS
from grafana.boards.run import RUN

BOARDS = (RUN, REQUESTS, FLEET, METER_HEALTH)


def rendered() -> dict[str, str]:
    """File name to content, for every dashboard."""
    return {
        f"{board.uid}.json": json.dumps(board_json(board, BOARDS), indent=1) + "\n"
        for board in BOARDS
    }
