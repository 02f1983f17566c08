"""What can go wrong before or around a run.

LoadgenError            one line for the user, exit code 1
├── UsageError          a bad option or combination, exit code 2
├── TraceError          a bad trace: path, line, reason; exit code 2
├── PlanError           a plan that cannot be made or read, exit code 2
├── RunError            a run folder that cannot be read, exit code 2
├── StudyFileError      a mistake in a study's file: path, line, place; exit code 2
├── StudyError          a study's folder is another's, or cannot be written, exit code 2
└── StackError          a child process or the target did not come up

A failing server during the run is not an exception: it is data in the record.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class LoadgenError(Exception):
    """A failure worth one clear line to the user."""

    exit_code = 1


class UsageError(LoadgenError):
    """A bad option or combination of options."""

    exit_code = 2


class TraceError(LoadgenError):
    """A trace that cannot be read: names the file, the line and the reason.

    `element` is the place in a JSON array, whose lines tell little.
    """

    exit_code = 2

    def __init__(
        self,
        path: Path | str,
        line_number: int | None,
        reason: str,
        element: int | None = None,
    ) -> None:
        where = f"{path}, line {line_number}" if line_number is not None else f"{path}"
        place = "" if element is None else f" (element {element})"
        super().__init__(f"{where}: {reason}{place}")
        self.path = str(path)
        self.line_number = line_number
        self.reason = reason


class PlanError(LoadgenError):
    """A plan that cannot be made or read."""

    exit_code = 2


class RunError(LoadgenError):
    """A run folder that cannot be read: names the file, where it can the line."""

    exit_code = 2


class StudyError(LoadgenError):
    """A study's folder that is another study's, or cannot be read or written."""

    exit_code = 2


class StudyFileError(LoadgenError):
    """A mistake in the file of a study: names file, line and the place inside."""

    exit_code = 2

    def __init__(
        self,
        path: Path | str,
        line_number: int | None,
        where: Sequence[str | int],
        reason: str,
    ) -> None:
        line = "" if line_number is None else f", line {line_number}"
        place = "".join(
            f"[{key}]" if isinstance(key, int) else f".{key}" for key in where
        ).lstrip(".")
        super().__init__(f"{path}{line}: {place + ': ' if place else ''}{reason}")


class StackError(LoadgenError):
    """A child process or the target did not come up, or went away."""
