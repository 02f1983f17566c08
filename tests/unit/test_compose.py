"""compose.yaml and grafana's provisioning as data: what they name exists here."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import pytest
import yaml

from loadgen.cli import cli as loadgen
from proxy.cli import cli as metering_proxy
from tests.support.paths import ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [
    name
    for name, service in SERVICES.items()
    if service.get("build") == "." and name != "token"
]


ENGINES = ("tgi", "vllm")
TGI_FLAGS = {
    "--model-id", "--port", "--prometheus-port", "--max-concurrent-requests",
    "--max-best-of", "--max-stop-sequences", "--max-top-n-tokens", "--payload-limit",
    "--max-client-batch-size", "--max-input-tokens", "--max-total-tokens",
    "--max-batch-prefill-tokens", "--max-waiting-tokens", "--waiting-served-ratio",
    "--api-key", "--otlp-endpoint", "--usage-stats", "--graceful-termination-timeout",
}  # fmt: skip
"""As the launcher of TGI 3.3 documents them: there is no launcher here to ask."""
VLLM_FLAGS = {
    "--port", "--max-model-len", "--enable-per-request-metrics",
    "--enable-prompt-tokens-details",
}  # fmt: skip
"""Each of these was given to a vLLM 0.32."""


def environment(engine: str | None) -> dict[str, str]:
    """The variables of an engine's file; none for the simulated stack."""
    if engine is None:
        return {}
    lines = (ROOT / f"compose.{engine}.env").read_text().splitlines()
    pairs = (line.split("=", 1) for line in lines if not line.startswith("#"))
    return {name: value for name, value in pairs}


def filled(text: str, engine: str | None = None) -> str:
    """What compose makes of `${NAME:-default}`."""
    given = environment(engine)
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda m: given.get(m[1], "") or m[2], text)


def command_of(name: str) -> str:
    """The service's own command; of a script, its only line that runs one of ours."""
    command = SERVICES[name]["command"]
    if isinstance(command, str):
        return command
    (line,) = re.findall(
        r"^ *((?:loadgen|metering-proxy) .*?)(?: \|\|.*)?$",
        command[-1].replace("\\\n", " "), re.MULTILINE,
    )  # fmt: skip
    return str(line)


@pytest.mark.parametrize("engine", [None, *ENGINES, "postgres"])
@pytest.mark.parametrize("name", OURS)
def test_our_services_run_commands_that_exist(name: str, engine: str | None) -> None:
    if engine == "postgres":  # the image has it
        pytest.importorskip("psycopg", reason="psycopg is not installed")
    words = shlex.split(filled(command_of(name), engine))
    program, command, *arguments = words
    group = {"loadgen": loadgen, "metering-proxy": metering_proxy}[program]
    assert isinstance(group, click.Group)
    # parsing refuses unknown options and values; nothing is run
    with click.Context(group) as context:
        found = group.get_command(context, command)
    assert found is not None
    found.make_context(command, arguments)


def test_whoever_asks_the_admin_port_has_the_token() -> None:
    scrape = yaml.safe_load((ROOT / "grafana" / "prometheus.yaml").read_text())
    (job,) = (j for j in scrape["scrape_configs"] if j["job_name"] == "servewatt")
    assert job["authorization"]["credentials_file"] == "/token/admin"
    for name in ("proxy", "loadgen"):
        assert "-token-file /token/admin" in command_of(name)
    for name in ("proxy", "loadgen", "prometheus"):
        assert "token:/token:ro" in SERVICES[name]["volumes"]
    assert "token:/token" in SERVICES["token"]["volumes"]
    assert "/token" in (ROOT / "Dockerfile").read_text()


def test_an_engines_file_points_the_proxy_at_services_of_its_profile() -> None:
    for engine in ENGINES:
        words = shlex.split(filled(SERVICES["proxy"]["command"], engine))
        assert "--gpus=0" in words
        words.remove("--gpus=0")
        options = dict(zip(words[2::2], words[3::2], strict=True))
        assert options["--engine"] == engine
        upstream = urlsplit(options["--upstream"])
        served = shlex.split(filled(SERVICES[engine]["command"], engine))
        assert upstream.hostname == engine
        assert str(upstream.port) == served[served.index("--port") + 1]
        sensor = urlsplit(options["--power"].removeprefix("dcgm="))
        assert engine in SERVICES[str(sensor.hostname)]["profiles"]
        assert sensor.port == 9400


@pytest.mark.parametrize(
    ("engine", "known"), [("tgi", TGI_FLAGS), ("vllm", VLLM_FLAGS)]
)
def test_engines_get_flags_they_know_and_one_gpu(engine: str, known: set[str]) -> None:
    service = SERVICES[engine]
    assert service["profiles"] == [engine]
    words = shlex.split(filled(service["command"], engine))
    assert {word for word in words if word.startswith("--")} <= known
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert filled(device["device_ids"][0], engine) == "0"
    # nobody needs the engine but the proxy
    assert "ports" not in service


def test_no_engine_reports_its_use_to_anyone() -> None:
    assert "--usage-stats off" in SERVICES["tgi"]["command"]
    assert SERVICES["vllm"]["environment"]["VLLM_NO_USAGE_STATS"] == "1"


def test_the_exporter_is_read_often_enough_to_attribute() -> None:
    assert int(SERVICES["dcgm"]["environment"]["DCGM_EXPORTER_INTERVAL"]) <= 100


def test_without_a_profile_no_gpu_is_asked_for() -> None:
    for service in SERVICES.values():
        assert "deploy" not in service or service["profiles"]


def test_what_is_mounted_exists() -> None:
    for service in SERVICES.values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).exists(), mount


def test_what_stays_has_a_volume_that_is_declared() -> None:
    named = {
        mount.split(":")[0]
        for service in SERVICES.values()
        for mount in service.get("volumes", [])
        if not mount.startswith("./")
    }
    assert named == set(COMPOSE["volumes"])


def test_what_ours_write_belongs_to_their_user() -> None:
    image = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^USER servewatt$", image, re.MULTILINE)
    (state,) = re.findall(r"^ARG STATE=(.+)$", image, re.MULTILINE)
    assert "chown -R servewatt /runs /token /home/servewatt /targets" in image
    for name in (*OURS, "token"):
        service = SERVICES[name]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "user" not in service
        for mount in service.get("volumes", []):
            source, target, *mode = mount.split(":")
            assert mode == ["ro"] or target in ("/runs", "/targets", "/token", state), (
                source
            )


def test_every_service_that_stays_is_asked_for_its_health() -> None:
    ends = {"token", "loadgen"}
    assert {n for n, s in SERVICES.items() if "healthcheck" not in s} == ends
    for name, service in SERVICES.items():
        for on, wanted in service.get("depends_on", {}).items():
            stays = (
                "service_completed_successfully" if on in ends else "service_healthy"
            )
            assert wanted["condition"] == stays, name
            # one that another profile starts may be missing
            has_it = not SERVICES[on].get("profiles")
            assert wanted.get("required", True) == has_it, name


def test_every_profile_is_one_that_a_file_or_the_page_names() -> None:
    profiles = {p for s in SERVICES.values() for p in s.get("profiles", [])}
    assert profiles == {"tgi", "vllm", "dcgm", "postgres", "load"}
    head = (ROOT / "compose.yaml").read_text().partition("name: servewatt")[0]
    assert all(f"--profile {name}" in head or f"`{name}`" in head for name in profiles)


@pytest.mark.parametrize("name", [*ENGINES, "postgres"])
def test_an_env_file_sets_what_compose_reads(name: str) -> None:
    text = (ROOT / "compose.yaml").read_text()
    used = set(re.findall(r"(?<!\$)\$\{(\w+):-", text))
    assert set(environment(name)) <= used


def test_the_proxy_finds_the_database_and_its_password() -> None:
    place = urlsplit(environment("postgres")["STORE"])
    script = SERVICES["token"]["command"][-1]
    database = SERVICES["postgres"]
    assert place.hostname == "postgres"
    assert place.password is None  # which `ps` would show
    assert place.username == database["environment"]["POSTGRES_USER"]
    assert place.path == f"/{database['environment']['POSTGRES_DB']}"
    assert f"'postgres:5432:servewatt:{place.username}:%s" in script
    assert SERVICES["proxy"]["environment"]["PGPASSFILE"] == "/token/pgpass"
    assert database["environment"]["POSTGRES_PASSWORD_FILE"] == "/token/postgres"
    assert "ports" not in database
    assert "psycopg" in (ROOT / "requirements.lock").read_text()


def test_ports_are_published_on_loopback_only() -> None:
    for service in SERVICES.values():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")


def test_prometheus_scrapes_ports_that_services_open() -> None:
    scrape = yaml.safe_load((ROOT / "grafana" / "prometheus.yaml").read_text())
    for job in scrape["scrape_configs"]:
        for target in job["static_configs"][0]["targets"]:
            host, port = target.split(":")
            assert f":{port}" in command_of(host)


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
