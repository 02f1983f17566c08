"""Which room a line belongs in: imports are read with `ast` and held to the design."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.support.paths import ROOT

ROOMS = {
    "proxy": [
        "errors", "process", "wire", "engines", "power", "security", "meter", "store",
        "recording", "relay", "metrics", "admin", "measure", "serve", "commands", "cli",
    ],
    "loadgen": [
        "errors", "traces", "plan", "results", "client", "replay", "energy",
        "analysis", "report", "simulator", "run", "studies", "cli",
    ],
}  # fmt: skip
"""The stages of the walk: a room imports only from itself and from those before it."""

LOADGEN_MAY_IMPORT = (
    "proxy.errors", "proxy.process", "proxy.wire", "proxy.engines",
    "proxy.admin.client",
)  # fmt: skip
"""What both packages speak, what any process needs and the errors that it raises, and
the one client of the admin API: it knows only the structs in `wire`, and a second one
would drift from the first.
"""

PURE = (
    "proxy/errors.py", "proxy/wire", "proxy/engines", "proxy/meter",
    "proxy/measure/figures.py", "proxy/measure/watch.py", "proxy/measure/report.py",
    "proxy/measure/config.py",
    "proxy/recording/prompts.py", "proxy/recording/blocks.py",
    "proxy/recording/conversations.py", "proxy/recording/traffic.py",
    "loadgen/errors.py", "loadgen/traces/trace.py", "loadgen/traces/readers",
    "loadgen/plan", "loadgen/results/results.py", "loadgen/results/measures.py",
    "loadgen/client/backends.py", "loadgen/client/abilities.py",
    "loadgen/client/conversation.py", "loadgen/client/replies.py",
    "loadgen/analysis/verdict.py", "loadgen/simulator/core",
    "loadgen/simulator/wire.py", "loadgen/simulator/vllm/dialect.py",
    "loadgen/simulator/vllm/metrics.py",
    "loadgen/simulator/tgi/dialect.py",
    "loadgen/simulator/tgi/metrics.py",
)  # fmt: skip
"""Cores: neither socket nor clock nor coroutine."""

EDGE_LIBRARIES = {
    "asyncio", "time", "threading", "socket", "subprocess", "select",
    "aiohttp", "httpx", "uvloop", "pynvml",
}  # fmt: skip
"""Not `prometheus_client`, not `httptools`: they parse and open nothing."""


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    name_of(path): path for package in ROOMS for path in (ROOT / package).rglob("*.py")
}
IN_A_ROOM = sorted(
    name for name in MODULES if "." in name and not name.endswith("__main__")
)


@cache
def imports_of(path: Path) -> set[str]:
    """Every module imported, and every name that may be one."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def of_this_project(name: str) -> set[str]:
    return imports_of(MODULES[name]) & MODULES.keys()


@pytest.mark.parametrize("package", ROOMS)
def test_nothing_stands_loose_outside_the_rooms(package: str) -> None:
    loose = {path.stem for path in (ROOT / package).glob("*.py")}
    assert loose <= {"__init__", "__main__", "cli", "errors"}
    rooms = {name.split(".")[1] for name in IN_A_ROOM if name.startswith(package)}
    assert rooms == set(ROOMS[package])


@pytest.mark.parametrize("package", ROOMS)
def test_unit_tests_stand_in_the_room_of_what_they_test(package: str) -> None:
    folder = ROOT / "tests" / "unit" / package
    assert not list(folder.glob("*.py"))
    rooms = {path.parent.name for path in folder.rglob("test_*.py")}
    assert rooms <= set(ROOMS[package])


def test_a_room_imports_only_from_rooms_above_it() -> None:
    below = set()
    for name in IN_A_ROOM:
        package, room = name.split(".")[:2]
        for other in of_this_project(name):
            parts = other.split(".")
            if parts[0] == package and len(parts) > 1:
                order = ROOMS[package]
                if order.index(parts[1]) > order.index(room):
                    below.add((name, other))
    assert not below


def test_the_proxy_never_imports_loadgen() -> None:
    for name in IN_A_ROOM:
        if name.startswith("proxy."):
            assert not {n for n in of_this_project(name) if n.startswith("loadgen")}


def test_loadgen_imports_of_the_proxy_only_what_both_speak() -> None:
    for name in IN_A_ROOM:
        if name.startswith("loadgen."):
            for other in of_this_project(name):
                parents = {"proxy", "proxy.admin"}  # named by what is below them
                if other.split(".")[0] == "proxy" and other not in parents:
                    assert other.startswith(LOADGEN_MAY_IMPORT), (name, other)


def test_the_client_of_the_admin_api_knows_only_what_both_speak() -> None:
    assert of_this_project("proxy.admin.client") <= {
        "proxy.errors", "proxy.wire", "proxy.wire.api",
    }  # fmt: skip


@pytest.mark.parametrize("place", PURE)
def test_cores_touch_no_edge(place: str) -> None:
    root = ROOT / place
    paths = [root] if root.is_file() else sorted(root.rglob("*.py"))
    assert paths, f"{place} holds no module"
    for path in paths:
        edges = {name.split(".")[0] for name in imports_of(path)} & EDGE_LIBRARIES
        assert not edges, f"{path.relative_to(ROOT)} imports {sorted(edges)}"
