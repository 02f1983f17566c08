"""A NATS server with JetStream on loopback, which can be killed and started again."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.nats_server import MISSING, nats_binary, start_nats


class NatsServer:
    """One server; its store and, after the first start, its port stay the same."""

    def __init__(self, folder: Path, options: tuple[str, ...]) -> None:
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
        self._process, self._port = start_nats(self._folder, self._port, self._options)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def nats_server(folder: Path, *options: str) -> Iterator[NatsServer]:
    """Skips the test where Debian's nats-server, or nats-py, is missing."""
    pytest.importorskip("nats", reason="the bus needs nats-py")
    if nats_binary() is None:
        pytest.skip(MISSING)
    server = NatsServer(folder, options)
    server.start()
    try:
        yield server
    finally:
        server.kill()
