"""Rows of csv: what a cell holds stays in it, and is no formula of a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any

CRLF = "\r\n"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_text(names: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A table: its heads, then a line per row."""
    return b"".join([csv_line(names), *map(csv_line, rows)]).decode()


def csv_line(cells: Iterable[Any]) -> bytes:
    """A row of csv; None is empty, yes and no are `true` and `false`."""
    written = io.StringIO()
    # it quotes just those ends of lines that its own consists of
    csv.writer(written, lineterminator=CRLF).writerow(map(_cell, cells))
    line = written.getvalue().removesuffix(CRLF)
    return f"{line}\n".encode("utf-8", "replace")


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value
