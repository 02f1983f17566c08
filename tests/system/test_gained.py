"""What `gained` makes of a counter in every state that Prometheus may find it in.

By promtool's own unit tests of rules: the value over the last ten minutes, of series
that are read once a minute.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from grafana.boards.query import ALWAYS, CLIENT_PREFIX, gained

pytestmark = pytest.mark.prometheus

PROXY = 'job="servewatt",instance="a:1"'
ENERGY = "servewatt_attributed_energy_joules_total"
CLASS = f'{ENERGY}{{{PROXY},engine="vllm",model="m",kind="code",tenant="t"}}'
READ = f"{ALWAYS}{{{PROXY}}}"
SENT = f'{CLIENT_PREFIX}requests_sent_total{{job="servewatt-loadgen",instance="l:1"}}'
AT = 30
"""Minutes; the time shown begins at 20."""

CASES = {
    # what the counter showed each minute, what the proxy's own series did, the figure
    "it-was-there-and-rose": ("0+10x30", "0+0x30", 100),
    "it-was-there-and-stood": ("500+0x30", "0+0x30", 0),
    "it-rose-and-stood-again": ("7x22 57 107 107 107 107 107 107 107", "0+0x30", 100),
    "a-class-that-came-later": ("_x25 282+0x5", "0+0x30", 282),
    "a-class-that-came-later-and-rose": ("_x25 282+10x5", "0+0x30", 332),
    "prometheus-came-later": ("_x25 9000+10x5", "_x25 0+0x5", 50),
    "the-proxy-was-not-reached-meanwhile": (
        "0+10x20 _x5 260+10x4", "0+0x20 _x5 0+0x4", 100,
    ),
    "an-old-class-of-another-proxy": ("5000 stale _x28", "0+0x30", None),
    "a-class-that-went-with-its-proxy": ("40+10x22 stale _x7", "0+0x22 stale _x7", 20),
}  # fmt: skip


def asked(query: str, series: dict[str, str], value: float | None, folder: Path) -> str:
    """promtool's complaint, or nothing."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is missing: install Debian's prometheus package")
    for name in ("instance", "engine", "model", "tenant", "boundary"):
        query = query.replace(f"${name}", ".*")
    expected = [] if value is None else [{"labels": "{}", "value": value}]
    document = {
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": name, "values": values}
                    for name, values in series.items()
                ],
                "promql_expr_test": [
                    {
                        "expr": query.replace("$__range", "10m"),
                        "eval_time": f"{AT}m",
                        "exp_samples": expected,
                    }
                ],
            }
        ],
    }
    path = folder / "gained.yaml"
    path.write_text(json.dumps(document))
    done = subprocess.run(
        [promtool, "test", "rules", str(path)], capture_output=True, text=True
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize("case", CASES)
def test_a_figure_is_what_the_counter_gained(tmp_path: Path, case: str) -> None:
    values, read, value = CASES[case]
    assert asked(gained(ENERGY), {CLASS: values, READ: read}, value, tmp_path) == ""


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        # it began anew at 25: 40 before and 50 after, as near as `increase` gets
        pytest.param("0+10x24 10+10x5", 90, 110, id="restarted"),
        pytest.param("1000+10x24 0+0x5", 30, 60, id="restarted-and-idle"),
    ],
)
def test_a_restart_costs_no_more_than_a_scrape(
    tmp_path: Path, values: str, low: float, high: float
) -> None:
    series = {CLASS: values, READ: "0+0x30"}
    bounds = f"{gained(ENERGY)} >= {low} <= {high}"
    assert asked(f"count({bounds})", series, 1, tmp_path) == ""


@pytest.mark.parametrize(
    ("values", "value"),
    [
        pytest.param("_x24 17 30 40 40 stale _x1", 40, id="one"),
        pytest.param("_x21 17 40 stale _x2 30 45 stale", 85, id="two"),
        pytest.param("_x21 17 40 stale 40 45 stale", 85, id="two-alike"),
        pytest.param("_x21 17 40 3 9 9 9 9 9 9", 49, id="two-without-a-gap"),
        pytest.param("5x18 20 20 25 25 stale _x6", 5, id="begun-before"),
    ],
)
def test_runs_count_from_their_first_scrape_on(
    tmp_path: Path, values: str, value: float
) -> None:
    query = gained(f"{CLIENT_PREFIX}requests_sent_total")
    assert asked(query, {SENT: values}, value, tmp_path) == ""
