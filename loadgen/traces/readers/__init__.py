"""Readers: one trace format per file, lines in, sessions out, nothing buffered.

`READERS` lists them. A reader tells whether it recognises the head of a file
(the text of a table, or the first object of JSON) and turns lines into sessions,
counting into a `TraceInfo` the rows it keeps and drops, and its warnings. Files are
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
    prompts,
    sharegpt,
)
from loadgen.traces.trace import Session, TraceInfo

Read = Callable[[Iterable[str], TraceInfo], Iterator[Session]]


@dataclass(frozen=True, slots=True)
class Reader:
    """A trace format."""

    read: Read
    recognises_table: Callable[[str], bool] | None = None
    """Given the head of a file that is a table."""
    recognises_object: Callable[[dict[str, Any]], bool] | None = None
    """Given the first object of a file that is JSON."""
    takes_pieces: bool = False
    """Reads pieces of text cut anywhere, not whole lines."""


# In the order they are asked: Mooncake's four fields are loadtrace fields too, and
# a plain prompt is the weakest claim.
READERS: dict[str, Reader] = {
    "azure": Reader(azure.read, recognises_table=azure.recognises),
    "burstgpt": Reader(burstgpt.read, recognises_table=burstgpt.recognises),
    "lengths": Reader(lengths.read, recognises_table=lengths.recognises),
    "sharegpt": Reader(
        sharegpt.read, recognises_object=sharegpt.recognises, takes_pieces=True
    ),
    "mooncake": Reader(mooncake.read, recognises_object=mooncake.recognises),
    "loadtrace": Reader(loadtrace.read, recognises_object=loadtrace.recognises),
    "prompts": Reader(prompts.read, recognises_object=prompts.recognises),
}
