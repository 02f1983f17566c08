"""Readers: one trace format per file, text in, sessions out, nothing buffered.

`READERS` lists them. A reader tells whether it recognises a file (by the column names
of a table, or the first row of JSON) and turns text in pieces cut anywhere into
sessions, counting into a `TraceInfo` the rows it keeps and drops, and its warnings.
`text` cuts lines and elements within bounds, `line` checks their fields. Files are
opened in `loadgen.traces.readers.open`, which no reader imports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from loadgen.traces.readers import (
    azure,
    burstgpt,
    lengths,
    loadtrace,
    mooncake,
    openai,
    prompts,
    sharegpt,
)
from loadgen.traces.trace import Session, TraceInfo

Read = Callable[[Iterable[str], TraceInfo], Iterator[Session]]


@dataclass(frozen=True, slots=True)
class Reader:
    """A trace format."""

    read: Read
    recognises_table: Callable[[frozenset[str]], bool] | None = None
    """Given the column names, if the file is a table."""
    recognises_object: Callable[[dict[str, Any]], bool] | None = None
    """Given the first row, if the file is JSON."""


# In the order they are asked: Mooncake's four fields are loadtrace fields too, chats
# may be in a loadtrace, and a plain prompt is the weakest claim.
READERS: dict[str, Reader] = {
    "azure": Reader(azure.read, recognises_table=azure.recognises),
    "burstgpt": Reader(burstgpt.read, recognises_table=burstgpt.recognises),
    "lengths": Reader(lengths.read, recognises_table=lengths.recognises),
    "sharegpt": Reader(sharegpt.read, recognises_object=sharegpt.recognises),
    "mooncake": Reader(mooncake.read, recognises_object=mooncake.recognises),
    "loadtrace": Reader(loadtrace.read, recognises_object=loadtrace.recognises),
    "openai": Reader(openai.read, recognises_object=openai.recognises),
    "prompts": Reader(prompts.read, recognises_object=prompts.recognises),
}
