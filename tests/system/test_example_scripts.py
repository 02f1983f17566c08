"""The scripts of the examples are shell."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.examples import EXAMPLES

SCRIPTS = sorted(EXAMPLES.glob("*/*.sh"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.parent.name)
def test_a_script_is_shell_and_may_be_run(path: Path) -> None:
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", path], check=True)
