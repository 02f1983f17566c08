"""A study as a user starts it: servers of its own, failures, kill -9, the table."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from loadgen.studies.guard import POLL_SECONDS
from tests.support.children import wait_for
from tests.support.paths import ROOT
from tests.support.runs import loadgen

TINY = """\
study: tiny
baseline: plain
model: m
servers:
  plain: {preset: transformers}
  fast: {preset: vllm}
workloads:
  short: {input: 40, output: 4, requests: 10}
loads:
  four: {concurrency: 4}
"""
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"}


def study(folder: Path, text: str, *more: str) -> subprocess.CompletedProcess[str]:
    (folder / "study.yaml").write_text(text)
    return loadgen("study", "study.yaml", "--out", "out", *more, cwd=folder)


def table(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(
        (folder / "out" / "table.json").read_text()
    )["rows"]
    return rows


def alive(marker: str) -> list[int]:
    """Processes whose command line has this text, but not a child just forked."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker in path.read_bytes().decode(errors="replace"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_a_simulated_study_compares_its_servers(tmp_path: Path) -> None:
    done = study(tmp_path, TINY, "--simulate")
    assert done.returncode == 0, done.stderr
    assert "tiny, against plain (SIMULATED)" in done.stdout
    assert "[2/2] fast: finished" in done.stderr
    plain, fast = table(tmp_path)
    assert plain["is_baseline"]
    assert fast["completed"] == 10
    change = {one["figure"]: one for one in fast["changes"]}["joules_per_request"]
    assert change["change"] < -0.3
    assert change["change_low"] <= change["change"] <= change["change_high"]
    with (tmp_path / "out" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[1]["joules_per_request_change"]) == change["change"]
    assert 0 < float(rows[0]["measured_over_naive_tdp_runtime"]) < 2
    assert "measured over naive estimate: " in done.stdout
    assert f"{100 * change['change']:+.1f} %" in (tmp_path / "out/table.md").read_text()
    assert not alive(str(tmp_path))

    again = study(tmp_path, TINY, "--simulate", "--format", "csv")
    assert "[1/2] plain: kept" in again.stderr
    assert again.stdout.startswith("servers,decoding,workloads,loads,status")

    more = TINY.replace("  fast:", "  eager: {preset: vllm-eager}\n  fast:")
    listed = study(tmp_path, more, "--simulate", "--dry-run")
    assert "3 cells, 2 of them finished in out; nothing started" in listed.stdout
    grown = study(tmp_path, more, "--simulate", "--format", "markdown")
    assert "[2/3] eager: finished" in grown.stderr
    assert [row["status"] for row in table(tmp_path)] == ["finished"] * 3


FAILING = """\
study: failing
baseline: good
power: none
servers:
  bad:
    command: {command}
    start_seconds: 20
  good:
    command: {good}
workloads:
  short: {{input: 40, output: 4, requests: 4}}
  long: {{input: 80, output: 4, requests: 4}}
"""
GOOD = [sys.executable, "-m", "loadgen", "simulate", "--listen", "{host}:{port}"]


def failing(command: list[str]) -> str:
    return FAILING.format(command=json.dumps(command), good=json.dumps(GOOD))


def test_a_server_that_never_comes_up_costs_its_own_cells_only(tmp_path: Path) -> None:
    bad = [
        sys.executable, "-c",
        "import os; open('starts', 'a').write('x');"
        "print('loading');raise SystemExit('no such model: \\x1b[31mred')", "{port}",
    ]  # fmt: skip
    done = study(tmp_path, failing(bad))
    assert done.returncode == 1
    assert "the server bad ended with code 1" in done.stderr
    assert "| no such model: \\x1b[31mred" in done.stderr
    assert "\x1b" not in done.stderr
    assert (tmp_path / "starts").read_text() == "xx"  # twice, and not for each cell
    assert [row["status"] for row in table(tmp_path)] == [
        "failed", "failed", "finished", "finished",
    ]  # fmt: skip
    assert "bad+long failed: the server bad ended with code 1" in done.stdout
    mended = study(tmp_path, failing(GOOD))
    assert mended.returncode == 0
    assert mended.stderr.count("kept, finished before") == 2
    assert not alive(str(tmp_path))


def test_a_server_that_dies_in_the_run_is_no_result(tmp_path: Path) -> None:
    dies = (
        "import re, subprocess, sys, time, urllib.request\n"
        "server = subprocess.Popen([sys.executable, '-m', 'loadgen', 'simulate',"
        " '--listen', '127.0.0.1:' + sys.argv[1]])\n"
        "page = 'http://127.0.0.1:' + sys.argv[1] + '/metrics'\n"
        "while True:\n"
        "    time.sleep(0.1)\n"
        "    try: text = urllib.request.urlopen(page).read().decode()\n"
        "    except OSError: continue\n"
        "    if re.search(r'num_requests_running\\S* [1-9]', text): break\n"
        "print('CUDA error: an illegal memory access', flush=True)\n"
        "server.kill(); sys.exit(9)"
    )
    text = failing([sys.executable, "-c", dies, "{port}"]).replace(
        "output: 4, requests: 4", "output: 4000, requests: 4"
    )
    text = text.replace("  long: {input: 80, output: 4000, requests: 4}\n", "")
    text += "skip: [{servers: good}]\n"
    text = text.replace("baseline: good\n", "")
    done = study(tmp_path, text)
    assert done.returncode == 1
    assert "the server bad ended during the run: CUDA error" in done.stderr
    assert "once more" in done.stderr
    (row,) = table(tmp_path)
    assert row["status"] == "failed"


def test_a_study_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    text = TINY.replace("  fast:", "  eager: {preset: vllm-eager}\n  fast:")
    (tmp_path / "study.yaml").write_text(text)
    process = subprocess.Popen(
        [sys.executable, "-m", "loadgen", "study", "study.yaml", "--simulate",
         "--out", str(tmp_path / "out")],
        cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    second = tmp_path / "out" / "cells"
    wait_for(lambda: (second / "plain").is_dir() and list(second.glob(".eager.*")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    wait_for(lambda: not alive(str(tmp_path)))
    note = (second / "plain" / "cell.json").read_bytes()

    done = study(tmp_path, text, "--simulate")
    assert done.returncode == 0, done.stderr
    assert "[1/3] plain: kept, finished before" in done.stderr
    assert "[2/3] eager: finished" in done.stderr
    assert (second / "plain" / "cell.json").read_bytes() == note
    assert not list(second.glob(".*"))


LEAVES_ITS_GROUP = """
import os, subprocess, sys, time
child = [sys.executable, '-c', 'import signal, time;'
         'signal.signal(signal.SIGTERM, signal.SIG_IGN);'
         'print(flush=True); time.sleep(600)', sys.argv[1]]
one = subprocess.Popen(child, start_new_session=True, stdout=subprocess.PIPE)
one.stdout.readline()
print('ready', flush=True)
if sys.argv[2] == 'stays':
    time.sleep(600)
"""


@pytest.mark.parametrize("how", ["closed", "killed", "command ends"])
def test_nothing_that_a_server_started_is_left(tmp_path: Path, how: str) -> None:
    marker = str(tmp_path / "worker")
    with subprocess.Popen(
        [sys.executable, "-m", "loadgen.studies.guard", "0.2", sys.executable, "-c",
         LEAVES_ITS_GROUP, marker, "goes" if how == "command ends" else "stays"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT, text=True,
    ) as guard:  # fmt: skip
        assert guard.stdin is not None
        assert guard.stdout is not None
        assert guard.stdout.readline() == "ready\n"
        assert alive(marker)
        if how == "closed":
            guard.stdin.close()
        elif how == "killed":
            guard.terminate()
        guard.wait(30)
        time.sleep(POLL_SECONDS)
        assert not alive(marker)
