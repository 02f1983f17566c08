"""The whole way, as a user starts it: real processes, real sockets, real signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.children import get, post
from tests.support.paths import ROOT
from tests.support.runs import (
    PATIENCE_SECONDS,
    SMALL_TRACE,
    loadgen,
    records,
    summary_of,
    write_trace,
)


def start(*command: str | Path, cwd: Path, **pipes: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, command)],
        cwd=cwd, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, **pipes,
    )  # fmt: skip


def children_of(folder: Path) -> list[int]:
    """Processes, of anyone, whose command line or log is in this run's folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                log = os.readlink(entry / "fd" / "2")
            except OSError:
                continue
            if log.startswith(str(folder)):
                found.append(int(entry.name))
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One run through the embedded stack, and what it printed."""
    folder = tmp_path_factory.mktemp("embedded")
    trace = write_trace(folder)
    done = loadgen(
        "replay", trace, "--rate", "12", "--seed", "3", "--out", folder / "run",
        "--goodput", "ttft:2000", "tpot:200", "--metadata", "purpose=test",
        cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run", done.stdout


def test_every_request_has_its_joules(finished: tuple[Path, str]) -> None:
    rows = records(finished[0])
    assert len(rows) == 18
    for row in rows:
        assert row["outcome"] == "ok"
        energy = row["energy"]
        assert energy["energy_joules"] > 0
        assert energy["energy_joules"] == pytest.approx(
            energy["prefill_joules"]
            + energy["decode_joules"]
            + energy["idle_share_joules"]
        )
        assert set(energy["policy_joules"]) == {
            "equal", "tokens", "phase", "calibrated",
        }  # fmt: skip
        assert sum(row["chunk_tokens"]) == row["output_tokens"]
        assert row["output_tokens"] == row["requested_output_tokens"]


def test_the_books_of_the_run_close(finished: tuple[Path, str]) -> None:
    energy = summary_of(finished[0])["energy"]
    accounts = (
        sum(energy["attributed_joules"].values())
        + energy["idle_share_joules"]
        + energy["idle_joules"]
        + sum(energy["unattributed_joules"].values())
    )
    assert energy["measured_joules"] == pytest.approx(accounts, abs=0.001)
    assert abs(energy["residual_joules"]) <= 0.001
    joined = sum(row["energy"]["energy_joules"] for row in records(finished[0]))
    shares = energy["measured_joules"] - energy["idle_joules"]
    assert joined == pytest.approx(shares, rel=0.02)


def test_the_summary_keeps_its_promised_keys(finished: tuple[Path, str]) -> None:
    summary = summary_of(finished[0])
    flat = {
        "duration", "completed", "failed", "total_input_tokens", "total_output_tokens",
        "request_throughput", "output_throughput", "total_token_throughput",
        "request_goodput", "request_rate", "burstiness", "max_concurrency",
        "simulated", "verdict", "plan_sha256", "schedule", "energy", "environment",
    } | {
        f"{statistic}_{measure}_ms"
        for statistic in ("mean", "median", "std", "p99")
        for measure in ("ttft", "tpot", "itl", "e2el")
    }  # fmt: skip
    assert flat <= set(summary)
    assert summary["completed"] == 18
    assert summary["failed"] == 0
    assert summary["simulated"] is True
    assert summary["metadata"] == {"purpose": "test"}
    assert set(summary["energy"]) >= {
        "boundary", "source", "policy", "simulated", "sample_interval_seconds",
        "window_seconds", "measured_joules", "attributed_joules", "idle_share_joules",
        "idle_joules", "unattributed_joules", "residual_joules", "joules_per_request",
        "joules_per_output_token", "joules_per_total_token", "failed_request_joules",
    }  # fmt: skip


def test_what_is_simulated_says_so(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    assert "SIMULATED" in printed
    assert "SIMULATED" in (folder / "report.html").read_text()
    assert summary_of(folder)["energy"]["simulated"] is True


def test_no_process_is_left_behind(finished: tuple[Path, str]) -> None:
    assert children_of(finished[0]) == []


def test_a_plan_runs_again_as_it_was(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    first = finished[0]
    done = loadgen(
        "replay", first / "plan.jsonl", "--out", tmp_path / "b", cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary_of(tmp_path / "b")["plan_sha256"] == summary_of(first)["plan_sha256"]
    asked = {
        row["request_id"]: row["requested_output_tokens"] for row in records(first)
    }
    again = {
        r["request_id"]: r["requested_output_tokens"] for r in records(tmp_path / "b")
    }
    assert asked == again


def test_a_second_run_into_the_same_folder_is_refused(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    before = (finished[0] / "requests.jsonl").read_bytes()
    done = loadgen(
        "replay", write_trace(tmp_path), "--rate", "9", "--out", finished[0],
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "already holds a run" in done.stderr
    assert (finished[0] / "requests.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["missing.jsonl", "--rate", "4"], "missing.jsonl"),
        (["empty.jsonl", "--rate", "4"], "empty.jsonl"),
        (["broken.jsonl", "--rate", "4"], "broken.jsonl, line 7"),
        (["small.jsonl", "--rate", "-1"], "-1 is not above 0"),
        (["small.jsonl", "--rate", "fast"], "'fast' is not a rate"),
        (["small.jsonl"], "--rate"),
        (["small.jsonl", "--rate", "4", "--goodput", "speed:4"], "unknown key 'speed'"),
        (["small.jsonl", "--rate", "4", "--url", "localhost"], "not a base URL"),
        (["small.jsonl", "--rate", "4", "--extra-body", "[1]"], "not an object"),
        (["small.jsonl", "--rate", "4", "--power", "volts"], "unknown power source"),
        (["small.jsonl", "--rate", "4", "--backend", "tgi", "--ignore-eos"], "as caps"),
    ],
)
def test_bad_input_is_one_clear_line(
    tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    write_trace(tmp_path)
    (tmp_path / "empty.jsonl").write_text("")
    lines = (tmp_path / "small.jsonl").read_text().splitlines()
    lines[6] = '{"input_length": "many", "output_length": 4}'
    (tmp_path / "broken.jsonl").write_text("\n".join(lines) + "\n")
    done = loadgen("replay", *arguments, cwd=tmp_path)
    assert done.returncode in (1, 2), done.stdout
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("runs/*/requests.jsonl"))


def test_a_backend_that_cannot_force_lengths_runs_them_as_caps_and_says_so(
    tmp_path: Path,
) -> None:
    long = [SMALL_TRACE[0], *[row | {"output_length": 400} for row in SMALL_TRACE[1:9]]]
    done = loadgen(
        "replay", write_trace(tmp_path, long), "--rate", "inf", "--backend", "tgi",
        "--out", tmp_path / "run", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for shown in (done.stderr, done.stdout):  # before the run, and with its result
        assert shown.count("output lengths are caps: tgi cannot force them") == 1
    summary, rows = summary_of(tmp_path / "run"), records(tmp_path / "run")
    assert summary["output_length_rule"] == "cap"
    served = sum(row["output_tokens"] for row in rows)
    assert 0 < served < 8 * 400
    assert all(row["output_tokens"] <= 400 for row in rows)
    # per token: of those that came, not of those that were asked for
    joules = sum(row["energy"]["energy_joules"] for row in rows)
    assert summary["energy"]["joules_per_output_token"] == pytest.approx(
        joules / served, rel=1e-6
    )


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / "file" / "x"
    done = loadgen("replay", write_trace(tmp_path), "--rate", "4", "--out", folder,
                   cwd=tmp_path)  # fmt: skip
    assert done.returncode == 2
    assert "cannot be used" in done.stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_target_that_is_down_is_said_before_the_run(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = loadgen("replay", write_trace(tmp_path), "--rate", "4", "--url", url,
                   cwd=tmp_path)  # fmt: skip
    assert done.returncode == 1
    assert url.removeprefix("http://") in done.stderr


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for module, arguments in (
            ("loadgen", ["simulate", "--listen", address]),
            ("proxy", ["serve", "--upstream", "http://127.0.0.1:9", "--power", "none",
                       "--store", "none",
                       "--admin", "127.0.0.1:0", "--listen", address]),
            ("proxy", ["serve", "--upstream", "http://127.0.0.1:9", "--power", "none",
                       "--store", "none",
                       "--listen", "127.0.0.1:0", "--admin", address]),
        ):  # fmt: skip
            done = subprocess.run(
                [sys.executable, "-m", module, *arguments], cwd=ROOT,
                capture_output=True, text=True, timeout=PATIENCE_SECONDS,
            )  # fmt: skip
            assert done.returncode == 1, done.stderr
            assert address in done.stderr
            assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_what_it_had(
    tmp_path: Path, number: signal.Signals
) -> None:
    rows = [SMALL_TRACE[0], *({**row, "output_length": 400} for row in SMALL_TRACE[1:])]
    trace = write_trace(tmp_path, rows)
    process = start(
        "loadgen", "replay", trace, "--rate", "2", "--out", tmp_path / "run",
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    wait_for(lambda: bool(lines_in(tmp_path / "run" / "requests.jsonl")), process)
    process.send_signal(number)
    printed, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130, printed
    outcomes = {row["outcome"] for row in records(tmp_path / "run")}
    assert outcomes <= {"ok", "aborted"}
    assert "ok" in outcomes
    summary = summary_of(tmp_path / "run")
    assert summary["verdict"]["status"] == "degraded"
    assert any("interrupted" in reason for reason in summary["verdict"]["reasons"])
    assert children_of(tmp_path / "run") == []


def test_a_killed_run_leaves_records_and_no_processes(tmp_path: Path) -> None:
    process = start(
        "loadgen", "replay", write_trace(tmp_path), "--rate", "4",
        "--out", tmp_path / "run",
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for(lambda: bool(lines_in(tmp_path / "run" / "requests.jsonl")), process)
    process.kill()
    process.wait()
    assert records(tmp_path / "run")
    wait_for(lambda: children_of(tmp_path / "run") == [])
    done = loadgen("report", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def lines_in(path: Path) -> int:
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def wait_for(claim: Any, process: subprocess.Popen[str] | None = None) -> None:
    """Poll until a claim about other processes holds; bounded, never a measure."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not claim():
        assert process is None or process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    process = start(
        "loadgen", "simulate", "--listen", "127.0.0.1:0", "--announce", cwd=tmp_path,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdin is not None
    url = json.loads(process.stdout.readline())["url"]
    yield url, process
    process.stdin.close()
    process.wait(PATIENCE_SECONDS)
    process.stdout.close()


def test_a_power_source_that_fails_costs_the_energy_and_no_request(
    tmp_path: Path, simulator: tuple[str, subprocess.Popen[str]]
) -> None:
    url, _ = simulator
    missing = f"dcgm=http://127.0.0.1:{free_port()}/metrics"
    done = loadgen(
        "replay", write_trace(tmp_path), "--rate", "12", "--url", url,
        "--power", missing, "--out", tmp_path / "run", cwd=tmp_path,
    )  # fmt: skip
    rows = records(tmp_path / "run")
    assert [row["outcome"] for row in rows] == ["ok"] * 18, done.stdout
    assert all(
        row["energy"] is None or row["energy"]["energy_joules"] is None for row in rows
    )
    summary = summary_of(tmp_path / "run")
    assert summary["energy"]["measured_joules"] is None
    assert summary["verdict"]["status"] != "valid"
    assert "energy" in " ".join(summary["verdict"]["reasons"])


def test_an_engine_that_dies_during_the_run_is_data(
    tmp_path: Path, simulator: tuple[str, subprocess.Popen[str]]
) -> None:
    url, engine = simulator
    rows = [SMALL_TRACE[0], *({**row, "output_length": 300} for row in SMALL_TRACE[1:])]
    process = start(
        "loadgen", "replay", write_trace(tmp_path, rows), "--rate", "4",
        "--url", url, "--power", f"dcgm={url}/dcgm/metrics", "--out", tmp_path / "run",
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    wait_for(lambda: bool(lines_in(tmp_path / "run" / "requests.jsonl")), process)
    engine.kill()
    engine.wait()
    printed, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 3, printed
    found = records(tmp_path / "run")
    assert len(found) == 18
    assert {"ok", "error"} <= {row["outcome"] for row in found}
    assert all(row["error"] for row in found if row["outcome"] == "error")


def test_the_proxy_alone_meters_any_client_and_prometheus_can_read_it(
    tmp_path: Path, simulator: tuple[str, subprocess.Popen[str]]
) -> None:
    url, _ = simulator
    process = start(
        "proxy", "serve", "--upstream", url, "--power", f"dcgm={url}/dcgm/metrics",
        "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--announce",
        "--store", "none",
        cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdin is not None
    addresses = json.loads(process.stdout.readline())
    admin = addresses["admin_url"]
    wait_for(lambda: get(f"{admin}/readyz").status_code == 200)
    model = get(f"{addresses['url']}/v1/models").json()["data"][0]["id"]
    body = {
        "model": model, "max_tokens": 20, "ignore_eos": True,
        "messages": [{"role": "user", "content": "one two three"}],
    }  # fmt: skip
    reply = post(
        f"{addresses['url']}/v1/chat/completions", json=body,
        headers={"x-request-id": "by-hand"}, timeout=60,
    )  # fmt: skip
    assert reply.json()["usage"]["completion_tokens"] == 20
    assert reply.headers["x-request-id"] == "by-hand"
    wait_for(lambda: get(f"{admin}/requests/by-hand").status_code == 200)
    record = get(f"{admin}/requests/by-hand").json()
    assert record["energy"]["energy_joules"] > 0
    assert record["output_tokens"] == 20
    text = get(f"{admin}/metrics").text
    assert "servewatt_request_energy_joules_count" in text
    recent = get(f"{admin}/metrics/requests").text
    assert 'request_id="by-hand"' in recent
    openmetrics = get(
        f"{admin}/metrics", headers={"accept": "application/openmetrics-text"}
    ).text
    assert 'request_id="by-hand"' in openmetrics
    process.stdin.close()
    assert process.wait(PATIENCE_SECONDS) == 0
    process.stdout.close()
