"""`metering-proxy fleet` against answers of every kind, and from a store."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import click
import httpx
import msgspec
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import URL

from proxy.commands.asked import EXIT_INCOMPLETE
from proxy.commands.fleet import fleet
from proxy.commands.legs import legs
from proxy.errors import ConfigError
from proxy.store.database import Database
from proxy.store.stored_record import StoredRecord, row_of
from proxy.wire.api import ClassTotals, EngineTotals, TotalsReply
from tests.support.admin_api import ask
from tests.support.certificates import authority
from tests.support.stored_records import record


def answer(run: str, instance: str) -> bytes:
    one = ClassTotals(
        model="m", tenant="t", requests=4, requests_without_energy=0,
        requests_without_tokens=0, prompt_tokens=5, output_tokens=8,
        prefill_joules=1.0, decode_joules=2.0, idle_share_joules=1.0,
    )  # fmt: skip
    accounts = {"prefill": 1.0, "decode": 2.0, "idle_share": 1.0, "idle": 6.0,
                "unattributed": 0.0}  # fmt: skip
    engine = EngineTotals(boundary="gpu", simulated=True, account_joules=accounts,
                          gap_seconds=0.0, classes=[one])  # fmt: skip
    return msgspec.json.encode(
        TotalsReply(version="1", run=run, run_unix_seconds=1.7e9, instance=instance,
                    host="h", engines={"vllm": engine})
    )  # fmt: skip


PAGES = {
    "/a": (200, answer("run-a", "a")),
    "/b": (200, answer("run-b", "b")),
    "/again": (200, answer("run-a", "a")),
    "/namesake": (200, answer("run-c", "a")),
    "/refuses": (401, b'{"error": "the admin API wants its token"}'),
    "/other": (200, b"<html>hello</html>"),
    "/endless": (200, b"x" * (5 * 1024 * 1024)),
}


class Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path = self.path.removesuffix("/totals")
        if path == "/silent":
            self.server.ending.wait(60)  # type: ignore[attr-defined]  # below
            return
        status, body = PAGES[path]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: the test's output is its own."""

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    server.ending = threading.Event()  # type: ignore[attr-defined]  # for the handler
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.ending.set()  # type: ignore[attr-defined]  # as above
    server.shutdown()
    thread.join()
    server.server_close()


def called(*words: str) -> Result:
    return CliRunner().invoke(fleet, list(words))


def test_proxies_are_added_and_one_named_twice_is_counted_once(base: str) -> None:
    done = called("--json", f"{base}/a", f"{base}/b", f"{base}/again")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    (total,) = found["totals"]["totals"]
    assert (total["requests"], total["measured_joules"]) == (8, 20.0)
    (once,) = found["repeated"]
    assert once == {"url": f"{base}/again", "reason": f"the same process as {base}/a"}


def test_a_private_authority_is_believed_where_it_is_named(
    base: str, tmp_path: Path
) -> None:
    signer = authority(tmp_path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    context = signer.leaf("proxy").server_context()
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"https://127.0.0.1:{server.server_port}/b"
        done = called("--json", "--ca", str(signer.cert), f"{base}/a", url)
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["totals"]["totals"][0]["requests"] == 8
        other = authority(tmp_path, "other")
        for words in ((), ("--ca", str(other.cert))):
            done = called(*words, url)
            assert done.exit_code == EXIT_INCOMPLETE
            assert "certificate verify failed" in done.stdout
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("command", [fleet, legs], ids=["fleet", "legs"])
def test_an_authority_that_cannot_be_used_is_one_line(
    command: click.Command, tmp_path: Path
) -> None:
    path = tmp_path / "ca.pem"
    done = CliRunner().invoke(command, ["--ca", str(path), "https://a:9464"])
    assert isinstance(done.exception, ConfigError)
    assert str(done.exception) == f"--ca {path}: no such file or directory"
    path.write_text("no certificate")
    done = CliRunner().invoke(command, ["--ca", str(path), "https://a:9464"])
    assert isinstance(done.exception, ConfigError)
    assert str(path) in str(done.exception)
    done = CliRunner().invoke(command, ["--ca", str(path), "http://a:9464"])
    assert done.exit_code == 2
    assert "--ca is for https:// URLs" in done.stderr


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/refuses", "answered 401: the admin API wants its token"),
        ("/other", "is not understood"),
        ("/endless", "its body has over 4194304 bytes"),
        ("/silent", "no whole reply within 2 s"),
        ("/namesake", "says that it is a"),
    ],
)
def test_what_cannot_be_counted_is_named_and_the_rest_is_shown(
    base: str, path: str, reason: str
) -> None:
    timeout = "2" if path == "/silent" else "30"
    done = called("--timeout", timeout, f"{base}/a", f"{base}{path}")
    assert done.exit_code == EXIT_INCOMPLETE
    assert f"missing: {base}{path}: " in done.stdout
    assert reason in done.stdout
    assert "1 of 2 are in no sum above" in done.stdout
    assert "SIMULATED" in done.stdout


def test_a_proxy_that_is_away_is_named_without_its_password() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        port = taken.getsockname()[1]
        done = called(f"http://user:secret@127.0.0.1:{port}")
    assert done.exit_code == EXIT_INCOMPLETE
    assert f"127.0.0.1:{port}: " in done.stdout
    assert "secret" not in done.stdout
    assert "nothing was counted" in done.stdout


@pytest.mark.parametrize(
    "words",
    [(), ("http://a", "--store", "sqlite:///x"), ("http://a", "--since", "1"),
     ("ftp://a",), ("--store", "sqlite:///x", "--since", "soon")],
    ids=["none", "both", "since", "scheme", "time"],
)  # fmt: skip
def test_what_makes_no_sense_is_a_usage_error(words: tuple[str, ...]) -> None:
    assert called(*words).exit_code == 2


def test_a_real_proxy_tells_its_totals() -> None:
    async def visit(client: httpx.AsyncClient) -> None:
        reply = await client.get("/totals")
        found = msgspec.json.decode(reply.content, type=TotalsReply)
        (engine,) = found.engines.values()
        assert engine.boundary == "gpu"
        assert engine.account_joules is not None
        inside = sum(each.decode_joules or 0.0 for each in engine.classes)
        assert 0 < inside <= engine.account_joules["decode"] + 1e-9

    ask(visit)


def test_a_store_gives_the_same_figures_of_each_proxy_that_shares_it(url: URL) -> None:
    unknown = replace(record(3).energy, prefill_joules=None, decode_joules=None,
                      idle_share_joules=None, energy_joules=None)  # fmt: skip
    for name, rows in {
        "a": [replace(record(1), leg="prefill"), record(2)],
        "b": [record(4), replace(record(3), energy=unknown)],
    }.items():
        database = Database(url, "http://engine", name, None, {"vllm": "gpu"})
        database.open()
        database.instance, database.host = name, "h"
        database.write([row_of(StoredRecord(r.output_tokens or 0, 1.7e9, r))
                        for r in rows])  # fmt: skip
        database.close()
    shown = url.render_as_string(hide_password=False)
    done = called("--store", shown, "--by", "instance", "--json")
    assert done.exit_code == 0, done.output
    found = {row["name"]: row for row in json.loads(done.stdout)["totals"]["rows"]}
    assert found["a"]["requests"] == 2
    assert found["a"]["attributed_joules"] == pytest.approx(2 * 55.6)
    assert (found["a"]["prefill_legs"], found["a"]["decode_legs"]) == (1, 0)
    assert not found["a"]["is_attributed_lower_bound"]
    assert found["a"]["account_joules"]["idle"] is None
    assert found["b"]["attributed_joules"] == pytest.approx(55.6)
    assert found["b"]["is_attributed_lower_bound"]
    late = called("--store", shown, "--json", "--since", "1.8e9")
    assert json.loads(late.stdout)["totals"]["rows"] == []


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "none.sqlite"
    done = called("--store", f"sqlite:///{path}")
    assert "there is no such file" in str(done.exception)
    assert not path.exists()
