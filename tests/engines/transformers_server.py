"""A real `transformers serve` on CPU, with a metering proxy in front of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.engines.cpu_power import cpu_seconds, power_of
from tests.engines.vllm_server import STOP_SECONDS, Vllm, free_port, wait_until_healthy
from tests.support.children import child, is_ready, wait_for

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
    """The `--power` argument that meters this server's CPU time, as SIMULATED."""

    def cpu_seconds(self) -> float:
        """CPU time the server has used so far, all threads."""
        return cpu_seconds(self.process.pid)


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
        wait_until_healthy(Vllm(url, process.pid, log_path), process)
        with (
            power_of(process.pid) as power,
            metered(url, power, folder) as proxy,
        ):
            yield Serving(
                url, str(model), process, proxy["url"], proxy["admin_url"], power
            )
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
