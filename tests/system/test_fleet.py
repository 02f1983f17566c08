"""One proxy in front of several simulated engines, all of them real processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.children import child, get, is_ready, post, wait_for
from tests.support.paths import ROOT

SMALL, LARGE = "simulated-llama-3.1-8b", "simulated-llama-3.1-70b"


@dataclass
class Engine:
    """A simulated engine that can be killed and started again at its address."""

    model: str
    folder: Path
    listen: str = "127.0.0.1:0"
    process: subprocess.Popen[str] | None = None
    url: str = ""

    def start(self) -> None:
        """Serve, at the address of last time if there was one."""
        command = ["-m", "loadgen", "simulate", "--listen", self.listen]
        gpus = "4" if "70b" in self.model else "1"
        self.process = subprocess.Popen(
            [sys.executable, *command, "--model", self.model, "--n-gpus", gpus,
             "--announce"],
            cwd=self.folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.url = json.loads(self.process.stdout.readline())["url"]
        self.listen = self.url.removeprefix("http://")

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """With `SIGKILL`: as a machine that is gone."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(60)
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self.process.stdin.close()
            self.process.stdout.close()
            self.process = None


@dataclass(frozen=True)
class Fleet:
    """The proxy, and the engines by name."""

    url: str
    admin: str
    engines: dict[str, Engine]

    def get(self, path: str) -> dict[str, Any]:
        """What the admin API says."""
        found: dict[str, Any] = get(f"{self.admin}{path}").json()
        return found

    def post(self, path: str) -> dict[str, Any]:
        """Change something by the admin API."""
        reply = post(f"{self.admin}{path}")
        assert reply.status_code == 200, reply.text
        found: dict[str, Any] = reply.json()
        return found

    def state(self, name: str) -> dict[str, Any]:
        """One upstream, as `/upstreams` shows it."""
        shown = self.get("/upstreams")["upstreams"]
        return next(each for each in shown if each["name"] == name)

    def ask(
        self, headers: dict[str, str] | None = None, tokens: int = 3
    ) -> httpx.Response:
        """One request for the small model."""
        body = {
            "model": SMALL, "max_tokens": tokens, "ignore_eos": True,
            "messages": [{"role": "user", "content": "one two three"}],
        }  # fmt: skip
        return post(
            f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=60
        )

    def engine_of(self, request_id: str) -> str:
        """Which one got a request, by its record."""
        url = f"{self.admin}/requests/{request_id}"
        wait_for(lambda: get(url).status_code == 200)
        return str(get(url).json()["engine"])


@contextlib.contextmanager
def fleet(folder: Path, models: dict[str, str]) -> Iterator[Fleet]:
    engines = {
        name: Engine(model.removeprefix("simulated-"), folder)
        for name, model in models.items()
    }
    with contextlib.ExitStack() as stack:
        for engine in engines.values():
            engine.start()
            stack.callback(engine.end)
        config = folder / "upstreams.toml"
        config.write_text(
            'listen = "127.0.0.1:0"\nadmin = "127.0.0.1:0"\nstore = "none"\n'
            + "".join(
                f'[[upstream]]\nname = "{name}"\nurl = "{engine.url}"\n'
                f'power = "dcgm={engine.url}/dcgm/metrics"\n'
                f"idle-watts = {105 if models[name] == SMALL else 420}\n"
                for name, engine in engines.items()
            )
        )
        serve = ("proxy", "serve", "--config", str(config))
        serving = stack.enter_context(child(*serve, cwd=folder))
        wait_for(lambda: is_ready(serving["admin_url"]))
        yield Fleet(serving["url"], serving["admin_url"], engines)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    models = {"small-a": SMALL, "small-b": SMALL, "large": LARGE}
    with fleet(tmp_path_factory.mktemp("fleet"), models) as running:
        yield running


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Fleet]:
    with fleet(tmp_path, {"a": SMALL, "b": SMALL}) as running:
        yield running


def accounts(books: dict[str, Any]) -> float:
    return float(
        sum(books["attributed_joules"].values())
        + books["idle_share_joules"]
        + books["idle_joules"]
        + sum(books["unattributed_joules"].values())
    )


def replay(
    three: Fleet, folder: Path, model: str, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """A run of `loadgen replay` through the proxy; its summary."""
    trace = folder / "small.jsonl"
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = subprocess.run(
        [sys.executable, "-m", "loadgen", "replay", trace, "--rate", "10",
         "--url", three.url, "--ledger", three.admin, "--model", model,
         "--out", folder / "run", "--quiet"],
        capture_output=True, text=True, timeout=120, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (folder / "run" / "summary.json").exists(), done.stderr
    found: dict[str, Any] = json.loads((folder / "run" / "summary.json").read_text())
    return found


def test_each_engine_has_its_ledger_and_the_sum_is_theirs(
    three: Fleet, tmp_path: Path
) -> None:
    rows = [{"input_length": 100, "output_length": 20, "kind": "code"}] * 24
    summary = replay(three, tmp_path, SMALL, rows)
    assert (summary["completed"], summary["failed"]) == (24, 0)
    books = three.get("/books")
    assert set(books["engines"]) == {"small-a", "small-b", "large"}
    for each in (*books["engines"].values(), books):
        assert each["measured_joules"] == pytest.approx(accounts(each), abs=1e-3)
    for account in ("measured_joules", "idle_joules", "idle_share_joules"):
        parts = [each[account] for each in books["engines"].values()]
        assert books[account] == pytest.approx(sum(parts))
    assert books["simulated"]
    # the engine of the other model burns watts and serves nobody
    large = three.get("/books?engine=large")
    assert large["attributed_joules"] == {"prefill": 0.0, "decode": 0.0}
    assert large["idle_joules"] > 0
    assert books["engines"]["small-a"]["attributed_joules"]["decode"] > 0
    # the load generator's energy is the sum over the engines, and closes
    energy = summary["energy"]
    assert energy["simulated"]
    assert energy["measured_joules"] == pytest.approx(accounts(energy), abs=1e-2)
    assert energy["joules_per_request"]["mean"] > 0


def test_replicas_get_the_same_number_of_requests(three: Fleet) -> None:
    ids = [f"turn-{number}" for number in range(6)]
    for request_id in ids:
        assert three.ask({"x-request-id": request_id}).status_code == 200
    taken = Counter(three.engine_of(request_id) for request_id in ids)
    assert taken == {"small-a": 3, "small-b": 3}


def test_a_session_stays_with_its_replica(three: Fleet) -> None:
    for session in ("one", "two", "three"):
        ids = [f"{session}-{number}" for number in range(3)]
        for request_id in ids:
            headers = {"x-request-id": request_id, "x-session-id": session}
            assert three.ask(headers).status_code == 200
        assert len({three.engine_of(request_id) for request_id in ids}) == 1


def test_a_replayed_conversation_stays_with_its_replica(
    three: Fleet, tmp_path: Path
) -> None:
    rows = [
        {"input_length": 30, "output_length": 5, "session_id": f"s{n}", "turn": turn}
        for n in range(6)
        for turn in range(1, 4)
    ]
    assert replay(three, tmp_path, SMALL, rows)["completed"] == 18
    lines = (tmp_path / "run" / "requests.jsonl").read_text().splitlines()
    taken: dict[str, set[str]] = {}
    for line in map(json.loads, lines):
        engines = taken.setdefault(line["session_id"], set())
        engines.add(three.engine_of(line["request_id"]))
    assert {len(engines) for engines in taken.values()} == {1}
    assert len(set.union(*taken.values())) == 2


def test_the_models_of_all_are_listed_and_others_refused(three: Fleet) -> None:
    listed = get(f"{three.url}/v1/models").json()["data"]
    assert {card["id"] for card in listed} == {SMALL, LARGE}
    body = {"model": "gpt-9", "messages": []}
    reply = post(f"{three.url}/v1/chat/completions", json=body)
    assert reply.status_code == 404
    assert f"known: {LARGE}, {SMALL}" in reply.json()["error"]["message"]


def test_metrics_and_admin_tell_the_engines_apart(three: Fleet) -> None:
    text = get(f"{three.admin}/metrics").text
    for name in three.engines:
        assert f'servewatt_upstream_up{{engine="{name}"}} 1.0' in text
        assert (
            f'servewatt_energy_joules_total{{account="idle",boundary="gpu",engine="{name}"}}'
            in text
        )
    refused = get(f"{three.admin}/books?engine=moon")
    assert refused.json() == {"error": "engine is one of small-a, small-b, large"}
    assert post(f"{three.admin}/upstreams/moon/drain").status_code == 404


def test_a_drained_replica_finishes_and_gets_nothing_new(three: Fleet) -> None:
    def both() -> None:
        for number in range(2):  # one for each replica
            headers = {"x-request-id": f"long-{number}"}
            found.append(three.ask(headers, 400).status_code)

    found: list[int] = []
    waiting = [threading.Thread(target=both) for _ in range(2)]
    for thread in waiting:
        thread.start()
    wait_for(lambda: three.state("small-a")["requests_in_flight"])
    shown = three.post("/upstreams/small-a/drain")
    assert (shown["state"], shown["draining"]) == ("draining", True)
    ids = [f"drained-{number}" for number in range(4)]
    for request_id in ids:
        assert three.ask({"x-request-id": request_id}).status_code == 200
    assert {three.engine_of(request_id) for request_id in ids} == {"small-b"}
    for thread in waiting:
        thread.join()
    assert found == [200] * 4
    assert three.state("small-a")["requests_in_flight"] == 0
    three.post("/upstreams/small-b/drain")
    reply = three.ask()
    assert reply.status_code == 503
    assert reply.headers["retry-after"] == "2"
    assert "small-a is draining, small-b is draining" in reply.text
    assert get(f"{three.admin}/readyz").json()["models_without_engine"] == [SMALL]
    command = [sys.executable, "-m", "proxy", "upstreams", "--admin", three.admin]
    for name in ("small-a", "small-b"):
        done = subprocess.run(
            [*command, "resume", name], capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=60,
        )  # fmt: skip
        assert f"{name:<16} up " in done.stdout
    assert three.ask().status_code == 200


def test_a_killed_replica_loses_what_it_had_and_nothing_else(pair: Fleet) -> None:
    outcomes: dict[str, int] = {}

    def long(number: int) -> None:
        request_id = f"long-{number}"
        outcomes[request_id] = pair.ask({"x-request-id": request_id}, 2000).status_code

    waiting = [threading.Thread(target=long, args=(number,)) for number in range(4)]
    for thread in waiting:
        thread.start()
    wait_for(
        lambda: (
            pair.state("a")["requests_in_flight"]
            == pair.state("b")["requests_in_flight"]
            == 2
        )
    )
    pair.engines["a"].end(signal.SIGKILL)
    later = [f"later-{number}" for number in range(6)]
    for request_id in later:
        assert pair.ask({"x-request-id": request_id}).status_code == 200
    for thread in waiting:
        thread.join()
    assert sorted(outcomes.values()) == [200, 200, 502, 502]
    assert {pair.engine_of(request_id) for request_id in later} == {"b"}
    for request_id, status in outcomes.items():
        engine, outcome = ("b", "ok") if status == 200 else ("a", "upstream_error")
        assert pair.engine_of(request_id) == engine
        record = pair.get(f"/requests/{request_id}")
        assert record["outcome"] == outcome
    assert pair.state("a")["state"] == "down"
    text = get(f"{pair.admin}/metrics").text
    assert 'servewatt_upstream_up{engine="a"} 0.0' in text
    assert get(f"{pair.admin}/readyz").json()["ready"]

    pair.engines["a"].start()
    wait_for(lambda: pair.state("a")["state"] == "up")
    back = [f"back-{number}" for number in range(4)]
    for request_id in back:
        assert pair.ask({"x-request-id": request_id}).status_code == 200
    assert Counter(pair.engine_of(r) for r in back) == {"a": 2, "b": 2}
    for each in pair.get("/books")["engines"].values():
        assert each["measured_joules"] == pytest.approx(accounts(each), abs=1e-3)


def test_a_drained_upstream_is_logged_and_counted(three: Fleet) -> None:
    def changes() -> str:
        text = httpx.get(f"{three.admin}/metrics").text
        return "".join(line for line in text.splitlines(True) if "changes" in line)

    before = changes()
    three.post("/upstreams/small-a/drain")
    three.post("/upstreams/small-a/resume")
    assert changes() != before
