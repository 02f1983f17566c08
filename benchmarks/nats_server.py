"""A nats-server of a benchmark's own, with JetStream, on a port of loopback."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path


def start_nats(folder: Path, port: int = -1) -> tuple[subprocess.Popen[bytes], int]:
    """Start it, the second time with what it had stored; -1 is any free port.

    Ends the program where Debian's package is missing.
    """
    binary = shutil.which("nats-server", path=f"{os.environ['PATH']}:/usr/sbin")
    if binary is None:
        sys.exit("nats-server is missing: install Debian's package of that name")
    ports = folder / "ports"
    shutil.rmtree(ports, ignore_errors=True)
    ports.mkdir()
    with (folder / "nats.log").open("ab") as log:
        process = subprocess.Popen(
            [binary, "-js", "-sd", str(folder / "store"), "-a", "127.0.0.1",
             "-p", str(port), "--ports_file_dir", str(ports)],
            stdout=log, stderr=log,
        )  # fmt: skip
    while (
        not (found := [path.read_text() for path in ports.glob("*.ports")])
        or not (found[0])
    ):
        time.sleep(0.02)
    port = int(found[0].partition("nats://127.0.0.1:")[2].partition('"')[0])
    return process, port
