"""Records of a run that several send: read as they grow, put in one order.

Each process or worker appends to a part of its own. The records of all of them in order
of their ends are what one process would have written: whoever wrote which, and when it
was read, changes no byte of it.
"""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from loadgen.errors import LoadgenError
from loadgen.results.measures import SCHEDULE_LAG
from loadgen.results.recorder import result_of
from loadgen.results.results import Result, title
from proxy.process.files import PRIVATE, os_reason, whole_file

_READ_BYTES = 2**20
_decoder = msgspec.json.Decoder(Result)


@dataclass(slots=True, kw_only=True)
class Part:
    """The part of one process or worker: its records so far, and its end."""

    number: int
    """From 1."""
    planned_seconds: array[float] = field(default_factory=lambda: array("d"))
    """Of each record, with `lag_seconds`; 16 bytes together."""
    lag_seconds: array[float] = field(default_factory=lambda: array("d"))
    """NaN where nothing was sent."""
    loop_lag_p99_seconds: float | None = None
    cpu_seconds: float | None = None
    """Processor time of the replay, without the start."""
    death: str | None = None
    """How it ended before its time; None: it did not."""
    lost: int = 0
    """Requests without a record for that."""
    worker: str | None = None
    """Name of the worker, where it is one on the bus."""
    clock_offset_seconds: float | None = None
    """This host's monotonic clock less the worker's."""
    clock_error_seconds: float | None = None
    """The true offset is no further away."""
    clock_drift_seconds: float | None = None
    """How far the clocks drifted apart in the run, for certain."""

    def title(self, total: int) -> str:
        """Which of so many, in words."""
        return title(self.number, total, self.worker)

    def add(self, result: Result) -> None:
        """Take one record into account."""
        lag = SCHEDULE_LAG.of(result)
        self.planned_seconds.append(result.planned_seconds)
        self.lag_seconds.append(float("nan") if lag is None else lag)


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """Some bytes of a file that grows on another host."""

    offset: int
    data: bytes


class PieceGap(LoadgenError):
    """A piece that does not follow what there is: pieces before it are missing."""


class Copy:
    """A file that grows by the pieces of another, each of which may come again.

    Bytes that are there already are left out, so a piece counts once whoever sends it
    how often. Raises LoadgenError when it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        """Go on with the file, where there is one."""
        self.path = path
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            self._file = os.open(path, flags, PRIVATE)
            self.size = os.fstat(self._file).st_size
        except OSError as error:
            raise self._unwritable(error) from None

    def add(self, piece: Piece) -> None:
        """Append what is new of a piece. Raises PieceGap when it is too far on."""
        if piece.offset > self.size:
            raise PieceGap(
                f"{self.path}: {piece.offset - self.size} bytes are missing before "
                f"byte {piece.offset}"
            )
        new = memoryview(piece.data)[self.size - piece.offset :]
        try:
            while new:
                written = os.write(self._file, new)
                self.size += written
                new = new[written:]
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> LoadgenError:
        return LoadgenError(f"cannot write {self.path}: {os_reason(error)}")

    def close(self) -> None:
        """Close the file; calling twice is fine."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class Tail:
    """The lines of a growing file, each given once and whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        self._rest = b""

    def lines(self) -> list[bytes]:
        """New ones, a megabyte of them at most; none when there are no more yet.

        Raises LoadgenError.
        """
        try:
            if self._file is None:
                self._file = self.path.open("rb", buffering=0)
            while data := self._file.read(_READ_BYTES):
                *whole, self._rest = (self._rest + data).split(b"\n")
                if whole:
                    return [line + b"\n" for line in whole]
        except FileNotFoundError:
            pass  # nothing was written yet
        except OSError as error:
            raise _unreadable(self.path, error) from None
        return []

    def results(self) -> list[tuple[bytes, Result]]:
        """The same lines, read."""
        return [
            (line, result_of(line, _decoder, str(self.path))) for line in self.lines()
        ]

    def close(self) -> None:
        """Close the file; calling twice is fine."""
        if self._file is not None:
            self._file.close()
            self._file = None


class _End(msgspec.Struct):
    """As much of a record as it takes to put it in order."""

    finished_seconds: float


def order_by_end(path: Path) -> None:
    """Put the lines of `requests.jsonl` in order of their ends; 16 bytes for each.

    Records that ended in the same microsecond are in order of their text, so the same
    records give the same bytes. The file is written anew, whole or not at all. Raises
    LoadgenError.
    """
    ends, begins = array("d"), array("q")
    decoder = msgspec.json.Decoder(_End)
    try:
        with path.open("rb") as file:
            begin = 0
            for line in file:
                ends.append(decoder.decode(line).finished_seconds)
                begins.append(begin)
                begin += len(line)
            keys = np.asarray(ends, dtype=np.float64)
            if (np.diff(keys) > 0).all():
                return
            order = np.argsort(keys, kind="stable")
            with whole_file(path, mode=PRIVATE) as out:
                for _, same in groupby(order.tolist(), key=ends.__getitem__):
                    out.writelines(sorted(_line(file, begins[at]) for at in same))
    except OSError as error:
        raise _unreadable(path, error) from None


def _line(file: BinaryIO, begin: int) -> bytes:
    file.seek(begin)
    return file.readline()


def _unreadable(path: Path, error: OSError) -> LoadgenError:
    return LoadgenError(f"cannot merge the records in {path}: {os_reason(error)}")
