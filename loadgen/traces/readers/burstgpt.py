"""BurstGPT v1 to v3: one row per request, columns found by name.

Layout: https://github.com/HPMLL/BurstGPT. Version 3 puts two columns in the
middle, so positions mean nothing. A row with no output is a request that failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from loadgen.traces.readers.line import csv_lines, dropped, in_order, warn_once
from loadgen.traces.trace import Session, TraceInfo, Turn

COLUMNS = ("Timestamp", "Model", "Request tokens", "Response tokens", "Log Type")

_KINDS = {"Conversation log": "conversation"}
_NO_SESSIONS = (
    "rows with one Session ID are apart in the file: each is sent at its own time, "
    "its Session ID is kept in x"
)


def recognises(names: frozenset[str]) -> bool:
    """Whether the columns are BurstGPT's, of any version."""
    return names.issuperset(COLUMNS)


def read(pieces: Iterable[str], info: TraceInfo) -> Iterator[Session]:
    """One session of one turn per row that did not fail."""
    first: float | None = None
    before = 0.0
    for line in csv_lines(pieces, info, COLUMNS):
        seconds = line.seconds("Timestamp")
        first = seconds if first is None else first
        before = in_order(line, "Timestamp", before, seconds - first)
        input_tokens = line.whole("Request tokens")
        output_tokens = line.whole("Response tokens")
        if not input_tokens or not output_tokens:
            dropped(info, "zero_input" if output_tokens else "failed")
            continue
        if line.values.get("Session ID"):
            warn_once(info, _NO_SESSIONS)
        info.kept += 1
        extra = {
            name: line.values[name]
            for name in ("Model", "Log Type", "Session ID", "Elapsed time")
            if line.values.get(name)
        }
        turn = Turn(
            kind=_KINDS.get(line.values["Log Type"].strip(), "other"),
            at_seconds=before,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            extra=extra,
        )
        yield Session(str(line.number - 1), (turn,))
