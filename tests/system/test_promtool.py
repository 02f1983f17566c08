"""Rules and configuration of Prometheus, checked by its own tool."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.support.paths import ROOT

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
