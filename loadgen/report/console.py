"""The terminal, or what stands in for it: one way to make a console."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from proxy.process.terminal import escaped_lines

PLAIN_COLUMNS = 100
"""A log or a pipe has no width of its own; the tables are made for this one."""


class SafeConsole(Console):
    """A console on which text is text: no control codes, no markup, no emoji names.

    Errors of servers, names of models and of files come from outside.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, stderr=stderr)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """The segments of anything shown; rich's own control codes stay."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(escaped_lines(segment.text), segment.style)


def console(*, stderr: bool = False) -> Console:
    """Standard output; rich would assume 80 columns where it is no terminal."""
    found = SafeConsole(stderr=stderr)
    if not found.is_terminal:
        found.width = max(found.width, PLAIN_COLUMNS)
    return found
