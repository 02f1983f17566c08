"""What systemd is told of a service of `Type=notify`: ready, stopping, still alive.

The protocol of `sd_notify(3)`: lines in one datagram to the socket that the
environment names. Without such a socket nothing is done.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

READY = "READY=1"
STOPPING = "STOPPING=1"
ALIVE = "WATCHDOG=1"


@dataclass(frozen=True, slots=True)
class Supervisor:
    """The service manager that started this process, or none."""

    address: str | None = None
    watchdog_seconds: float | None = None
    """It kills a process that is not heard of for so long."""

    def notify(self, *lines: str) -> None:
        """Tell it; a manager that does not listen is no reason to fail or to wait."""
        if self.address is None:
            return
        path = self.address
        if path.startswith("@"):  # an abstract socket
            path = "\0" + path[1:]
        with (
            suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
        ):
            sender.setblocking(False)
            sender.sendto("\n".join(lines).encode(), path)


def supervisor(environment: Mapping[str, str] = os.environ) -> Supervisor:
    """The manager of this process, from `NOTIFY_SOCKET` and `WATCHDOG_USEC`."""
    watchdog_seconds: float | None = None
    usec = environment.get("WATCHDOG_USEC", "")
    is_ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    if usec.isdigit() and int(usec) > 0 and is_ours:
        watchdog_seconds = int(usec) / 1e6
    return Supervisor(environment.get("NOTIFY_SOCKET") or None, watchdog_seconds)
