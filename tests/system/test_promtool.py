"""Rules and configuration of Prometheus, checked by its own tool."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from proxy.metrics.histograms import HISTOGRAMS
from proxy.metrics.table import METRICS
from tests.support.paths import ROOT

KNOWN = {
    "servewatt_energy_counter_period_seconds",  # of the sensor's energy counter
    "servewatt_energy_counter_power_ratio",
    "servewatt_engine_gauge_errors_total",  # of reading the engine's gauges
}
"""Names that promtool takes for a type in a name; they say what is measured, and a
dashboard that uses them would go dark if they changed."""

RULES = ROOT / "grafana" / "rules" / "servewatt.yaml"


@pytest.mark.prometheus
def test_promtool_accepts_rules_and_configuration() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is missing: install Debian's prometheus package")
    # the token's file is there only beside a proxy that made it
    config = ["config", "--syntax-only", str(ROOT / "grafana/prometheus.yaml")]
    for what in (["rules", str(RULES)], config):
        done = subprocess.run(
            [promtool, "check", *what], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.prometheus
def test_promtool_has_nothing_to_say_of_any_further_name() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is missing: install Debian's prometheus package")
    kinds = {name: spec.kind for name, spec in METRICS.items()}
    page = "".join(
        f"# HELP {name} Help.\n# TYPE {name} {kind}\n{name} 1\n"
        for name, kind in kinds.items()
    ) + "".join(
        f"# HELP {name} Help.\n# TYPE {name} histogram\n"
        f'{name}_bucket{{le="+Inf"}} 1\n{name}_sum 1\n{name}_count 1\n'
        for name in HISTOGRAMS
    )
    done = subprocess.run(
        [promtool, "check", "metrics"], input=page, capture_output=True, text=True
    )
    assert "parse error" not in done.stderr
    assert {line.split(" ")[0] for line in done.stderr.splitlines() if line} == KNOWN
