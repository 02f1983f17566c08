"""Mooncake traces (FAST'25): arrival in ms, lengths, a chain of prefix blocks.

Layout: https://github.com/kvcache-ai/Mooncake. A block is 512 tokens and the
last one of a chain may be partial, so their number follows from the length. Rows
without blocks, as converters leave them, share no prefix.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from loadgen.traces.readers.line import Line, in_order, json_rows, warn_unknown
from loadgen.traces.trace import Session, TraceInfo, Turn

BLOCK_TOKENS = 512
FIELDS = frozenset({"timestamp", "input_length", "output_length", "hash_ids"})


def recognises(row: dict[str, Any]) -> bool:
    """Whether the first object has Mooncake's four fields and no other."""
    return row.keys() == FIELDS


def read(pieces: Iterable[str], info: TraceInfo) -> Iterator[Session]:
    """One session of one turn per row: the trace does not link rows."""
    info.hash_block_size = BLOCK_TOKENS
    before = 0.0
    for line in json_rows(pieces, info):
        at_seconds = line.seconds("timestamp", 1000)
        before = in_order(line, "timestamp", before, at_seconds)
        input_tokens = line.whole("input_length", least=1)
        hash_ids = block_ids(line, input_tokens, BLOCK_TOKENS)
        extra = line.others(FIELDS)
        warn_unknown(info, extra)
        info.kept += 1
        turn = Turn(
            kind=info.kind,
            at_seconds=before,
            input_tokens=input_tokens,
            output_tokens=line.whole("output_length", least=1),
            hash_ids=hash_ids,
            extra=extra,
        )
        yield Session(str(line.number), (turn,))


def block_ids(line: Line, input_tokens: int, block_tokens: int) -> tuple[int, ...]:
    """The row's prefix blocks, as many as its length needs, or none at all."""
    ids = line.values.get("hash_ids")
    if ids is None or ids == []:
        return ()
    if not isinstance(ids, list) or not all(
        type(block) is int and 0 <= block < 2**64 for block in ids
    ):
        line.fail("hash_ids", "a list of integers from 0 to 2^64 - 1")
    needed = -(-input_tokens // block_tokens)
    if len(ids) != needed:
        line.fail(
            "hash_ids",
            f"{needed} ids, one per {block_tokens} of {input_tokens} tokens",
        )
    return tuple(ids)
