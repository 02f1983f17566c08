"""A table with a title and notes, for a terminal, a paper and a program.

What a command answers is a `Sheet` of texts for people, and the structs that it was
made from for programs: their fields are the names in csv and JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from proxy.process.csv_rows import csv_text


@dataclass(frozen=True, slots=True)
class Sheet:
    """One table: rows as wide as `heads`."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    left: frozenset[int] = frozenset({0})
    """Columns of words; the others are figures, to the right."""


def render(sheets: Sequence[Sheet]) -> RenderableType:
    """The sheets one below the other."""
    parts: list[RenderableType] = []
    for sheet in sheets:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for place, head in enumerate(sheet.heads):
            is_words = place in sheet.left
            table.add_column(head, justify="left" if is_words else "right",
                             no_wrap=not is_words)  # fmt: skip
        for row in sheet.rows:
            table.add_row(*(Text(cell) for cell in row))
        parts += [Text(), Text(sheet.title, style="bold")]
        if sheet.rows:
            parts.append(table)
        if sheet.notes:
            parts.append(Text())
        parts += [Text(note) for note in sheet.notes]
    return Group(*parts)


def to_markdown(sheets: Sequence[Sheet]) -> str:
    """Tables for a pull request or a README."""
    parts: list[str] = []
    for sheet in sheets:
        parts += [f"**{markdown(sheet.title)}**", ""]
        if sheet.rows:
            parts.append(markdown_row(sheet.heads))
            marks = ("---" if at in sheet.left else "---:" for at in _places(sheet))
            parts.append(f"|{'|'.join(marks)}|")
            parts += [*(markdown_row(row) for row in sheet.rows), ""]
        parts += [f"- {markdown(note)}" for note in sheet.notes]
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def to_csv(rows: Sequence[msgspec.Struct], **beside: Any) -> str:
    """A line per struct, headed by `beside` and the names of its fields."""
    if not rows:
        return ""
    names = [field.name for field in msgspec.structs.fields(rows[0])]
    table = ([*beside.values(), *(getattr(row, n) for n in names)] for row in rows)
    return csv_text([*beside, *names], table)


def markdown_row(cells: Sequence[str]) -> str:
    """One row of a table, its cells as text."""
    return "| " + " | ".join(markdown(cell) for cell in cells) + " |"


def markdown(text: str) -> str:
    """Text that means nothing to a reader of markdown."""
    for sign in "\\`*_<>[]|":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("\n", " ")


def _places(sheet: Sheet) -> range:
    return range(len(sheet.heads))
