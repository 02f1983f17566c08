"""Files that a command was asked to write."""

from __future__ import annotations

from pathlib import Path

from loadgen.errors import LoadgenError
from proxy.process.files import write_whole


def write_output(path: Path, data: bytes) -> None:
    """Whole or not at all. Raises LoadgenError, one line that names the file."""
    try:
        write_whole(path, data)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise LoadgenError(f"cannot write {path}: {reason}") from None
