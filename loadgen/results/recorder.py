"""`requests.jsonl`: one line per request, written as it finishes.

A run that is killed keeps its finished requests: each line is handed to the kernel
when its request ends. A line is complete or absent, also when the disk fills up.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import msgspec

from loadgen.errors import LoadgenError, UsageError
from loadgen.results.results import Result
from loadgen.traces.readers.line import MAX_TOKENS
from proxy.process.files import PRIVATE, os_reason


class Recorder:
    """Appends results to one file; none of them stays in memory.

    Raises UsageError when the file exists (a run never writes over another)
    or cannot be made, LoadgenError when a line cannot be written.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.written = 0
        self._good_bytes = 0
        self._encoder = msgspec.json.Encoder()
        try:
            self._file = os.open(
                self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, PRIVATE
            )
        except FileExistsError:
            raise UsageError(
                f"{self.path} holds an earlier run; name another folder with --out"
            ) from None
        except OSError as error:
            raise UsageError(
                f"cannot write {self.path}: {os_reason(error)}; "
                "name another folder with --out"
            ) from None

    def record(self, result: Result) -> None:
        """Append one line; after a failure the file ends at the last complete one."""
        self.append(self._encoder.encode(result) + b"\n")

    def append(self, line: bytes) -> None:
        """`record` of a result that is a line already."""
        try:
            done = 0
            while done < len(line):
                done += os.write(self._file, line[done:])
        except OSError as error:
            os.ftruncate(self._file, self._good_bytes)
            raise LoadgenError(
                f"cannot append to {self.path}: {os_reason(error)}; the run stops "
                f"here, the {self.written} requests written before are kept"
            ) from None
        self._good_bytes += len(line)
        self.written += 1

    def close(self) -> None:
        """Close the file; calling twice is fine."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_results(path: Path | str) -> Iterator[Result]:
    """The records of a run, one at a time; an unfinished last line is left out.

    Raises LoadgenError when the file is missing or a line is not a record.
    """
    decoder = msgspec.json.Decoder(Result)
    try:
        with Path(path).open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    return  # the writer was killed within it
                yield result_of(line, decoder, f"{path}, line {number}")
    except OSError as error:
        raise LoadgenError(f"cannot read {path}: {os_reason(error)}") from None


def result_of(line: bytes, decoder: msgspec.json.Decoder[Result], where: str) -> Result:
    """One line, read; `where` is its place. Raises LoadgenError."""
    try:
        result = decoder.decode(line)
        _check(result)
    except (ValueError, RecursionError) as error:
        raise LoadgenError(f"{where}: not a request record: {error}") from None
    return result


def _check(result: Result) -> None:
    """Raise ValueError for a record of more tokens than any request has."""
    tokens = sum(result.chunk_tokens)
    if min(result.chunk_tokens, default=0) < 0 or tokens > MAX_TOKENS:
        raise ValueError(
            f"chunk_tokens sum to {tokens}, expected 0 to {MAX_TOKENS:,} tokens"
        )
