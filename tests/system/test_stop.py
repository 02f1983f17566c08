"""The end of a proxy: unready, drained, cut, and every request recorded."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.children import (
    PATIENCE_SECONDS,
    Killable,
    child,
    get,
    killable,
    wait_for,
)


def proxy(upstream: str, *options: str, **environment: str) -> Killable:
    return killable(
        "--upstream", upstream, "--power", "none", *options,
        environment=os.environ | environment,
    )  # fmt: skip


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[str]:
    with child("loadgen", "simulate", "--listen", "127.0.0.1:0", cwd=tmp_path) as sim:
        yield sim["url"]


def stream(url: str, request_id: str) -> threading.Thread:
    """A reply of minutes, on its way."""

    def run() -> None:
        body = {
            "model": "simulated-llama-3.1-8b", "stream": True, "max_tokens": 8000,
            "ignore_eos": True, "messages": [{"role": "user", "content": "long"}],
        }  # fmt: skip
        with suppress(httpx.HTTPError):
            httpx.post(
                f"{url}/v1/chat/completions", json=body, timeout=PATIENCE_SECONDS,
                headers={"x-request-id": request_id},
            )  # fmt: skip

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def outcomes(path: Path) -> dict[str, str]:
    connection = sqlite3.connect(path)
    rows = connection.execute("select request_id, outcome from servewatt_records")
    found = dict(rows.fetchall())
    connection.close()
    return found


def in_flight(addresses: dict[str, Any]) -> int:
    metrics = get(f"{addresses['admin_url']}/metrics").text
    return int(metrics.count('servewatt_requests_in_flight{engine="vllm"} 3.0'))


@pytest.mark.parametrize("signals", [1, 2])
def test_every_request_that_a_stop_cuts_has_its_record(
    engine: str, tmp_path: Path, signals: int
) -> None:
    path = tmp_path / "records.sqlite"
    seconds = "1" if signals == 1 else "600"
    options = ("--store", f"sqlite:///{path}", "--drain-timeout", seconds)
    with proxy(engine, *options) as (addresses, process):
        cut = [stream(addresses["url"], f"cut-{i}") for i in range(3)]
        wait_for(lambda: in_flight(addresses))
        for _ in range(signals):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
        assert process.wait(20) == 0
        for thread in cut:
            thread.join(PATIENCE_SECONDS)
    assert outcomes(path) == {f"cut-{i}": "aborted" for i in range(3)}


def test_ready_ends_before_connections_are_refused(engine: str) -> None:
    options = ("--store", "none", "--drain-delay", "20", "--drain-timeout", "1")
    with proxy(engine, *options) as (addresses, process):
        ready = f"{addresses['admin_url']}/readyz"
        wait_for(lambda: get(ready).status_code == 200)
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: get(ready).status_code == 503)
        assert get(f"{addresses['url']}/v1/models").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_hangup_ends_nothing_and_a_manager_is_told_what_it_asks_for(
    engine: str, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE_SECONDS)
        environment = {
            "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "300000",
        }  # fmt: skip
        with proxy(engine, "--store", "none", **environment) as (addresses, process):
            assert manager.recv(100) == b"READY=1"
            process.send_signal(signal.SIGHUP)
            assert [manager.recv(100) for _ in range(5)] == [b"WATCHDOG=1"] * 5
            assert get(f"{addresses['url']}/v1/models").status_code == 200
            process.send_signal(signal.SIGTERM)
            while (said := manager.recv(100)) == b"WATCHDOG=1":
                pass
            assert said == b"STOPPING=1"
