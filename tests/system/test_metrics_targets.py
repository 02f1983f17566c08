"""A load generator is a target of a real Prometheus while it runs, and not after."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from loadgen.results.progress import Progress
from loadgen.run.exporter import exporting
from loadgen.run.targets import listed
from tests.support.paths import ROOT
from tests.system.test_prometheus import free_port, is_ready

pytestmark = pytest.mark.prometheus
PATIENCE_SECONDS = 60


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[httpx.Client]:
    """Prometheus with the load generator's job as shipped, and nothing else."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("prometheus is missing: install Debian's prometheus package")
    config = yaml.safe_load((ROOT / "grafana" / "prometheus.yaml").read_text())
    config |= {"global": {"scrape_interval": "1s"}, "rule_files": []}
    config["scrape_configs"] = [
        job
        for job in config["scrape_configs"]
        if job["job_name"] == "servewatt-loadgen"
    ]
    path = tmp_path / "prometheus.yaml"
    path.write_text(yaml.safe_dump(config))
    (tmp_path / "targets").mkdir()
    listen = f"127.0.0.1:{free_port()}"
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [binary, f"--config.file={path}", f"--web.listen-address={listen}",
             f"--storage.tsdb.path={tmp_path / 'data'}"],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://{listen}", trust_env=False) as client:
            until(lambda: is_ready(client))
            yield client
    finally:
        server.terminate()
        server.wait(PATIENCE_SECONDS)


def until(claim: Callable[[], bool]) -> None:
    """Poll until another process has got there; bounded, never a measure."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def health(client: httpx.Client) -> list[str]:
    """Of every target that there is."""
    reply = client.get("/api/v1/targets", params={"state": "active"}).json()
    return [target["health"] for target in reply["data"]["activeTargets"]]


def test_a_target_of_runs_never_looks_down(
    prometheus: httpx.Client, tmp_path: Path
) -> None:
    assert health(prometheus) == []
    seen: set[str] = set()

    def is_gone() -> bool:
        found = health(prometheus)
        seen.update(found)
        return not found

    file = tmp_path / "targets" / "loadgen.json"
    with exporting("127.0.0.1:0", Progress(planned=3)) as url:
        with listed(file, url):
            until(lambda: health(prometheus) == ["up"])
        until(is_gone)
    with exporting("127.0.0.1:0", Progress(planned=3), targets=file):
        assert file.exists()
    assert not file.exists()
    assert seen <= {"up"}
    assert health(prometheus) == []
