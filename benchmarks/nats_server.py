"""A nats-server of one's own with JetStream, on a port of loopback."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

MISSING = "nats-server is missing: install Debian's nats-server package"
START_SECONDS = 60.0
LISTENS = re.compile(r"(?:nats|tls)://127\.0\.0\.1:(\d+)")


def nats_binary() -> str | None:
    """Where it is; Debian keeps it out of the path of ordinary users."""
    return shutil.which("nats-server", path=f"{os.environ['PATH']}:/usr/sbin")


def start_nats(
    folder: Path, port: int = -1, options: tuple[str, ...] = ()
) -> tuple[subprocess.Popen[bytes], int]:
    """Start it, the second time with what it had stored; its process and port.

    `port` -1 is any that is free. Ends the program where there is no nats-server, or
    it does not say within a minute where it listens.
    """
    binary = nats_binary()
    if binary is None:
        raise SystemExit(MISSING)
    ports = folder / "ports"
    shutil.rmtree(ports, ignore_errors=True)
    ports.mkdir()
    with (folder / "nats.log").open("ab") as log:
        process = subprocess.Popen(
            [binary, "-js", "-sd", str(folder / "store"), "-a", "127.0.0.1",
             "-p", str(port), "--ports_file_dir", str(ports), *options],
            stdout=log, stderr=log,
        )  # fmt: skip
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        for path in ports.glob("*.ports"):
            if found := re.search(
                r"(?:nats|tls)://127\.0\.0\.1:(\d+)", path.read_text()
            ):
                return process, int(found[1])
        time.sleep(0.02)
    process.kill()
    process.wait()
    raise SystemExit(f"nats-server does not listen: see {folder / 'nats.log'}")
