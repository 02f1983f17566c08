"""The files of a recording: lines appended whole, rotated by size, the oldest removed.

`trace.jsonl` is the one in use; it becomes `trace-<UTC>.jsonl` when it is full, when
a later process begins, and never grows again. Of compressed ones each write is a frame
of its own, so that all but what a kill cut can be read. One that was moved away or
removed is begun anew. All are private.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from proxy.errors import ConfigError
from proxy.process.files import PRIVATE

STAMP = "%Y%m%dT%H%M%S"


def compressor(path: str) -> Callable[[bytes], bytes]:
    """What makes the file's bytes of lines. Raises ConfigError without the library."""
    if not path.endswith(".zst"):
        return lambda content: content
    try:
        import zstandard
    except ImportError:
        raise ConfigError(
            f"--record {path} needs the package zstandard: "
            "pip install 'servewatt[record]', or record to a .jsonl"
        ) from None
    return zstandard.ZstdCompressor(level=3).compress


class RecordingFiles:
    """The file in use and those before it. Not thread-safe; methods raise OSError."""

    def __init__(
        self,
        path: str,
        header: Callable[[], bytes],
        *,
        max_bytes: int,
        max_files: int,
        compress: Callable[[bytes], bytes],
    ) -> None:
        self._path = Path(path)
        self._header = header
        self._max_bytes, self._max_files = max_bytes, max_files
        self._compress = compress
        self._file: int | None = None
        self._size = 0
        self._has_lines = False
        name = self._path.name
        self._stem = name[: name.rindex(".jsonl")]
        self._suffix = name[len(self._stem) :]
        self._named = re.compile(
            rf"{re.escape(self._stem)}-(\d{{8}}T\d{{6}})-(\d{{6}})"
            rf"{re.escape(self._suffix)}"
        )

    def open(self) -> None:
        """Begin the file in use, if it is not begun."""
        if self._file is not None and self._is_in_place(self._file):
            return
        self.close()
        self._put_away()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW
        file = os.open(self._path, flags, PRIVATE)
        try:
            self._size = 0
            self._append(file, self._compress(self._header()))
        except OSError:
            os.close(file)
            with suppress(OSError):
                self._path.unlink()
            raise
        self._file = file
        self._remove_oldest()

    def write(self, lines: Sequence[bytes]) -> None:
        """Append all of these, or none."""
        content = self._compress(b"".join(lines))
        self.open()
        if self._size + len(content) > self._max_bytes and self._has_lines:
            self.close()
            self.open()
        assert self._file is not None
        self._append(self._file, content)
        self._has_lines = True

    def close(self) -> None:
        """No more is written for now."""
        self._has_lines = False
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _append(self, file: int, content: bytes) -> None:
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[os.write(file, rest) :]
        except OSError:
            with suppress(OSError):  # half a line would join the next one
                os.ftruncate(file, self._size)
            raise
        self._size += len(content)

    def _is_in_place(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _put_away(self) -> None:
        """Give a file of before, or a full one, its own name."""
        try:
            found = os.lstat(self._path)
        except FileNotFoundError:
            return
        if not stat.S_ISREG(found.st_mode):
            raise OSError(0, "is there and no regular file")
        last, number = time.strftime(STAMP, time.gmtime(found.st_mtime)), 0
        for _, stamp, taken in self._earlier()[-1:]:
            if stamp >= last:  # also where the clock was set back
                last, number = stamp, taken + 1
        name = f"{self._stem}-{last}-{number:06d}{self._suffix}"
        os.rename(self._path, self._path.with_name(name))

    def _remove_oldest(self) -> None:
        earlier = self._earlier()
        for name, _, _ in earlier[: max(0, len(earlier) - (self._max_files - 1))]:
            self._path.with_name(name).unlink(missing_ok=True)

    def _earlier(self) -> list[tuple[str, str, int]]:
        """Names of the files before this one in order, with stamp and number."""
        found = map(self._named.fullmatch, sorted(os.listdir(self._path.parent)))
        return [(name[0], name[1], int(name[2])) for name in found if name]
