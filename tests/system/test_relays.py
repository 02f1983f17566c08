"""`serve --relays 2`: relays before one meter, and what a kill takes with it."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.children import (
    PATIENCE_SECONDS,
    get,
    is_alive,
    killable,
    killable_module,
    simulating,
    wait_for,
)
from tests.support.paths import ROOT
from tests.support.relayed import Proxy


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[dict[str, Any]]:
    with simulating(tmp_path) as announced:
        yield announced


class Streams:
    """Requests under way, each on a connection and a thread of its own."""

    def __init__(self, proxy: Proxy, names: list[str], tokens: int) -> None:
        self.ended: dict[str, str] = {}
        self.threads = [
            threading.Thread(target=self._run, args=(proxy, name, tokens), daemon=True)
            for name in names
        ]
        for thread in self.threads:
            thread.start()
        wait_for(lambda: proxy.total("servewatt_requests_in_flight") >= len(names))

    def _run(self, proxy: Proxy, name: str, tokens: int) -> None:
        try:
            reply = proxy.ask(name, tokens)
            self.ended[name] = "whole" if "[DONE]" in reply.text else reply.text
        except httpx.HTTPError:
            self.ended[name] = "cut"

    def results(self) -> dict[str, str]:
        for thread in self.threads:
            thread.join(PATIENCE_SECONDS)
        return self.ended


@pytest.fixture
def proxy(engine: dict[str, Any], tmp_path: Path, temporary: Path) -> Iterator[Proxy]:
    store = f"sqlite:///{tmp_path / 'records.sqlite'}"
    options = (
        "--relays", "2", "--upstream", engine["url"], "--store", store,
        "--power", f"dcgm={engine['power_url']}", "--drain-delay", "0",
    )  # fmt: skip
    environment = os.environ | {"TMPDIR": str(temporary)}
    with killable(*options, environment=environment) as (addresses, process):
        found = Proxy(addresses, process)
        wait_for(found.is_whole)
        yield found


@pytest.fixture
def temporary() -> Iterator[Path]:
    """For temporary files, with a path that a socket may have."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_what_a_kill_of_any_process_loses_is_its_own_and_said(proxy: Proxy) -> None:
    for number in range(8):
        assert "[DONE]" in proxy.ask(f"first-{number}").text
    wait_for(lambda: proxy.total("servewatt_requests_total") == 8)

    # a relay: its own streams, and they keep what they consumed
    names = [f"relay-{number}" for number in range(16)]
    streams = Streams(proxy, names, tokens=400)
    proxy.kill("relay-1")
    results = streams.results()
    cut = {name for name, end in results.items() if end == "cut"}
    assert set(results.values()) <= {"whole", "cut"}
    assert cut < set(names)
    wait_for(lambda: proxy.total("servewatt_process_restarts_total") == 1)
    wait_for(proxy.is_whole)
    for name in names:
        record = proxy.record(name)
        assert record["outcome"] == ("aborted" if name in cut else "ok")
    assert proxy.total("servewatt_requests_total") == 24
    assert proxy.figures("servewatt_process_restarts_total") == {
        '{process="meter"}': 0, '{process="relay-1"}': 1, '{process="relay-2"}': 0,
    }  # fmt: skip

    # the meter: no stream, but for a while their energy
    streams = Streams(proxy, [f"meter-{number}" for number in range(8)], tokens=400)
    proxy.kill("meter")
    while_away = proxy.ask("away")
    assert "[DONE]" in while_away.text
    assert set(streams.results().values()) == {"whole"}
    wait_for(lambda: proxy.figures("servewatt_process_restarts_total"))
    wait_for(proxy.is_whole)
    wait_for(lambda: proxy.total("servewatt_requests_in_flight") == 0)
    record = proxy.record("away")
    assert (record["outcome"], record["energy"]["energy_joules"]) == ("ok", None)
    unseen = proxy.total("servewatt_unseen_requests_total")
    assert unseen == 8
    without = proxy.total("servewatt_requests_without_energy_total")
    assert without >= unseen + 1
    ends = {proxy.record(f"meter-{number}")["outcome"] for number in range(8)}
    assert ends == {"ok"}
    assert "[DONE]" in proxy.ask("later").text
    record = proxy.record("later")
    assert record["energy"]["energy_joules"] > 0
    books = get(f"{proxy.admin}/books").json()
    accounts = (
        sum(books["attributed_joules"].values()) + books["idle_share_joules"]
        + books["idle_joules"] + sum(books["unattributed_joules"].values())
    )  # fmt: skip
    assert accounts == pytest.approx(books["measured_joules"], abs=1e-3)


def test_a_stop_lets_requests_finish_and_records_each_once(
    proxy: Proxy, tmp_path: Path
) -> None:
    names = [f"r{number}" for number in range(6)]
    streams = Streams(proxy, names, tokens=100)
    proxy.parent.send_signal(signal.SIGTERM)
    assert set(streams.results().values()) == {"whole"}
    assert proxy.parent.wait(PATIENCE_SECONDS) == 0
    connection = sqlite3.connect(tmp_path / "records.sqlite")
    rows = connection.execute(
        "select request_id, outcome, energy_joules > 0 from servewatt_records"
    ).fetchall()
    connection.close()
    assert sorted(rows) == [(name, "ok", 1) for name in names]


def test_all_processes_end_with_the_one_that_started_them(
    proxy: Proxy, temporary: Path
) -> None:
    pids = [proxy.pid(name) for name in ("meter", "relay-1", "relay-2")]
    assert len(list(temporary.iterdir())) == 1
    proxy.parent.kill()
    wait_for(lambda: not any(map(is_alive, pids)))
    assert not list(temporary.iterdir())


def test_a_process_that_hangs_is_replaced(engine: dict[str, Any]) -> None:
    command = ("tests.support.relays_child", engine["url"], "8")
    with killable_module(*command) as (addresses, process):
        proxy = Proxy(addresses, process)
        wait_for(proxy.is_whole)
        for name in ("relay-1", "meter"):
            pid = proxy.pid(name)
            os.kill(pid, signal.SIGSTOP)
            wait_for(lambda pid=pid: not is_alive(pid))  # type: ignore[misc]  # of this turn
            wait_for(proxy.is_whole)
        for number in range(8):
            assert "[DONE]" in proxy.ask(f"after-{number}").text


def refused(*options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "proxy", "serve", "--upstream", "http://127.0.0.1:1",
         "--power", "none", "--store", "none", "--admin", "127.0.0.1:0", *options],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS,
        check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stdout == ""
    return done.stderr


def test_what_relays_cannot_do_is_one_line(tmp_path: Path) -> None:
    record = refused("--relays", "2", "--record", str(tmp_path / "trace.jsonl"))
    assert record == (
        "metering-proxy: --relays 2 and --record cannot be combined: one process "
        "writes a recording; give --relays 1\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        line = refused("--relays", "2", "--listen", taken)
    assert line == (
        f"metering-proxy: cannot listen on {taken}: Address already in use; give "
        "another --listen address, or port 0 for any free one\n"
    )
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        assert "Address already in use" in refused("--relays", "2", "--listen", taken)
    missing = refused(
        "--relays", "2", "--listen", "127.0.0.1:0",
        "--tenant-hash-key-file", str(tmp_path / "missing"), "--tenant-header", "x-t",
    )  # fmt: skip
    assert missing.count("\n") == 1
    assert "missing" in missing
