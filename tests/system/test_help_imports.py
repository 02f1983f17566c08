"""A help page loads nothing that its command needs only when it runs: it is quick."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.paths import ROOT

HEAVY = (
    "numpy", "httpx", "aiohttp", "sqlalchemy", "rich", "jinja2", "prometheus_client",
    "pynvml", "uvloop", "nats",
)  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        "loadgen", "loadgen replay", "loadgen report", "loadgen simulate",
        "loadgen traces", "loadgen traces synth", "loadgen worker",
        "proxy", "proxy serve", "proxy meter", "proxy sources", "proxy calibrate",
        "proxy upstreams",
    ],
)  # fmt: skip
def test_help_loads_no_heavy_library(words: str) -> None:
    package, *command = words.split()
    program = (
        f"import sys; from {package}.cli import cli\n"
        f"try: cli({[*command, '--help']})\n"
        f"except SystemExit: pass\n"
        f"print('loaded', *sorted(sys.modules.keys() & set({HEAVY})))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, check=True, cwd=ROOT,
    ).stdout  # fmt: skip
    assert "Usage:" in shown
    assert shown.splitlines()[-1] == "loaded"
