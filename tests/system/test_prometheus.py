"""A real Prometheus scrapes a real run, and answers every query of the dashboards."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from loadgen.run.stack import Stack, wait_until_ready
from tests.support.paths import ROOT

pytestmark = pytest.mark.prometheus

PATIENCE_SECONDS = 90
DASHBOARDS = sorted((ROOT / "grafana" / "dashboards").glob("*.json"))
VARIABLES = {
    "$instance": ".*", "$boundary": "gpu", "$engine": ".*", "$model": ".*",
    "$tenant": ".*", "$pue": "1.2", "$price_per_kwh": "0.25", "$grams_per_kwh": "400",
    "$__rate_interval": "1m", "$__range": "2m",
}  # fmt: skip
TOKEN = "admin-token"
HAPPENS_ONLY_IN_TROUBLE = (
    "servewatt_unattributed_energy_joules_total",
    "servewatt_device_other_processes",
    "servewatt_refused_requests_total",
    "servewatt_store_",
    'outcome!="ok"',
)
"""Series that exist once there is something to count; a good run has none. Other
processes are known of NVML's boards alone, and this run has an exporter's and no
store."""


def wait_for(claim: Callable[[], Any]) -> Any:
    """Poll until another process has got there; bounded, never a measure."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := claim()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def configuration(folder: Path, proxy: str, load: str) -> Path:
    """grafana/prometheus.yaml as shipped, but for the addresses and the pace."""
    config = yaml.safe_load((ROOT / "grafana" / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(ROOT / "grafana" / "rules" / "*.yaml")]
    for job, target in zip(config["scrape_configs"], (proxy, load), strict=True):
        job["static_configs"][0]["targets"] = [target]
        if "authorization" in job:
            job["authorization"]["credentials_file"] = str(folder / TOKEN)
    path = folder / "prometheus.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Prometheus after it watched a run of 40 requests through the embedded stack."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("prometheus is missing: install Debian's prometheus package")
    folder = tmp_path_factory.mktemp("prometheus")
    trace = folder / "small.jsonl"
    rows = [{"input_length": 200, "output_length": 60, "kind": "code"}] * 40
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / TOKEN).write_text(secrets.token_urlsafe(32))
    load, listen = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
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
        config = configuration(folder, admin.removeprefix("http://"), load)
        with (folder / "prometheus.log").open("wb") as log:
            server = subprocess.Popen(
                [binary, f"--config.file={config}", f"--web.listen-address={listen}",
                 f"--storage.tsdb.path={folder / 'data'}",
                 "--enable-feature=exemplar-storage"],
                stdout=log, stderr=log,
            )  # fmt: skip
        try:
            with httpx.Client(base_url=f"http://{listen}", trust_env=False) as client:
                wait_for(lambda: is_ready(client))
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
        finally:
            server.terminate()
            server.wait(PATIENCE_SECONDS)


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.HTTPError:
        return False


def ask(client: httpx.Client, query: str) -> list[dict[str, Any]]:
    reply = client.get("/api/v1/query", params={"query": query}).json()
    assert reply["status"] == "success", reply
    found: list[dict[str, Any]] = reply["data"]["result"]
    return found


def settled(client: httpx.Client) -> float:
    found = ask(client, "sum(servewatt_request_energy_joules_count)")
    return float(found[0]["value"][1]) if found else 0.0


def queries() -> list[tuple[str, str]]:
    return [
        (f"{path.stem}: {panel['title']}", target["expr"])
        for path in DASHBOARDS
        for panel in json.loads(path.read_text())["panels"]
        for target in panel.get("targets", [])
    ]


@pytest.mark.parametrize(
    ("panel", "query"), queries(), ids=lambda value: str(value)[:60]
)
def test_every_panel_has_an_answer(
    prometheus: httpx.Client, panel: str, query: str
) -> None:
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    if any(name in query for name in HAPPENS_ONLY_IN_TROUBLE):
        ask(prometheus, query)  # it must be understood, but has nothing to show
        return
    # the load generator's series end with the run: look at any time of it
    assert ask(prometheus, f"last_over_time(({query})[5m:1s])"), panel


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
