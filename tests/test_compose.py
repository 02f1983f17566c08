"""compose.yaml and grafana's provisioning as data: what they name exists here."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from loadgen.cli import cli as loadgen
from proxy.cli import cli as metering_proxy
from proxy.secret import read_admin_token

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [
    name
    for name, service in SERVICES.items()
    if service.get("build") == "." and name != "token"
]


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


def make_token(folder: Path, chosen: str = "") -> str:
    """Run the script of service `token` as a container would, below `folder`."""
    shell, *arguments = SERVICES["token"]["command"]
    *flags, script = arguments
    script = script.replace("$$", "$").replace("/token/", f"{folder}/")
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SERVEWATT_ADMIN_TOKEN": chosen,
    }
    subprocess.run([shell, *flags, script], env=environment, check=True, timeout=60)
    token = read_admin_token(str(folder / "admin"))
    assert token is not None
    return token


def test_the_first_start_makes_a_token_and_later_ones_keep_it(tmp_path: Path) -> None:
    first = make_token(tmp_path)
    assert len(first) >= 40
    assert make_token(tmp_path) == first
    (tmp_path / "other").mkdir()
    assert make_token(tmp_path / "other") != first


def test_a_token_of_the_users_own_is_taken(tmp_path: Path) -> None:
    make_token(tmp_path)
    assert make_token(tmp_path, "0123456789abcdef") == "0123456789abcdef"


def test_whoever_asks_the_admin_port_has_the_token() -> None:
    scrape = yaml.safe_load((ROOT / "grafana" / "prometheus.yaml").read_text())
    (job,) = (j for j in scrape["scrape_configs"] if j["job_name"] == "servewatt")
    assert job["authorization"]["credentials_file"] == "/token/admin"
    for name in ("proxy", "loadgen"):
        assert "-token-file /token/admin" in SERVICES[name]["command"]
    for name in ("proxy", "loadgen", "prometheus"):
        assert "token:/token:ro" in SERVICES[name]["volumes"]
    assert "token:/token" in SERVICES["token"]["volumes"]
    assert "/token" in (ROOT / "Dockerfile").read_text()


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
