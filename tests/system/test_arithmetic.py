"""The meter's linear algebra: one thread, and nothing said of that to children."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

SCRIPT = """
import json, os, sys
import proxy.cli, proxy.serve.part
from proxy.process.arithmetic import import_numpy_on_one_thread
was_there = "numpy" in sys.modules
import_numpy_on_one_thread()
import numpy
numpy.ones((10_000, 12)) @ numpy.ones((12, 12))
print(json.dumps({
    "was_there": was_there,
    "threads": len(os.listdir("/proc/self/task")),
    "left": os.environ.get("OPENBLAS_NUM_THREADS"),
}))
"""

pytestmark = pytest.mark.skipif(
    not os.path.isdir("/proc/self/task"), reason="threads are counted as Linux does"
)


def told(**environment: str) -> dict[str, object]:
    names = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")
    others = {k: v for k, v in os.environ.items() if k not in names}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=others | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_a_proxy_computes_on_one_thread_and_tells_no_child_to() -> None:
    assert told() == {"was_there": False, "threads": 1, "left": None}


def test_who_says_how_many_threads_there_are_is_followed() -> None:
    assert told(OPENBLAS_NUM_THREADS="2")["left"] == "2"
    assert told(OMP_NUM_THREADS="2")["left"] is None
