"""The dashboards held against Grafana's own types: no option that it would not know."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grafana.boards import rendered
from tests.support.paths import ROOT

pytestmark = pytest.mark.grafana

TYPES = ROOT / "grafana" / "schema" / "boards.ts"
OPTIONS = (
    "--noEmit", "--strict", "--skipLibCheck", "--target", "es2022",
    "--module", "esnext", "--moduleResolution", "bundler", "--pretty", "false",
)  # fmt: skip


def first(board: Any, kind: str) -> Any:
    return next(panel for panel in board["panels"] if panel["type"] == kind)


def misspelt_option(board: Any) -> None:
    first(board, "timeseries")["options"]["legend"]["showLegends"] = True


def unknown_mode(board: Any) -> None:
    first(board, "stat")["options"]["colorMode"] = "colourful"


def no_empty_state(board: Any) -> None:
    del first(board, "stat")["fieldConfig"]["defaults"]["noValue"]


def misspelt_field(board: Any) -> None:
    first(board, "timeseries")["fieldConfig"]["defaults"]["custom"]["linewidth"] = 2


def unknown_refresh(board: Any) -> None:
    board["templating"]["list"][1]["refresh"] = 7


FAULTS: dict[str, tuple[Callable[[Any], None], str]] = {
    "misspelt_option": (misspelt_option, "showLegends"),
    "unknown_mode": (unknown_mode, "colourful"),
    "no_empty_state": (no_empty_state, "noValue"),
    "misspelt_field": (misspelt_field, "linewidth"),
    "unknown_refresh": (unknown_refresh, "7"),
}


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What the compiler says of each dashboard, and of one with each fault."""
    modules = os.environ.get("SERVEWATT_SCHEMA")
    if modules is None or shutil.which("node") is None:
        pytest.skip("needs Node.js and SERVEWATT_SCHEMA, the folder of .ci/schema")
    folder = tmp_path_factory.mktemp("schema")
    (folder / "node_modules").symlink_to(Path(modules) / "node_modules")
    shutil.copy(TYPES, folder)
    boards = {name.removesuffix(".json"): text for name, text in rendered().items()}
    for fault, (spoil, _) in FAULTS.items():
        board = json.loads(boards["servewatt-run"])
        spoil(board)
        boards[fault] = json.dumps(board)
    head = 'import type { Board } from "./boards";\nexport const board: Board =\n'
    for name, text in boards.items():
        (folder / f"{name}.ts").write_text(f"{head}{text};\n")
    compiler = folder / "node_modules" / "typescript" / "bin" / "tsc"
    done = subprocess.run(
        ["node", compiler, *OPTIONS, *(f"{name}.ts" for name in boards)],
        cwd=folder, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found: dict[str, list[str]] = {name: [] for name in boards}
    name = ""
    for line in done.stdout.splitlines():
        name = name if line.startswith(" ") else line.split(".ts(")[0]
        found[name].append(line)  # a KeyError: the types themselves do not compile
    return found


@pytest.mark.parametrize("name", sorted(rendered()))
def test_grafana_knows_all_that_a_dashboard_says(
    complaints: dict[str, list[str]], name: str
) -> None:
    assert complaints[name.removesuffix(".json")] == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_dashboard_is_found(
    complaints: dict[str, list[str]], fault: str
) -> None:
    assert FAULTS[fault][1] in "\n".join(complaints[fault])
