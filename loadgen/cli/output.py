"""Files that a command was asked to write."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from loadgen.errors import LoadgenError, UsageError
from proxy.process.files import whole_file, write_whole


def write_output(path: Path, data: bytes) -> None:
    """Whole or not at all. Raises LoadgenError, one line that names the file."""
    try:
        write_whole(path, data)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise LoadgenError(f"cannot write {path}: {reason}") from None


def write_pieces(path: Path, pieces: Iterable[bytes]) -> None:
    """As `write_output`, of what is too much to be held at once."""
    try:
        with whole_file(path) as file:
            for piece in pieces:
                file.write(piece)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise LoadgenError(f"cannot write {path}: {reason}") from None


def write_parquet(path: Path, names: Sequence[str], rows: Iterable[list[Any]]) -> None:
    """A table as parquet. Raises UsageError where pyarrow is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UsageError(
            "parquet needs pyarrow: pip install 'servewatt[parquet]'"
        ) from None
    columns = zip(*rows, strict=True)
    table = pyarrow.table(
        dict(zip(names, (list(column) for column in columns), strict=True))
    )
    written = io.BytesIO()
    pyarrow.parquet.write_table(table, written)
    write_output(path, written.getvalue())
