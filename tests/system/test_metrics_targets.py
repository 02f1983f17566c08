"""A load generator is a target of a real Prometheus while it runs, and not after."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from loadgen.results.progress import Progress
from loadgen.run.exporter import exporting
from loadgen.run.targets import listed
from tests.support.children import wait_for
from tests.support.paths import ROOT
from tests.support.prometheus import watching

pytestmark = pytest.mark.prometheus


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[httpx.Client]:
    """Prometheus with the load generator's job as shipped, and nothing else."""
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
    with watching(tmp_path, path) as client:
        yield client


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
            wait_for(lambda: health(prometheus) == ["up"])
        wait_for(is_gone)
    with exporting("127.0.0.1:0", Progress(planned=3), targets=file):
        assert file.exists()
    assert not file.exists()
    assert seen <= {"up"}
    assert health(prometheus) == []
