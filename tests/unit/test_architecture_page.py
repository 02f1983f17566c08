"""Diagrams of docs/architecture.md and rooms of CONTRIBUTING.md, held to the code."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest

from tests.support.paths import ROOT
from tests.unit.test_architecture import MODULES, ROOMS, of_this_project

PAGE = "docs/architecture.md"
CALL, CALLBACK = "──>", "┄┄>"
LINE = re.compile(rf"([│ ]*)(?:[├└]({CALL}|{CALLBACK}) )?([a-z_0-9.]+)(?:\s.*)?")


class Arrow(NamedTuple):
    """One line of a diagram: the module above it calls, or is given, the one on it."""

    caller: str
    kind: str
    callee: str


def diagrams() -> list[list[str]]:
    text = (ROOT / PAGE).read_text()
    return [
        block.splitlines() for block in re.findall(r"```text\n(.*?)```", text, re.S)
    ]


def arrows_of(diagram: list[str]) -> list[Arrow]:
    found: list[Arrow] = []
    above: list[tuple[int, str]] = []
    for line in diagram:
        match = LINE.fullmatch(line)
        assert match, f"{PAGE}: not a line of a diagram: {line!r}"
        indent, kind, module = match.groups()
        depth = len(indent) if kind else -1
        while above and above[-1][0] >= depth:
            above.pop()
        if kind:
            assert above, f"{PAGE}: no module above {line!r}"
            found.append(Arrow(above[-1][1], kind, module))
        above.append((depth, module))
    return found


ARROWS = [arrow for diagram in diagrams() for arrow in arrows_of(diagram)]


def test_three_walks_are_drawn() -> None:
    starts = {diagram[0].split()[0] for diagram in diagrams()}
    assert starts >= {"proxy.cli", "proxy.power.sensors", "loadgen.cli.replay"}


@pytest.mark.parametrize("arrow", ARROWS, ids=lambda a: f"{a.caller}->{a.callee}")
def test_every_arrow_is_in_the_code(arrow: Arrow) -> None:
    for name in (arrow.caller, arrow.callee):
        assert name in MODULES, f"{PAGE} names {name}, which is no module: moved?"
    is_imported = arrow.callee in of_this_project(arrow.caller)
    if arrow.kind == CALL:
        assert is_imported, (
            f"{PAGE} draws {arrow.caller} {CALL} {arrow.callee}, but it does not "
            f"import it: redraw, or draw {CALLBACK} for a callback"
        )
    else:
        assert not is_imported, (
            f"{PAGE} draws {arrow.caller} {CALLBACK} {arrow.callee} as a callback, "
            f"but it is imported: draw {CALL}"
        )


@pytest.mark.parametrize("package", ROOMS)
def test_contributing_lists_the_rooms_in_order(package: str) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    found = re.search(rf"^{package}: +((?:.|\n  )*)$", text, re.MULTILINE)
    assert found, f"CONTRIBUTING.md draws no rooms of {package}"
    assert found[1].replace("\n", " ").split() == " > ".join(ROOMS[package]).split()


def test_contributing_names_files_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"`((?:proxy|loadgen|tests|docs|benchmarks)/[\w/.*<>-]+)`", text)
    assert paths
    for path in paths:
        pattern = re.sub(r"<\w+>", "*", path.rstrip("/"))
        assert list(ROOT.glob(pattern)), f"CONTRIBUTING.md: {path} does not exist"
