"""The rule of unit tests, enforced: no socket, no process, no thread, no waiting.

Python's audit events tell of each such call before it happens, wherever the name of
the function came from; the call fails and the test with it, even if the code under
test would have swallowed the error. An event loop's own self-pipe is no connection and
stays allowed; a loop that waits for time to pass is told by its selector.
"""

from __future__ import annotations

import selectors
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

FORBIDDEN = {
    "os.exec": "starts a process",
    "os.fork": "starts a process",
    "os.forkpty": "starts a process",
    "os.posix_spawn": "starts a process",
    "os.system": "starts a process",
    "subprocess.Popen": "starts a process",
    "socket.bind": "opens a socket",
    "socket.connect": "opens a socket",
    "socket.getaddrinfo": "asks for an address",
    "socket.gethostbyname": "asks for an address",
    "socket.sendto": "opens a socket",
}
"""Audit events that no unit test may cause, each with what the test does."""


class Guard:
    """What the running test did that it may not; None while no test is guarded."""

    def __init__(self) -> None:
        self.offences: list[str] | None = None

    def forbid(self, offence: str) -> None:
        """Fail the guarded test, if there is one."""
        if self.offences is not None:
            self.offences.append(offence)
            pytest.fail(f"a unit test {offence}: it belongs to tests/wire or system")

    def audit(self, event: str, arguments: tuple[object, ...]) -> None:
        """Python's audit hook."""
        if self.offences is not None and event in FORBIDDEN:
            self.forbid(FORBIDDEN[event])


GUARD = Guard()
sys.addaudithook(GUARD.audit)  # there is no way to take a hook off again


@pytest.fixture(autouse=True)
def guard(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The offences of this test, which fail it at its end if they did not before."""
    select = selectors.DefaultSelector.select

    def select_at_once(selector: Any, timeout: float | None = None) -> Any:
        if timeout is None or timeout > 0:
            GUARD.forbid("waits for time to pass or for another thread")
        return select(selector, timeout)

    def start(thread: threading.Thread) -> None:
        GUARD.forbid("starts a thread")

    def sleep(seconds: float) -> None:
        GUARD.forbid("sleeps")

    monkeypatch.setattr(selectors.DefaultSelector, "select", select_at_once)
    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr(time, "sleep", sleep)  # an audit event from Python 3.13 on
    offences: list[str] = []
    GUARD.offences = offences
    try:
        yield offences
    finally:
        GUARD.offences = None
    assert not offences, "a unit test " + " and ".join(offences)
