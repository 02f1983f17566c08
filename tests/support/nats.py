"""A NATS server with JetStream on loopback, which can be killed and started again."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.children import wait_for


class NatsServer:
    """One server; its store and, after the first start, its port stay the same."""

    def __init__(self, binary: str, folder: Path, options: tuple[str, ...]) -> None:
        self._binary = binary
        self._options = options
        self._folder = folder
        self._port = -1
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self._port}"

    @property
    def tls_url(self) -> str:
        return f"tls://127.0.0.1:{self._port}"

    def lose_store(self) -> None:
        """All that it kept, as with a new disk; while it is down."""
        shutil.rmtree(self._folder / "store")

    def start(self) -> None:
        ports = self._folder / "ports"
        shutil.rmtree(ports, ignore_errors=True)
        ports.mkdir()
        with (self._folder / "nats.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary, "-js", "-sd", str(self._folder / "store"),
                 "-a", "127.0.0.1", "-p", str(self._port), "--ports_file_dir",
                 str(ports), *self._options],
                stdout=log, stderr=log,
            )  # fmt: skip
        [path] = wait_for(lambda: list(ports.glob("*.ports")))
        text = wait_for(lambda: path.read_text())
        found = re.search(r"(?:nats|tls)://127\.0\.0\.1:(\d+)", text)
        assert found is not None, text
        self._port = int(found[1])

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def nats_server(folder: Path, *options: str) -> Iterator[NatsServer]:
    """Skips the test where Debian's nats-server, or nats-py, is missing."""
    pytest.importorskip("nats", reason="the bus needs nats-py")
    binary = shutil.which("nats-server", path=f"{os.environ['PATH']}:/usr/sbin")
    if binary is None:
        pytest.skip("nats-server is missing: install Debian's nats-server package")
    server = NatsServer(binary, folder, options)
    server.start()
    try:
        yield server
    finally:
        server.kill()
