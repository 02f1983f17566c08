"""SIGHUP: files of secrets are used as they are now, or stay as they were."""

from __future__ import annotations

import http.server
import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.certificates import Leaf, authority
from tests.support.children import Killable, get, killable, post, wait_for

REPLY = json.dumps(
    {
        "id": "x",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
    }
).encode()


class Engine(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(b"{}")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._answer(REPLY)

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(leaf: Leaf | None = None) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    server.daemon_threads = True
    scheme = "http"
    if leaf is not None:
        scheme = "https"
        server.socket = leaf.server_context().wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"{scheme}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def proxy(upstream: str, log: Path, *options: str) -> Killable:
    return killable(
        "--upstream", upstream, "--power", "none", "--store", "none", *options,
        log=log,
    )  # fmt: skip


def status_of(addresses: dict[str, Any], name: str) -> int:
    return post(
        f"{addresses['url']}/v1/chat/completions",
        json={"model": "m", "messages": []},
        headers={"x-request-id": name, "x-team": "blue"},
    ).status_code


def hang_up(process: subprocess.Popen[str], log: Path, line: str) -> None:
    before = log.read_text().count(line)
    process.send_signal(signal.SIGHUP)
    wait_for(lambda: log.read_text().count(line) > before)


def test_authorities_of_an_upstream_are_read_again(tmp_path: Path) -> None:
    ours, others = authority(tmp_path, "ours"), authority(tmp_path, "others")
    trusted, log = tmp_path / "trusted.pem", tmp_path / "log"
    trusted.write_bytes(others.cert.read_bytes())
    options = ("--upstream-ca", str(trusted))
    with (
        serving(ours.leaf("engine")) as engine,
        proxy(engine, log, *options) as (addresses, process),
    ):
        assert status_of(addresses, "distrusted") == 502
        trusted.write_text("no certificate\n")
        hang_up(process, log, "TLS files of upstream vllm in use stay")
        assert status_of(addresses, "still") == 502
        trusted.write_bytes(ours.cert.read_bytes())
        hang_up(process, log, "TLS files of upstream vllm read again")
        assert status_of(addresses, "trusted") == 200


def test_the_key_of_tenants_hashes_is_read_again(tmp_path: Path) -> None:
    key, log = tmp_path / "key", tmp_path / "log"
    key.write_text("a" * 32)
    options = ("--tenant-header", "x-team", "--tenant-hash-key-file", str(key))
    with (
        serving() as engine,
        proxy(engine, log, *options) as (addresses, process),
    ):

        def tenant(name: str) -> str:
            assert status_of(addresses, name) == 200
            url = f"{addresses['admin_url']}/requests/{name}"
            wait_for(lambda: get(url).status_code == 200)
            return str(get(url).json()["tenant"])

        first = tenant("one")
        key.write_text("short")
        hang_up(process, log, "the tenant hash key in use stays")
        assert tenant("two") == first
        key.write_text("b" * 32)
        hang_up(process, log, "tenant hash key read again")
        assert tenant("three") not in ("blue", first)
