"""Open a trace: the file, its compression, its format, its header.

The edge of the readers. A file is read as it is used, plain, gzip or zstd (by its
first bytes), so a trace of any length needs the memory of a line, and a line has a
bound (`loadgen.traces.readers.text`). A folder or a pattern is a recording in several
files, read as one.
"""

from __future__ import annotations

import codecs
import glob
import gzip
import hashlib
import io
import itertools
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from loadgen.errors import TraceError, UsageError
from loadgen.traces.readers import READERS, loadtrace
from loadgen.traces.readers.line import (
    Line,
    decoded,
    head_columns,
    json_rows,
    portable,
    row_of,
    warn_once,
)
from loadgen.traces.readers.loadtrace import recorded_sessions
from loadgen.traces.readers.recording import ORDER_OF_ENDS
from loadgen.traces.readers.text import MAX_CHARACTERS, TextError, check, end_of
from loadgen.traces.trace import Session, TraceInfo

RECORDED = (".jsonl", ".jsonl.zst", ".jsonl.gz")
"""Names of a recording's files, in a folder."""
MAX_WINDOW_BYTES = 128 * 2**20
"""Memory that zstd data may ask for; level 22 asks for as much."""
HEAD_BYTES = 1 << 18
"""Read to detect the format; a first line may be a long one."""

MAX_OBJECT_BYTES = 64 * 2**20
"""Bytes of a file that is one JSON object, read as a whole."""

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_PIECE_BYTES = 1 << 14
_DIGESTED_BYTES = 1 << 18
_SUFFIXES = (".gz", ".zst", ".jsonl", ".json", ".csv", ".txt")


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
    files = files_of(path)
    if files != [path] or (format in (None, "loadtrace") and is_recording(path)):
        return _opened_recording(path, files)
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
        raise TraceError(path, None, no_request(info))
    return info, itertools.chain([first], sessions)


def files_of(path: Path | str) -> list[Path]:
    """The files that a path names: itself, or those of a folder or a pattern."""
    path = Path(path)
    try:
        if path.is_dir():
            found = [
                each for each in path.iterdir()
                if each.name.endswith(RECORDED) and not each.name.startswith(".")
            ]  # fmt: skip
            if not found:
                raise TraceError(
                    path, None, f"is a folder without a file {' or '.join(RECORDED)}"
                )
            return sorted(found)
        if not path.exists() and glob.has_magic(str(path)):
            return [Path(each) for each in sorted(glob.glob(str(path)))] or [path]
    except (OSError, ValueError) as error:  # a NUL in the path is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise TraceError(path, None, f"cannot be read: {reason}") from None
    return [path]


def is_recording(path: Path) -> bool:
    """Whether a file is one of a recording, by its first line."""
    try:
        row = _first_row(_head(path))
    except TextError:
        return False
    return row is not None and "loadtrace" in row and row.get("order") == ORDER_OF_ENDS


def _opened_recording(
    path: Path, files: list[Path]
) -> tuple[TraceInfo, Iterator[Session]]:
    """The files of a recording as one trace."""
    for each in files:
        if not is_recording(each):
            raise TraceError(
                each, None,
                "is not of a recording, whose files alone are read together: give one "
                "file",
            )  # fmt: skip
    info = TraceInfo(name=_name(path), format="loadtrace", path=str(path))

    def lines() -> Iterator[Line]:
        for each in files:
            one = TraceInfo(name="", format="loadtrace", path=str(each))
            yield from json_rows(_whole_lines(each, info), one)

    sessions = recorded_sessions(lines(), info)
    first = next(sessions, None)
    if first is None:
        raise TraceError(path, None, no_request(info))
    return info, itertools.chain([first], sessions)


def _whole_lines(path: Path, info: TraceInfo) -> Iterator[str]:
    """The text of a file without a last line that a kill cut short."""
    held = ""
    for piece in _pieces(path):
        begin, end, rest = (held + piece).rpartition("\n")
        if end:
            yield begin + end
        held = rest
        if len(held) > MAX_CHARACTERS:
            yield held
            held = ""
    if held:
        warn_once(info, f"{path}: the last line is cut short, and left out")


def no_request(info: TraceInfo) -> str:
    """Why there is nothing to send."""
    gone = ", ".join(f"{n} {reason}" for reason, n in info.dropped.items())
    if not gone:
        return "no requests in it"
    return f"no request can be sent: all rows were dropped ({gone})"


def sha256_of(path: Path | str, *, unpacked: bool = False) -> str:
    """The sha256 of a file as hex; with `unpacked` of the data in a packed file.

    Of several files it is that of one after the other. Raises OSError, and
    `TraceError` where packed data is broken.
    """
    whole = hashlib.sha256()
    try:
        for each in files_of(path):
            with _reading(each) if unpacked else each.open("rb") as file:
                while data := file.read(_DIGESTED_BYTES):
                    whole.update(data)
        return whole.hexdigest()
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
    """The file's bytes, unpacked if it is packed by content, whatever its name."""
    try:
        with path.open("rb") as raw:
            magic = raw.read(4)
        if magic == _ZSTD_MAGIC:
            return _unpacking_zstd(path)
        is_gzip = magic[:2] == _GZIP_MAGIC
        return cast(IO[bytes], gzip.open(path)) if is_gzip else path.open("rb")
    except FileNotFoundError:
        raise TraceError(path, None, "no such file") from None
    except IsADirectoryError:
        raise TraceError(path, None, "is a folder, expected a trace file") from None
    except (OSError, ValueError) as error:  # a NUL in the path is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise TraceError(path, None, f"cannot be read: {reason}") from None


def _unpacking_zstd(path: Path) -> IO[bytes]:
    """The bytes of a zstd file; of frames that end early, what is there."""
    try:
        import zstandard
    except ImportError:
        raise TraceError(
            path, None,
            "is zstd data, which needs the package zstandard: "
            "pip install 'servewatt[record]', or unpack it first (zstd -d)",
        ) from None  # fmt: skip
    unpacker = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    raw = path.open("rb")
    reader = unpacker.stream_reader(raw, read_across_frames=True, closefd=True)
    return cast(IO[bytes], io.BufferedReader(_Unpacked(reader, zstandard.ZstdError)))


class _Unpacked(io.RawIOBase):
    """Data of a reader whose own errors are those of a file."""

    def __init__(self, reader: IO[bytes], error: type[Exception]) -> None:
        self._reader = reader
        self._error = error

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._reader.read(len(buffer))
        except self._error as error:
            raise OSError(0, f"the zstd data is broken here: {error}") from None
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._reader.close()
        super().close()


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
