"""The health checks of compose.yaml, run as its containers would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.children import simulating
from tests.support.paths import ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
ENGINES = {"simulator": "vllm", "vllm": "vllm", "tgi": "tgi"}
"""The dialect of the simulated engine that stands for each."""
PORTS = {"simulator": 8000, "vllm": 8000, "tgi": 80}


def ends_well(service: str, port: int) -> bool:
    """Whether the check finds the service well, were it on this port."""
    kind, *command = COMPOSE["services"][service]["healthcheck"]["test"]
    assert kind == "CMD"
    for separator in (":", "/"):
        command = [
            word.replace(f"1{separator}{PORTS[service]}", f"1{separator}{port}")
            for word in command
        ]  # fmt: skip
    if command[0] == "python":
        command[0] = sys.executable
    done = subprocess.run(command, capture_output=True, timeout=60)
    return done.returncode == 0


@pytest.mark.parametrize("service", ENGINES)
def test_an_engine_is_well_while_it_answers(tmp_path: Path, service: str) -> None:
    with simulating(tmp_path, "--dialect", ENGINES[service]) as engine:
        port = int(engine["url"].rpartition(":")[2])
        assert ends_well(service, port)
    assert not ends_well(service, port)
