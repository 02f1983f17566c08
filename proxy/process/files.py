"""Files that appear under their name whole, or not at all, and private ones.

What holds prompts, request ids, tenants or error texts is `PRIVATE` from its first
byte: nobody but its owner reads it, whatever the umask.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

PRIVATE = 0o600
PRIVATE_FOLDER = 0o700


@contextmanager
def whole_file(
    path: Path, *, mode: int | None = None, is_durable: bool = False
) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` when the block ends well.

    A reader sees the old file or the new one, never a part; when the block or the
    disk fails, the old one stays and nothing is left behind. The permissions are
    `mode`, or what the umask leaves. With `is_durable` the content is on the disk
    before the name is. A device or a pipe is written as it is. Raises OSError.
    """
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    file = os.fdopen(os.open(part, flags, 0o666 if mode is None else mode), "wb")
    try:
        with file:
            yield file
            file.flush()
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            if is_durable:
                os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def write_whole(path: Path, content: bytes) -> None:
    """`content` as the file at `path`, whole or not at all. Raises OSError."""
    with whole_file(path) as file:
        file.write(content)


def private_folder(path: Path) -> None:
    """Make a folder that only its owner enters; one that exists stays.

    Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)


def private_file(path: Path) -> None:
    """Make an empty file that only its owner reads; one that exists stays.

    Raises OSError.
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, PRIVATE))


def readable_name(name: str) -> str:
    """A file's name as text for logs and replies: bytes that are none are replaced.

    In a locale of ASCII alone every other letter of an argument is such bytes.
    """
    return os.fsencode(name).decode("utf-8", "replace")


def os_reason(error: OSError) -> str:
    """Why the system refused something, for the end of a line of ours."""
    return (error.strerror or str(error)).lower()
