"""A real `vllm serve` on CPU, with a metering proxy in front of it."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.engines.cpu_power import power_of
from tests.support.children import child, get, is_ready, wait_for

START_SECONDS = 240
"""Takes 20 to 40 s; a busy machine gets more."""
STOP_SECONDS = 30
MODEL = "tiny"
"""A seed, a temperature and a prompt of several chunks (2,048 tokens) in one request
kill vLLM 0.32 on CPU: keep them apart."""
MAX_TOKENS = 65_536
OFFLINE = {
    "VLLM_HOST_IP": "127.0.0.1",  # every listener on loopback, internal queues too
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    # else every server on this machine is pinned to the same core
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}
FLAGS = (
    "--served-model-name", MODEL, "--host", "127.0.0.1", "--dtype", "bfloat16",
    "--enforce-eager", "--max-model-len", str(MAX_TOKENS),
    "--kv-cache-memory-bytes", "67108864",  # 131,072 tokens of this model
    "--disable-uvicorn-access-log",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Vllm:
    """A running server."""

    url: str
    pid: int
    log_path: Path

    def counter(self, name: str) -> float:
        """The sum of a metric over its labels, on the engine's own page."""
        return metric_of(self.url, name)


@dataclass(frozen=True, slots=True)
class Metered:
    """A vLLM, directly and through the proxy."""

    vllm: Vllm
    url: str
    """The proxy's serving port."""
    admin: str
    power: str
    """The `--power` argument that meters this engine."""


def metric_of(url: str, name: str) -> float:
    """The sum of a metric over its labels."""
    page = get(f"{url}/metrics").text
    values = re.findall(rf"^{name}(?:\{{.*\}})? ([0-9.e+-]+)$", page, re.MULTILINE)
    return sum(map(float, values))


@contextlib.contextmanager
def running_vllm(bin: Path, model: Path, folder: Path, *flags: str) -> Iterator[Vllm]:
    """Start `vllm serve` with `FLAGS` and these; ready when the body runs."""
    log_path = folder / "vllm.log"
    port = free_port()
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [bin / "vllm", "serve", model, "--port", str(port), *FLAGS, *flags],
            env=os.environ | OFFLINE, cwd=folder, stdin=subprocess.DEVNULL,
            stdout=log, stderr=log,
        )  # fmt: skip
    vllm = Vllm(f"http://127.0.0.1:{port}", process.pid, log_path)
    try:
        wait_until_healthy(vllm, process)
        yield vllm
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS)


def wait_until_healthy(vllm: Vllm, process: subprocess.Popen[bytes]) -> None:
    """Raises AssertionError with the end of the log when it does not come up."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(httpx.TransportError):
            if get(f"{vllm.url}/health").status_code == 200:
                return
        is_over = process.poll() is not None or time.monotonic() > deadline
        assert not is_over, vllm.log_path.read_text(errors="replace")[-3000:]
        time.sleep(0.2)


@contextlib.contextmanager
def metered(vllm: Vllm, folder: Path, *options: str) -> Iterator[Metered]:
    """A proxy in front, metering the CPU time of the engine; ready."""
    with (
        power_of(vllm.pid) as power,
        child(
            "proxy", "serve", "--upstream", vllm.url, "--power", power,
            "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--store", "none",
            "--usage-event", "drop",  # the first stream is one to look at, too
            *options, cwd=folder,
        ) as proxy,
    ):  # fmt: skip
        wait_for(lambda: is_ready(proxy["admin_url"]))
        yield Metered(vllm, proxy["url"], proxy["admin_url"], power)


def free_port() -> int:
    """A port nobody listens on now; vLLM takes a number, not a socket."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
