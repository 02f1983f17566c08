"""Records of a run that several send: read as they grow, put in one order.

Each process or worker appends to a part of its own. The records of all of them in order
of their ends are what one process would have written: whoever wrote which, and when it
was read, changes no byte of it.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
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


class _Id(msgspec.Struct):
    """As much of a record as it takes to know it again."""

    request_id: str


def order_by_end(path: Path) -> None:
    """Put the lines of `requests.jsonl` in order of their ends; 18 bytes for each.

    Records that ended in the same microsecond are in order of their text, so the same
    records give the same bytes. The file is written anew, whole or not at all. Raises
    LoadgenError.
    """
    try:
        with path.open("rb") as file:
            places = _Places([file])
            if not places.are_in_order:
                with whole_file(path, mode=PRIVATE) as out:
                    out.writelines(places.lines())
    except OSError as error:
        raise _unreadable(path, error) from None


def lines_by_end(paths: Sequence[Path]) -> Iterator[bytes]:
    """The lines of several files as `order_by_end` puts them, the files left alone.

    Records of the first file, which may be in a later one too, are given once, as they
    are in the first. An unfinished last line is left out: its writer was killed within
    it. Raises LoadgenError.
    """
    with ExitStack() as files:
        opened = []
        for path in paths:
            try:
                opened.append(files.enter_context(path.open("rb")))
            except OSError as error:
                raise _unreadable(path, error) from None
        yield from _Places(opened).lines()


class _Places:
    """Where each line of some files begins, and its order."""

    def __init__(self, files: Sequence[BinaryIO]) -> None:
        self._files = files
        self._ends, self._begins = array("d"), array("q")
        self._owners = array("H")
        decoder = msgspec.json.Decoder(_End)
        for owner, file in enumerate(files):
            begin = 0
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    self._ends.append(decoder.decode(line).finished_seconds)
                except (ValueError, RecursionError) as error:
                    raise LoadgenError(
                        f"{file.name}, line {number}: not a request record: {error}"
                    ) from None
                self._begins.append(begin)
                self._owners.append(owner)
                begin += len(line)

    @property
    def are_in_order(self) -> bool:
        """No line has to move."""
        return bool((np.diff(np.asarray(self._ends)) > 0).all())

    def lines(self) -> Iterator[bytes]:
        """Each once, in order."""
        order = np.argsort(np.asarray(self._ends), kind="stable").tolist()
        for _, same in groupby(order, key=self._ends.__getitem__):
            yield from sorted(self._once(list(same)))

    def _once(self, places: Sequence[int]) -> list[bytes]:
        """Lines that end at one instant, but for those that the first file has too."""
        lines = [self._line(place) for place in places]
        if len(lines) == 1 or len(self._files) == 1:
            return lines
        decoder = msgspec.json.Decoder(_Id)
        owners = [self._owners[place] for place in places]
        ids = [decoder.decode(line).request_id for line in lines]
        first = {id for id, owner in zip(ids, owners, strict=True) if not owner}
        return [
            line
            for line, id, owner in zip(lines, ids, owners, strict=True)
            if not owner or id not in first
        ]

    def _line(self, place: int) -> bytes:
        file = self._files[self._owners[place]]
        file.seek(self._begins[place])
        return file.readline()


def _unreadable(path: Path, error: OSError) -> LoadgenError:
    return LoadgenError(f"cannot merge the records in {path}: {os_reason(error)}")
