"""What systemd is told, over a socket of its kind."""

from __future__ import annotations

import socket
from pathlib import Path

from proxy.process.systemd import READY, Supervisor, supervisor


def test_systemd_is_told_where_it_listens_and_nobody_where_it_does_not(
    tmp_path: Path,
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        found = supervisor(
            {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "30000000"}
        )
        found.notify(READY)
        assert manager.recv(100) == b"READY=1"
    assert found.watchdog_seconds == 30
    found.notify(READY)  # nobody listens there any more
    assert supervisor({}) == Supervisor()
    Supervisor().notify(READY)
