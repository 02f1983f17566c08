"""Every flag that the examples give an engine is one of that engine's own."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.examples import LINES, Line

HELP = {"vllm": "--help=all", "transformers": "--help"}


def lines_of(program: str) -> list[Line]:
    return [line for line in LINES if line.program == program]


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("vllm", marks=pytest.mark.vllm),
        pytest.param("transformers", marks=pytest.mark.transformers),
    ],
)
def test_flags_of_the_examples_are_the_engines(engines: Path, program: str) -> None:
    done = subprocess.run(
        [engines / program, "serve", HELP[program]],
        env=os.environ | {"COLUMNS": "200", "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    known = set(re.findall(r"--[a-z][a-z0-9-]*", done.stdout))
    assert lines_of(program)
    for line in lines_of(program):
        asked = {word for word in line.words if word.startswith("--")}
        assert asked <= known, (line, asked - known)
