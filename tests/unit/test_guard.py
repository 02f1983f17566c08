"""What a unit test may not do fails it, also where the error would be swallowed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable

import pytest

from tests.support.virtual_time import run_virtually

FORBIDDEN: dict[str, Callable[[], object]] = {
    "socket": lambda: socket.create_connection(("127.0.0.1", 1)),
    "datagram": lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"", ("", 1)),
    "listener": lambda: socket.socket().bind(("127.0.0.1", 0)),
    "address": lambda: socket.getaddrinfo("localhost", 1),
    "request": lambda: urllib.request.urlopen("http://127.0.0.1:1/"),
    "process": lambda: subprocess.run(["true"], check=True),
    "shell": lambda: os.system("true"),
    "fork": os.fork,
    "thread": lambda: threading.Thread(target=int).start(),
    "sleep": lambda: time.sleep(0.001),
    "waiting coroutine": lambda: asyncio.run(asyncio.sleep(0.001)),
    "coroutine in a thread": lambda: asyncio.run(asyncio.to_thread(int)),
}


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize("call", FORBIDDEN.values(), ids=FORBIDDEN)
def test_a_forbidden_call_fails_the_test(
    call: Callable[[], object], guard: list[str]
) -> None:
    with pytest.raises(pytest.fail.Exception, match="a unit test "):
        call()
    assert guard
    guard.clear()


def test_swallowing_the_failure_does_not_help(guard: list[str]) -> None:
    with contextlib.suppress(BaseException):
        time.sleep(0.001)
    assert guard == ["sleeps"]
    guard.clear()


def test_virtual_time_and_yielding_are_allowed(guard: list[str]) -> None:
    asyncio.run(asyncio.sleep(0))
    run_virtually(asyncio.sleep(3600.0))
    assert not guard
