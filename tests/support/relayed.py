"""A proxy of several processes, for tests that kill them."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import httpx

from tests.support.children import (
    PATIENCE_SECONDS,
    get,
    is_alive,
    is_ready,
    record_of,
    wait_for,
)

MODEL = "simulated-llama-3.1-8b"


class Proxy:
    """Two relays before one meter, and what can be asked of them."""

    def __init__(self, addresses: dict[str, Any], parent: subprocess.Popen[str]):
        self.url, self.admin = addresses["url"], addresses["admin_url"]
        self.parent = parent

    def pid(self, name: str) -> int:
        """The process of that name, which there may not be at this moment."""
        children = Path(f"/proc/{self.parent.pid}/task/{self.parent.pid}/children")
        for pid in children.read_text().split():
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if name.encode() in words:
                return int(pid)
        return 0

    def kill(self, name: str) -> None:
        """End it; what is done after this meets it dead."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not is_alive(pid))

    def figures(self, name: str) -> dict[str, float]:
        """Series of one metric by their labels; empty while nobody answers."""
        try:
            text = get(f"{self.admin}/metrics").text
        except httpx.HTTPError:
            return {}
        lines = (line.rpartition(" ") for line in text.splitlines())
        return {
            series.removeprefix(name): float(value)
            for series, _, value in lines
            if series.partition("{")[0] == name
        }

    def total(self, name: str) -> float:
        return sum(self.figures(name).values())

    def is_whole(self) -> bool:
        """Both relays are connected, and all is ready."""
        try:
            return self.total("servewatt_relay_up") == 2 and is_ready(self.admin)
        except httpx.HTTPError:
            return False

    def ask(self, request_id: str, tokens: int = 5) -> httpx.Response:
        with httpx.Client(trust_env=False, timeout=PATIENCE_SECONDS) as client:
            return client.post(
                f"{self.url}/v1/chat/completions",
                json={
                    "model": MODEL, "stream": True, "max_tokens": tokens,
                    "ignore_eos": True,
                    "messages": [{"role": "user", "content": "hello"}],
                },
                headers={"x-request-id": request_id, "x-servewatt-energy": "1"},
            )  # fmt: skip

    def record(self, request_id: str) -> dict[str, Any]:
        """Its record, once it is settled."""
        return record_of(self.admin, request_id)
