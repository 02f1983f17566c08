"""A terminal that goes away in the middle of a run leaves the run its summary."""

from __future__ import annotations

import json
import os
import pty
import signal
import sys
from pathlib import Path

import pytest

from tests.support.children import wait_for
from tests.support.paths import ROOT

TRACE = str(ROOT / "traces" / "sharegpt.jsonl")


def ended(pid: int) -> bool:
    return os.waitpid(pid, os.WNOHANG)[0] == pid


@pytest.mark.parametrize("how", ["the terminal is closed", "a signal alone"])
def test_a_run_whose_terminal_went_away_has_its_summary(
    tmp_path: Path, how: str
) -> None:
    """A closed terminal hangs up on the whole group: run, proxy and simulator."""
    folder = tmp_path / "run"
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as under a shell, not nohup
        os.environ["PYTHONPATH"] = str(ROOT)
        os.execv(
            sys.executable,
            [sys.executable, "-m", "loadgen", "replay", TRACE, "--rate", "4",
             "--output-len", "8", "--out", str(folder)],
        )  # fmt: skip
    requests = folder / "requests.jsonl"
    is_open = True
    try:
        os.set_blocking(terminal, False)
        wait_for(lambda: drained(terminal) and requests.is_file() and len(
            requests.read_text().splitlines()) >= 3)  # fmt: skip
        if how == "a signal alone":
            os.kill(pid, signal.SIGHUP)
            wait_for(lambda: drained(terminal) and ended(pid))
        else:
            os.close(terminal)
            is_open = False
            wait_for(lambda: ended(pid))
    finally:
        if is_open:
            os.close(terminal)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["completed"] >= 3
    assert (folder / "report.html").is_file()
    kept = [json.loads(line) for line in requests.read_text().splitlines()]
    done = [each for each in kept if each["outcome"] == "ok"]
    assert summary["completed"] == len(done)
    assert any((each["energy"] or {}).get("energy_joules") for each in done)


def drained(terminal: int) -> bool:
    """What was written to the terminal is read: nobody waits for it."""
    try:
        while os.read(terminal, 65536):
            pass
    except OSError:  # nothing more, or the other end is gone
        pass
    return True
