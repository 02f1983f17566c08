"""A run is recorded so that it can be done again, and checked before it begins."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from tests.support.runs import loadgen, records, summary_of

SYNTHETIC = ("synthetic", "--input-len", "40", "--output-len", "6")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repeat")
    done = loadgen(
        "replay", *SYNTHETIC, "--concurrency", "3", "--num-prompts", "20",
        "--metadata", "a=b", "--out", "first", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 in flight asked" in done.stdout
    return folder / "first"


def test_a_closed_loop_keeps_its_requests_in_flight(first: Path) -> None:
    summary = summary_of(first)
    assert summary["max_concurrency"] == 3
    assert summary["schedule"]["peak_concurrency"] == 3
    assert summary["total_input_tokens"] == 20 * 40
    rows = records(first)
    assert all(row["sent_seconds"] - row["planned_seconds"] < 1 for row in rows)
    assert max(row["planned_seconds"] for row in rows) > 0
    assert all(row["wait_seconds"] > 0 <= row["connect_seconds"] for row in rows)


def test_the_record_says_what_was_run(first: Path) -> None:
    run = summary_of(first)["run"]
    assert run["command"].endswith("--metadata a=b --out first")
    assert run["engine"] == "simulated vllm"
    assert run["engine_version"]
    assert run["host"]["name"]
    assert run["sampling"]["temperature"] == 0
    page = (first / "report.html").read_text()
    assert "loadgen replay synthetic" in page
    line = json.loads((first / "engine_metrics.jsonl").read_text().splitlines()[-1])
    assert any("request_success" in name for name in line["samples"])


def test_a_run_is_done_again_and_printed_as_json(first: Path) -> None:
    done = loadgen("replay", "--from", first, "--out", "b", "--json", cwd=first.parent)
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    assert again["plan_sha256"] == summary_of(first)["plan_sha256"]
    assert again["metadata"] == {"a": "b"}
    assert again["max_concurrency"] == 3
    assert "plan: 20 requests" in done.stderr


def test_a_dry_run_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('trace = "synthetic"\nrate = 2\nn = 2\n')
    done = loadgen(
        "replay", "--config", "run.toml", "--dry-run", "--json", "--rate", "8",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["requests"] == 100
    assert found["output_tokens"] == 100 * 128 * 2
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]


def test_settings_are_checked_before_a_folder_is_there(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = loadgen("replay", *SYNTHETIC, "--rate", "2", "--metrics-port", port,
                       cwd=tmp_path)  # fmt: skip
    assert done.returncode == 2
    assert "address already in use; name another port" in done.stderr
    nobody = f"http://127.0.0.1:{port}"
    done = loadgen("replay", *SYNTHETIC, "--rate", "2", "--url", nobody,
                   "--model", "m", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 1
    assert "nobody answers at --url" in done.stderr
    assert "refused" in done.stderr
    done = loadgen("replay", *SYNTHETIC, "--rate", "2", "--power", "nothing",
                   "--quiet", cwd=tmp_path)  # fmt: skip
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.rglob("*.jsonl"))
    assert not list(tmp_path.glob("runs/*"))
    assert not list(tmp_path.glob("runs/.*"))
