"""The simulator and the proxy as real processes, for tests of the whole way."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from tests.support.paths import ROOT

PATIENCE_SECONDS = 60


@contextlib.contextmanager
def child(*command: str, cwd: Path) -> Iterator[dict[str, Any]]:
    """A process that announces itself; it ends with its standard input."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command, "--announce"], cwd=cwd, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        announced: dict[str, Any] = json.loads(process.stdout.readline())
        yield announced
    finally:
        process.stdin.close()
        process.wait(PATIENCE_SECONDS)
        process.stdout.close()


Killable = contextlib.AbstractContextManager[
    tuple[dict[str, Any], "subprocess.Popen[str]"]
]


def killable(
    *options: str,
    log: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Killable:
    """A proxy on free ports to send signals to: what it announced, and the process.

    `log` takes its standard error, `environment` stands in for this process's own.
    """
    command = ("proxy", "serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0",
               "--announce", *options)  # fmt: skip
    return killable_module(*command, log=log, environment=environment)


@contextlib.contextmanager
def killable_module(
    *command: str,
    log: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[tuple[dict[str, Any], subprocess.Popen[str]]]:
    """The same of any module that prints its addresses and ends with its input."""
    with contextlib.ExitStack() as stack:
        words = stack.enter_context(log.open("w")) if log else subprocess.DEVNULL
        process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=ROOT, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words, text=True,
        )  # fmt: skip
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline()), process
    finally:
        process.kill()
        process.communicate()


def simulating(
    folder: Path, *options: str
) -> contextlib.AbstractContextManager[dict[str, Any]]:
    """A simulated engine on a free port: its `url`, and its GPU's as `power_url`."""
    command = ("loadgen", "simulate", "--listen", "127.0.0.1:0", *options)
    return child(*command, cwd=folder)


@contextlib.contextmanager
def metering(
    folder: Path,
    engine: Mapping[str, Any],
    *options: str,
    power: str = "",
    waits: bool = True,
) -> Iterator[dict[str, Any]]:
    """A proxy on free ports before a simulated engine: its `url` and `admin_url`.

    It reads the simulated GPU, or `power`, and stores nothing unless `options` say so.
    It is ready when this begins, unless `waits` is false: a guarded one answers nobody.
    """
    command = (
        "proxy", "serve", "--upstream", engine["url"],
        "--power", power or f"dcgm={engine['power_url']}", "--store", "none",
        "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", *options,
    )  # fmt: skip
    with child(*command, cwd=folder) as announced:
        if waits:
            wait_for(lambda: is_ready(announced["admin_url"]))
        yield announced


def get(url: str, **options: Any) -> httpx.Response:
    """One request, without the 30 ms that `httpx.get` takes for certificates."""
    return _ask("GET", url, options)


def post(url: str, **options: Any) -> httpx.Response:
    """One request with a body, likewise."""
    return _ask("POST", url, options)


def _ask(method: str, url: str, options: dict[str, Any]) -> httpx.Response:
    timeout = options.pop("timeout", PATIENCE_SECONDS)
    with httpx.Client(verify=False, trust_env=False, timeout=timeout) as client:
        return client.request(method, url, **options)


def is_ready(admin: str) -> bool:
    return get(f"{admin}/readyz").status_code == 200


def is_alive(pid: int) -> bool:
    """Whether a process, that need not be our own child, has not ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_for(claim: Callable[[], object]) -> Any:
    """Poll until a claim about other processes holds; bounded, never a measure."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (result := claim()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return result


def record_of(admin: str, request_id: str) -> dict[str, Any]:
    url = f"{admin}/requests/{request_id}"
    wait_for(lambda: get(url).status_code == 200)
    record: dict[str, Any] = get(url).json()
    return record
