"""Recordings of a proxy: `loadtrace/1` in the order in which requests ended.

Their lines are put in order of arrival here, turns of a session together, whichever
files they stand in and in whichever order. A request may have a line from before its
end, which the later one replaces. What cannot be a load of its own is left out and
counted: requests that the engine refused, and those that generate nothing.

The rows wait in a temporary database, so a recording of any length needs the memory
of a session.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import groupby

import msgspec

from loadgen.errors import TraceError
from loadgen.traces.readers.line import (
    MAX_SESSION_CHARACTERS,
    Line,
    decoded,
    too_long,
    warn_once,
)
from loadgen.traces.trace import TraceInfo, Turn

ORDER_OF_ENDS = "end"
"""`order` in the header of a recording."""
REFUSED = "refused by the engine"
WITHOUT_OUTPUT = "without output (embeddings, scores)"
OPEN = "open"
MAX_TURNS = 100_000
"""Turns of one session."""
MORE_CACHED = "more cached than shared"

_TABLE = """
CREATE TABLE rows (
  run TEXT, key INTEGER, is_open INTEGER, session TEXT, at INTEGER, turn INTEGER,
  path INTEGER, number INTEGER, text BLOB, left_out TEXT, PRIMARY KEY (run, key)
) WITHOUT ROWID
"""
_PUT = """
INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET
  is_open = excluded.is_open, session = excluded.session, at = excluded.at,
  turn = excluded.turn, path = excluded.path, number = excluded.number,
  text = excluded.text, left_out = excluded.left_out
WHERE excluded.is_open <= rows.is_open
"""
_SORTED = """
SELECT rows.session, rows.run, rows.at, rows.turn, path, number, text FROM rows
JOIN (
  SELECT session, MIN(at) AS first FROM rows WHERE left_out IS NULL GROUP BY session
) AS firsts ON rows.session = firsts.session
WHERE left_out IS NULL
ORDER BY firsts.first, rows.session, rows.at, rows.turn, rows.key
"""

_LEFT_OUT = "SELECT left_out, COUNT(*) FROM rows WHERE left_out <> '' GROUP BY left_out"
_ESTIMATED = "SELECT COUNT(*) FROM rows WHERE is_open AND left_out IS NULL"
_ZERO = "SELECT MIN(at) FROM rows WHERE left_out IS NULL"

Before = Line | None
Row = tuple[Line, Before, float]
"""A line, that of the turn it continues, and its time from the recording's start."""


def gathered(
    lines: Iterable[Line], info: TraceInfo, check_header: Callable[[Line], None]
) -> Iterator[tuple[str, list[Row]]]:
    """Rows by session, sessions in order of their first arrival."""
    with contextlib.closing(sqlite3.connect("")) as rows:  # a file without a name
        rows.execute(_TABLE)
        try:
            unseen, paths = Counter[str](), list[str]()
            values = _values(lines, info, check_header, unseen, paths)
            rows.executemany(_PUT, values)
        except sqlite3.Error as error:
            raise TraceError(info.path, None, f"cannot be sorted: {error}") from None
        for reason, count in rows.execute(_LEFT_OUT):
            info.dropped[reason] = count
        if unseen[MORE_CACHED]:
            warn_once(
                info, f"of {unseen[MORE_CACHED]} prompts the engine had more cached "
                "than the recording knows to be shared: a replay shares less there",
            )  # fmt: skip
        (estimated,) = rows.execute(_ESTIMATED).fetchone()
        if estimated:
            warn_once(
                info, f"{estimated} requests were in flight when the recording ended: "
                "their lengths are estimates",
            )  # fmt: skip
        (zero,) = rows.execute(_ZERO).fetchone()
        found = rows.execute(_SORTED)
        for session_id, group in groupby(found, key=lambda row: row[0]):
            yield session_id, _bounded(_turns(group, zero, paths))


def continued(
    turn: Turn, line: Line, index: int, before: Before, at_seconds: float
) -> Turn:
    """The turn at its time; one that has lost what it continues has a whole prompt."""
    turn = replace(turn, at_seconds=at_seconds)
    if index == 0:
        turn = replace(turn, think_seconds=0.0)
    if turn.history == "append" and before is None:
        whole = Line(line.path, line.number, line.object("x"))
        turn = replace(
            turn, history="total", input_tokens=whole.whole("prompt_tokens", least=1)
        )
    return turn


def _bounded(turns: Iterable[Row]) -> list[Row]:
    """The turns of a session, which are held until it ends."""
    held: list[Row] = []
    size = 0
    for turn in turns:
        held.append(turn)
        size += turn[0].size
        if len(held) > MAX_TURNS:
            turn[0].fail("turn", f"at most {MAX_TURNS:,} turns of a session")
        if size > MAX_SESSION_CHARACTERS:
            turn[0].refuse(too_long("session"))
    return held


def _turns(
    group: Iterable[tuple[object, ...]], zero: int, paths: list[str]
) -> Iterator[Row]:
    last: tuple[object, object, Line] | None = None
    for _, run, at, turn, path, number, text in group:
        assert isinstance(text, bytes)
        assert isinstance(number, int)
        assert isinstance(path, int)
        assert isinstance(turn, int)
        assert isinstance(at, int)
        line = Line(paths[path], number, decoded(text.decode()), None, len(text))
        is_next = last is not None and last[:2] == (run, turn - 1)
        before = last[2] if is_next and last is not None else None
        last = (run, turn, line)
        yield line, before, (at - zero) / 1_000_000


def _values(
    lines: Iterable[Line],
    info: TraceInfo,
    check_header: Callable[[Line], None],
    unseen: Counter[str],
    paths: list[str],
) -> Iterator[tuple[object, ...]]:
    run, zero = "", 0
    for line in lines:
        if not paths or line.path != paths[-1]:
            paths.append(line.path)
        if "loadtrace" in line.values:
            check_header(line)
            run = line.text("run") if line.has("run") else line.path
            zero = round(line.seconds("zero_unix_ms", 1000) * 1_000_000)
            if line.values.get("order") != ORDER_OF_ENDS:
                line.fail("order", f"{ORDER_OF_ENDS!r}, as of all files of a recording")
            continue
        x = line.object("x")
        outcome = x.get("outcome")
        reason = None
        if outcome == "refused":
            reason = REFUSED
        elif outcome != OPEN and not line.has("output_length"):
            reason = WITHOUT_OUTPUT
        if x.get("estimated") and outcome != OPEN and reason is None:
            warn_once(info, "lengths that no engine told are estimates")
        cached, shared = x.get("cached_tokens"), x.get("shared_tokens")
        if isinstance(cached, int) and isinstance(shared, int):
            unseen[MORE_CACHED] += cached > shared + (info.hash_block_size or 0)
        key = x.get("key")
        if type(key) is not int or not 0 <= key < 2**63:
            line.fail("x", "the request's key, an integer")
        at = zero + round(line.seconds("timestamp", 1000) * 1_000_000)
        yield (
            run, key, int(outcome == OPEN), line.text("session_id"), at,
            line.whole("turn", least=1), len(paths) - 1, line.number,
            msgspec.json.encode(line.values), reason,
        )  # fmt: skip
