"""Open a trace: the file, its compression, its format, its header.

The edge of the readers. A file is read as it is used, plain or gzip (by its first
bytes), so a trace of any length needs the memory of a line.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import itertools
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from loadgen.errors import TraceError, UsageError
from loadgen.traces.readers import READERS, Reader, loadtrace
from loadgen.traces.trace import Session, TraceInfo

HEAD_BYTES = 1 << 18
"""Read to detect the format; a first line may be a long one."""

_GZIP_MAGIC = b"\x1f\x8b"
_PIECE_BYTES = 1 << 16
_SUFFIXES = (".gz", ".jsonl", ".json", ".csv", ".txt")


def open_trace(
    path: Path | str, format: str | None = None
) -> tuple[TraceInfo, Iterator[Session]]:
    """The trace's `TraceInfo`, and its sessions, read as they are taken.

    The first session is read at once: the header is then known, and a trace without
    any request is an error here. Counts in `TraceInfo` grow while sessions are
    taken. Raises `TraceError`, and `UsageError` for an unknown format.
    """
    path = Path(path)
    if format is not None and format not in READERS:
        raise UsageError(f"unknown format {format!r}; known: {', '.join(READERS)}")
    head = _head(path)
    info = TraceInfo(name=_name(path), format="", path=str(path))
    info.kind = _kind(path)
    sidecar = _sidecar(path)
    info.format = format or ("loadtrace" if sidecar else _detected(head, path))
    if sidecar is not None and info.format == "loadtrace":
        loadtrace.take_header(sidecar, info, None)
    reader = READERS[info.format]
    sessions = reader.read(_text(path, reader), info)
    first = next(sessions, None)
    if first is None:
        gone = ", ".join(f"{n} {reason}" for reason, n in info.dropped.items())
        raise TraceError(
            path,
            None,
            f"no request can be sent: all rows were dropped ({gone})"
            if gone
            else "no requests in it",
        )
    return info, itertools.chain([first], sessions)


def sha256_of(path: Path | str, *, unpacked: bool = False) -> str:
    """The sha256 of a file as hex; with `unpacked` of the data in a gzip file."""
    with _reading(Path(path)) if unpacked else Path(path).open("rb") as file:
        # file_digest takes any readable binary file, its stub a narrower one
        return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()


def _text(path: Path, reader: Reader) -> Iterator[str]:
    """Lines of the file, or pieces of it for a reader that takes them."""
    with _reading(path) as raw:
        number = 0
        try:
            if reader.takes_pieces:
                chunks = iter(lambda: raw.read(_PIECE_BYTES), b"")
                yield from codecs.iterdecode(chunks, "utf-8-sig")
                return
            for number, line in enumerate(raw, 1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise TraceError(
                path,
                number or None,
                f"byte {error.object[error.start]:#04x} is not UTF-8 text",
            ) from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise TraceError(
                path, number + 1, f"the gzip data is broken here: {error}".lower()
            ) from None


def _reading(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked if it is gzip by content, whatever its name."""
    try:
        with path.open("rb") as raw:
            is_gzip = raw.read(2) == _GZIP_MAGIC
        return cast(IO[bytes], gzip.open(path)) if is_gzip else path.open("rb")
    except FileNotFoundError:
        raise TraceError(path, None, "no such file") from None
    except IsADirectoryError:
        raise TraceError(path, None, "is a folder, expected a trace file") from None
    except OSError as error:
        raise TraceError(path, None, f"cannot be read: {error.strerror}") from None


def _head(path: Path) -> str:
    with _reading(path) as raw:
        try:
            data = raw.read(HEAD_BYTES)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise TraceError(path, None, f"broken gzip data: {error}".lower()) from None
    head = data.decode("utf-8-sig", "replace")
    if not head.strip():
        raise TraceError(path, None, "the file is empty, expected a trace")
    return head


def _detected(head: str, path: Path) -> str:
    row = _first_object(head)
    for name, reader in READERS.items():
        if row is None and reader.recognises_table and reader.recognises_table(head):
            return name
        if (
            row is not None
            and reader.recognises_object
            and reader.recognises_object(row)
        ):
            return name
    raise TraceError(
        path, 1, f"format not recognised, name it: --format {'|'.join(READERS)}"
    )


def _first_object(head: str) -> dict[str, Any] | None:
    """The first JSON object of the head, in an array or not."""
    text = head.lstrip().removeprefix("[").lstrip()
    if not text.startswith("{"):
        return None
    try:
        value, _ = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError:
        return _keys_of(text)
    return value if isinstance(value, dict) else None


def _keys_of(text: str) -> dict[str, Any]:
    """The formats' key names in a first object too long or too broken to decode."""
    first = text.partition("\n")[0] if '"conversations"' not in text else text
    row: dict[str, Any] = {}
    for key in ("loadtrace", "input_length", "session_id", "messages", "text_input"):
        if f'"{key}"' in first:
            row[key] = ""
    if '"conversations"' in first:
        row["conversations"] = []
    elif '"prompt"' in first:
        row["prompt"] = ""
    return row


def _sidecar(path: Path) -> dict[str, Any] | None:
    """The header beside the file, if there is one."""
    sidecar = path.with_name(path.name + ".meta.json")
    try:
        value = json.loads(sidecar.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise TraceError(sidecar, None, f"cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise TraceError(sidecar, None, "expected one JSON object")
    return value


def _name(path: Path) -> str:
    name = path.name
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name or path.name


def _kind(path: Path) -> str:
    """The kind of request by the file's name, where the format does not state it."""
    name = path.name.lower()
    if "code" in name or "coding" in name:
        return "code"
    if "conv" in name or "sharegpt" in name or "chat" in name:
        return "conversation"
    return "other"
