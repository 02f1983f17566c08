"""Which room a line belongs in: imports are read with `ast` and held to the design."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULE_LINES = 330  # "about 300": a module that grows has two concepts in it

EDGE_LIBRARIES = {
    "asyncio", "time", "threading", "socket", "subprocess", "select",
    "aiohttp", "httpx", "httptools", "uvloop", "pynvml", "prometheus_client",
}  # fmt: skip
PURE = {
    "proxy": [
        "errors", "sse", "timeline", "energy", "attribution", "settlement", "ledger",
        "meter", "boundaries", "engines",
    ],
    "loadgen": [
        "errors", "trace", "readers", "prompts", "arrivals", "plan", "backends",
        "abilities", "conversation", "replies", "results", "measures", "verdict",
    ],
}  # fmt: skip
PROXY_ORDER = [
    "errors", "secret", "admin_call", "tls", "file_limit", "sse", "engines", "timeline",
    "energy", "attribution", "ledger", "settlement", "power", "meter", "boundaries",
    "sampler", "gauges", "sources", "sensing", "command", "store", "calibration",
    "relay", "metrics", "health", "admin_json", "admin_engines", "unit", "admin_guard",
    "admin", "app", "limit_options", "tls_options", "upstreams_file",
    "upstreams_cli", "cli",
]  # fmt: skip
LOADGEN_MAY_IMPORT = ("proxy.sse", "proxy.engines")


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports_of(path: Path) -> set[str]:
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


def room(path: Path) -> str:
    """First name below the package: `proxy/engines/tgi.py` is in `engines`."""
    relative = path.relative_to(ROOT).parts
    return relative[1].removesuffix(".py")


@pytest.mark.parametrize("package", PURE)
def test_pure_modules_touch_no_edge(package: str) -> None:
    for path in modules(package):
        if room(path) in PURE[package]:
            edges = {name.split(".")[0] for name in imports_of(path)} & EDGE_LIBRARIES
            assert not edges, f"{path.relative_to(ROOT)} imports {sorted(edges)}"


def test_the_simulators_core_is_pure() -> None:
    core = ROOT / "loadgen" / "simulator"
    for path in core.rglob("*.py"):
        if core / "server" not in path.parents:
            edges = {name.split(".")[0] for name in imports_of(path)} & EDGE_LIBRARIES
            assert not edges, f"{path.relative_to(ROOT)} imports {sorted(edges)}"


def test_the_figures_of_a_command_are_pure() -> None:
    for name in ("figures", "watch", "report", "words"):
        path = ROOT / "proxy" / "command" / f"{name}.py"
        edges = {name.split(".")[0] for name in imports_of(path)} & EDGE_LIBRARIES
        assert not edges, f"{path.relative_to(ROOT)} imports {sorted(edges)}"


def test_the_proxy_never_imports_loadgen() -> None:
    for path in modules("proxy"):
        assert not {n for n in imports_of(path) if n.split(".")[0] == "loadgen"}, path


def test_loadgen_imports_only_the_wire_modules_of_the_proxy() -> None:
    for path in modules("loadgen"):
        for name in imports_of(path):
            if name.split(".")[0] == "proxy":
                assert name.startswith(LOADGEN_MAY_IMPORT), (path, name)


def test_the_proxy_imports_only_from_above() -> None:
    for path in modules("proxy"):
        own = room(path)
        if own not in PROXY_ORDER:
            assert own in {"__init__", "__main__"}, f"{path}: a room without a place"
            continue
        for name in imports_of(path):
            parts = name.split(".")
            if parts[0] == "proxy" and len(parts) > 1 and parts[1] in PROXY_ORDER:
                assert PROXY_ORDER.index(parts[1]) <= PROXY_ORDER.index(own), (
                    f"{path.relative_to(ROOT)} imports {name} from below"
                )


@pytest.mark.parametrize("package", PURE)
def test_no_module_holds_two_concepts(package: str) -> None:
    for path in modules(package):
        lines = len(path.read_text().splitlines())
        assert lines <= MODULE_LINES, f"{path.relative_to(ROOT)} has {lines} lines"
