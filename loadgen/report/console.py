"""The terminal, or what stands in for it: one way to make a console."""

from __future__ import annotations

from rich.console import Console

PLAIN_COLUMNS = 100
"""A log or a pipe has no width of its own; the tables are made for this one."""


def console() -> Console:
    """Standard output; rich would assume 80 columns where it is no terminal."""
    found = Console(highlight=False)
    if not found.is_terminal:
        found.width = max(found.width, PLAIN_COLUMNS)
    return found
