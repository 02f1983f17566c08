"""Length tables of sarathi-serve and vidur: prefill and decode tokens per row.

vidur's tables have `arrived_at` in seconds as well; sarathi-serve's have no
times, so they are driven by a rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from loadgen.traces.readers.line import csv_lines, dropped, in_order
from loadgen.traces.trace import Session, TraceInfo, Turn

COLUMNS = ("num_prefill_tokens", "num_decode_tokens")


def recognises(names: frozenset[str]) -> bool:
    """Whether the two length columns are there."""
    return names.issuperset(COLUMNS)


def read(pieces: Iterable[str], info: TraceInfo) -> Iterator[Session]:
    """One session of one turn per row; the whole history is in its prompt."""
    first: float | None = None
    before = 0.0
    for line in csv_lines(pieces, info, COLUMNS):
        at_seconds = None
        if "arrived_at" in line.values:
            arrived = line.seconds("arrived_at")
            first = arrived if first is None else first
            at_seconds = before = in_order(line, "arrived_at", before, arrived - first)
        input_tokens = line.whole("num_prefill_tokens")
        output_tokens = line.whole("num_decode_tokens")
        if not input_tokens or not output_tokens:
            dropped(info, "zero_output" if input_tokens else "zero_input")
            continue
        info.kept += 1
        turn = Turn(
            kind=info.kind,
            at_seconds=at_seconds,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
        )
        yield Session(str(line.number - 1), (turn,))
