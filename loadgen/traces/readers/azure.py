"""Azure LLM inference traces of 2023 and 2024: arrival, prompt and output tokens.

Layout: https://github.com/Azure/AzurePublicDataset. Times have seven fractional
digits, one more than `strptime` takes, so whole seconds and ticks of 100 ns are
read separately and subtracted as integers. The 2024 files add a zone, the
multimodal file of 2025 a column before the lengths: columns are found by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import datetime

from loadgen.traces.readers.line import Line, csv_lines, dropped, in_order
from loadgen.traces.trace import Session, TraceInfo, Turn

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")

_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:Z|[+-]00:?00)?$"
)
_TICKS = 10**9
_EPOCH = datetime(1970, 1, 1)


def recognises(names: frozenset[str]) -> bool:
    """Whether the columns are Azure's, of any year."""
    return names.issuperset(COLUMNS)


def read(pieces: Iterable[str], info: TraceInfo) -> Iterator[Session]:
    """One session of one turn per row."""
    first: int | None = None
    before = 0.0
    for line in csv_lines(pieces, info, COLUMNS):
        ticks = _ticks(line)
        first = ticks if first is None else first
        before = in_order(line, "TIMESTAMP", before, (ticks - first) / _TICKS)
        input_tokens = line.whole("ContextTokens")
        output_tokens = line.whole("GeneratedTokens")
        if not input_tokens or not output_tokens:
            dropped(info, "zero_output" if input_tokens else "zero_input")
            continue
        info.kept += 1
        extra = {k: v for k, v in line.values.items() if k not in COLUMNS}
        turn = Turn(
            kind=info.kind,
            at_seconds=before,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            extra=extra,
        )
        yield Session(str(line.number - 1), (turn,))


def _ticks(line: Line) -> int:
    """The row's instant in nanoseconds since 1970, without rounding."""
    found = _TIME.match(line.values["TIMESTAMP"].strip())
    try:
        if found is None:
            raise ValueError
        whole = datetime.fromisoformat(found[1])
    except ValueError:
        line.fail("TIMESTAMP", "a time like 2023-11-16 18:15:46.6805900")
    since = whole - _EPOCH
    return (since.days * 86_400 + since.seconds) * _TICKS + int(
        (found[2] or "").ljust(9, "0")
    )
