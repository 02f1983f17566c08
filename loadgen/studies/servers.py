"""Servers that a study starts: a free port, a wait until they answer, a sure end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from loadgen.errors import StackError
from loadgen.studies.gpu_memory import used_bytes, wait_until_freed
from loadgen.studies.presets import HOST
from proxy.process.files import PRIVATE, private_folder
from proxy.process.http_get import GetError, Getter
from proxy.process.terminal import escaped

STOP_SECONDS = 30.0
"""A server that is told to end gives its memory back in order, if it can."""
GUARD_SECONDS = 15.0
"""What the guard takes beyond that to kill what is left."""
POLL_SECONDS = 0.1
ASK_SECONDS = 2.0
TAIL_LINES, TAIL_BYTES = 8, 64 * 1024

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Launch:
    """What is started, and how it shows that it serves."""

    name: str
    command: Callable[[int], list[str]]
    """Its words for a port."""
    environment: Mapping[str, str]
    health: str
    start_seconds: float
    gpus: str | None
    log_path: Path


class RunningServer:
    """A server that answers; its process may end at any time."""

    def __init__(self, url: str, guard: subprocess.Popen[bytes], log: Path) -> None:
        self.url = url
        self.log_path = log
        self._guard = guard

    @property
    def is_alive(self) -> bool:
        """Whether its process is there."""
        return self._guard.poll() is None


def free_port() -> int:
    """A port that nobody listens on now; servers take a number, not a socket."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(launch: Launch, say: Log) -> Iterator[RunningServer]:
    """Start a server and wait until it answers; end all of it behind the block.

    Raises StackError, with the last lines of its log, when it does not come up.
    """
    before = used_bytes(launch.gpus)
    port = free_port()
    words = launch.command(port)
    guard = _start(words, launch)
    server = RunningServer(f"http://{HOST}:{port}", guard, launch.log_path)
    try:
        _wait_until_healthy(server, launch)
        yield server
    finally:
        _end(guard)
        held = wait_until_freed(before, lambda: used_bytes(launch.gpus))
        if held is not None:
            say(f"{launch.name}: {held}")


def last_lines(log_path: Path, lines: int = TAIL_LINES) -> list[str]:
    """The end of a log that may be long, may hold anything, or may not be there."""
    try:
        with log_path.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - TAIL_BYTES))
            text = log.read().decode(errors="replace")
    except OSError:
        return []
    found = [line.strip() for line in text.splitlines() if line.strip()]
    return [escaped(line[:400]) for line in found[-lines:]]


def _start(words: Sequence[str], launch: Launch) -> subprocess.Popen[bytes]:
    guarded = [
        sys.executable, "-m", "loadgen.studies.guard", f"{STOP_SECONDS:g}", *words,
    ]  # fmt: skip
    environment = {**os.environ, **launch.environment}
    if launch.gpus:
        environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # as NVML counts
        environment["CUDA_VISIBLE_DEVICES"] = launch.gpus
    private_folder(launch.log_path.parent)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    with os.fdopen(os.open(launch.log_path, flags, PRIVATE), "wb") as log:
        return subprocess.Popen(
            guarded,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )


def _wait_until_healthy(server: RunningServer, launch: Launch) -> None:
    deadline = time.monotonic() + launch.start_seconds
    reason = "no answer"
    with Getter(total_seconds=ASK_SECONDS) as getter:
        while True:
            code = server._guard.poll()
            if code is not None:
                raise _not_up(launch, f"ended with code {code}")
            try:
                reply = getter.get(server.url + launch.health)
                if reply.status == 200:
                    return
                reason = f"{launch.health} answers {reply.status}"
            except GetError as error:
                reason = str(error)
            if time.monotonic() > deadline:
                raise _not_up(
                    launch,
                    f"did not serve within {launch.start_seconds:g} s ({reason})",
                )
            time.sleep(POLL_SECONDS)


def _not_up(launch: Launch, what: str) -> StackError:
    tail = "".join(f"\n    | {line}" for line in last_lines(launch.log_path))
    return StackError(
        f"the server {launch.name} {what}; its log {launch.log_path} ends:"
        f"{tail or ' (it is empty)'}"
    )


def _end(guard: subprocess.Popen[bytes]) -> None:
    """Tell the guard by closing its standard input; it ends what it started."""
    assert guard.stdin is not None
    with suppress(OSError):
        guard.stdin.close()
    try:
        guard.wait(STOP_SECONDS + GUARD_SECONDS)
    except subprocess.TimeoutExpired:
        guard.kill()
        guard.wait()
