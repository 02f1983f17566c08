"""The list of modules that are compiled where that is asked for; no compiler needed."""

from __future__ import annotations

import ast
import os
import runpy
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.process.build import build_form
from tests.support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES: list[str] = PROJECT["tool"]["servewatt"]["compiled"]
NEVER_DECODED = {"ReplyHead"}


def path_of(module: str) -> Path:
    return ROOT / f"{module.replace('.', '/')}.py"


def bases(path: Path) -> Iterator[tuple[str, str]]:
    """Each class of a module, with each base by its full name."""
    tree = ast.parse(path.read_text())
    full = {
        name.asname or name.name: f"{node.module}.{name.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for base in node.bases:
                name = ast.unparse(base).partition("[")[0]
                yield node.name, full.get(name, name)


def test_the_list_is_in_order_and_each_module_is_there() -> None:
    assert sorted(set(MODULES)) == MODULES
    assert [module for module in MODULES if not path_of(module).is_file()] == []


def test_the_module_that_tells_the_build_is_one_of_them() -> None:
    assert "proxy.process.build" in MODULES
    assert build_form() in ("pure", "compiled")


@pytest.mark.parametrize("module", MODULES)
def test_no_struct_that_is_decoded_is_defined_in_one(module: str) -> None:
    """msgspec reads a struct's annotations, and compiled classes keep only a part."""
    structs = {name for name, base in bases(path_of(module)) if base.endswith("Struct")}
    assert structs <= NEVER_DECODED


def test_no_class_of_theirs_is_inherited_by_one_that_is_not_compiled() -> None:
    """A native class has no interpreted children: they could not be made."""
    compiled = {path_of(module) for module in MODULES}
    found = [
        f"{path.relative_to(ROOT)}: {name}({base})"
        for package in ("loadgen", "proxy")
        for path in (ROOT / package).rglob("*.py")
        if path not in compiled
        for name, base in bases(path)
        if base.rpartition(".")[0] in MODULES
    ]
    assert found == []


def setup(monkeypatch: pytest.MonkeyPatch, asked: str | None) -> dict[str, Any]:
    """The names in setup.py, as it stands with this in SERVEWATT_COMPILE."""
    pytest.importorskip("setuptools", reason="builds; in the development environment")
    monkeypatch.delenv("SERVEWATT_COMPILE", raising=False)
    if asked is not None:
        monkeypatch.setenv("SERVEWATT_COMPILE", asked)
    return runpy.run_path(str(ROOT / "setup.py"))


@pytest.mark.parametrize("asked", [None, "", "0"])
def test_nothing_is_compiled_unless_asked(
    monkeypatch: pytest.MonkeyPatch, asked: str | None
) -> None:
    assert setup(monkeypatch, asked)["options"]() == {}


def test_the_build_needs_mypyc_and_the_types_of_all_libraries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    project = PROJECT["project"]
    mypyc = project["optional-dependencies"]["compile"]
    needs = setup(monkeypatch, "1")["options"]()["setup_requires"]
    assert needs == [*mypyc, *project["dependencies"]]


@pytest.mark.parametrize(
    ("asked", "command", "reason"),
    [
        ("yes", "bdist_wheel", "SERVEWATT_COMPILE=yes: expected 1 or 0"),
        ("1", "editable_wheel", "SERVEWATT_COMPILE=1: an editable install would"),
    ],
)
def test_what_cannot_be_built_is_refused_in_a_line(
    monkeypatch: pytest.MonkeyPatch, asked: str, command: str, reason: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["setup.py", command])
    with pytest.raises(SystemExit, match=reason) as refused:
        setup(monkeypatch, asked)["options"]()
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(os.name != "posix", reason="other systems find their own compiler")
def test_without_a_compiler_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -pthread")
    reason = r"no C compiler \(no-such-compiler\): install gcc"
    with pytest.raises(SystemExit, match=reason):
        setup(monkeypatch, "1")["check_compiler"]()
