"""Open a trace: the file, its compression, its format, its header.

The edge of the readers. A file is read as it is used, plain or gzip (by its first
bytes), so a trace of any length needs the memory of a line, and a line has a bound
(`loadgen.traces.readers.text`).
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import itertools
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from loadgen.errors import TraceError, UsageError
from loadgen.traces.readers import READERS, loadtrace
from loadgen.traces.readers.line import decoded, head_columns, portable, row_of
from loadgen.traces.readers.text import TextError, check, end_of
from loadgen.traces.trace import Session, TraceInfo

HEAD_BYTES = 1 << 18
"""Read to detect the format; a first line may be a long one."""

MAX_OBJECT_BYTES = 64 * 2**20
"""Bytes of a file that is one JSON object, read as a whole."""

_GZIP_MAGIC = b"\x1f\x8b"
_PIECE_BYTES = 1 << 14
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
    detected = _detected(path)
    info = TraceInfo(name=_name(path), format="", path=str(path))
    info.kind = _kind(path)
    sidecar = _sidecar(path)
    known = format or ("loadtrace" if sidecar else detected)
    if known is None:
        raise TraceError(
            path, 1, f"format not recognised, name it: --format {'|'.join(READERS)}"
        )
    info.format = known
    if sidecar is not None and info.format == "loadtrace":
        loadtrace.take_header(sidecar, info, None)
    reader = READERS[info.format]
    sessions = reader.read(_pieces(path), info)
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
    """The sha256 of a file as hex; with `unpacked` of the data in a gzip file.

    Raises OSError, and `TraceError` where the gzip data is broken.
    """
    try:
        with _reading(Path(path)) if unpacked else Path(path).open("rb") as file:
            # file_digest takes any readable binary file, its stub a narrower one
            return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()
    except _BROKEN_GZIP as error:
        raise TraceError(path, None, f"broken gzip data: {error}".lower()) from None


def json_object(path: Path) -> dict[str, Any]:
    """A small file that is one JSON object. Raises OSError, `TraceError`."""
    with path.open("rb") as file:
        data = file.read(MAX_OBJECT_BYTES + 1)
    if len(data) > MAX_OBJECT_BYTES:
        raise TraceError(path, None, f"is longer than {MAX_OBJECT_BYTES:,} bytes")
    try:
        text = data.decode("utf-8-sig")
        check(text)
        value = decoded(text)
    except ValueError as error:
        raise TraceError(path, None, f"cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise TraceError(path, None, "expected one JSON object")
    return dict(portable(value))


_BROKEN_GZIP = (EOFError, zlib.error, gzip.BadGzipFile)


def _pieces(path: Path) -> Iterator[str]:
    """The text of the file in pieces; errors name the line they are met in."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    ends = {"\n": 0, "\r": 0}

    def counted(text: str) -> str:
        for end in ends:
            ends[end] += text.count(end)
        return text

    def here() -> int:
        return 1 + max(ends.values())  # CRLF counts once, a file has one kind

    with _reading(path) as raw:
        try:
            while chunk := raw.read(_PIECE_BYTES):
                yield counted(decoder.decode(chunk))
            yield counted(decoder.decode(b"", final=True))
        except UnicodeDecodeError as error:
            # first what is sound, whose own errors come before this one
            yield counted(bytes(error.object[: error.start]).decode("utf-8", "replace"))
            raise TraceError(
                path,
                here(),
                f"byte {error.object[error.start]:#04x} is not UTF-8 text",
            ) from None
        except _BROKEN_GZIP as error:
            raise TraceError(
                path, here(), f"the gzip data is broken here: {error}".lower()
            ) from None
        except OSError as error:
            raise TraceError(
                path, here(), f"cannot be read on: {error.strerror}"
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
    except (OSError, ValueError) as error:  # a NUL in the path is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise TraceError(path, None, f"cannot be read: {reason}") from None


def _head(path: Path) -> str:
    with _reading(path) as raw:
        try:
            data = raw.read(HEAD_BYTES)
        except _BROKEN_GZIP as error:
            raise TraceError(path, None, f"broken gzip data: {error}".lower()) from None
        except OSError as error:
            raise TraceError(path, None, f"cannot be read: {error.strerror}") from None
    head = data.decode("utf-8-sig", "replace")
    if not head.strip():
        raise TraceError(path, None, "the file is empty, expected a trace")
    return head


def _detected(path: Path) -> str | None:
    """The format by the file's content; None where no reader recognises it."""
    head = _head(path)
    names = head_columns(head)
    try:
        row = _first_row(head)
    except TextError as error:
        raise TraceError(path, 1, str(error)) from None
    for name, reader in READERS.items():
        if reader.recognises_table and reader.recognises_table(names):
            return name
        if (
            row is not None
            and reader.recognises_object
            and reader.recognises_object(row)
        ):
            return name
    return None


def _first_row(head: str) -> dict[str, Any] | None:
    """The first row of a JSON file's head, in an array or not; None for no JSON."""
    start = head.lstrip()
    text = start.removeprefix("[").lstrip()
    if text[:1] not in ("{", "[", '"'):
        return None
    end = end_of(text, 0)
    if text[0] == '"' and start[0] != "[" and not _ends_line(text, end):
        return None  # quoted cells of a table
    try:
        return _keys_of(text) if end is None else row_of(decoded(text[:end]))
    except ValueError:
        return _keys_of(text)


def _ends_line(text: str, end: int | None) -> bool:
    return end is None or text[end : end + 1] in ("", "\r", "\n")


def _keys_of(text: str) -> dict[str, Any]:
    """The formats' key names in a first object too long or too broken to decode."""
    first = text.partition("\n")[0] if '"conversations"' not in text else text
    row: dict[str, Any] = {}
    for key in ("loadtrace", "input_length", "session_id", "text_input", "timestamp"):
        if f'"{key}"' in first:
            row[key] = ""
    for key in ("conversations", "messages"):
        if f'"{key}"' in first:
            row[key] = []
            return row
    if '"prompt"' in first:
        row["prompt"] = ""
    return row


def _sidecar(path: Path) -> dict[str, Any] | None:
    """The header beside the file, if there is one."""
    sidecar = path.with_name(path.name + ".meta.json")
    try:
        return json_object(sidecar)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TraceError(sidecar, None, f"cannot be read: {error.strerror}") from None


def _name(path: Path) -> str:
    """The trace's name; bytes of the file's name that are no text are replaced."""
    name = str(portable(path.name))
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
