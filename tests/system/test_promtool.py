"""Rules and configuration of Prometheus, checked by its own tool."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from loadgen.results.progress import Progress
from loadgen.run.exporter import Exporter
from proxy.metrics.table import METRICS
from tests.support.paths import ROOT

RULES = [str(path) for path in sorted((ROOT / "grafana" / "rules").glob("*.yaml"))]
RULE_TESTS = sorted((ROOT / "tests" / "data" / "rules").glob("*.yaml"))


@pytest.mark.prometheus
def test_promtool_accepts_rules_and_configuration() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is missing: install Debian's prometheus package")
    # the token's file is there only beside a proxy that made it
    config = ["config", "--syntax-only", str(ROOT / "grafana/prometheus.yaml")]
    for what in (["rules", *RULES], config):
        done = subprocess.run(
            [promtool, "check", *what], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.prometheus
@pytest.mark.parametrize("name", ["prometheus-site", "prometheus-central"])
def test_promtool_accepts_the_examples_of_a_fleet(name: str) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is missing: install Debian's prometheus package")
    folder = ROOT / "examples" / "fleet"
    config = [
        promtool,
        "check",
        "config",
        "--syntax-only",
        str(folder / f"{name}.yaml"),
    ]
    rules = [promtool, "check", "rules", str(folder / "fleet-rules.yaml")]
    for command in (config, rules):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_rules_of_a_fleet_ask_for_metrics_that_a_proxy_has() -> None:
    text = (ROOT / "examples" / "fleet" / "fleet-rules.yaml").read_text()
    asked = set(re.findall(r"\b(servewatt_\w+_total)\[", text))
    assert asked
    assert asked <= set(METRICS)


@pytest.mark.prometheus
@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.stem)
def test_rules_give_the_figures_and_alerts_that_were_worked_out(path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is missing: install Debian's prometheus package")
    done = subprocess.run(
        [promtool, "test", "rules", path.name], cwd=path.parent,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.prometheus
def test_promtool_has_nothing_to_say_of_the_metrics() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is missing: install Debian's prometheus package")
    kinds = {name: spec.kind for name, spec in METRICS.items()}
    page = "".join(
        f"# HELP {name} Help.\n# TYPE {name} {kind}\n{name} 1\n"
        for name, kind in kinds.items()
        if kind != "histogram"
    ) + "".join(
        f"# HELP {name} Help.\n# TYPE {name} histogram\n"
        f'{name}_bucket{{le="+Inf"}} 1\n{name}_sum 1\n{name}_count 1\n'
        for name, kind in kinds.items()
        if kind == "histogram"
    )
    load = Progress(planned=3, offered_per_second=1.0, zero_seconds=0.0)
    load.note_send(1.0)
    load.note_send(3.0)
    page += generate_latest(Exporter(load, "a-run").registry).decode()
    done = subprocess.run(
        [promtool, "check", "metrics"], input=page, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
