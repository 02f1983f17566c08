"""compose.yaml as `docker-compose config` reads it: schema, variables and profiles."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.support.paths import ROOT

PROFILES = ((), ("tgi",), ("vllm",), ("dcgm",), ("postgres",), ("vllm", "postgres"))
FILES = {"tgi", "vllm", "postgres"}
ALWAYS = {"simulator", "token", "proxy", "prometheus", "grafana"}


def config_of(folder: Path, profiles: tuple[str, ...]) -> set[str]:
    """The services that these profiles start; fails where the schema is not kept."""
    command = shutil.which("docker-compose")
    if command is None:
        pytest.skip("needs Debian's docker-compose package")
    document = yaml.safe_load((ROOT / "compose.yaml").read_text())
    # newer than the schema that Debian has
    del document["name"]
    for service in document["services"].values():
        for wanted in dict(service.get("depends_on", {})).values():
            wanted.pop("required", None)
        if not profiles:
            service.get("depends_on", {}).pop("postgres", None)
    (folder / "compose.json").write_text(json.dumps(document))
    envs = [f"compose.{name}.env" for name in profiles if name in FILES]
    lines = "".join((ROOT / name).read_text() for name in envs)
    (folder / "env").write_text(lines)
    options = [word for name in profiles for word in ("--profile", name)]
    done = subprocess.run(
        [
            command, "-f", folder / "compose.json", "--project-directory", ROOT,
            "--env-file", folder / "env", *options, "config", "--services",
        ],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("profiles", PROFILES, ids=lambda names: "+".join(names) or "-")
def test_compose_reads_the_file_and_starts_what_a_profile_names(
    tmp_path: Path, profiles: tuple[str, ...]
) -> None:
    gpu = {"dcgm"} if {"tgi", "vllm"} & set(profiles) else set()
    assert config_of(tmp_path, profiles) >= ALWAYS | set(profiles) | gpu
