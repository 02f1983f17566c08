"""What clients send in confidence is found nowhere afterwards: real processes."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.children import metering, record_of, simulating, wait_for
from tests.support.paths import ROOT
from tests.support.scripted import Peer, reply_bytes, running

PATIENCE_SECONDS = 180
"""For processes that start beside much else; nothing here takes long by itself."""

SECRETS = {
    "Authorization": "Bearer sk-authorization-0451",
    "X-Api-Key": "key-x-api-0452",
    "Api-Key": "key-api-0453",
    "Cookie": "session=cookie-0454; other=cookie-0455",
    "X-Auth-Token": "token-0456",
    "Proxy-Authorization": "Basic cHJveHktMDQ1Nw==",
}
QUERY = "query-0458"
PROMPT = "prompt-0459"
WORDS = [
    "sk-authorization-0451", "key-x-api-0452", "key-api-0453", "cookie-0454",
    "cookie-0455", "token-0456", "cHJveHktMDQ1Nw", QUERY, PROMPT,
]  # fmt: skip
BODY = {"model": "m", "messages": [{"role": "user", "content": PROMPT}]}


async def indiscreet(peer: Peer) -> None:
    """Echoes every header that it got in an error, as a careless engine would."""
    while (request := await peer.request()) is not None:
        if request.method == "GET":
            await peer.send(reply_bytes(200, b'{"data":[]}'))
            continue
        said = "; ".join(f"{n}: {v}" for n, v in request.headers if n in SECRETS)
        body = json.dumps({"error": {"message": f"not for you: {said}"}})
        status = 401 if "x-fail" in dict(request.headers) else 200
        if status == 200:
            body = json.dumps({"usage": {"prompt_tokens": 3, "completion_tokens": 2}})
        await peer.send(reply_bytes(status, body.encode()))


@contextmanager
def debugged(folder: Path, *arguments: str) -> Iterator[tuple[dict[str, Any], Path]]:
    """A proxy that logs everything it can, and where."""
    log = folder / "log"
    with log.open("wb") as written:
        process = subprocess.Popen(
            [sys.executable, "-m", "proxy", "serve", "--listen", "127.0.0.1:0",
             "--admin", "127.0.0.1:0", "--power", "none", "--log-level", "debug",
             "--access-log", "--announce", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=written,
            cwd=folder, text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONASYNCIODEBUG": "1"},
        )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline()), log
    finally:
        process.stdin.close()
        process.wait(PATIENCE_SECONDS)
        process.stdout.close()


def send(url: str, request_id: str, **headers: str) -> int:
    with httpx.Client(trust_env=False) as client:
        reply = client.post(
            f"{url}/v1/chat/completions",
            params={"key": QUERY},
            json=BODY,
            headers=SECRETS | {"x-request-id": request_id} | headers,
        )
        return reply.status_code


def everything_told(admin: str) -> bytes:
    with httpx.Client(base_url=admin, trust_env=False) as client:
        paths = client.get("/").json()["paths"]
        pages = [read(client, path) for path in paths if "{" not in path]
        pages.append(read(client, "/metrics", accept="application/openmetrics-text"))
        return b"".join(pages)


def read(client: httpx.Client, path: str, **headers: str) -> bytes:
    """A reply with its headers; of a stream two events, the whole and what is more."""
    with client.stream("GET", path, headers=headers) as reply:
        is_stream = reply.headers.get("content-type") == "text/event-stream"
        told = repr(reply.headers).encode()
        events = 0
        for piece in reply.iter_bytes():
            told += piece
            events += piece.count(b"\n\n")
            if is_stream and events >= 2:
                break
        return told


@pytest.mark.parametrize("hashing", [False, True])
def test_no_secret_of_a_client_is_logged_stored_or_told(
    tmp_path: Path, hashing: bool
) -> None:
    store = tmp_path / "records.sqlite"
    (tmp_path / "key").write_text("a-key-for-hashing-tenants")
    tenants = ["--tenant-header", "authorization", "--tenant-hash-key-file",
               str(tmp_path / "key")] if hashing else []  # fmt: skip
    with running(indiscreet) as engine:
        options = ["--upstream", engine.url, "--store", f"sqlite:///{store}", *tenants]
        with debugged(tmp_path, *options) as (proxy, log):
            url, admin = proxy["url"], proxy["admin_url"]
            assert send(url, "good") == 200
            assert send(url, "bad", **{"x-fail": "1"}) == 401
            with httpx.Client(trust_env=False) as client:
                unknown = client.get(f"{url}/nowhere?key={QUERY}", headers=SECRETS)
                assert unknown.status_code == 404
                assert QUERY not in unknown.text
            bad = record_of(admin, "bad")
            assert "not for you" in bad["error"]
            assert "[redacted]" in bad["error"]
            good = record_of(admin, "good")
            assert (len(good["tenant"]) == 16) == hashing
            told = everything_told(admin)
            (sent, _) = [r for r in engine.requests if r.method == "POST"]
            assert sent.one("authorization") == SECRETS["Authorization"]  # passed on
            assert f"key={QUERY}" in sent.target
        assert send_fails(url)
    kept = b"".join(
        path.read_bytes() for path in tmp_path.rglob("*") if path.name != "key"
    )
    with contextlib.closing(sqlite3.connect(store)) as database:
        rows = database.execute("select * from servewatt_records").fetchall()
    assert len(rows) == 2
    assert b"DEBUG" in log.read_bytes()
    for word in WORDS:
        assert word.encode() not in told, word
        assert word.encode() not in kept, word
    assert not hashing or good["tenant"].encode() in told


def send_fails(url: str) -> bool:
    try:
        send(url, "late")
    except httpx.HTTPError:
        return True
    return False


def test_an_upstream_that_is_down_is_logged_without_what_the_client_sent(
    tmp_path: Path,
) -> None:
    with debugged(tmp_path, "--upstream", "http://127.0.0.1:9", "--store", "none") as (
        proxy,
        log,
    ):
        assert send(proxy["url"], "down") == 502
        told = everything_told(proxy["admin_url"])
    kept = log.read_bytes()
    assert b"127.0.0.1:9" in kept
    for word in WORDS:
        assert word.encode() not in told + kept, word


@pytest.mark.parametrize(
    "option",
    [
        ["--upstream", "http://user:hunter-0460@127.0.0.1:9"],
        ["--upstream", "ftp://user:hunter-0460@127.0.0.1:9"],
        ["--upstream", "http://127.0.0.1:9", "--engine-metrics",
         "http://user:hunter-0460@h/metrics"],
        ["--upstream", "http://127.0.0.1:9", "--power",
         "redfish=https://user:hunter-0460@bmc"],
        ["--upstream", "http://127.0.0.1:9", "--power",
         "dcgm=http://user:hunter-0460@h/metrics"],
        ["--upstream", "http://127.0.0.1:9", "--store",
         "postgres:/user:hunter-0460@h/db"],
        ["--upstream", "http://127.0.0.1:9", "--store", "mysql://u:hunter-0460@h/db"],
    ],
)  # fmt: skip
def test_a_password_in_the_configuration_is_refused_without_being_shown(
    option: list[str],
) -> None:
    power = [] if "--power" in option else ["--power", "none"]
    done = subprocess.run(
        [sys.executable, "-m", "proxy", "serve", "--listen", "127.0.0.1:0", "--admin",
         "127.0.0.1:0", *power, *option],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert done.returncode == 2
    assert "hunter-0460" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "lines",
    [
        'url = "http://user:hunter-0460@h"\npower = "none"',
        'url = "ftp://user:hunter-0460@h"\npower = "none"',
        'url = "http://h"\npower = "redfish=https://user:hunter-0460@bmc"',
        'url = "http://h"\npower = "none"\n'
        'engine-metrics = "http://user:hunter-0460@h/metrics"',
    ],
)
def test_a_password_in_the_file_of_upstreams_is_not_shown_either(
    tmp_path: Path, lines: str
) -> None:
    config = tmp_path / "upstreams.toml"
    config.write_text(f'[[upstream]]\nname = "a"\n{lines}\n')
    done = subprocess.run(
        [sys.executable, "-m", "proxy", "serve", "--listen", "127.0.0.1:0", "--admin",
         "127.0.0.1:0", "--store", "none", "--config", str(config)],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert done.returncode == 2
    assert "hunter-0460" not in done.stdout + done.stderr


def test_the_password_of_a_store_is_not_told(tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    url = "postgresql://user:hunter-0461@127.0.0.1:9/db?sslpassword=hunter-0462"
    with debugged(tmp_path, "--upstream", "http://127.0.0.1:9", "--store", url) as (
        proxy,
        log,
    ):
        wait_for(lambda: b"records wait in memory" in log.read_bytes())
        told = everything_told(proxy["admin_url"])
    assert b"127.0.0.1:9/db" in told
    for word in (b"hunter-0461", b"hunter-0462"):
        assert word not in told + log.read_bytes()


async def trap(peer: Peer) -> None:
    while await peer.request() is not None:
        await peer.send(reply_bytes(502))


def test_a_proxy_of_the_environment_is_never_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "two.jsonl"
    row = {"input_length": 100, "output_length": 30, "kind": "code"}
    trace.write_text(2 * (json.dumps(row) + "\n"))
    with running(trap) as caught:
        for name in ("http_proxy", "https_proxy", "all_proxy", "ws_proxy"):
            monkeypatch.setenv(name, caught.url)
            monkeypatch.setenv(name.upper(), caught.url)
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setenv("NO_PROXY", "")
        _metered_run(tmp_path, trace)
        assert caught.peers == []


def _metered_run(folder: Path, trace: Path) -> None:
    """Relay, gauges, sensor, health, the load and its ledger, each used once."""
    run = [sys.executable, "-m"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with (
        simulating(folder) as engine,
        metering(folder, engine, waits=False) as proxy,
    ):
        done = subprocess.run(
            [*run, "loadgen", "replay", str(trace), "--rate", "inf", "--quiet",
             "--url", proxy["url"], "--ledger", proxy["admin_url"],
             "--out", str(folder / "run")],
            env=environment, capture_output=True, timeout=PATIENCE_SECONDS,
        )  # fmt: skip
        assert done.returncode in (0, 3), done.stderr  # a busy host
        subprocess.run(
            [*run, "proxy", "calibrate", proxy["admin_url"]],
            env=environment, check=True, capture_output=True, timeout=PATIENCE_SECONDS,
        )  # fmt: skip
        with httpx.Client(trust_env=False) as client:
            shown = client.get(f"{proxy['admin_url']}/metrics").text
    assert "servewatt_engine_gauges_up" in shown
    assert "servewatt_sensor_up" in shown
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["completed"] == 2
    assert summary["energy"]["measured_joules"] > 0


def test_the_keys_of_a_load_are_in_nothing_that_it_writes(tmp_path: Path) -> None:
    async def careless(peer: Peer) -> None:
        while (request := await peer.request()) is not None:
            told = " ".join(value for _, value in request.headers if "-04" in value)
            said = {"error": {"message": f"go away {told}"}}
            await peer.send(reply_bytes(401, json.dumps(said).encode()))

    trace = tmp_path / "one.jsonl"
    trace.write_text(json.dumps({"input_length": 9, "output_length": 3}) + "\n")
    out = tmp_path / "run"
    with running(careless) as engine:
        done = subprocess.run(
            [sys.executable, "-m", "loadgen", "replay", str(trace), "--rate", "inf",
             "--url", engine.url, "--model", "m", "--api-key-env", "LOAD_KEY",
             "--header", "X-Api-Key=header-0463", "--header", "Cookie=a=cookie-0464",
             "--header", "X-Tenant=any-0465", "--out", str(out)],
            env=os.environ | {"PYTHONPATH": str(ROOT), "LOAD_KEY": "sk-load-0466"},
            capture_output=True, text=True, timeout=PATIENCE_SECONDS,
        )  # fmt: skip
    (request,) = [r for r in engine.requests if r.one("content-type") is not None]
    assert request.one("authorization") == "Bearer sk-load-0466"
    assert request.one("x-tenant") == "any-0465"
    kept = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert b"go away" in kept
    for word in ("sk-load-0466", "header-0463", "cookie-0464", "any-0465"):
        assert word.encode() not in kept, word
        assert word not in done.stdout + done.stderr
