"""A run sent by several processes: the same requests, one result, nobody left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.children import PATIENCE_SECONDS, is_alive, simulating, wait_for
from tests.support.paths import ROOT
from tests.support.runs import (
    SMALL_TRACE,
    loadgen,
    planned,
    records,
    running,
    summary_of,
    write_trace,
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with simulating(tmp_path_factory.mktemp("engine")) as simulated:
        yield simulated["url"]


def test_the_same_plan_by_one_and_by_three_is_the_same_requests(
    engine: str, tmp_path: Path
) -> None:
    trace = write_trace(tmp_path)
    for name, processes in (("one", "1"), ("three", "3")):
        done = loadgen(
            "replay", trace, "--rate", "20", "--url", engine, "--out", name,
            "--processes", processes, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode in (0, 3), done.stdout + done.stderr  # a busy machine
    one, three = summary_of(tmp_path / "one"), summary_of(tmp_path / "three")
    assert planned(tmp_path / "three") == planned(tmp_path / "one")
    assert three["plan_sha256"] == one["plan_sha256"]
    assert three["completed"] == one["completed"] == 18
    ends = [row["finished_seconds"] for row in records(tmp_path / "three")]
    assert ends == sorted(ends)
    assert one["schedule"]["processes"] == []
    rows = three["schedule"]["processes"]
    assert [(row["process"], row["requests"]) for row in rows] == [
        (1, 6), (2, 6), (3, 6),
    ]  # fmt: skip
    worst = max(row["loop_lag_p99_ms"] for row in rows)
    assert three["schedule"]["loop_lag_p99_ms"] == worst
    assert not list((tmp_path / "three").glob("requests-*"))


@contextmanager
def replaying(
    engine: str, folder: Path, output_tokens: int = 8000
) -> Iterator[subprocess.Popen[str]]:
    """A run whose short replies have ended and whose long ones are on their way."""
    trace = [
        SMALL_TRACE[0],
        *(row | {"output_length": 4} for row in SMALL_TRACE[1:4]),  # one for each
        *(row | {"output_length": output_tokens} for row in SMALL_TRACE[4:]),
    ]
    command = ["replay", write_trace(folder, trace), "--rate", "inf", "--url", engine,
               "--processes", "3", "--out", "run"]  # fmt: skip
    run = subprocess.Popen(
        [sys.executable, "-m", "loadgen", *map(str, command)], cwd=folder, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    kept = folder / "run" / "requests.jsonl"
    try:
        wait_for(lambda: kept.is_file() and kept.read_bytes().count(b"\n") == 3)
        wait_for(lambda: running(engine) == 15)
        yield run
    finally:
        run.kill()
        run.communicate()


def senders(parent: int) -> list[int]:
    """Children of a process that send load, the first started first."""
    found = []
    for tasks in Path(f"/proc/{parent}/task").glob("*/children"):
        for pid in tasks.read_text().split():
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"loadgen.run.sender" in command:
                found.append(int(pid))
    return sorted(found)


def test_a_killed_process_is_told_and_its_requests_are_sent_by_nobody(
    engine: str, tmp_path: Path
) -> None:
    with replaying(engine, tmp_path, output_tokens=2500) as run:
        os.kill(senders(run.pid)[0], signal.SIGKILL)
        _, said = run.communicate(timeout=PATIENCE_SECONDS)
    assert run.returncode == 3
    assert "of 3 was ended by SIGKILL: its other requests are lost" in said
    summary = summary_of(tmp_path / "run")
    assert summary["verdict"]["status"] == "invalid"
    assert "was ended by SIGKILL: 5 of its requests are lost" in str(
        summary["verdict"]["reasons"]
    )
    assert summary["outcomes"] == {"ok": 13}
    rows = summary["schedule"]["processes"]
    assert sorted((row["requests"], row["lost_requests"]) for row in rows) == [
        (1, 5), (6, 0), (6, 0),
    ]  # fmt: skip
    assert len({row["request_id"] for row in records(tmp_path / "run")}) == 13


def test_an_interrupt_stops_all_and_keeps_what_there_is(
    engine: str, tmp_path: Path
) -> None:
    with replaying(engine, tmp_path) as run:
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=PATIENCE_SECONDS)
    assert run.returncode == 130
    assert summary_of(tmp_path / "run")["outcomes"] == {"aborted": 15, "ok": 3}


def test_nobody_sends_on_for_a_run_that_was_killed(engine: str, tmp_path: Path) -> None:
    with replaying(engine, tmp_path) as run:
        pids = senders(run.pid)
        run.kill()
        assert len(pids) == 3
        wait_for(lambda: not any(map(is_alive, pids)))
        wait_for(lambda: running(engine) == 0)


def test_of_a_run_that_was_killed_the_report_reads_what_each_had_written(
    engine: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with replaying(engine, tmp_path) as run:
        pids = senders(run.pid)
        run.kill()
        wait_for(lambda: not any(map(is_alive, pids)))
    before = {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}
    assert len(before["requests.jsonl"].splitlines()) == 3
    shown = loadgen("report", "run", "--json", "--csv", "run.csv", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    summary = json.loads(shown.stdout)
    assert summary["outcomes"] == {"aborted": 15, "ok": 3}
    assert summary["verdict"]["status"] == "invalid"
    assert "process 1 of 3 was cut off with the run" in summary["verdict"]["reasons"][0]
    assert [row["requests"] for row in summary["schedule"]["processes"]] == [6, 6, 6]
    assert len((tmp_path / "run.csv").read_text().splitlines()) == 19
    assert {path.name: path.read_bytes() for path in folder.glob("*.jsonl")} == before
