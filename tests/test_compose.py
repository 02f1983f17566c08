"""compose.yaml and grafana's provisioning as data: what they name exists here."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from loadgen.cli import cli as loadgen
from proxy.cli import cli as metering_proxy

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if service.get("build") == "."]


def with_defaults(text: str) -> str:
    """What compose makes of `${NAME:-default}` when nothing is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


@pytest.mark.parametrize("name", OURS)
def test_our_services_run_commands_that_exist(name: str) -> None:
    program, command, *arguments = shlex.split(with_defaults(SERVICES[name]["command"]))
    group = {"loadgen": loadgen, "metering-proxy": metering_proxy}[program]
    assert isinstance(group, click.Group)
    # parsing refuses unknown options and values; nothing is run
    with click.Context(group) as context:
        found = group.get_command(context, command)
    assert found is not None
    found.make_context(command, arguments)


def test_what_is_mounted_exists() -> None:
    for service in SERVICES.values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("./") and source != "./runs":
                assert (ROOT / source).exists(), mount


def test_ports_are_published_on_loopback_only() -> None:
    for service in SERVICES.values():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")


def test_prometheus_scrapes_ports_that_services_open() -> None:
    scrape = yaml.safe_load((ROOT / "grafana" / "prometheus.yaml").read_text())
    for job in scrape["scrape_configs"]:
        for target in job["static_configs"][0]["targets"]:
            host, port = target.split(":")
            assert f":{port}" in SERVICES[host]["command"]


def test_grafana_finds_its_datasource_and_dashboards() -> None:
    folder = ROOT / "grafana" / "provisioning"
    (datasource,) = yaml.safe_load(
        (folder / "datasources" / "prometheus.yaml").read_text()
    )["datasources"]
    assert datasource["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load(
        (folder / "dashboards" / "servewatt.yaml").read_text()
    )["providers"]
    mounts = dict(m.split(":")[:2] for m in SERVICES["grafana"]["volumes"])
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    home = SERVICES["grafana"]["environment"][
        "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"
    ]
    assert (ROOT / "grafana" / "dashboards" / Path(home).name).exists()
