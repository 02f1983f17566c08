"""The whole proxy, as a process: what it metered is there after it comes back."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.children import PATIENCE_SECONDS, get, post, wait_for
from tests.support.paths import ROOT
from tests.support.power_benches import serving

REPLY = {
    "id": "x", "object": "chat.completion", "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"},
                 "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
}  # fmt: skip
ENGINE = f"""
import http.server

class Engine(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        body = {json.dumps(REPLY).encode()!r}
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Engine)
print(server.server_port, flush=True)
server.serve_forever()
"""
"""Replies to every POST with the same words."""


@pytest.fixture
def engine() -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", ENGINE], stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    process.kill()
    process.communicate()


@contextmanager
def proxy(
    upstream: str, *options: str
) -> Iterator[tuple[dict[str, Any], subprocess.Popen[str]]]:
    power = () if "--power" in options else ("--power", "none")
    process = subprocess.Popen(
        [sys.executable, "-m", "proxy", "serve", "--upstream", upstream,
         "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--announce",
         *power, *options],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield json.loads(line), process
    finally:
        process.kill()
        process.communicate()


def ask(addresses: dict[str, Any], *names: str, model: str = "m") -> None:
    for name in names:
        reply = post(
            f"{addresses['url']}/v1/chat/completions",
            json={"model": model, "messages": [{"role": "user", "content": "well"}]},
            headers={"x-request-id": name},
        )
        assert reply.status_code == 200


def shown(addresses: dict[str, Any]) -> list[str]:
    text = get(f"{addresses['admin_url']}/requests").text
    return [json.loads(line)["request_id"] for line in text.splitlines()]


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_what_was_metered_is_there_after_a_restart(
    tmp_path: Path, engine: str, end: signal.Signals
) -> None:
    path = tmp_path / "records.sqlite"
    options = ("--store", f"sqlite:///{path}")
    with proxy(engine, *options) as (addresses, process):
        ask(addresses, "one", "two", "three")
        process.send_signal(end)  # the last one may not even be settled
        assert process.wait(20) == 0
    # what others would read, without this program
    with sqlite3.connect(path) as connection:
        rows = connection.execute(
            "select upstream, request_id, prompt_tokens, energy_joules"
            " from servewatt_records order by sequence"
        ).fetchall()
    connection.close()
    assert rows == [(engine, name, 3, None) for name in ("one", "two", "three")]
    with proxy(engine, *options) as (addresses, process):
        assert shown(addresses) == ["one", "two", "three"]
        found = get(f"{addresses['admin_url']}/requests/two").json()
        assert found["prompt_tokens"] == 3
        info = get(f"{addresses['admin_url']}/info").json()
        assert info["store"]["up"]
        assert info["config"]["store"] == f"sqlite:///{path}"
        metrics = get(f"{addresses['admin_url']}/metrics").text
        assert "\nservewatt_store_up 1.0\n" in metrics


@contextmanager
def ending(child: subprocess.Popen[str]) -> Iterator[None]:
    """A child of ours leaves when its standard input closes."""
    try:
        yield
    finally:
        child.communicate()


def test_the_last_request_before_a_signal_keeps_its_joules(tmp_path: Path) -> None:
    simulator = subprocess.Popen(
        [sys.executable, "-m", "loadgen", "simulate", "--listen", "127.0.0.1:0",
         "--announce"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert simulator.stdout is not None
    path = tmp_path / "records.sqlite"
    upstream = json.loads(simulator.stdout.readline())["url"]
    power = ("--power", f"dcgm={upstream}/dcgm/metrics")
    with (
        ending(simulator),
        proxy(upstream, *power, "--store", f"sqlite:///{path}") as (addresses, process),
    ):
        deadline = time.monotonic() + 30
        while get(f"{addresses['admin_url']}/readyz").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        ask(addresses, "first", "last", model="simulated-llama-3.1-8b")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    with sqlite3.connect(path) as connection:
        rows = connection.execute(
            "select request_id, quality, energy_joules > 0 from servewatt_records"
        ).fetchall()
    connection.close()
    assert rows == [("first", "exact", 1), ("last", "exact", 1)]


PERIOD_SECONDS = 1.0


def slow_page() -> tuple[int, str, dict[str, str]]:
    """An exporter whose figures change once per period."""
    joules = 400 * PERIOD_SECONDS * (time.monotonic() // PERIOD_SECONDS)
    return 200, f"gpu_joules_total {joules}\n", {}


@pytest.mark.parametrize("signals", [1, 2])
def test_behind_a_slow_sensor_a_record_is_waited_for_or_kept_without_joules(
    tmp_path: Path, engine: str, signals: int
) -> None:
    path = tmp_path / "records.sqlite"
    with serving({"/metrics": slow_page}) as url:
        source = f"prometheus={url}/metrics#joules=gpu_joules_total&boundary=gpu"
        options = (
            "--power", source, "--sample-interval", "0.1", "--idle-watts", "80",
            "--engine-metrics", "none", "--store", f"sqlite:///{path}",
        )  # fmt: skip
        with proxy(engine, *options) as (addresses, process):
            books = f"{addresses['admin_url']}/books"
            wait_for(lambda: get(books).json()["measured_joules"])
            ask(addresses, "last")
            for _ in range(signals):  # the second one waits for no joules
                process.send_signal(signal.SIGTERM)
                time.sleep(0.2)
            assert process.wait(20) == 0
    with sqlite3.connect(path) as connection:
        rows = connection.execute(
            "select request_id, energy_joules > 0 from servewatt_records"
        ).fetchall()
    connection.close()
    assert rows in ([("last", 1)], [("last", None)][: signals - 1])


def test_a_store_that_cannot_be_opened_stops_no_request(
    tmp_path: Path, engine: str
) -> None:
    store = f"sqlite:///{tmp_path}/nowhere/records.sqlite"
    with proxy(engine, "--store", store) as (addresses, process):
        ask(addresses, "one")
        metrics = get(f"{addresses['admin_url']}/metrics").text
        assert "\nservewatt_store_up 0.0\n" in metrics
        process.send_signal(signal.SIGTERM)
        _, words = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert "unable to open database file; records wait in memory" in words
    assert "1 records could not be stored: unable to open database file" in words


def test_a_store_of_a_newer_version_is_refused_in_one_line(
    tmp_path: Path, engine: str
) -> None:
    path = tmp_path / "servewatt" / "records.sqlite"  # where it is by default
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("create table servewatt_meta (name text, value integer)")
        connection.execute("insert into servewatt_meta values ('schema', 99)")
    connection.close()
    done = subprocess.run(
        [sys.executable, "-m", "proxy", "serve", "--upstream", engine, "--power",
         "none"],
        cwd=ROOT, env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "metering-proxy: the store has schema version 99, newer than this program's 5; "
        "upgrade servewatt, or name another --store"
    ]
