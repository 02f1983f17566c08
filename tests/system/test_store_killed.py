"""A whole proxy, killed at a random moment under load: who was answered has a record.

A request is journaled in order of arrival before its engine has answered, so whatever
the sensor and the settlement do, the records are all requests up to one of the last
arrivals: none in between is missing.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
from sqlalchemy import URL

from tests.support.children import Killable, get, killable, wait_for
from tests.support.power_benches import serving

CLIENTS = 6
ANSWER_SECONDS = 0.06
"""How long the engine takes: many times what the journal gathers for."""
AT_LEAST = 30
"""Answers before the kill."""
ENGINE = f"""
import http.server, json, time

BODY = json.dumps(
    {{"id": "x", "object": "chat.completion", "model": "m", "choices": [
        {{"index": 0, "message": {{"role": "assistant", "content": "yes"}},
          "finish_reason": "stop"}}],
      "usage": {{"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}}}}
).encode()

class Engine(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        time.sleep({ANSWER_SECONDS})
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Engine)
print(server.server_port, flush=True)
server.serve_forever()
"""
BEGAN = time.monotonic()


def page_of(period_seconds: float) -> tuple[int, str, dict[str, str]]:
    """An exporter whose figures change once per period."""
    steps = (time.monotonic() - BEGAN) // period_seconds
    return 200, f"gpu_joules_total {100 * period_seconds * steps}\n", {}


SENSORS = {
    "normal": lambda: page_of(0.05),
    "slow": lambda: page_of(30.0),
    "dead": lambda: (500, "", {}),
}


@pytest.fixture
def engine() -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", ENGINE], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    process.kill()
    process.communicate()


def proxy(upstream: str, power: str, store: str, state: Path) -> Killable:
    return killable(
        "--upstream", upstream, "--power", power, "--engine-metrics", "none",
        "--store", store,
        environment={"XDG_STATE_HOME": str(state), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip


class Crowd:
    """Clients that ask one request after the other until their proxy is gone."""

    def __init__(self, url: str, run: int) -> None:
        self.answered: set[str] = set()
        self._url = url
        self._run = run
        self._threads = [
            threading.Thread(target=self._ask, args=(n,)) for n in range(CLIENTS)
        ]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _ask(self, client: int) -> None:
        count = 0
        with httpx.Client(trust_env=False, timeout=60) as http:
            while True:
                name = f"{self._run}-{client}-{count}"
                try:
                    reply = http.post(
                        f"{self._url}/v1/chat/completions",
                        headers={"x-request-id": name},
                        json={"model": "m", "messages": []},
                    )
                except httpx.TransportError:
                    return
                assert reply.status_code == 200
                self.answered.add(name)
                count += 1


def has_been_answered(crowd: Crowd) -> bool:
    return len(crowd.answered) >= AT_LEAST


def recorded(admin_url: str) -> list[str]:
    since, found = 0, []
    while text := get(f"{admin_url}/requests?since={since}").text:
        rows = [json.loads(line) for line in text.splitlines()]
        found += [row["request_id"] for row in rows]
        since = rows[-1]["sequence"]
    return found


@pytest.mark.parametrize("sensor", [*SENSORS, "none"])
def test_who_was_answered_before_a_kill_has_one_record(
    url: URL, tmp_path: Path, engine: str, sensor: str
) -> None:
    chance = random.Random(sensor)
    answered: set[str] = set()
    store = url.render_as_string(hide_password=False).replace("+psycopg", "")
    page = SENSORS.get(sensor, SENSORS["dead"])
    power = "none"
    with serving({"/metrics": page}) as exporter:
        if sensor != "none":
            power = f"prometheus={exporter}/metrics#joules=gpu_joules_total"
            power += "&boundary=gpu"
        for run in range(2):
            with proxy(engine, power, store, tmp_path) as (addresses, process):
                crowd = Crowd(addresses["url"], run)
                wait_for(partial(has_been_answered, crowd))
                time.sleep(chance.random())  # any moment will do
                process.kill()
                process.wait()
                crowd.join()
                answered |= crowd.answered
        with proxy(engine, power, store, tmp_path) as (addresses, _):
            found = Counter(recorded(addresses["admin_url"]))
    assert {name: n for name, n in found.items() if n > 1} == {}
    asked: dict[str, list[int]] = {}
    for name in found:
        client, _, number = name.rpartition("-")
        asked.setdefault(client, []).append(int(number))
    assert {c: sorted(n) for c, n in asked.items()} == {
        c: list(range(len(n))) for c, n in asked.items()
    }
    assert answered - found.keys() == set()
