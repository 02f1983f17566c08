"""`loadgen simulate` as a process: the announcement, its end, bad options."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from urllib.request import urlopen

import pytest
from click.testing import CliRunner

from loadgen.cli.simulate import simulate
from loadgen.errors import LoadgenError, UsageError
from tests.support.paths import ROOT

END_SECONDS = 60
"""A bound on a hang, not an expectation."""


def start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "loadgen", "simulate", "--listen", "127.0.0.1:0",
         "--announce", *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip


def test_it_announces_itself_serves_and_leaves_with_its_parent() -> None:
    with start("--gpu", "a6000", "--dialect", "tgi") as process:
        assert process.stdout
        ready = json.loads(process.stdout.readline())
        assert ready["ready"] is True
        with urlopen(ready["power_url"]) as reply:
            assert b"servewatt_simulated 1.0\n" in reply.read()
        with urlopen(ready["url"] + "/info") as reply:
            assert json.load(reply)["model_id"] == "simulated-llama-3.1-8b"
        _, said = process.communicate(timeout=END_SECONDS)  # closes its stdin
        assert process.returncode == 0
        assert b"1 x SIMULATED NVIDIA RTX A6000" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_cleanly_when_told_to(number: signal.Signals) -> None:
    with start() as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(number)
        assert process.wait(END_SECONDS) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "h1000"], "unknown GPU 'h1000'; known: a100-pcie, a100-sxm, a6000"),
        (["--model", "gpt"], "unknown model 'gpt'; known: llama-3.1-70b, llama-3.1-8b"),
        (["--listen", "8000"], "--listen is '8000', expected HOST:PORT"),
        (["--model", "llama-3.1-70b"], "does not fit 1 x NVIDIA H100 80GB HBM3"),
        (["--counter-period", "0"], "counter period is 0 s"),
    ],
)
def test_a_bad_option_is_one_line_with_the_way_out(
    arguments: list[str], message: str
) -> None:
    error = CliRunner().invoke(simulate, arguments).exception
    assert isinstance(error, UsageError)
    assert message in str(error)
    assert "\n" not in str(error)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        error = CliRunner().invoke(simulate, ["--listen", address]).exception
    assert isinstance(error, LoadgenError)
    assert error.exit_code == 1
    assert f"cannot listen on {address}: address already in use; " in str(error)


def test_help_shows_an_example() -> None:
    shown = CliRunner().invoke(simulate, ["--help"]).output
    assert "loadgen simulate --gpu h100 --n-gpus 4 --model llama-3.1-70b" in shown
