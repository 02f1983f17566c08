"""The folder of one proxy's processes: it is there as long as one of them lives.

Each of them that needs it holds a lock on it, which the kernel frees however they end.
Whoever starts next removes the folders that nobody holds: those of proxies that were
killed, all their processes at once.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

PREFIX = "servewatt-relays-"


class LinkFolder:
    """A folder that is held, and may be removed."""

    def __init__(self, path: str, handle: int) -> None:
        self.path = path
        self._handle = handle

    @classmethod
    def made(cls) -> LinkFolder:
        """A new one in the folder of temporary files, which only this user may open.

        Raises OSError.
        """
        while True:
            folder = cls.held(tempfile.mkdtemp(prefix=PREFIX))
            if folder is not None:
                return folder

    @classmethod
    def held(cls, path: str) -> LinkFolder | None:
        """One that is there; None where somebody has just removed it."""
        try:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return None
        folder = cls(path, handle)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_SH)
        if not os.path.isdir(path):  # swept between its making and the lock
            folder.release()
            return None
        return folder

    def release(self) -> None:
        """Hold it no longer; calling twice is fine."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def remove(self) -> None:
        """Delete it with all that is in it, and release it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.release()


def remove_left_over() -> int:
    """Delete this user's folders that no process holds; how many there were."""
    removed = 0
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # gone, a link, or another user's
        try:
            if os.fstat(handle).st_uid != os.geteuid():
                continue
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
            removed += 1
        except OSError:
            pass  # somebody holds it, or this file system has no locks
        finally:
            os.close(handle)
    return removed
