"""The script of compose's token service, run as its container would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from proxy.security.secrets import read_admin_token
from tests.support.paths import ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())

SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def environment(engine: str | None) -> dict[str, str]:
    """The variables of an engine's file; none for the simulated stack."""
    if engine is None:
        return {}
    lines = (ROOT / f"compose.{engine}.env").read_text().splitlines()
    pairs = (line.split("=", 1) for line in lines if not line.startswith("#"))
    return {name: value for name, value in pairs}


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
