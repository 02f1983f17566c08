"""A real Prometheus for tests: Debian's, with the rules as they are shipped."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.children import PATIENCE_SECONDS, wait_for
from tests.support.paths import ROOT


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def configuration(
    folder: Path,
    targets: Mapping[str, Sequence[str]],
    *,
    token_path: Path | None = None,
) -> Path:
    """grafana/prometheus.yaml as shipped, but for the addresses and the pace."""
    config = yaml.safe_load((ROOT / "grafana" / "prometheus.yaml").read_text())
    # a busy machine may take a second for a page, and a scrape no longer than a period
    config["global"] = {"scrape_interval": "2s", "evaluation_interval": "2s"}
    config["rule_files"] = [str(ROOT / "grafana" / "rules" / "*.yaml")]
    for job in config["scrape_configs"]:
        job["static_configs"][0]["targets"] = list(targets[job["job_name"]])
        if token_path is None:
            job.pop("authorization", None)
        elif "authorization" in job:
            job["authorization"]["credentials_file"] = str(token_path)
    path = folder / "prometheus.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@contextmanager
def watching(folder: Path, config: Path) -> Iterator[httpx.Client]:
    """Prometheus with this configuration, and a client of its API; it ends with the
    block. Skips the test where there is none."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("prometheus is missing: install Debian's prometheus package")
    listen = f"127.0.0.1:{free_port()}"
    with (folder / "prometheus.log").open("wb") as log:
        server = subprocess.Popen(
            [binary, f"--config.file={config}", f"--web.listen-address={listen}",
             f"--storage.tsdb.path={folder / 'data'}",
             "--enable-feature=exemplar-storage"],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        with httpx.Client(
            base_url=f"http://{listen}", trust_env=False, timeout=PATIENCE_SECONDS
        ) as client:
            wait_for(lambda: _is_ready(client))
            yield client
    finally:
        server.terminate()
        server.wait(PATIENCE_SECONDS)


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.HTTPError:
        return False


def ask(
    client: httpx.Client, query: str, at_unix_seconds: float | None = None
) -> list[dict[str, Any]]:
    """The series of an instant query, now or at this time."""
    form = {"query": query}
    if at_unix_seconds is not None:
        form["time"] = f"{at_unix_seconds:.3f}"
    reply = client.post("/api/v1/query", data=form).json()
    assert reply["status"] == "success", reply
    found: list[dict[str, Any]] = reply["data"]["result"]
    return found


def scraped_at(
    client: httpx.Client, selector: str, start: float, end: float
) -> list[float]:
    """The times, in Unix seconds, at which this one series was read."""
    seconds = end - start
    found = ask(client, f"{selector}[{max(round(seconds * 1000), 1)}ms]", end)
    assert len(found) == 1, selector
    return [float(at) for at, _ in found[0]["values"]]
