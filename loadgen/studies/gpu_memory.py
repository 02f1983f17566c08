"""Memory of the boards, so that one server has freed it before the next one starts.

A driver gives memory back some time after its process has ended; an engine that looks
at what is free would take less, or not start. Where NVML is not there nothing is
waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable

WAIT_SECONDS = 120.0
SLACK_BYTES = 256 * 1024 * 1024
"""What a driver keeps, or another process takes meanwhile."""
POLL_SECONDS = 0.2

Used = dict[str, int]
"""Bytes in use by board; empty where nobody can tell."""


def used_bytes(gpus: str | None) -> Used:
    """Bytes in use of these boards, or of all; empty without NVML."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # a library, a driver or a board that is not there: of any kind
        return {}
    try:
        found = {}
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            uuid = str(pynvml.nvmlDeviceGetUUID(handle))
            wanted = [name.strip() for name in (gpus or "").split(",") if name.strip()]
            if not wanted or str(index) in wanted or uuid in wanted:
                memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
                found[str(index)] = int(memory.used)
        return found
    except pynvml.NVMLError:
        return {}
    finally:
        pynvml.nvmlShutdown()


def wait_until_freed(
    before: Used,
    now: Callable[[], Used],
    *,
    seconds: float = WAIT_SECONDS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str | None:
    """Wait until the boards use about as much as before; else which one does not."""
    deadline = clock() + seconds
    while True:
        more = {
            board: used - before[board]
            for board, used in now().items()
            if board in before and used - before[board] > SLACK_BYTES
        }
        if not more:
            return None
        if clock() >= deadline:
            board, bytes_held = max(more.items(), key=lambda one: one[1])
            return (
                f"GPU {board} still holds {bytes_held / 1e9:.1f} GB more than before "
                f"the server, {seconds:g} s after its end"
            )
        sleep(POLL_SECONDS)
