"""What a process asks of its host: open files, and to be told when its parent ends."""

from __future__ import annotations

import asyncio
import os
import resource
import threading
from collections.abc import Callable
from contextlib import suppress


def raise_open_files() -> int | None:
    """Raise the limit of open files as far as it may; returns it, None for no limit.

    The usual 1024 would end a run, or a proxy, at a thousand connections.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return None if hard == resource.RLIM_INFINITY else hard


def stop_with_parent(
    loop: asyncio.AbstractEventLoop, stop: Callable[[], object]
) -> None:
    """Call `stop` when the parent closes our standard input, or dies.

    A thread reads it: standard input may be any file, which a loop cannot watch.
    """

    def wait() -> None:
        # not sys.stdin: a daemon thread that holds its lock aborts the exit
        while os.read(0, 4096):
            pass
        with suppress(RuntimeError):  # the loop has just been closed
            loop.call_soon_threadsafe(stop)

    threading.Thread(target=wait, name="stdin", daemon=True).start()
