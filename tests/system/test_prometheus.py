"""A real Prometheus scrapes a real run of a guarded proxy, and no alert fires."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

from loadgen.run.stack import Stack, wait_until_ready
from tests.support.children import PATIENCE_SECONDS, wait_for
from tests.support.paths import ROOT
from tests.support.prometheus import ask, configuration, free_port, watching

pytestmark = pytest.mark.prometheus

TOKEN = "admin-token"


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Prometheus after it watched a run of 40 requests through the embedded stack."""
    folder = tmp_path_factory.mktemp("prometheus")
    trace = folder / "small.jsonl"
    rows = [{"input_length": 200, "output_length": 60, "kind": "code"}] * 40
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / TOKEN).write_text(secrets.token_urlsafe(32))
    load = f"127.0.0.1:{free_port()}"
    with Stack(folder / "logs") as stack:
        simulator = stack.start(
            "simulator", "loadgen",
            ["simulate", "--listen", "127.0.0.1:0", "--n-gpus", "2"],
        )  # fmt: skip
        # one GPU of the two is the engine's, and the node has a sensor too
        node = folder / "node.csv"
        rows_of_node = [f"{second},900\n" for second in range(600)]
        node.write_text("".join(["# boundary=node\nseconds,watts\n", *rows_of_node]))
        power = f"dcgm={simulator.announced['power_url']},csv={node}"
        proxy = stack.start(
            "proxy", "proxy",
            ["serve", "--upstream", simulator.url, "--power", power, "--store", "none",
             "--gpus", "0", "--bare-idle-watts", "40",
             "--admin-token-file", str(folder / TOKEN),
             "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"],
        )  # fmt: skip
        admin = str(proxy.announced["admin_url"])
        token = (folder / TOKEN).read_text()
        wait_until_ready(admin, lambda reason: None, token=token)
        config = configuration(
            folder,
            {
                "servewatt": [admin.removeprefix("http://")],
                "servewatt-loadgen": [load],
            },
            token_path=folder / TOKEN,
        )
        with watching(folder, config) as client:
            subprocess.run(
                [sys.executable, "-m", "loadgen", "replay", trace, "--rate", "4",
                 "--url", proxy.url, "--ledger", admin, "--metrics-port", load,
                 "--ledger-token-file", folder / TOKEN,
                 "--out", folder / "run", "--quiet"],
                check=True, capture_output=True, timeout=PATIENCE_SECONDS,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            wait_for(lambda: settled(client) == len(rows))
            yield client


def settled(client: httpx.Client) -> float:
    found = ask(client, "sum(servewatt_request_energy_joules_count)")
    return float(found[0]["value"][1]) if found else 0.0


def test_what_prometheus_adds_up_is_what_the_meter_measured(
    prometheus: httpx.Client,
) -> None:
    (accounts,) = ask(prometheus, 'sum(servewatt_energy_joules_total{boundary="gpu"})')
    (classes,) = ask(prometheus, "sum(servewatt_attributed_energy_joules_total)")
    (single,) = ask(prometheus, "sum(servewatt_request_energy_joules_sum)")
    assert 0 < float(classes["value"][1]) < float(accounts["value"][1])
    assert float(single["value"][1]) == pytest.approx(float(classes["value"][1]))


def test_an_outlier_leads_to_its_request(prometheus: httpx.Client) -> None:
    reply = prometheus.get(
        "/api/v1/query_exemplars",
        params={
            "query": "servewatt_request_energy_joules_bucket",
            "start": time.time() - 600,
            "end": time.time() + 60,
        },
    ).json()
    ids = {
        exemplar["labels"]["request_id"]
        for series in reply["data"]
        for exemplar in series["exemplars"]
    }
    assert ids
    assert all(re.fullmatch(r"small-\d+", request_id) for request_id in ids)


def test_no_alert_fires_on_a_good_run(prometheus: httpx.Client) -> None:
    rules = prometheus.get("/api/v1/rules").json()["data"]["groups"]
    assert {rule["health"] for group in rules for rule in group["rules"]} == {"ok"}
    assert prometheus.get("/api/v1/alerts").json()["data"]["alerts"] == []
