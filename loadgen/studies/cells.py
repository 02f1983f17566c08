"""The cells of a study: which runs it is made of, and which of them are there.

A study's folder is its whole state. `study.json` names the cells and is replaced
whole; each cell's run lies in `cells/<name>` and got that name only when it had
ended well, with a note (`cell.json`) of the options that it was run for. So a study
that was killed at any moment is known again from its folder, and one that was planned
for other options is never mixed with it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from loadgen.errors import StudyError, UsageError
from proxy.process.files import PRIVATE, os_reason, whole_file

PLAN, NOTE, SUMMARY = "study.json", "cell.json", "summary.json"
CELLS, FAILED = "cells", "failed"
MAX_NAME = 96
"""Bytes of a cell's name, which is a folder's: 255 hold it with what is added."""

Value = str | int | float | bool | list[str] | dict[str, Any]
"""An option's value: False is its `--no-`, a list is given item by item."""


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a study. Make it by `cell`, which spells equal values equally."""

    name: str
    """Unique in its study, and a folder's name."""
    trace: str
    options: dict[str, Value] = {}
    """Options of `loadgen replay` without dashes, such as `rate` or `output-len`."""
    context: dict[str, Any] = {}
    """What else makes it another run: the server's configuration, the trace's sha256,
    the number of the repeat."""

    @property
    def hash(self) -> str:
        """The same for the same run, whatever its name and the order of its options."""
        asked = [self.trace, self.options, self.context]
        text = json.dumps(asked, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


class StudyPlan(msgspec.Struct, frozen=True, kw_only=True):
    """`study.json`: what was asked for, and the cells that it came to so far."""

    study: str = "study/1"
    kind: str
    """`sweep`, `study`, `offline`, ..."""
    asked: dict[str, Any]
    """The options of the command: a folder is resumed by the same ones only."""
    cells: list[Cell]


class CellNote(msgspec.Struct, frozen=True, kw_only=True):
    """`cell.json` of a run folder: the cell that it is the run of."""

    hash: str
    cell: Cell
    seconds: float
    """The last attempt, start and end of its processes included."""
    attempts: int
    exit_code: int
    """0, or 3 where the run's verdict is `invalid`."""


def cell(
    name: str,
    trace: str | Path,
    options: Mapping[str, Any],
    context: Mapping[str, Any] | None = None,
) -> Cell:
    """A cell of options as they come: None is left out, 4.0 is 4, inf is "inf"."""
    return Cell(
        name=folder_name(name),
        trace=str(trace),
        options={
            key.replace("_", "-"): plain(value)
            for key, value in options.items()
            if value is not None
        },
        context=plain(dict(context or {})),
    )


def folder_name(text: str) -> str:
    """The text as a folder may be called; with a hash where that took letters away."""
    kept = re.sub(r"[^A-Za-z0-9._=,+-]+", "-", text).strip("-.")
    if kept and kept == text and len(kept) <= MAX_NAME:
        return kept
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:6]
    return f"{kept[: MAX_NAME - 7]}-{digest}".lstrip("-.")


def plain(value: Any) -> Any:
    """A value as JSON has it, equal values alike."""
    if isinstance(value, float):
        if math.isinf(value):
            return "inf" if value > 0 else "-inf"
        return int(value) if value.is_integer() else value
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def arguments(options: Mapping[str, Value]) -> list[str]:
    """The options as a command line has them."""
    words: list[str] = []
    for name, value in options.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, list):
            for each in value:
                words.append(f"--{name}={each}")
        elif isinstance(value, dict):
            words.append(f"--{name}={json.dumps(value)}")
        else:
            words.append(f"--{name}={value}")
    return words


def check_names(cells: Iterable[Cell]) -> None:
    """Raises UsageError where two cells would share a folder."""
    by_name: dict[str, Cell] = {}
    for each in cells:
        # folders may be told apart without regard to case
        other = by_name.setdefault(each.name.lower(), each)
        if other is not each:
            raise UsageError(f"two cells are named {each.name!r}: give each its own")


# -- the folder ----------------------------------------------------------------


def plan_of(folder: Path, kind: str, asked: Mapping[str, Any]) -> StudyPlan | None:
    """The plan that a folder holds, to go on with; None where it holds none.

    Raises StudyError where it was planned for something else, or cannot be read.
    """
    path = folder / PLAN
    try:
        found = read_plan(folder)
    except FileNotFoundError:
        return None
    if found.kind != kind:
        raise StudyError(
            f"{path} is of `loadgen {found.kind}`; name another folder with --out"
        )
    now, then = plain(dict(asked)), found.asked
    for name in [*now, *then]:
        if now.get(name) != then.get(name):
            raise StudyError(
                f"{folder} was planned with {_shown(name, then.get(name))}, now it is "
                f"{_shown(name, now.get(name))}; give the same options to go on with "
                "it, or another folder with --out"
            )
    return found


def read_plan(folder: Path) -> StudyPlan:
    """The plan of a study. Raises FileNotFoundError and StudyError."""
    path = folder / PLAN
    try:
        return msgspec.json.decode(path.read_bytes(), type=StudyPlan)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StudyError(f"cannot read {path}: {os_reason(error)}") from None
    except (ValueError, RecursionError) as error:
        raise StudyError(
            f"{path} is not a study's plan: {error}; name another folder with --out"
        ) from None


def write_plan(folder: Path, plan: StudyPlan) -> None:
    """Whole, and on the disk before it counts. Raises StudyError."""
    text = msgspec.json.format(msgspec.json.encode(plan), indent=2)
    _write(folder / PLAN, text + b"\n")


def write_note(run: Path, note: CellNote) -> None:
    """Say of which cell a run folder is the run. Raises StudyError."""
    _write(run / NOTE, msgspec.json.encode(note) + b"\n")


def note_of(folder: Path, cell: Cell) -> CellNote | None:
    """The note of a finished cell; None where it is to be run (again)."""
    run = run_of(folder, cell)
    try:
        note = msgspec.json.decode((run / NOTE).read_bytes(), type=CellNote)
    except (OSError, ValueError, RecursionError):
        return None
    is_same = note.hash == cell.hash and (run / SUMMARY).is_file()
    return note if is_same else None


def run_of(folder: Path, cell: Cell) -> Path:
    """The run folder of a cell, once it is finished."""
    return folder / CELLS / cell.name


def unfinished(folder: Path, cells: Sequence[Cell]) -> list[Cell]:
    """The cells that are left to run, in order."""
    return [each for each in cells if note_of(folder, each) is None]


def _write(path: Path, content: bytes) -> None:
    try:
        with whole_file(path, mode=PRIVATE, is_durable=True) as file:
            file.write(content)
    except OSError as error:
        raise StudyError(f"cannot write {path}: {os_reason(error)}") from None


def _shown(name: str, value: Any) -> str:
    option = name.replace("_", "-")
    if value is None:
        return f"no --{option}"
    if isinstance(value, list) and not any(isinstance(v, list | dict) for v in value):
        value = ",".join(map(str, value))
    return f"--{option} {value}"
