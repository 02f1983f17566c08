"""A real `transformers serve` on CPU, with a metering proxy in front of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.children import child, is_ready, wait_for

START_SECONDS = 180
"""Takes 5 to 10 s; a busy machine gets more."""
STOP_SECONDS = 30
BATCHING = (
    "--continuous-batching", "--cb-block-size", "128", "--cb-num-blocks", "512",
    "--cb-max-batch-tokens", "2048",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Serving:
    """A running server, directly and through the proxy."""

    direct: str
    model: str
    process: subprocess.Popen[bytes]
    url: str
    """The proxy's serving port."""
    admin: str
    power: str
    """A `--power` argument: the readings of a SIMULATED GPU that is always idle."""

    def cpu_seconds(self) -> float:
        """CPU time the server has used so far, all threads."""
        return time.clock_gettime((~self.process.pid << 3) | 2)


def curt_model(model: Path, folder: Path) -> Path:
    """A copy of a model for which every second token ends the reply."""
    curt = folder / "curt"
    shutil.copytree(model, curt)
    path = curt / "generation_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"eos_token_id": list(range(2, 4096, 2))}))
    return curt


@contextlib.contextmanager
def serving(bin: Path, model: Path, folder: Path, *flags: str) -> Iterator[Serving]:
    """Start `transformers serve` and a proxy; both ready when the body runs."""
    port = free_port()
    hub = folder / "hub"
    hub.mkdir()
    own = {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(hub),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
    }
    log_path = folder / "transformers.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [
                bin / "transformers", "serve", model, "--host", "127.0.0.1",
                "--port", str(port), "--device", "cpu", *flags,
            ],
            env=os.environ | own, cwd=folder, stdin=subprocess.DEVNULL,
            stdout=log, stderr=log,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_healthy(url, process, log_path)
        with (
            child("loadgen", "simulate", "--listen", "127.0.0.1:0", cwd=folder) as gpu,
            metered(url, f"dcgm={gpu['power_url']}", folder) as proxy,
        ):
            yield Serving(
                url, str(model), process, proxy["url"], proxy["admin_url"],
                f"dcgm={gpu['power_url']}",
            )  # fmt: skip
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS)


@contextlib.contextmanager
def metered(upstream: str, power: str, folder: Path) -> Iterator[dict[str, str]]:
    """A proxy that speaks this dialect; ready."""
    with child(
        "proxy", "serve", "--engine", "transformers", "--upstream", upstream,
        "--power", power, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0",
        "--store", "none", cwd=folder,
    ) as proxy:  # fmt: skip
        wait_for(lambda: is_ready(proxy["admin_url"]))
        yield proxy


def wait_until_healthy(
    url: str, process: subprocess.Popen[bytes], log_path: Path
) -> None:
    """Raises AssertionError with the end of the log when it does not come up."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health").status_code == 200:
                return
        is_over = process.poll() is not None or time.monotonic() > deadline
        assert not is_over, log_path.read_text(errors="replace")[-3000:]
        time.sleep(0.2)


def free_port() -> int:
    """A port nobody listens on now; the server takes a number, not a socket."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
